/*
 * compare_guard.c
 *		Finds the comparisons that ciphertext cannot answer, and refuses them.
 *
 * Two encryptions of one plaintext differ: a query that compares, sorts or
 * groups values of the type would give a wrong answer without anybody
 * noticing.  Walks queries after rewriting (query_guard.c) and expressions
 * that are stored and never planned (ddl_guard.c).
 *
 * A value is compared also where it is hidden: in a row, an array, a domain,
 * or the body of an SQL function that the planner inlines.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "compare_guard.h"
#include "executor/functions.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

typedef struct Walk
{
	Oid			ours;			/* the type */
	List	   *functions;		/* whose bodies are being looked at */
	bool		makes_records;	/* of our type somewhere */
	bool		compares_records;	/* whose columns are not known here */
} Walk;

static bool check_node(Node *node, Walk *walk);

static void
refuse(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("encrypted values cannot be %s", what),
			 errhint("Use what is inside, for example column::text, inside a tenant.")));
}

static bool
columns_hold(TupleDesc desc, Oid ours)
{
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped &&
			compare_guard_holds(TupleDescAttr(desc, i)->atttypid, ours))
			return true;
	}
	return false;
}

/* The type itself, or a domain, array or row type with it inside. */
bool
compare_guard_holds(Oid type, Oid ours)
{
	Oid			element;
	TupleDesc	desc;
	bool		holds;

	check_stack_depth();
	if (type == ours)
		return true;
	if (!OidIsValid(type) || type < FirstNormalObjectId)
		return false;
	type = getBaseType(type);
	element = get_element_type(type);
	if (OidIsValid(element))
		return compare_guard_holds(element, ours);
	if (get_typtype(type) != TYPTYPE_COMPOSITE)
		return type == ours;
	desc = lookup_rowtype_tupdesc(type, -1);
	holds = columns_hold(desc, ours);
	ReleaseTupleDesc(desc);
	return holds;
}

/*
 * The same for what an expression returns.  *unknown is set if it is a
 * record from somewhere else in the query, which may hold anything.
 */
static bool
expr_holds(Node *expr, Oid ours, bool *unknown)
{
	Oid			type;
	List	   *parts = NIL;
	ListCell   *lc;

	if (IsA(expr, TargetEntry))
		expr = (Node *) ((TargetEntry *) expr)->expr;
	type = exprType(expr);
	if (IsA(expr, RowExpr))
		parts = ((RowExpr *) expr)->args;
	else if (IsA(expr, ArrayExpr))
		parts = ((ArrayExpr *) expr)->elements;
	foreach(lc, parts)
	{
		if (expr_holds(lfirst(lc), ours, unknown))
			return true;
	}
	if (type == RECORDOID && IsA(expr, FuncExpr))
	{
		TupleDesc	desc = get_expr_result_tupdesc(expr, true);

		if (desc != NULL)
			return columns_hold(desc, ours);
	}
	if (parts == NIL && (type == RECORDOID || type == RECORDARRAYOID))
		*unknown = true;
	return compare_guard_holds(type, ours);
}

/* Is any of these, which are compared, or hold, of our type? */
static bool
any_compared(List *exprs, Walk *walk)
{
	ListCell   *lc;

	foreach(lc, exprs)
	{
		if (expr_holds(lfirst(lc), walk->ours, &walk->compares_records))
			return true;
	}
	return false;
}

/* Does any of these hold our type, or may it? */
static bool
any_holds(List *exprs, Oid ours)
{
	bool		unknown = false;
	ListCell   *lc;

	foreach(lc, exprs)
	{
		if (expr_holds(lfirst(lc), ours, &unknown))
			return true;
	}
	return unknown;
}

/* Is any of these sort or group clauses over our type? */
static bool
clauses_compare(List *clauses, List *targets, Walk *walk)
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
				expr_holds((Node *) entry, walk->ours, &walk->compares_records))
				return true;
		}
	}
	return false;
}

static void
check_set_operations(Node *node, Walk *walk)
{
	SetOperationStmt *op = (SetOperationStmt *) node;
	ListCell   *lc;

	if (node == NULL || !IsA(node, SetOperationStmt))
		return;
	if (!(op->op == SETOP_UNION && op->all))
	{
		foreach(lc, op->colTypes)
		{
			if (compare_guard_holds(lfirst_oid(lc), walk->ours))
				refuse("compared by UNION, INTERSECT or EXCEPT");
			if (lfirst_oid(lc) == RECORDOID || lfirst_oid(lc) == RECORDARRAYOID)
				walk->compares_records = true;
		}
	}
	check_set_operations(op->larg, walk);
	check_set_operations(op->rarg, walk);
}

static void
check_query(Query *query, Walk *walk)
{
	ListCell   *lc;

	if (clauses_compare(query->sortClause, query->targetList, walk))
		refuse("ordered");
	if (clauses_compare(query->groupClause, query->targetList, walk))
		refuse("grouped");
	if (clauses_compare(query->distinctClause, query->targetList, walk))
		refuse("made distinct");
	foreach(lc, query->windowClause)
	{
		WindowClause *window = lfirst_node(WindowClause, lc);

		if (clauses_compare(window->partitionClause, query->targetList, walk) ||
			clauses_compare(window->orderClause, query->targetList, walk))
			refuse("ordered or partitioned by a window");
	}
	check_set_operations(query->setOperations, walk);
}

/* Says what it does: whether the stored bytes are the same. */
static bool
compares_images(Oid operator)
{
	switch (get_opcode(operator))
	{
		case F_RECORD_IMAGE_EQ:
		case F_RECORD_IMAGE_NE:
		case F_RECORD_IMAGE_LT:
		case F_RECORD_IMAGE_GT:
		case F_RECORD_IMAGE_LE:
		case F_RECORD_IMAGE_GE:
			return true;
		default:
			return false;
	}
}

/* Functions that compare what is inside their arguments. */
static bool
compares_elements(Oid function)
{
	switch (function)
	{
		case F_ARRAY_POSITION_ANYCOMPATIBLEARRAY_ANYCOMPATIBLE:
		case F_ARRAY_POSITION_ANYCOMPATIBLEARRAY_ANYCOMPATIBLE_INT4:
		case F_ARRAY_POSITIONS:
		case F_ARRAY_REMOVE:
		case F_ARRAY_REPLACE:
		case F_WIDTH_BUCKET_ANYCOMPATIBLE_ANYCOMPATIBLEARRAY:
		case F_MAX_ANYARRAY:
		case F_MIN_ANYARRAY:
		case F_ARRAY_LARGER:
		case F_ARRAY_SMALLER:
		case F_ARRAY_EQ:
		case F_ARRAY_NE:
		case F_ARRAY_LT:
		case F_ARRAY_LE:
		case F_ARRAY_GT:
		case F_ARRAY_GE:
		case F_BTARRAYCMP:
		case F_ARRAYOVERLAP:
		case F_ARRAYCONTAINS:
		case F_ARRAYCONTAINED:
		case F_HASH_ARRAY:
		case F_HASH_ARRAY_EXTENDED:
		case F_RECORD_EQ:
		case F_RECORD_NE:
		case F_RECORD_LT:
		case F_RECORD_LE:
		case F_RECORD_GT:
		case F_RECORD_GE:
		case F_BTRECORDCMP:
		case F_HASH_RECORD:
		case F_HASH_RECORD_EXTENDED:
			return true;
		default:
			return false;
	}
}

/* Rewrite as the planner's inlining does, and look at the result. */
static void
check_body(Query *query, Walk *walk)
{
	ListCell   *lc;

	query = copyObject(query);
	AcquireRewriteLocks(query, true, false);
	foreach(lc, QueryRewrite(query))
		(void) check_node(lfirst(lc), walk);
}

static void
check_bodies(Node *body, Walk *walk)
{
	ListCell   *lc;

	if (IsA(body, Query))
		check_body((Query *) body, walk);
	else
	{
		/* BEGIN ATOMIC: a list with one list of queries */
		foreach(lc, linitial_node(List, castNode(List, body)))
		{
			if (lfirst_node(Query, lc)->commandType != CMD_UTILITY)
				check_body(lfirst_node(Query, lc), walk);
		}
	}
}

/* Parse a body of text, if it is one statement, for the types of this call. */
static void
check_text_body(const char *source, HeapTuple tuple, Node *call, Walk *walk)
{
	List	   *raw = pg_parse_query(source);
	SQLFunctionParseInfoPtr info;
	ListCell   *lc;

	if (list_length(raw) != 1)
		return;
	info = prepare_sql_fn_parse_info(tuple, call, exprInputCollation(call));
	foreach(lc, pg_analyze_and_rewrite_withcb(linitial_node(RawStmt, raw), source,
											  (ParserSetupHook) sql_fn_parser_setup,
											  info, NULL))
	{
		if (lfirst_node(Query, lc)->commandType != CMD_UTILITY)
			(void) check_node(lfirst(lc), walk);
	}
}

/*
 * The planner inlines SQL functions, those whose body is stored parsed
 * without passing any hook; so is a scalar one whose body is text, but it
 * sees no values of our type if none is passed to it.
 */
static void
check_function(Node *call, Oid function, List *args, Walk *walk)
{
	HeapTuple	tuple;
	Form_pg_proc form;
	Datum		body;
	bool		isnull;

	if (function < FirstNormalObjectId || list_member_oid(walk->functions, function))
		return;
	tuple = SearchSysCacheCopy1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return;
	form = (Form_pg_proc) GETSTRUCT(tuple);
	if (form->prolang != SQLlanguageId || form->prokind != PROKIND_FUNCTION ||
		form->prosecdef || !heap_attisnull(tuple, Anum_pg_proc_proconfig, NULL))
		return;
	walk->functions = lappend_oid(walk->functions, function);
	body = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &isnull);
	if (!isnull)
		check_bodies(stringToNode(TextDatumGetCString(body)), walk);
	else if (!form->proretset && any_holds(args, walk->ours))
	{
		body = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull);
		check_text_body(TextDatumGetCString(body), tuple, call, walk);
	}
	walk->functions = list_delete_last(walk->functions);
}

static void
check_call(Node *node, Oid function, List *args, Walk *walk)
{
	bool		unknown = false;

	if (compares_elements(function) && any_compared(args, walk))
		refuse("compared");
	if (expr_holds(node, walk->ours, &unknown) && exprType(node) == RECORDOID)
		walk->makes_records = true;
	check_function(node, function, args, walk);
}

static bool
check_node(Node *node, Walk *walk)
{
	bool		unknown = false;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Query:
			check_query((Query *) node, walk);
			return query_tree_walker((Query *) node, check_node, walk, 0);
		case T_OpExpr:
			/* operators that take our type are our comparisons, or hide them */
			if (((OpExpr *) node)->opresulttype == BOOLOID &&
				any_compared(((OpExpr *) node)->args, walk) &&
				!compares_images(((OpExpr *) node)->opno))
				refuse("compared");
			break;
		case T_DistinctExpr:
		case T_NullIfExpr:
			if (any_compared(((OpExpr *) node)->args, walk))
				refuse("compared");
			break;
		case T_ScalarArrayOpExpr:
			if (any_compared(((ScalarArrayOpExpr *) node)->args, walk) &&
				!compares_images(((ScalarArrayOpExpr *) node)->opno))
				refuse("compared");
			break;
		case T_RowCompareExpr:
			if (any_compared(((RowCompareExpr *) node)->largs, walk))
				refuse("compared");
			break;
		case T_MinMaxExpr:
			if (any_compared(((MinMaxExpr *) node)->args, walk))
				refuse("compared");
			break;
		case T_FuncExpr:
			check_call(node, ((FuncExpr *) node)->funcid, ((FuncExpr *) node)->args, walk);
			break;
		case T_WindowFunc:
			check_call(node, ((WindowFunc *) node)->winfnoid, ((WindowFunc *) node)->args, walk);
			break;
		case T_Aggref:
			if (clauses_compare(((Aggref *) node)->aggdistinct, ((Aggref *) node)->args, walk) ||
				clauses_compare(((Aggref *) node)->aggorder, ((Aggref *) node)->args, walk))
				refuse("ordered or made distinct");
			check_call(node, ((Aggref *) node)->aggfnoid, ((Aggref *) node)->args, walk);
			break;
		case T_RowExpr:
			if (expr_holds(node, walk->ours, &unknown))
				walk->makes_records = true;
			break;
		default:
			break;
	}
	return expression_tree_walker(node, check_node, walk);
}

/* Refuse a query or an expression that compares values of our type. */
void
compare_guard_check(Node *tree, Oid ours)
{
	Walk		walk = {.ours = ours};

	(void) check_node(tree, &walk);
	if (walk.makes_records && walk.compares_records)
		refuse("compared within records");
}

/* The same for an SQL function's body, parsed while a call of it is planned. */
void
compare_guard_check_body(Query *body, Oid ours)
{
	Walk		walk = {.ours = ours};

	check_body(body, &walk);
	if (walk.makes_records && walk.compares_records)
		refuse("compared within records");
}
