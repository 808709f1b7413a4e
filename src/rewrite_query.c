/*
 * rewrite_query.c
 *		What queries compare by themselves: order, groups, duplicates; and
 *		what they store.
 *
 * ORDER BY, of the query, of a window or of an aggregate, sorts what is
 * inside: it gets a hidden target of the base type.  GROUP BY, DISTINCT,
 * PARTITION BY and UNION ask for equality, which fingerprints answer; without
 * one they are refused.  Values that are stored as they come from elsewhere
 * in the query pass nomp_crypt._store, which checks that they are what the
 * column wants, and the session's school's.
 *
 * Runs on rewritten queries (views and policies expanded), before planning.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_aggregate.h"
#include "errors.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parse_oper.h"
#include "parser/parsetree.h"
#include "rewrite.h"
#include "rewrite/rewriteManip.h"
#include "rewrite_parts.h"
#include "sqlnames.h"
#include "typemod.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#define HINT_INSIDE		"Use what is inside, for example column::text, or declare the column searchable."
#define HINT_CAST		"Use what is inside, for example column::text."

static Node *rewrite_node(Node *node, Oid *ours);

/* ---- order ---- */

static TargetEntry *
entry_of(SortGroupClause *clause, List *targets)
{
	return get_sortgroupref_tle(clause->tleSortGroupRef, targets);
}

static bool
sorts_ours(SortGroupClause *clause, List *targets, Oid ours)
{
	return rewrite_is_ours((Node *) entry_of(clause, targets)->expr, ours);
}

static Index
next_sortgroupref(List *targets)
{
	Index		highest = 0;
	ListCell   *lc;

	foreach(lc, targets)
		highest = Max(highest, lfirst_node(TargetEntry, lc)->ressortgroupref);
	return highest + 1;
}

/* Is that sort operator our ">"? */
static bool
is_descending(Oid operator)
{
	char	   *name = get_opname(operator);

	return name != NULL && strcmp(name, ">") == 0;
}

/*
 * A hidden target with what is inside of the clause's one, and the clause
 * that sorts by it.
 */
static SortGroupClause *
sort_inside(SortGroupClause *clause, List **targets, Oid ours)
{
	TargetEntry *entry = entry_of(clause, *targets);
	Oid			type = rewrite_inner_type((Node *) entry->expr, ours);
	SortGroupClause *result = copyObject(clause);
	bool		descending = is_descending(clause->sortop);
	TargetEntry *hidden;
	Node	   *inside;
	ListCell   *lc;
	Oid			lt,
				gt;

	if (!OidIsValid(type))
		rewrite_refuse("ordered", "What is inside is not known here. Cast it, for example (...)::text.");
	inside = rewrite_plain(copyObject((Node *) entry->expr), type);
	get_sort_group_operators(type, true, true, true, &lt, &result->eqop, &gt, &result->hashable);
	result->sortop = descending ? gt : lt;
	foreach(lc, *targets)
	{
		/* the same order again, of a window perhaps */
		hidden = lfirst_node(TargetEntry, lc);
		if (hidden->resjunk && hidden->ressortgroupref != 0 && equal(hidden->expr, inside))
		{
			result->tleSortGroupRef = hidden->ressortgroupref;
			return result;
		}
	}
	hidden = makeTargetEntry((Expr *) inside, list_length(*targets) + 1, NULL, true);
	hidden->ressortgroupref = result->tleSortGroupRef = next_sortgroupref(*targets);
	*targets = lappend(*targets, hidden);
	return result;
}

/* Those of the clauses that sort our type, sorted inside. */
static List *
sort_all_inside(List *clauses, List **targets, Oid ours)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, clauses)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);

		result = lappend(result, sorts_ours(clause, *targets, ours) ?
						 sort_inside(clause, targets, ours) : clause);
	}
	return result;
}

/* ---- equality ---- */

static void
require_searchable(List *clauses, List *targets, Oid ours, const char *what)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		TargetEntry *entry = entry_of(lfirst_node(SortGroupClause, lc), targets);

		if (rewrite_is_ours((Node *) entry->expr, ours) &&
			!typemod_searchable(rewrite_modifier((Node *) entry->expr, ours)))
			rewrite_refuse(what, HINT_INSIDE);
	}
}

static void
require_searchable_set_operation(Node *node, Oid ours)
{
	SetOperationStmt *op = (SetOperationStmt *) node;
	ListCell   *type;
	ListCell   *typmod;

	if (node == NULL || !IsA(node, SetOperationStmt))
		return;
	if (!(op->op == SETOP_UNION && op->all))
	{
		forboth(type, op->colTypes, typmod, op->colTypmods)
		{
			int32		modifier = lfirst_int(typmod);

			if (getBaseTypeAndTypmod(lfirst_oid(type), &modifier) == ours &&
				!typemod_searchable(modifier))
				rewrite_refuse("compared by UNION, INTERSECT or EXCEPT", HINT_INSIDE);
		}
	}
	require_searchable_set_operation(op->larg, ours);
	require_searchable_set_operation(op->rarg, ours);
}

static bool
has_ref(List *clauses, Index ref)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		if (lfirst_node(SortGroupClause, lc)->tleSortGroupRef == ref)
			return true;
	}
	return false;
}

/*
 * DISTINCT over what ORDER BY sorts must agree with it on what is the same:
 * it goes by what is inside too.  An aggregate's must name all its arguments,
 * so there it stands before the argument instead of in its place.
 */
static List *
distinct_inside(List *distinct, SortGroupClause *clause, SortGroupClause *inside,
				bool aggregate)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, distinct)
	{
		SortGroupClause *old = lfirst_node(SortGroupClause, lc);
		bool		same = old->tleSortGroupRef == clause->tleSortGroupRef;

		if (same)
			result = lappend(result, copyObject(inside));
		if (!same || aggregate)
			result = lappend(result, old);
	}
	return result;
}

/* ORDER BY, with the DISTINCT beside it. */
static void
rewrite_sort(List **sort, List **distinct, List **targets, bool aggregate, Oid ours)
{
	List	   *sorted = NIL;
	ListCell   *lc;

	foreach(lc, *sort)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		TargetEntry *entry = entry_of(clause, *targets);
		SortGroupClause *inside;

		if (!rewrite_is_ours((Node *) entry->expr, ours))
		{
			sorted = lappend(sorted, clause);
			continue;
		}
		inside = sort_inside(clause, targets, ours);
		sorted = lappend(sorted, inside);
		if (!has_ref(*distinct, clause->tleSortGroupRef))
			continue;
		if (typemod_normal(rewrite_modifier((Node *) entry->expr, ours)) != NORMAL_EXACT)
			rewrite_refuse("made distinct and ordered, if their equality ignores what their order does not",
						   HINT_CAST);
		*distinct = distinct_inside(*distinct, clause, inside, aggregate);
	}
	*sort = sorted;
}

static void
rewrite_window(WindowClause *window, List **targets, Oid ours)
{
	require_searchable(window->partitionClause, *targets, ours, "partitioned by a window");
	window->orderClause = sort_all_inside(window->orderClause, targets, ours);
}

/* ---- set operations with an order ---- */

/* SELECT * FROM (the set operation) ORDER BY ..., which can be rewritten. */
static Query *
wrap_set_operation(Query *query)
{
	Query	   *outer = makeNode(Query);
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	RangeTblRef *ref = makeNode(RangeTblRef);
	List	   *names = NIL;
	ListCell   *lc;

	if (query->hasModifyingCTE)
		rewrite_refuse("ordered in a set operation over data-modifying WITH", HINT_CAST);
	outer->commandType = CMD_SELECT;
	outer->querySource = query->querySource;
	outer->queryId = query->queryId;
	outer->canSetTag = query->canSetTag;
	outer->sortClause = query->sortClause;
	outer->limitOffset = query->limitOffset;
	outer->limitCount = query->limitCount;
	outer->limitOption = query->limitOption;
	outer->hasSubLinks = query->hasSubLinks;
	outer->stmt_location = query->stmt_location;
	outer->stmt_len = query->stmt_len;
	query->sortClause = NIL;
	query->limitOffset = query->limitCount = NULL;
	query->canSetTag = false;
	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Var		   *var = makeVarFromTargetEntry(1, entry);
		TargetEntry *copy = makeTargetEntry((Expr *) var, entry->resno,
											entry->resname, false);

		copy->ressortgroupref = entry->ressortgroupref;
		entry->ressortgroupref = 0;
		outer->targetList = lappend(outer->targetList, copy);
		names = lappend(names, makeString(pstrdup(entry->resname != NULL ? entry->resname : "?column?")));
	}
	IncrementVarSublevelsUp((Node *) query, 1, 1);
	rte->rtekind = RTE_SUBQUERY;
	rte->subquery = query;
	rte->eref = makeAlias("set operation", names);
	rte->inFromCl = true;
	outer->rtable = list_make1(rte);
	ref->rtindex = 1;
	outer->jointree = makeFromExpr(list_make1(ref), NULL);
	return outer;
}

/* ---- stored values ---- */

/* Already made for that column, by a cast of ours? */
static bool
is_made_for(Node *expr, int32 typmod)
{
	int32		made;

	return IsA(expr, FuncExpr) && exprIsLengthCoercion(expr, &made) && made == typmod;
}

/* INSERT ... VALUES with many rows: every row's value was made for it. */
static bool
all_made_for(Node *expr, int32 typmod, Query *query)
{
	Var		   *var = (Var *) expr;
	RangeTblEntry *rte;
	ListCell   *lc;

	if (!IsA(expr, Var) || var->varlevelsup != 0)
		return is_made_for(expr, typmod);
	rte = rt_fetch(var->varno, query->rtable);
	if (rte->rtekind != RTE_VALUES)
		return false;
	foreach(lc, rte->values_lists)
	{
		Node	   *value = list_nth(lfirst_node(List, lc), var->varattno - 1);

		if (!(IsA(value, Const) && ((Const *) value)->constisnull) &&
			!is_made_for(value, typmod))
			return false;
	}
	return true;
}

static Node *
checked(Node *value, int32 typmod, Oid ours)
{
	return (Node *) makeFuncExpr(sql_function(SQL_STORE), ours,
								 list_make2(value, rewrite_int_constant(typmod)),
								 exprCollation(value), exprCollation(value),
								 COERCE_EXPLICIT_CALL);
}

/*
 * The value, checked when it is stored: of our type, of a domain over it, or
 * an array of it.
 */
static Node *
checked_value(Node *value, Oid type, int32 typmod, Oid ours)
{
	Node	   *inside;

	if (type == ours)
		return checked(value, typmod, ours);
	if (get_element_type(type) == ours)
		return rewrite_map_array(value, ours,
								 checked(rewrite_any_element(value), typmod, ours));
	/* a domain: it has been checked to be of it already */
	inside = (Node *) makeRelabelType((Expr *) value, ours, -1, exprCollation(value),
									  COERCE_IMPLICIT_CAST);
	return (Node *) makeRelabelType((Expr *) checked(inside, typmod, ours), type, -1,
									exprCollation(value), COERCE_IMPLICIT_CAST);
}

static void
check_stored(Query *query, List *targets, Oid ours)
{
	Oid			relation = rt_fetch(query->resultRelation, query->rtable)->relid;
	ListCell   *lc;

	foreach(lc, targets)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Node	   *value = (Node *) entry->expr;
		Oid			type = exprType(value);
		Oid			column_type;
		int32		typmod;
		Oid			collation;

		if (entry->resjunk || (IsA(value, Const) && ((Const *) value)->constisnull) ||
			(!rewrite_is_ours(value, ours) && get_element_type(type) != ours))
			continue;
		get_atttypetypmodcoll(relation, entry->resno, &column_type, &typmod, &collation);
		if (type != column_type)
			continue;
		(void) getBaseTypeAndTypmod(column_type, &typmod);
		if (typmod >= 0 && !all_made_for(value, typmod, query))
			entry->expr = (Expr *) checked_value(value, type, typmod, ours);
	}
}

static void
check_all_stored(Query *query, Oid ours)
{
	ListCell   *lc;

	if (query->commandType == CMD_INSERT || query->commandType == CMD_UPDATE)
		check_stored(query, query->targetList, ours);
	if (query->onConflict != NULL)
		check_stored(query, query->onConflict->onConflictSet, ours);
	foreach(lc, query->mergeActionList)
		check_stored(query, lfirst_node(MergeAction, lc)->targetList, ours);
}

/* ---- the walk ---- */

static Node *
rewrite_aggregate(Aggref *aggref, Oid ours)
{
	if (aggref->aggkind != AGGKIND_NORMAL)
	{
		ListCell   *lc;

		foreach(lc, aggref->args)
		{
			if (rewrite_is_ours((Node *) lfirst_node(TargetEntry, lc)->expr, ours))
				rewrite_refuse("ordered within a group", HINT_CAST);
		}
		return (Node *) aggref;
	}
	require_searchable(aggref->aggdistinct, aggref->args, ours, "made distinct");
	rewrite_sort(&aggref->aggorder, &aggref->aggdistinct, &aggref->args, true, ours);
	return (Node *) aggref;
}

static Query *
rewrite_clauses(Query *query, Oid ours)
{
	ListCell   *lc;

	require_searchable_set_operation(query->setOperations, ours);
	if (query->setOperations != NULL)
	{
		foreach(lc, query->sortClause)
		{
			if (sorts_ours(lfirst_node(SortGroupClause, lc), query->targetList, ours))
			{
				query = wrap_set_operation(query);
				break;
			}
		}
	}
	require_searchable(query->groupClause, query->targetList, ours, "grouped");
	require_searchable(query->distinctClause, query->targetList, ours, "made distinct");
	foreach(lc, query->windowClause)
		rewrite_window(lfirst_node(WindowClause, lc), &query->targetList, ours);
	rewrite_sort(&query->sortClause, &query->distinctClause, &query->targetList, false, ours);
	check_all_stored(query, ours);
	return query;
}

static Node *
rewrite_node(Node *node, Oid *ours)
{
	Node	   *copy;
	Node	   *rewritten;

	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
		return (Node *) rewrite_clauses(query_tree_mutator((Query *) node, rewrite_node, ours, 0),
										*ours);
	copy = expression_tree_mutator(node, rewrite_node, ours);
	if (IsA(copy, Aggref))
		return rewrite_aggregate((Aggref *) copy, *ours);
	rewritten = rewrite_comparison(copy, *ours);
	return rewritten != NULL ? rewritten : copy;
}

static bool
mentions(Node *node, Oid *ours)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, mentions, ours, 0);
	switch (nodeTag(node))
	{
		case T_Var:
		case T_Const:
		case T_Param:
		case T_FuncExpr:
		case T_CaseTestExpr:
		case T_RelabelType:
		case T_CoerceToDomain:
		case T_FieldSelect:
		case T_SubscriptingRef:
		case T_CoalesceExpr:
		case T_CaseExpr:
		case T_MinMaxExpr:
		case T_ArrayExpr:
		case T_ArrayCoerceExpr:
		case T_Aggref:
		case T_WindowFunc:
			if (rewrite_is_ours(node, *ours) || rewrite_holds_ours(node, *ours))
				return true;
			break;
		case T_ScalarArrayOpExpr:
			if (rewrite_holds_ours(lsecond(((ScalarArrayOpExpr *) node)->args), *ours))
				return true;
			break;
		default:
			break;
	}
	return expression_tree_walker(node, mentions, ours);
}

bool
rewrite_mentions(Node *node, Oid ours)
{
	return mentions(node, &ours);
}

Query *
rewrite_query(Query *query, Oid ours)
{
	if (query->commandType == CMD_UTILITY || !mentions((Node *) query, &ours))
		return query;
	return (Query *) rewrite_node((Node *) query, &ours);
}
