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

#endif							/* NOMP_REWRITE_H */
