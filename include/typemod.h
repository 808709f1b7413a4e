/*
 * typemod.h
 *		The modifier of type "encrypted": which type is inside.
 *
 *		bits 0..7   type code (value.h)
 *		bits 8..30  reserved for flags and the inner type's own modifier: 0
 */
#ifndef NOMP_TYPEMOD_H
#define NOMP_TYPEMOD_H

#include "postgres.h"

extern uint8 typemod_type_code(int32 typmod);
extern const char *type_code_name(uint8 code);

#endif							/* NOMP_TYPEMOD_H */
