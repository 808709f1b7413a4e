/*
 * inside.h
 *		Encrypted values inside what a column holds: itself, a domain, an
 *		array, a composite.
 */
#ifndef NOMP_INSIDE_H
#define NOMP_INSIDE_H

#include "postgres.h"

/* A value, or as much of one that lies out of line as says what it is. */
extern bytea *inside_head(Datum value);

/* Either, or NULL if what lies out of line cannot be fetched. */
extern bytea *inside_try(Datum value, bool head);

/* Can a value of that type hold one of ours? */
extern bool inside_holds(Oid type);

/* Can one of them be searchable, by the modifiers that go with it? */
extern bool inside_searchable(Oid type, int32 typmod);

/*
 * Called for each encrypted value; what it returns takes the value's place.
 * Return the same Datum to leave it.
 */
typedef Datum (*InsideMap) (Datum value, int32 typmod, void *arg);

/* The value with all of ours mapped: the same Datum if nothing changed. */
extern Datum inside_map(Datum value, Oid type, int32 typmod, InsideMap map, void *arg);

#endif							/* NOMP_INSIDE_H */
