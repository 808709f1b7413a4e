/*
 * rewrite_parts.h
 *		What is known of an expression of our type, and the expressions that
 *		take its place.
 */
#ifndef NOMP_REWRITE_PARTS_H
#define NOMP_REWRITE_PARTS_H

#include "postgres.h"

#include "nodes/primnodes.h"

/* Is this expression's value of our type, domains looked through? */
extern bool rewrite_is_ours(Node *expr, Oid ours);

/* Is it an array of our type? */
extern bool rewrite_holds_ours(Node *array, Oid ours);

/* The modifier of an expression of our type, or -1 if it is not known. */
extern int32 rewrite_modifier(Node *expr, Oid ours);

/* The type inside, as comparisons see it, or InvalidOid if it is not known. */
extern Oid	rewrite_inner_type(Node *expr, Oid ours);
extern Oid	rewrite_compared_type(int32 typmod);

/* The one type inside all of these that have one; InvalidOid if they differ. */
extern Oid	rewrite_common_type(List *exprs, Oid ours);

/* Do fingerprints say whether two values of these modifiers are equal? */
extern bool rewrite_same_search(int32 a, int32 b);

/* Decrypted to that type.  Raises NC006 outside a tenant. */
extern Node *rewrite_plain(Node *expr, Oid type);

/* A fingerprint to compare with a column of that modifier. */
extern Node *rewrite_probe(Node *expr, int32 typmod, Oid ours);

extern Node *rewrite_int_constant(int32 value);

/* Apply to every element of an array what is done to rewrite_any_element(). */
extern Node *rewrite_map_array(Node *array, Oid result_element, Node *element_expr);
extern Node *rewrite_any_element(Node *array);

/* The same operator, by name, of what is inside. */
extern OpExpr *rewrite_base_operation(const char *operator, Node *left,
									  Node *right, Oid collation);

/* The implicit casts that PostgreSQL adds take the collation along. */
extern void rewrite_give_collation(Node *expr, Oid collation);

/* Rewrite one comparison, its operands rewritten already; NULL if not ours. */
extern Node *rewrite_comparison(Node *node, Oid ours);

/* Raise 0A000: encrypted values cannot be "what". */
extern void rewrite_refuse(const char *what, const char *hint) pg_attribute_noreturn();

#endif							/* NOMP_REWRITE_PARTS_H */
