/*
 * inline_guard.h
 *		Keeps SQL functions that handle encrypted values from being inlined.
 */
#ifndef NOMP_INLINE_GUARD_H
#define NOMP_INLINE_GUARD_H

#include "postgres.h"

#include "nodes/parsenodes.h"

extern void inline_guard_init(void);

/*
 * Before planning a query: the functions in it that must stay calls, and
 * whether any of them compares records whose columns it does not know.
 */
extern List *inline_guard_find(Query *query, Oid ours, bool *compare_records);

/* In force until set to what it was; returns what it was. */
extern List *inline_guard_set(List *functions);

#endif							/* NOMP_INLINE_GUARD_H */
