/*
 * canonical.h
 *		The canonical text of a value, which its fingerprint is taken of.
 *
 * Equal values, as the type's "=" has it, have equal texts, on every machine
 * and under all settings; different values have different ones, but for
 * what the normalisation is asked to ignore.
 */
#ifndef NOMP_CANONICAL_H
#define NOMP_CANONICAL_H

#include "postgres.h"

/* What is done to a text before its fingerprint is taken. */
typedef enum Normal
{
	NORMAL_EXACT,
	NORMAL_NOCASE,
	NORMAL_DIGITS
} Normal;

/* Does a type have one?  Not where "=" is missing or ignores too much. */
extern bool canonical_exists(uint8 code);

/*
 * Palloc'd UTF-8.  NORMAL_NOCASE and NORMAL_DIGITS are for text, varchar and
 * char only.
 */
extern char *canonical_text(uint8 code, Datum value, Normal normal, size_t *len);

#endif							/* NOMP_CANONICAL_H */
