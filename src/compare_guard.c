/*
 * compare_guard.c
 *		Refuses comparisons of encrypted values that nothing can answer.
 *
 * Two encryptions of one plaintext differ: a query that compares values of
 * the type as they are would give a wrong answer without anybody noticing.
 * Where they stand plain, queries are rewritten (rewrite_expr.c,
 * rewrite_query.c); where they are hidden in a row or an array, they are
 * refused here.  Expressions that are stored and never rewritten may compare
 * only what fingerprints answer (ddl_guard.c).
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "compare_guard.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "rewrite_parts.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

typedef struct Walk
{
	Oid			ours;			/* the type */
	bool		stored;			/* an expression that is never rewritten */
	bool		makes_records;	/* of our type somewhere */
	bool		compares_records;	/* whose columns are not known here */
	bool		selects_ours;	/* as a column of a subquery or the like */
	bool		whole_rows;		/* of something that is not a table */
} Walk;

static bool check_node(Node *node, Walk *walk);

static void pg_attribute_noreturn()
refuse(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("encrypted values cannot be %s", what),
			 errhint("Use what is inside, for example column::text.")));
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

bool
compare_guard_expr_holds(Node *expr, Oid ours, bool *unknown)
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
		if (compare_guard_expr_holds(lfirst(lc), ours, unknown))
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

/*
 * Do any of these, which are compared, hide our type?  Where it stands plain,
 * rewrite_expr.c has seen to it.
 */
static bool
any_compared(List *exprs, Walk *walk)
{
	ListCell   *lc;

	foreach(lc, exprs)
	{
		Node	   *expr = lfirst(lc);

		if (IsA(expr, TargetEntry))
			expr = (Node *) ((TargetEntry *) expr)->expr;
		if (!rewrite_is_ours(expr, walk->ours) &&
			compare_guard_expr_holds(expr, walk->ours, &walk->compares_records))
			return true;
	}
	return false;
}

/* x = ANY (array): the elements are compared one by one. */
static bool
array_operation_hides(ScalarArrayOpExpr *op, Walk *walk)
{
	return any_compared(list_make1(linitial(op->args)), walk) ||
		(!rewrite_holds_ours(lsecond(op->args), walk->ours) &&
		 any_compared(list_make1(lsecond(op->args)), walk));
}

/*
 * In a stored expression, which runs without being rewritten: is this
 * comparison of our type one that fingerprints answer?
 */
static bool
answers_stored(Node *node, Walk *walk)
{
	OpExpr	   *op = (OpExpr *) node;
	char	   *name;

	if (!IsA(node, OpExpr) && !IsA(node, DistinctExpr) && !IsA(node, NullIfExpr))
		return false;
	name = get_opname(op->opno);
	return list_length(op->args) == 2 && name != NULL &&
		(strcmp(name, "=") == 0 || strcmp(name, "<>") == 0) &&
		rewrite_is_ours(linitial(op->args), walk->ours) &&
		rewrite_is_ours(lsecond(op->args), walk->ours) &&
		rewrite_same_search(rewrite_modifier(linitial(op->args), walk->ours),
							rewrite_modifier(lsecond(op->args), walk->ours));
}

static bool
any_ours(List *exprs, Walk *walk)
{
	ListCell   *lc;

	foreach(lc, exprs)
	{
		if (rewrite_is_ours(lfirst(lc), walk->ours) ||
			rewrite_holds_ours(lfirst(lc), walk->ours))
			return true;
	}
	return false;
}

static void
check_stored_comparison(Node *node, List *args, Walk *walk)
{
	if (walk->stored && any_ours(args, walk) && !answers_stored(node, walk))
		refuse("compared in a definition");
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
				!rewrite_is_ours((Node *) entry->expr, walk->ours) &&
				compare_guard_expr_holds((Node *) entry, walk->ours, &walk->compares_records))
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
			if (getBaseType(lfirst_oid(lc)) != walk->ours &&
				compare_guard_holds(lfirst_oid(lc), walk->ours))
				refuse("compared by UNION, INTERSECT or EXCEPT");
			if (lfirst_oid(lc) == RECORDOID || lfirst_oid(lc) == RECORDARRAYOID)
				walk->compares_records = true;
		}
	}
	check_set_operations(op->larg, walk);
	check_set_operations(op->rarg, walk);
}

static bool
types_hold(List *types, Oid ours)
{
	ListCell   *lc;

	foreach(lc, types)
	{
		if (compare_guard_holds(lfirst_oid(lc), ours))
			return true;
	}
	return false;
}

/* Has a whole row of this, which is of no named type, our type in it? */
static bool
rows_hold(RangeTblEntry *rte, Oid ours)
{
	ListCell   *lc;

	foreach(lc, rte->rtekind == RTE_SUBQUERY ? rte->subquery->targetList : NIL)
	{
		if (compare_guard_holds(exprType((Node *) lfirst_node(TargetEntry, lc)->expr), ours))
			return true;
	}
	foreach(lc, rte->rtekind == RTE_JOIN ? rte->joinaliasvars : NIL)
	{
		if (lfirst(lc) != NULL && compare_guard_holds(exprType(lfirst(lc)), ours))
			return true;
	}
	foreach(lc, rte->rtekind == RTE_FUNCTION ? rte->functions : NIL)
	{
		if (types_hold(lfirst_node(RangeTblFunction, lc)->funccoltypes, ours))
			return true;
	}
	return types_hold(rte->coltypes, ours);
}

static void
check_query(Query *query, Walk *walk)
{
	ListCell   *lc;

	foreach(lc, query->rtable)
		walk->selects_ours = walk->selects_ours ||
			rows_hold(lfirst_node(RangeTblEntry, lc), walk->ours);

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

static void
check_call(Node *node, Oid function, List *args, Walk *walk)
{
	bool		unknown = false;

	if (compares_elements(function) && any_compared(args, walk))
		refuse("compared");
	if (compare_guard_expr_holds(node, walk->ours, &unknown) && exprType(node) == RECORDOID)
		walk->makes_records = true;
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
			if (((OpExpr *) node)->opresulttype == BOOLOID)
				check_stored_comparison(node, ((OpExpr *) node)->args, walk);
			if (((OpExpr *) node)->opresulttype == BOOLOID &&
				any_compared(((OpExpr *) node)->args, walk) &&
				!compares_images(((OpExpr *) node)->opno))
				refuse("compared");
			break;
		case T_DistinctExpr:
		case T_NullIfExpr:
			check_stored_comparison(node, ((OpExpr *) node)->args, walk);
			if (any_compared(((OpExpr *) node)->args, walk))
				refuse("compared");
			break;
		case T_ScalarArrayOpExpr:
			check_stored_comparison(node, ((ScalarArrayOpExpr *) node)->args, walk);
			if (array_operation_hides((ScalarArrayOpExpr *) node, walk) &&
				!compares_images(((ScalarArrayOpExpr *) node)->opno))
				refuse("compared");
			break;
		case T_RowCompareExpr:
			check_stored_comparison(node, ((RowCompareExpr *) node)->largs, walk);
			if (any_compared(((RowCompareExpr *) node)->largs, walk))
				refuse("compared");
			break;
		case T_MinMaxExpr:
			check_stored_comparison(node, ((MinMaxExpr *) node)->args, walk);
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
		case T_Var:
			if (((Var *) node)->varattno == InvalidAttrNumber &&
				((Var *) node)->vartype == RECORDOID)
				walk->whole_rows = true;
			break;
		case T_RowExpr:
			if (compare_guard_expr_holds(node, walk->ours, &unknown))
				walk->makes_records = true;
			break;
		default:
			break;
	}
	return expression_tree_walker(node, check_node, walk);
}

bool
compare_guard_check(Node *tree, Oid ours, bool stored)
{
	Walk		walk = {.ours = ours,.stored = stored};
	bool		makes_records;

	(void) check_node(tree, &walk);
	makes_records = walk.makes_records || (walk.whole_rows && walk.selects_ours);
	if (makes_records && walk.compares_records)
		compare_guard_refuse_records();
	return makes_records;
}

bool
compare_guard_compares_records(Node *tree, Oid ours)
{
	Walk		walk = {.ours = ours};

	(void) check_node(tree, &walk);
	return walk.compares_records;
}

void
compare_guard_refuse_records(void)
{
	refuse("compared within records");
}
