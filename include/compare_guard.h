/*
 * compare_guard.h
 *		Finds the comparisons that ciphertext cannot answer, and refuses them.
 */
#ifndef NOMP_COMPARE_GUARD_H
#define NOMP_COMPARE_GUARD_H

#include "postgres.h"

#include "nodes/parsenodes.h"

/* The type itself, or a domain, array or row type with it inside. */
extern bool compare_guard_holds(Oid type, Oid ours);

/* Raise 0A000 for a query or expression that compares values of the type. */
extern void compare_guard_check(Node *tree, Oid ours);

/* The same for an SQL function's body, parsed while a call of it is planned. */
extern void compare_guard_check_body(Query *body, Oid ours);

#endif							/* NOMP_COMPARE_GUARD_H */
