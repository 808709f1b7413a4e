/*
 * query_guard.c
 *		Literals in plans, and comparisons that ciphertext cannot answer.
 *
 * After parse analysis every constant of the type is wrapped in
 * nomp_crypt._literal, so that a cached plan cannot carry one school's value
 * into another.  Before planning, a query that compares, sorts or groups
 * values of the type is refused: two encryptions of one plaintext differ, so
 * the answer would be wrong without anybody noticing.
 *
 * Costs one walk over the query tree each, and nothing in a database without
 * the extension.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "guard.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/planner.h"
#include "parser/analyze.h"
#include "session.h"
#include "type_io.h"
#include "utils/lsyscache.h"

static planner_hook_type next_planner = NULL;
static post_parse_analyze_hook_type next_analyze = NULL;

/* ---- literals ---- */

typedef struct LiteralContext
{
	Oid			type;
	bool		inside;
} LiteralContext;

static Node *
wrap_literals(Node *node, LiteralContext *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, wrap_literals, context, 0);
	if (IsA(node, Const) && ((Const *) node)->consttype == context->type &&
		!((Const *) node)->constisnull)
		return (Node *) makeFuncExpr(catalog_literal_function(), context->type,
									 list_make2(node, makeBoolConst(context->inside, false)),
									 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	return expression_tree_mutator(node, wrap_literals, context);
}

static bool
has_literal(Node *node, Oid *type)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, has_literal, type, 0);
	if (IsA(node, Const))
		return ((Const *) node)->consttype == *type && !((Const *) node)->constisnull;
	return expression_tree_walker(node, has_literal, type);
}

/* Replace a query's content in place: the caller holds the pointer. */
static void
wrap_query(Query *query, Oid type)
{
	LiteralContext context;

	if (query->commandType == CMD_UTILITY)
	{
		Node	   *stmt = query->utilityStmt;
		Node	   *inner = NULL;

		if (IsA(stmt, ExplainStmt))
			inner = ((ExplainStmt *) stmt)->query;
		else if (IsA(stmt, CreateTableAsStmt))
			inner = ((CreateTableAsStmt *) stmt)->query;
		else if (IsA(stmt, DeclareCursorStmt))
			inner = ((DeclareCursorStmt *) stmt)->query;
		if (inner != NULL && IsA(inner, Query))
			wrap_query((Query *) inner, type);
		return;
	}
	if (!has_literal((Node *) query, &type))
		return;
	context.type = type;
	context.inside = session_tenant() != NULL;
	*query = *query_tree_mutator(query, wrap_literals, &context, 0);
}

static void
analyze(ParseState *pstate, Query *query, JumbleState *jstate)
{
	Oid			type;

	if (next_analyze != NULL)
		next_analyze(pstate, query, jstate);
	if (!IsTransactionState())
		return;
	type = catalog_type();
	if (OidIsValid(type) && OidIsValid(catalog_literal_function()))
		wrap_query(query, type);
}

/* ---- comparisons ---- */

static void
refuse(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("encrypted values cannot be %s", what),
			 errhint("Use what is inside, for example column::text, inside a tenant.")));
}

/* The type itself, a domain over it, or an array of either. */
static bool
is_encrypted(Oid type, Oid ours)
{
	Oid			element;

	if (type == ours)
		return true;
	if (!OidIsValid(type) || type < FirstNormalObjectId)
		return false;
	type = getBaseType(type);
	element = get_element_type(type);
	return type == ours || (OidIsValid(element) && getBaseType(element) == ours);
}

static bool
any_encrypted(List *exprs, Oid ours)
{
	ListCell   *lc;

	foreach(lc, exprs)
	{
		Node	   *expr = lfirst(lc);

		if (IsA(expr, TargetEntry))
			expr = (Node *) ((TargetEntry *) expr)->expr;
		if (is_encrypted(exprType(expr), ours))
			return true;
	}
	return false;
}

/* Is any of these sort or group clauses over our type? */
static bool
clauses_encrypted(List *clauses, List *targets, Oid ours)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		ListCell   *target;

		foreach(target, targets)
		{
			TargetEntry *entry = lfirst_node(TargetEntry, target);

			if (entry->ressortgroupref == clause->tleSortGroupRef &&
				is_encrypted(exprType((Node *) entry->expr), ours))
				return true;
		}
	}
	return false;
}

static void
check_set_operations(Node *node, Oid ours)
{
	SetOperationStmt *op = (SetOperationStmt *) node;
	ListCell   *lc;

	if (node == NULL || !IsA(node, SetOperationStmt))
		return;
	if (!(op->op == SETOP_UNION && op->all))
	{
		foreach(lc, op->colTypes)
		{
			if (is_encrypted(lfirst_oid(lc), ours))
				refuse("compared by UNION, INTERSECT or EXCEPT");
		}
	}
	check_set_operations(op->larg, ours);
	check_set_operations(op->rarg, ours);
}

static void
check_query(Query *query, Oid ours)
{
	ListCell   *lc;

	if (clauses_encrypted(query->sortClause, query->targetList, ours))
		refuse("ordered");
	if (clauses_encrypted(query->groupClause, query->targetList, ours))
		refuse("grouped");
	if (clauses_encrypted(query->distinctClause, query->targetList, ours))
		refuse("made distinct");
	foreach(lc, query->windowClause)
	{
		WindowClause *window = lfirst_node(WindowClause, lc);

		if (clauses_encrypted(window->partitionClause, query->targetList, ours) ||
			clauses_encrypted(window->orderClause, query->targetList, ours))
			refuse("ordered or partitioned by a window");
	}
	check_set_operations(query->setOperations, ours);
}

static bool
check_node(Node *node, Oid *ours)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Query:
			check_query((Query *) node, *ours);
			return query_tree_walker((Query *) node, check_node, ours, 0);
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
			/* operators that take our type are our comparisons, or hide them */
			if (any_encrypted(((OpExpr *) node)->args, *ours) &&
				((OpExpr *) node)->opresulttype == BOOLOID)
				refuse("compared");
			if (IsA(node, NullIfExpr) && any_encrypted(((OpExpr *) node)->args, *ours))
				refuse("compared");
			break;
		case T_ScalarArrayOpExpr:
			if (any_encrypted(((ScalarArrayOpExpr *) node)->args, *ours))
				refuse("compared");
			break;
		case T_RowCompareExpr:
			if (any_encrypted(((RowCompareExpr *) node)->largs, *ours))
				refuse("compared");
			break;
		case T_MinMaxExpr:
			if (is_encrypted(((MinMaxExpr *) node)->minmaxtype, *ours))
				refuse("compared");
			break;
		case T_Aggref:
			if (clauses_encrypted(((Aggref *) node)->aggdistinct, ((Aggref *) node)->args, *ours) ||
				clauses_encrypted(((Aggref *) node)->aggorder, ((Aggref *) node)->args, *ours))
				refuse("ordered or made distinct");
			break;
		default:
			break;
	}
	return expression_tree_walker(node, check_node, ours);
}

static PlannedStmt *
plan(Query *query, const char *source, int options, ParamListInfo params)
{
	Oid			ours = catalog_type();
	PlannedStmt *result;

	if (OidIsValid(ours))
		(void) check_node((Node *) query, &ours);
	/* a literal in an SQL function that is inlined now would be nobody's */
	type_refuse_literals++;
	PG_TRY();
	{
		result = next_planner != NULL ?
			next_planner(query, source, options, params) :
			standard_planner(query, source, options, params);
	}
	PG_FINALLY();
	{
		type_refuse_literals--;
	}
	PG_END_TRY();
	return result;
}

void
query_guard_init(void)
{
	next_planner = planner_hook;
	planner_hook = plan;
	next_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = analyze;
}
