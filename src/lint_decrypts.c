/*
 * lint_decrypts.c
 *		Does something that is stored keep what is inside encrypted values?
 *
 * For nomp_crypt.lint(): indexes, statistics, generated columns, materialized
 * views, rules and functions with an SQL body, as the catalogs have them.
 * Whatever of them ends in storage is followed back through subqueries and
 * views to where it comes from.  What a function does inside is not seen:
 * one that gets encrypted values and returns something else is taken to
 * return what is in them.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/transam.h"
#include "catalog.h"
#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "compare_guard.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "rewrite/prs2lock.h"
#include "rewrite_parts.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

NC_FUNCTION(nc_keeps_decrypted);

/* A view's query: read once, so that what was looked at is known by pointer. */
typedef struct View
{
	Oid			relid;
	Query	   *query;			/* NULL if it is no view */
} View;

/* A column of a query that was looked at, or is being looked at. */
typedef struct Seen
{
	Query	   *query;
	AttrNumber	column;
} Seen;

typedef struct Walk
{
	Oid			ours;			/* the type */
	Oid			extension;
	List	   *views;
	List	   *seen;
} Walk;

/* Where a Var's levels begin; no query around an expression over one table. */
typedef struct Scope
{
	Walk	   *walk;
	Query	   *query;
	struct Scope *outer;
} Scope;

static bool reveals(Node *node, Scope *scope);
static bool writes_revealed(Query *query, Scope *outer);

static bool
holds(Node *expr, Walk *walk)
{
	bool		unknown = false;

	return compare_guard_expr_holds(expr, walk->ours, &unknown);
}

static bool
any_holds(List *exprs, Walk *walk)
{
	ListCell   *lc;

	foreach(lc, exprs)
	{
		if (lfirst(lc) != NULL && holds(lfirst(lc), walk))
			return true;
	}
	return false;
}

/* One of our functions whose result is what is inside? */
static bool
is_decrypting(Oid function)
{
	static const char *const symbols[] = {"nc_to_value", "nc_to_json", "nc_decrypt",
	"nc_try_decrypt", "nc_out", "nc_plain"};
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		isnull = true;
	char	   *symbol = NULL;
	bool		found = false;

	if (!HeapTupleIsValid(tuple))
		return false;
	symbol = TextDatumGetCString(SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull));
	for (int i = 0; i < lengthof(symbols) && !found; i++)
		found = strcmp(symbol, symbols[i]) == 0;
	ReleaseSysCache(tuple);
	return found;
}

/* Of PostgreSQL's own functions: count(), pg_column_size() and the like. */
static bool
says_nothing_inside(Oid result)
{
	return result == BOOLOID || result == INT4OID || result == INT8OID || result == REGTYPEOID;
}

/* Does this call turn encrypted values into something else? */
static bool
call_reveals(Node *call, Oid function, List *args, Walk *walk)
{
	if (!any_holds(args, walk) || holds(call, walk))
		return false;
	if (function < FirstNormalObjectId)
		return !says_nothing_inside(exprType(call));
	if (getExtensionOfObject(ProcedureRelationId, function) == walk->extension)
		return is_decrypting(function);
	return true;
}

/* What an output function makes of it. */
static bool
conversion_reveals(Node *node, List *args, Walk *walk)
{
	return any_holds(args, walk) && !holds(node, walk);
}

static Query *
view_query(Oid relid, Walk *walk)
{
	View	   *view;
	Relation	rel;
	ListCell   *lc;

	foreach(lc, walk->views)
	{
		view = lfirst(lc);
		if (view->relid == relid)
			return view->query;
	}
	view = palloc0(sizeof(View));
	view->relid = relid;
	walk->views = lappend(walk->views, view);
	rel = try_relation_open(relid, AccessShareLock);
	if (rel == NULL)
		return NULL;
	for (int i = 0; rel->rd_rules != NULL && i < rel->rd_rules->numLocks; i++)
	{
		if (rel->rd_rules->rules[i]->event == CMD_SELECT)
			view->query = copyObject(linitial_node(Query, rel->rd_rules->rules[i]->actions));
	}
	relation_close(rel, AccessShareLock);
	return view->query;
}

static bool
seen(Query *query, AttrNumber column, Walk *walk)
{
	Seen	   *one;
	ListCell   *lc;

	foreach(lc, walk->seen)
	{
		one = lfirst(lc);
		if (one->query == query && one->column == column)
			return true;
	}
	one = palloc(sizeof(Seen));
	one->query = query;
	one->column = column;
	walk->seen = lappend(walk->seen, one);
	return false;
}

/* The queries that a set operation is over. */
static List *
leaves(Node *node, Query *query, List *found)
{
	if (IsA(node, SetOperationStmt))
	{
		found = leaves(((SetOperationStmt *) node)->larg, query, found);
		return leaves(((SetOperationStmt *) node)->rarg, query, found);
	}
	return lappend(found, list_nth_node(RangeTblEntry, query->rtable,
										castNode(RangeTblRef, node)->rtindex - 1)->subquery);
}

/* Does that column of a query's result, or any (0), reveal what is inside? */
static bool
column_reveals(Query *query, AttrNumber column, Scope *outer, Walk *walk)
{
	Scope		scope = {walk, query, outer};
	ListCell   *lc;

	CHECK_FOR_INTERRUPTS();
	check_stack_depth();
	/* what has been looked at did not, or we would not be here */
	if (query == NULL || seen(query, column, walk))
		return false;
	foreach(lc, query->setOperations != NULL ? leaves(query->setOperations, query, NIL) : NIL)
	{
		if (column_reveals(lfirst(lc), column, &scope, walk))
			return true;
	}
	foreach(lc, query->commandType == CMD_SELECT ? query->targetList : query->returningList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && (column == 0 || entry->resno == column) &&
			reveals((Node *) entry->expr, &scope))
			return true;
	}
	return false;
}

static bool
cte_reveals(RangeTblEntry *rte, AttrNumber column, Scope *scope)
{
	ListCell   *lc;

	for (Index up = 0; up < rte->ctelevelsup && scope != NULL; up++)
		scope = scope->outer;
	foreach(lc, scope != NULL && scope->query != NULL ? scope->query->cteList : NIL)
	{
		CommonTableExpr *cte = lfirst_node(CommonTableExpr, lc);

		if (strcmp(cte->ctename, rte->ctename) == 0)
			return column_reveals(castNode(Query, cte->ctequery), column, scope, scope->walk);
	}
	return false;
}

static bool
values_reveal(List *lists, AttrNumber column, Scope *scope)
{
	ListCell   *lc;

	foreach(lc, lists)
	{
		List	   *list = lfirst_node(List, lc);

		if (column == 0 ? reveals((Node *) list, scope) :
			column <= list_length(list) && reveals(list_nth(list, column - 1), scope))
			return true;
	}
	return false;
}

static bool
var_reveals(Var *var, Scope *scope)
{
	RangeTblEntry *rte;
	AttrNumber	column = var->varattno;

	for (Index up = 0; up < var->varlevelsup && scope != NULL; up++)
		scope = scope->outer;
	if (scope == NULL || scope->query == NULL || column < 0)
		return false;
	rte = list_nth_node(RangeTblEntry, scope->query->rtable, var->varno - 1);
	switch (rte->rtekind)
	{
		case RTE_RELATION:
			return column_reveals(view_query(rte->relid, scope->walk), column, NULL, scope->walk);
		case RTE_SUBQUERY:
			return column_reveals(rte->subquery, column, scope, scope->walk);
		case RTE_JOIN:
			return column == 0 ? reveals((Node *) rte->joinaliasvars, scope) :
				reveals(list_nth(rte->joinaliasvars, column - 1), scope);
		case RTE_FUNCTION:
			return reveals((Node *) rte->functions, scope);
		case RTE_TABLEFUNC:
			return reveals((Node *) rte->tablefunc, scope);
		case RTE_VALUES:
			return values_reveal(rte->values_lists, column, scope);
		case RTE_CTE:
			return cte_reveals(rte, column, scope);
		default:
			return false;
	}
}

/*
 * Is what this returns encrypted, whatever it was made from?  Asked of kinds of
 * expressions that can turn something into encrypted values.
 */
static bool
is_sealed(Node *node, Walk *walk)
{
	switch (nodeTag(node))
	{
		case T_Var:
		case T_FuncExpr:
		case T_OpExpr:
		case T_Aggref:
		case T_WindowFunc:
		case T_CaseExpr:
		case T_CoalesceExpr:
		case T_ArrayExpr:
		case T_ArrayCoerceExpr:
		case T_CoerceViaIO:
		case T_CoerceToDomain:
			return rewrite_is_ours(node, walk->ours) || rewrite_holds_ours(node, walk->ours);
		default:
			return false;
	}
}

/* Can what this expression returns be told from what is inside? */
static bool
reveals(Node *node, Scope *scope)
{
	bool		found = false;

	if (node == NULL || is_sealed(node, scope->walk))
		return false;
	switch (nodeTag(node))
	{
		case T_Var:
			return var_reveals((Var *) node, scope);
		case T_Query:
			return column_reveals((Query *) node, 0, scope, scope->walk);
		case T_SubLink:
			if (((SubLink *) node)->subLinkType == EXISTS_SUBLINK)
				return false;
			break;
		case T_FuncExpr:
			found = call_reveals(node, ((FuncExpr *) node)->funcid, ((FuncExpr *) node)->args, scope->walk);
			break;
		case T_OpExpr:
			found = call_reveals(node, get_opcode(((OpExpr *) node)->opno), ((OpExpr *) node)->args, scope->walk);
			break;
		case T_Aggref:
			found = call_reveals(node, ((Aggref *) node)->aggfnoid, ((Aggref *) node)->args, scope->walk);
			break;
		case T_WindowFunc:
			found = call_reveals(node, ((WindowFunc *) node)->winfnoid, ((WindowFunc *) node)->args, scope->walk);
			break;
		case T_CoerceViaIO:
			found = conversion_reveals(node, list_make1(((CoerceViaIO *) node)->arg), scope->walk);
			break;
		case T_XmlExpr:
			found = conversion_reveals(node, list_concat_copy(((XmlExpr *) node)->named_args, ((XmlExpr *) node)->args), scope->walk);
			break;
		default:
			break;
	}
	return found || expression_tree_walker(node, reveals, scope);
}

/* Does a query write what is revealed?  What it returns is another matter. */
static bool
writes_revealed(Query *query, Scope *outer)
{
	Scope		scope = {outer->walk, query, outer};
	ListCell   *lc;

	foreach(lc, query->cteList)
	{
		CommonTableExpr *cte = lfirst_node(CommonTableExpr, lc);

		if (IsA(cte->ctequery, Query) && writes_revealed((Query *) cte->ctequery, &scope))
			return true;
	}
	if (query->commandType == CMD_MERGE)
	{
		foreach(lc, query->mergeActionList)
		{
			if (reveals((Node *) lfirst_node(MergeAction, lc)->targetList, &scope))
				return true;
		}
	}
	if (query->commandType != CMD_INSERT && query->commandType != CMD_UPDATE)
		return false;
	return reveals((Node *) query->targetList, &scope) ||
		(query->onConflict != NULL && reveals((Node *) query->onConflict->onConflictSet, &scope));
}

/* A list of queries, perhaps of lists of them; or an expression, or several. */
static bool
keeps(Node *node, bool whole, Scope *scope)
{
	ListCell   *lc;

	if (node == NULL)
		return false;
	if (IsA(node, Query) && !whole)
		return writes_revealed((Query *) node, scope);
	if (!IsA(node, List))
		return reveals(node, scope);
	foreach(lc, (List *) node)
	{
		if (keeps(lfirst(lc), whole, scope))
			return true;
	}
	return false;
}

/*
 * nomp_crypt._keeps_decrypted(tree pg_node_tree, whole boolean) returns boolean
 *
 * Would storing that keep what is inside encrypted values?  "whole": all that
 * it returns is stored; otherwise what its statements write.
 */
Datum
nc_keeps_decrypted(PG_FUNCTION_ARGS)
{
	Walk		walk = {.ours = catalog_type()};
	Scope		scope = {&walk, NULL, NULL};

	if (!OidIsValid(walk.ours))
		PG_RETURN_BOOL(false);
	walk.extension = get_extension_oid("nomp_crypt", false);
	PG_RETURN_BOOL(keeps(stringToNode(TextDatumGetCString(PG_GETARG_DATUM(0))), PG_GETARG_BOOL(1), &scope));
}
