/*
 * compare_guard.h
 *		Refuses comparisons of encrypted values that nothing can answer.
 */
#ifndef NOMP_COMPARE_GUARD_H
#define NOMP_COMPARE_GUARD_H

#include "postgres.h"

#include "nodes/parsenodes.h"

/* The type itself, or a domain, array or row type with it inside. */
extern bool compare_guard_holds(Oid type, Oid ours);

/*
 * The same for what an expression returns.  *unknown is set if it is a
 * record from somewhere else in the query, which may hold anything.
 */
extern bool compare_guard_expr_holds(Node *expr, Oid ours, bool *unknown);

/*
 * Raise 0A000 for a query, rewritten already, that compares hidden values;
 * or for an expression that is stored, if it compares values at all but by
 * fingerprint.  True if it makes records of our type, which functions that it
 * calls might compare.
 */
extern bool compare_guard_check(Node *tree, Oid ours, bool stored);

/* The other half: does it compare records whose columns are not known? */
extern bool compare_guard_compares_records(Node *tree, Oid ours);
extern void compare_guard_refuse_records(void) pg_attribute_noreturn();

#endif							/* NOMP_COMPARE_GUARD_H */
