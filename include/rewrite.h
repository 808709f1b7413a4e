/*
 * rewrite.h
 *		Rewrites comparisons of encrypted values into ones that mean what they
 *		say: by fingerprint where both sides have one, else of what is inside.
 */
#ifndef NOMP_REWRITE_H
#define NOMP_REWRITE_H

#include "postgres.h"

#include "nodes/parsenodes.h"

/* A query as the planner gets it; the result shares nothing that changed. */
extern Query *rewrite_query(Query *query, Oid ours);

/* Does anything in it have to do with values of our type? */
extern bool rewrite_mentions(Node *node, Oid ours);

/* ---- between rewrite_query.c, rewrite_expr.c and compare_guard.c ---- */

/* Is this expression's value of our type, domains looked through? */
extern bool rewrite_is_ours(Node *expr, Oid ours);

/* The modifier of an expression of our type, or -1 if it is not known. */
extern int32 rewrite_modifier(Node *expr, Oid ours);

/* The type inside as comparisons see it, or InvalidOid. */
extern Oid	rewrite_inner_type(Node *expr, Oid ours);

/* Do fingerprints say whether two values of these modifiers are equal? */
extern bool rewrite_same_search(int32 a, int32 b);

/* Decrypted to that type, in a tenant; "once" for what does not change. */
extern Node *rewrite_plain(Node *expr, Oid type);

/* Rewrite one comparison, its operands rewritten already; NULL if not ours. */
extern Node *rewrite_comparison(Node *node, Oid ours);

extern void rewrite_refuse(const char *what, const char *hint) pg_attribute_noreturn();

#endif							/* NOMP_REWRITE_H */
