/*
 * concern.c
 *		Can a query concern us at all?
 *
 * The hooks on queries look at every query of the database, and most of them
 * have nothing to do with encrypted values.  One cheap walk finds that out:
 * built-in types and functions cannot hold or handle our type; of others it
 * is remembered that they do not, until a type, table or function changes.
 *
 * Errs on the side of yes: the hooks look properly then.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "compare_guard.h"
#include "concern.h"
#include "nodes/nodeFuncs.h"
#include "nodes/primnodes.h"
#include "relchange.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#define REMEMBERED	256			/* direct-mapped by OID */

static Oid	harmless_types[REMEMBERED];
static Oid	harmless_functions[REMEMBERED];
static Oid	remembered_for = InvalidOid;	/* our type's OID */
static uint32 changes = 0;		/* counts what made us forget */

typedef struct Look
{
	Oid			ours;
	bool		planning;
} Look;

static void
forget_types(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
	memset(harmless_types, 0, sizeof(harmless_types));
}

/* The columns of a row type are its table's. */
static void
forget_row_types(Oid relid)
{
	changes++;
	memset(harmless_types, 0, sizeof(harmless_types));
}

static void
forget_functions(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
	memset(harmless_functions, 0, sizeof(harmless_functions));
}

static void
listen(Oid ours)
{
	static bool registered = false;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(TYPEOID, forget_types, (Datum) 0);
		relchange_listen(forget_row_types);
		CacheRegisterSyscacheCallback(PROCOID, forget_functions, (Datum) 0);
		registered = true;
	}
	if (remembered_for != ours)
		memset(harmless_types, 0, sizeof(harmless_types));
	remembered_for = ours;
}

static inline bool
type_concerns(Oid type, Look *look)
{
	Oid		   *place = &harmless_types[type % REMEMBERED];
	uint32		before = changes;

	if (type < FirstNormalObjectId || *place == type)
		return false;
	if (compare_guard_holds(type, look->ours))
		return true;
	if (before == changes)
		*place = type;
	return false;
}

/* Only SQL functions are ever inlined. */
static bool
function_concerns(Oid function, Look *look)
{
	Oid		   *place = &harmless_functions[function % REMEMBERED];
	uint32		before = changes;
	HeapTuple	tuple;
	bool		is_sql;

	if (!look->planning || function < FirstNormalObjectId || *place == function)
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return true;
	is_sql = ((Form_pg_proc) GETSTRUCT(tuple))->prolang == SQLlanguageId;
	ReleaseSysCache(tuple);
	if (is_sql)
		return true;
	if (before == changes)
		*place = function;
	return false;
}

/* A function's columns have types of their own. */
static bool
table_concerns(RangeTblEntry *rte, Look *look)
{
	ListCell   *lc;
	ListCell   *type;

	foreach(lc, rte->functions)
	{
		foreach(type, lfirst_node(RangeTblFunction, lc)->funccoltypes)
		{
			if (type_concerns(lfirst_oid(type), look))
				return true;
		}
	}
	foreach(type, rte->coltypes)
	{
		if (type_concerns(lfirst_oid(type), look))
			return true;
	}
	return false;
}

static bool look_at(Node *node, Look *look);

static bool
look_at_list(const List *list, Look *look)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		if (look_at(lfirst(lc), look))
			return true;
	}
	return false;
}

/*
 * Nothing but tables, a target list and conditions?  Most queries that come
 * often are; PostgreSQL's walker looks into twenty places more.
 */
static bool
is_plain_select(const Query *query)
{
	ListCell   *lc;

	if (query->commandType != CMD_SELECT || query->cteList != NIL ||
		query->setOperations != NULL || query->havingQual != NULL ||
		query->limitOffset != NULL || query->limitCount != NULL ||
		query->windowClause != NIL || query->returningList != NIL ||
		query->withCheckOptions != NIL || query->onConflict != NULL ||
		query->mergeActionList != NIL)
		return false;
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind != RTE_RELATION || rte->tablesample != NULL ||
			rte->securityQuals != NIL)
			return false;
	}
	return true;
}

/*
 * Whatever else an expression can be, its type is built in or that of a part
 * of it.  What is most frequent is walked through here.
 */
static bool
look_at(Node *node, Look *look)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
			return look_at_list((List *) node, look);
		case T_TargetEntry:
			return look_at((Node *) ((TargetEntry *) node)->expr, look);
		case T_RangeTblRef:
			return false;
		case T_FromExpr:
			return look_at_list(((FromExpr *) node)->fromlist, look) ||
				look_at(((FromExpr *) node)->quals, look);
		case T_Var:
			return type_concerns(((Var *) node)->vartype, look);
		case T_Const:
			return type_concerns(((Const *) node)->consttype, look);
		case T_Param:
			return type_concerns(((Param *) node)->paramtype, look);
		case T_FuncExpr:
			if (type_concerns(((FuncExpr *) node)->funcresulttype, look) ||
				function_concerns(((FuncExpr *) node)->funcid, look))
				return true;
			break;
		case T_OpExpr:
			if (type_concerns(((OpExpr *) node)->opresulttype, look) ||
				(((OpExpr *) node)->opno >= FirstNormalObjectId &&
				 function_concerns(get_opcode(((OpExpr *) node)->opno), look)))
				return true;
			return look_at_list(((OpExpr *) node)->args, look);
		case T_Aggref:
		case T_WindowFunc:
		case T_CaseTestExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_ConvertRowtypeExpr:
		case T_CoerceToDomain:
		case T_CoerceToDomainValue:
		case T_SetToDefault:
		case T_FieldSelect:
		case T_FieldStore:
		case T_SubscriptingRef:
		case T_RowExpr:
		case T_ArrayExpr:
			if (type_concerns(exprType(node), look))
				return true;
			break;
		case T_RangeTblEntry:
			return table_concerns((RangeTblEntry *) node, look);
		case T_Query:
			if (is_plain_select((Query *) node))
				return look_at_list(((Query *) node)->targetList, look) ||
					look_at((Node *) ((Query *) node)->jointree, look);
			return query_tree_walker((Query *) node, look_at, look, QTW_EXAMINE_RTES_BEFORE);
		default:
			break;
	}
	return expression_tree_walker(node, look_at, look);
}

bool
concern_values(Node *tree, Oid ours)
{
	Look		look = {.ours = ours};

	listen(ours);
	return look_at(tree, &look);
}

bool
concern_plan(Node *tree, Oid ours)
{
	Look		look = {.ours = ours,.planning = true};

	listen(ours);
	return look_at(tree, &look);
}
