/*
 * expression.c
 *		Expressions over a table's columns that a caller gives as text.
 *
 * They are parsed by PostgreSQL's own parser, as one expression, and written
 * out again: nothing of the caller's text gets into a statement.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "expression.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_clause.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

/* An error's position is one in the text, not in the client's statement. */
static void
at_error(void *source)
{
	int			position = geterrposition();

	if (position <= 0)
		return;
	errposition(0);
	internalerrposition(position);
	internalerrquery((const char *) source);
}

static void
refuse(const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_SYNTAX_ERROR),
			 errmsg("%s over the table's columns", what),
			 errhint("%s", hint)));
}

/* The expression that a text is: nothing before it, nothing behind it. */
static Node *
parse_alone(char *source, const char *what, const char *hint)
{
	List	   *statements = raw_parser(source, RAW_PARSE_DEFAULT);
	SelectStmt *bare = makeNode(SelectStmt);
	SelectStmt *select;
	ResTarget  *target;

	if (list_length(statements) != 1)
		refuse(what, hint);
	select = (SelectStmt *) linitial_node(RawStmt, statements)->stmt;
	if (!IsA(select, SelectStmt) || list_length(select->targetList) != 1)
		refuse(what, hint);
	bare->targetList = select->targetList;
	bare->limitOption = select->limitOption;
	target = linitial_node(ResTarget, select->targetList);
	if (!equal(bare, select) || target->name != NULL || target->indirection != NIL)
		refuse(what, hint);
	return target->val;
}

Node *
expression_parse(Relation rel, const char *text, ExpressionCoerce coerce,
				 const char *what, const char *hint)
{
	char	   *source = psprintf("SELECT %s", text);
	ErrorContextCallback callback = {.callback = at_error,.arg = source};
	ParseState *pstate = make_parsestate(NULL);
	Node	   *expr;

	callback.previous = error_context_stack;
	error_context_stack = &callback;
	pstate->p_sourcetext = source;
	addNSItemToQuery(pstate,
					 addRangeTableEntryForRelation(pstate, rel, AccessShareLock,
												   makeAlias("t", NIL), true, true),
					 false, true, true);
	expr = transformExpr(pstate, parse_alone(source, what, hint), EXPR_KIND_WHERE);
	expr = coerce(expr, pstate);
	assign_expr_collations(pstate, expr);
	error_context_stack = callback.previous;
	free_parsestate(pstate);
	return expr;
}

Node *
expression_as_text(Node *expr, void *pstate)
{
	Node	   *text = coerce_to_target_type(pstate, expr, exprType(expr), TEXTOID, -1,
											 COERCION_EXPLICIT, COERCE_EXPLICIT_CAST, -1);

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("%s cannot be written as text", format_type_be(exprType(expr)))));
	return text;
}

char *
expression_text(Node *expr, Oid table, bool prefix)
{
	int			level = NewGUCNestLevel();
	char	   *text;

	(void) set_config_option("search_path", "pg_catalog", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	text = deparse_expression(expr, deparse_context_for("t", table), prefix, false);
	AtEOXact_GUC(true, level);
	return text;
}
