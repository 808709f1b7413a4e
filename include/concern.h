/*
 * concern.h
 *		Can a query concern us at all?
 */
#ifndef NOMP_CONCERN_H
#define NOMP_CONCERN_H

#include "postgres.h"

#include "nodes/nodes.h"

/* May there be a value of our type, or a row or array of them, anywhere? */
extern bool concern_values(Node *tree, Oid ours);

/* The same, or a function that the planner might put its body in place of? */
extern bool concern_plan(Node *tree, Oid ours);

#endif							/* NOMP_CONCERN_H */
