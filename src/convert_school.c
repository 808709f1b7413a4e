/*
 * convert_school.c
 *		Whose is a row?  The expression that says so, for tables whose columns
 *		are about to be encrypted.
 *
 * Most often it is a column; or a look-up, which PostgreSQL does not allow
 * where a column's type is changed, so that it has to go through a function.
 * Which columns it needs and whether it looks anything up is found out here;
 * the rest is SQL.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "expression.h"
#include "funcapi.h"
#include "inside.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "tables.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

NC_FUNCTION(nc_tenant_expression);

/* The column that an expression is but for one cast to text; or 0. */
static AttrNumber
only_column(Node *expr)
{
	if (IsA(expr, RelabelType))
		expr = (Node *) ((RelabelType *) expr)->arg;
	else if (IsA(expr, CoerceViaIO))
		expr = (Node *) ((CoerceViaIO *) expr)->arg;
	else if (IsA(expr, FuncExpr) && list_length(((FuncExpr *) expr)->args) == 1 &&
			 ((FuncExpr *) expr)->funcformat == COERCE_EXPLICIT_CAST)
		expr = linitial(((FuncExpr *) expr)->args);
	return IsA(expr, Var) && ((Var *) expr)->varlevelsup == 0 ? ((Var *) expr)->varattno : 0;
}

typedef struct Look
{
	Oid			table;
	bool		subquery;
} Look;

/* Is anything looked up, and where?  Raises 0A000 for the table itself. */
static bool
look(Node *node, Look *what)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		if (((RangeTblEntry *) node)->relid == what->table)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("tenant expression looks rows up in %s itself", tables_name(what->table)),
					 errhint("Write each row's tenant into a column first.")));
		return false;
	}
	if (IsA(node, Query))
	{
		what->subquery = true;
		return query_tree_walker((Query *) node, look, what, QTW_EXAMINE_RTES_BEFORE);
	}
	return expression_tree_walker(node, look, what);
}

/* The columns of the table that it needs, each once.  Raises 0A000, 42804. */
static Datum
columns_of(Node *expr, Relation rel, const char *converted)
{
	Bitmapset  *numbers = NULL;
	ArrayBuildState *names = initArrayResult(TEXTOID, CurrentMemoryContext, false);
	ListCell   *lc;
	int			number = -1;

	foreach(lc, pull_vars_of_level(expr, 0))
	{
		Var		   *var = lfirst_node(Var, lc);
		Form_pg_attribute att;

		if (var->varattno <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("tenant expression uses the whole row or a system column"),
					 errhint("Name the columns that it needs.")));
		att = TupleDescAttr(RelationGetDescr(rel), var->varattno - 1);
		if (namestrcmp(&att->attname, converted) == 0 || inside_holds(att->atttypid))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" cannot say whose row it is: it is encrypted itself",
							NameStr(att->attname))));
		numbers = bms_add_member(numbers, var->varattno);
	}
	while ((number = bms_next_member(numbers, number)) > 0)
		names = accumArrayResult(names,
								 CStringGetTextDatum(NameStr(TupleDescAttr(RelationGetDescr(rel), number - 1)->attname)),
								 false, TEXTOID, CurrentMemoryContext);
	return makeArrayResult(names, CurrentMemoryContext);
}

/*
 * nomp_crypt._tenant_expression(of_table regclass, of_column name, tenant_expression text)
 *		returns (school name, expression text, columns text[], subquery boolean)
 *
 * What the caller means by it, in his search_path: written again with all
 * names qualified and the table's columns bare, or as "t.column" within
 * subqueries; "school" is the column that it is, if it is one.  Raises 42601
 * for anything but one expression, 0A000, 42804.
 */
Datum
nc_tenant_expression(PG_FUNCTION_ARGS)
{
	Oid			table = PG_GETARG_OID(0);
	Relation	rel = table_open(table, AccessShareLock);
	Look		what = {.table = table};
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};
	AttrNumber	only;
	Node	   *expr;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	expr = expression_parse(rel, text_to_cstring(PG_GETARG_TEXT_PP(2)), expression_as_text,
							"tenant expression must be one expression",
							"Write what gives the tenant's id: a column, or a look-up in parentheses.");
	(void) look(expr, &what);
	values[2] = columns_of(expr, rel, NameStr(*PG_GETARG_NAME(1)));
	only = only_column(expr);
	nulls[0] = only <= 0;
	values[0] = nulls[0] ? (Datum) 0 :
		DirectFunctionCall1(namein, CStringGetDatum(NameStr(TupleDescAttr(RelationGetDescr(rel), only - 1)->attname)));
	values[1] = CStringGetTextDatum(expression_text(expr, table, false));
	values[3] = BoolGetDatum(what.subquery);
	table_close(rel, AccessShareLock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
