/*
 * typemod.h
 *		The modifier of type "encrypted": what is inside, and how it is found.
 *
 *		bits 0..7    type code (value.h), array bit included
 *		bits 8..9    0 not searchable; else 1 + Normal
 *		bits 10..30  the inner type's own modifier, packed; 0 if none
 */
#ifndef NOMP_TYPEMOD_H
#define NOMP_TYPEMOD_H

#include "canonical.h"

/* The type code a modifier asks for; text for -1. */
extern uint8 typemod_type_code(int32 typmod);

/* The inner type's own modifier, or -1. */
extern int32 typemod_inner(int32 typmod);

/* False for -1. */
extern bool typemod_searchable(int32 typmod);

/* Of a searchable one. */
extern Normal typemod_normal(int32 typmod);

#endif							/* NOMP_TYPEMOD_H */
