/*
 * inline_guard.c
 *		Keeps SQL functions that handle encrypted values from being inlined.
 *
 * The planner inlines simple SQL functions after the planner hook has seen
 * the query: their comparisons would not be rewritten, and their literals
 * would be nobody's.  Left as calls, they are planned as queries of their
 * own, with all hooks.  PostgreSQL does not inline a function that somebody
 * wants to hook; so that is what is said of these, for as long as the query
 * is being planned.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "compare_guard.h"
#include "executor/functions.h"
#include "fmgr.h"
#include "inline_guard.h"
#include "nodes/nodeFuncs.h"
#include "rewrite.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

typedef struct Search
{
	Oid			ours;
	List	   *within;			/* functions whose bodies we are in */
	List	   *found;
	bool		compares_records;	/* of columns that only the caller knows */
} Search;

static List *kept = NIL;		/* the functions not to inline now */
static needs_fmgr_hook_type next_needs_hook = NULL;

static bool find_calls(Node *node, Search *search);

/* Does a body's query handle our type?  Notes what it calls and compares. */
static bool
look_into(Node *query, Search *search)
{
	search->compares_records = search->compares_records ||
		compare_guard_compares_records(query, search->ours);
	(void) find_calls(query, search);
	return rewrite_mentions(query, search->ours);
}

/* Look at a body as inlining would make it; true if it handles our type. */
static bool
query_handles(Query *query, Search *search)
{
	bool		handles = false;
	ListCell   *lc;

	if (query->commandType == CMD_UTILITY)
		return false;
	query = copyObject(query);
	AcquireRewriteLocks(query, true, false);
	foreach(lc, QueryRewrite(query))
		handles = look_into(lfirst(lc), search) || handles;
	return handles;
}

/* BEGIN ATOMIC: a list with one list of queries; RETURN: a query. */
static bool
parsed_body_handles(Node *body, Search *search)
{
	List	   *queries = IsA(body, Query) ? list_make1(body) :
	linitial_node(List, castNode(List, body));
	bool		handles = false;
	ListCell   *lc;

	foreach(lc, queries)
		handles = query_handles(lfirst_node(Query, lc), search) || handles;
	return handles;
}

/* Only a body of one statement is ever inlined. */
static bool
text_body_handles(const char *source, HeapTuple tuple, Node *call, Search *search)
{
	List	   *raw = pg_parse_query(source);
	SQLFunctionParseInfoPtr info;
	bool		handles = false;
	ListCell   *lc;

	if (list_length(raw) != 1)
		return false;
	info = prepare_sql_fn_parse_info(tuple, call, exprInputCollation(call));
	foreach(lc, pg_analyze_and_rewrite_withcb(linitial_node(RawStmt, raw), source,
											  (ParserSetupHook) sql_fn_parser_setup,
											  info, NULL))
	{
		Query	   *query = lfirst_node(Query, lc);

		if (query->commandType == CMD_UTILITY)
			continue;
		handles = look_into((Node *) query, search) || handles;
	}
	return handles;
}

static void
look_at(Oid function, Node *call, Search *search)
{
	HeapTuple	tuple;
	Form_pg_proc form;
	Datum		body;
	bool		isnull;
	bool		handles;

	if (function < FirstNormalObjectId || list_member_oid(search->within, function) ||
		list_member_oid(search->found, function))
		return;
	tuple = SearchSysCacheCopy1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return;
	form = (Form_pg_proc) GETSTRUCT(tuple);
	if (form->prolang != SQLlanguageId || form->prokind != PROKIND_FUNCTION ||
		form->prosecdef || !heap_attisnull(tuple, Anum_pg_proc_proconfig, NULL))
		return;
	search->within = lappend_oid(search->within, function);
	body = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &isnull);
	if (!isnull)
		handles = parsed_body_handles(stringToNode(TextDatumGetCString(body)), search);
	else
	{
		body = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull);
		handles = text_body_handles(TextDatumGetCString(body), tuple, call, search);
	}
	search->within = list_delete_last(search->within);
	if (handles)
		search->found = lappend_oid(search->found, function);
}

static bool
find_calls(Node *node, Search *search)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, find_calls, search, 0);
	if (IsA(node, FuncExpr))
		look_at(((FuncExpr *) node)->funcid, node, search);
	else if (IsA(node, OpExpr))
		look_at(get_opcode(((OpExpr *) node)->opno), node, search);
	return expression_tree_walker(node, find_calls, search);
}

List *
inline_guard_find(Query *query, Oid ours, bool *compare_records)
{
	Search		search = {.ours = ours};

	(void) find_calls((Node *) query, &search);
	*compare_records = search.compares_records;
	return search.found;
}

List *
inline_guard_set(List *functions)
{
	List	   *before = kept;

	kept = functions;
	return before;
}

static bool
needs_hook(Oid function)
{
	return (kept != NIL && list_member_oid(kept, function)) ||
		(next_needs_hook != NULL && next_needs_hook(function));
}

void
inline_guard_init(void)
{
	next_needs_hook = needs_fmgr_hook;
	needs_fmgr_hook = needs_hook;
}
