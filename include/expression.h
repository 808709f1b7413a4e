/*
 * expression.h
 *		Expressions over a table's columns that a caller gives as text.
 */
#ifndef NOMP_EXPRESSION_H
#define NOMP_EXPRESSION_H

#include "postgres.h"

#include "nodes/nodes.h"
#include "utils/relcache.h"

/*
 * The one expression that a text is, its names as the session's search_path
 * has them; the table's columns can be qualified with "t".  "what" names the
 * argument in errors, and "hint" says what to write.  Raises 42601 for
 * anything else, and what the expression's own mistakes raise.
 */
typedef Node *(*ExpressionCoerce) (Node *expr, void *pstate);

extern Node *expression_parse(Relation rel, const char *text, ExpressionCoerce coerce,
							  const char *what, const char *hint);

/* The coercion to text, whatever the type; a literal is one already. */
extern Node *expression_as_text(Node *expr, void *pstate);

/*
 * As text again, with every name qualified, so that it means the same under
 * any search_path.  Columns have the prefix "t" if "prefix", and within
 * subqueries.
 */
extern char *expression_text(Node *expr, Oid table, bool prefix);

#endif							/* NOMP_EXPRESSION_H */
