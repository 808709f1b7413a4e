/*
 * query_guard.c
 *		The hooks on queries: literals in plans, comparisons.
 *
 * After parse analysis every constant of the type is wrapped in
 * nomp_crypt._literal, so that a cached plan cannot carry one school's value
 * into another.  When the session's school changes, PostgreSQL is told that
 * this function has changed: plans that call it are made again, from the
 * statement's text, and no others.
 *
 * Before planning, comparisons are rewritten (rewrite.h), or refused
 * (compare_guard.c), and SQL functions that handle values of the type are
 * kept from being inlined (inline_guard.c).
 *
 * Costs one cheap walk over the query tree each (concern.c), more for queries
 * that concern us, and nothing in a database without the extension.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "compare_guard.h"
#include "concern.h"
#include "guard.h"
#include "inline_guard.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/planner.h"
#include "parser/analyze.h"
#include "rewrite.h"
#include "session.h"
#include "sqlnames.h"
#include "type_io.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

static planner_hook_type next_planner = NULL;
static post_parse_analyze_hook_type next_analyze = NULL;

/* ---- literals ---- */

static bool literals_made = false;	/* by this session */
static uint32 literal_hash = 0; /* of _literal's row, as plans remember it */

/* Called when the school changes, perhaps outside a transaction. */
static void
literals_changed(void)
{
	if (literals_made)
		CallSyscacheCallbacks(PROCOID, literal_hash);
}

typedef struct LiteralContext
{
	Oid			type;
	bool		inside;
} LiteralContext;

/*
 * Is this constant one of our type?  Refuses rows of them, and arrays of
 * more than one dimension: they cannot be wrapped.
 */
static bool
is_literal(Node *node, Oid type)
{
	Const	   *constant = (Const *) node;

	if (!IsA(node, Const) || constant->constisnull)
		return false;
	if (constant->consttype == type)
		return true;
	if (!compare_guard_holds(constant->consttype, type))
		return false;
	if (get_element_type(constant->consttype) == type &&
		ARR_NDIM(DatumGetArrayTypeP(constant->constvalue)) <= 1)
		return ARR_NDIM(DatumGetArrayTypeP(constant->constvalue)) == 1;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a literal of type %s cannot hold encrypted values",
					format_type_be(constant->consttype)),
			 errhint("Write ARRAY[...] or ROW(...), or pass it as a parameter.")));
}

/* A literal array as ARRAY[...] of literals. */
static Node *
spell_out_array(Const *constant, Oid type)
{
	ArrayExpr  *array = makeNode(ArrayExpr);
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(constant->constvalue), type, -1, false,
					  TYPALIGN_INT, &elements, &nulls, &n);
	array->array_typeid = constant->consttype;
	array->array_collid = constant->constcollid;
	array->element_typeid = type;
	array->location = constant->location;
	for (int i = 0; i < n; i++)
		array->elements = lappend(array->elements,
								  makeConst(type, constant->consttypmod, constant->constcollid,
											-1, elements[i], nulls[i], false));
	return (Node *) array;
}

static Node *
wrap_literals(Node *node, LiteralContext *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, wrap_literals, context, 0);
	/* done already: EXPLAIN's query comes here by itself, and within EXPLAIN */
	if (IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == sql_function(SQL_LITERAL))
		return copyObject(node);
	if (is_literal(node, context->type) && ((Const *) node)->consttype != context->type)
		node = spell_out_array((Const *) node, context->type);
	else if (is_literal(node, context->type))
	{
		literal_hash = GetSysCacheHashValue1(PROCOID, ObjectIdGetDatum(sql_function(SQL_LITERAL)));
		literals_made = true;
		return (Node *) makeFuncExpr(sql_function(SQL_LITERAL), context->type,
									 list_make2(node, makeBoolConst(context->inside, false)),
									 ((Const *) node)->constcollid,
									 ((Const *) node)->constcollid,
									 COERCE_EXPLICIT_CALL);
	}
	return expression_tree_mutator(node, wrap_literals, context);
}

static bool
has_literal(Node *node, Oid *type)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, has_literal, type, 0);
	return is_literal(node, *type) || expression_tree_walker(node, has_literal, type);
}

/* ---- operators that are not ours ---- */

/* What an operand was before the parser made it one of our type, or NULL. */
static Node *
before_cast(Node *node, Oid type)
{
	FuncExpr   *cast = (FuncExpr *) node;
	ArrayCoerceExpr *map = (ArrayCoerceExpr *) node;

	if (IsA(node, FuncExpr) && cast->funcresulttype == type &&
		cast->funcformat == COERCE_IMPLICIT_CAST && exprType(linitial(cast->args)) != type)
		return linitial(cast->args);
	if (IsA(node, ArrayCoerceExpr) && map->coerceformat == COERCE_IMPLICIT_CAST &&
		get_element_type(map->resulttype) == type)
		return (Node *) map->arg;
	return NULL;
}

static void
refuse_operator(Oid operator, Node *left, Node *right, Oid type)
{
	Node	   *first = before_cast(left, type);
	Node	   *second = before_cast(right, type);

	first = first != NULL ? first : left;
	second = second != NULL ? second : right;
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("operator does not exist: %s %s %s",
					format_type_be(exprType(first)), get_opname(operator),
					format_type_be(exprType(second))),
			 errhint("No operator matches the given name and argument types. You might need to add explicit type casts.")));
}

/* Is one of these of our type by its own nature? */
static bool
has_own_operand(List *args, Oid type)
{
	ListCell   *lc;

	foreach(lc, args)
	{
		if (before_cast(lfirst(lc), type) == NULL && compare_guard_holds(exprType(lfirst(lc)), type))
			return true;
	}
	return false;
}

/*
 * Text casts to our type by itself and we compare with every other type, so
 * the parser finds integer = text, which does not exist without us.  It
 * shall not exist with us either.
 */
static bool
check_operators(Node *node, Oid *type)
{
	List	   *args = NIL;
	Oid			operator = InvalidOid;

	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, check_operators, type, 0);
	if (IsA(node, OpExpr) || IsA(node, DistinctExpr) || IsA(node, NullIfExpr))
	{
		args = ((OpExpr *) node)->args;
		operator = ((OpExpr *) node)->opno;
	}
	else if (IsA(node, ScalarArrayOpExpr))
	{
		args = ((ScalarArrayOpExpr *) node)->args;
		operator = ((ScalarArrayOpExpr *) node)->opno;
	}
	if (list_length(args) == 2 &&
		(before_cast(linitial(args), *type) != NULL || before_cast(lsecond(args), *type) != NULL) &&
		!has_own_operand(args, *type))
		refuse_operator(operator, linitial(args), lsecond(args), *type);
	return expression_tree_walker(node, check_operators, type);
}

/* Replace a query's content in place: the caller holds the pointer. */
static void
wrap_query(Query *query, Oid type)
{
	LiteralContext context = {.type = type,.inside = session_tenant() != NULL};

	if (query->commandType == CMD_UTILITY)
	{
		Node	   *stmt = query->utilityStmt;
		Node	   *inner = NULL;

		if (IsA(stmt, ExplainStmt))
			inner = ((ExplainStmt *) stmt)->query;
		else if (IsA(stmt, CreateTableAsStmt))
		{
			inner = ((CreateTableAsStmt *) stmt)->query;
			if (((CreateTableAsStmt *) stmt)->objtype == OBJECT_MATVIEW &&
				has_literal(inner, &type))
				type_refuse_literal();
		}
		else if (IsA(stmt, CallStmt))
		{
			FuncExpr   *call = ((CallStmt *) stmt)->funcexpr;

			call->args = (List *) wrap_literals((Node *) call->args, &context);
		}
		else if (IsA(stmt, DeclareCursorStmt))
			inner = ((DeclareCursorStmt *) stmt)->query;
		if (inner != NULL && IsA(inner, Query))
			wrap_query((Query *) inner, type);
		return;
	}
	if (!concern_values((Node *) query, type))
		return;
	(void) check_operators((Node *) query, &type);
	if (!has_literal((Node *) query, &type))
		return;
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
	if (!OidIsValid(type))
		return;
	if (OidIsValid(sql_function(SQL_LITERAL)))
		wrap_query(query, type);
}

/* ---- comparisons ---- */

static PlannedStmt *
plan_rewritten(Query *query, const char *source, int options, ParamListInfo params)
{
	Oid			ours = catalog_type();

	if (OidIsValid(ours) && concern_plan((Node *) query, ours))
	{
		bool		makes_records;
		bool		compare_records;

		/* what is checked is not run, but an event trigger is */
		if (type_literal_mode == LITERALS_CHECKED && rewrite_mentions((Node *) query, ours))
			type_refuse_literal();
		query = rewrite_query(query, ours);
		makes_records = compare_guard_check((Node *) query, ours, false);
		(void) inline_guard_set(inline_guard_find(query, ours, &compare_records));
		if (makes_records && compare_records)
			compare_guard_refuse_records();
	}
	return next_planner != NULL ?
		next_planner(query, source, options, params) :
		standard_planner(query, source, options, params);
}

static PlannedStmt *
plan(Query *query, const char *source, int options, ParamListInfo params)
{
	List	   *before = inline_guard_set(NIL);
	PlannedStmt *volatile result = NULL;

	PG_TRY();
	{
		result = plan_rewritten(query, source, options, params);
	}
	PG_FINALLY();
	{
		(void) inline_guard_set(before);
	}
	PG_END_TRY();
	return result;
}

void
query_guard_init(void)
{
	inline_guard_init();
	session_on_change(literals_changed);
	next_planner = planner_hook;
	planner_hook = plan;
	next_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = analyze;
}
