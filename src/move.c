/*
 * move.c
 *		What nomp_crypt.move_rows needs to know of a table and a condition.
 *
 * The moving itself is SQL (nomp_crypt--1.0.sql): one UPDATE changes the
 * tenant's column, values and fingerprints together, with the caller's rights
 * and all triggers and constraints.
 */
#include "postgres.h"

#include "access/table.h"
#include "compat.h"
#include "errors.h"
#include "expression.h"
#include "inside.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "reencrypt.h"
#include "register_proof.h"
#include "rights.h"
#include "tables.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

NC_FUNCTION(nc_condition);
NC_FUNCTION(nc_move_column);

static Node *
to_boolean(Node *expr, void *pstate)
{
	return coerce_to_boolean(pstate, expr, "WHERE");
}

/*
 * nomp_crypt._condition(of_table regclass, condition text) returns text
 *
 * The caller's condition, parsed as he means it, written so that it can be put
 * after WHERE for the table under the alias "t".  Raises 42601 for anything
 * but one expression, 42804 if it is not boolean.
 */
Datum
nc_condition(PG_FUNCTION_ARGS)
{
	Oid			table = PG_GETARG_OID(0);
	Relation	rel = table_open(table, AccessShareLock);
	Node	   *expr;

	expr = expression_parse(rel, text_to_cstring(PG_GETARG_TEXT_PP(1)), to_boolean,
							"condition must be one boolean expression",
							"Write what would stand after WHERE.");
	table_close(rel, AccessShareLock);
	PG_RETURN_TEXT_P(cstring_to_text(expression_text(expr, table, true)));
}

/* The tenant that rows shall move to, if values can be encrypted for it. */
static void
require_target(text *name)
{
	TenantRow	to;

	reencrypt_tenant(name, &to);
	rights_require(&to, RIGHT_ENCRYPT);
	if (to.state == TENANT_ERASED)
		register_raise_erased(&to);
	if (to.state != TENANT_ACTIVE)
		error_suspended(to.id, to.state == TENANT_FENCED);
}

/*
 * nomp_crypt._move_column(of_table regclass, tenant_column name, to_tenant text)
 *		returns name
 *
 * The column that says whose a row is: the one given, or the one that the
 * trigger enforce_tenant goes by.  Refuses what move_rows could not do.
 * Raises 22023, 42501, 42703, 42704, 42804, 42809, NC001, NC002.
 */
Datum
nc_move_column(PG_FUNCTION_ARGS)
{
	Oid			table = PG_GETARG_OID(0);
	Name		name = palloc0(sizeof(NameData));
	AttrNumber	number;
	Relation	rel;

	tables_require(table, NULL, ACL_SELECT | ACL_UPDATE);
	rel = table_open(table, AccessShareLock);
	if (rel->rd_rel->relkind == RELKIND_MATVIEW)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s is a materialized view", tables_name(table))));
	number = PG_ARGISNULL(1) ? tables_school(rel) :
		get_attnum(table, NameStr(*PG_GETARG_NAME(1)));
	if (number <= 0)
		ereport(ERROR,
				(errcode(PG_ARGISNULL(1) ? ERRCODE_INVALID_PARAMETER_VALUE : ERRCODE_UNDEFINED_COLUMN),
				 PG_ARGISNULL(1) ? errmsg("which column of %s says whose row it is is not known", tables_name(table)) :
				 errmsg("column \"%s\" of relation %s does not exist", NameStr(*PG_GETARG_NAME(1)), tables_name(table)),
				 errhint("Install the trigger nomp_crypt.enforce_tenant, or give tenant_column.")));
	if (inside_holds(TupleDescAttr(RelationGetDescr(rel), number - 1)->atttypid))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" cannot say whose row it is: it is encrypted itself",
						NameStr(TupleDescAttr(RelationGetDescr(rel), number - 1)->attname))));
	namestrcpy(name, NameStr(TupleDescAttr(RelationGetDescr(rel), number - 1)->attname));
	table_close(rel, AccessShareLock);
	require_target(PG_GETARG_TEXT_PP(2));
	PG_RETURN_NAME(name);
}
