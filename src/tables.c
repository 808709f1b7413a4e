/*
 * tables.c
 *		Tables with encrypted columns, for commands that go through all rows.
 *
 * Such a command works below the executor, so what the executor would check is
 * checked here: privileges on the table that was named, not on its
 * partitions, and row-level security, which must not apply: rows that are
 * hidden would be left out in silence.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "inside.h"
#include "miscadmin.h"
#include "sqlnames.h"
#include "storage/bufmgr.h"
#include "tables.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

NC_FUNCTION(nc_holds_values);

/*
 * nomp_crypt._holds_values(of_type oid) returns boolean
 *
 * Can a column of that type hold encrypted values?
 */
Datum
nc_holds_values(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(inside_holds(PG_GETARG_OID(0)));
}

Oid
tables_by_name(const char *name)
{
	List	   *names = textToQualifiedNameList(cstring_to_text(name));

	return RangeVarGetRelid(makeRangeVarFromNameList(names), NoLock, false);
}

char *
tables_name(Oid table)
{
	char	   *name = get_rel_name(table);

	if (name == NULL)
		return psprintf("%u", table);
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)), name);
}

/* Does a relation of that kind have rows that we can go through? */
static bool
is_table(char relkind)
{
	return relkind == RELKIND_RELATION || relkind == RELKIND_MATVIEW;
}

static void
require_kind(Oid table)
{
	char		relkind = get_rel_relkind(table);

	if (relkind == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", table)));
	if (!is_table(relkind) && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s is not a table", tables_name(table)),
				 relkind == RELKIND_FOREIGN_TABLE ?
				 errhint("Call this on the server that has the rows.") : 0));
}

static void
require_no_policies(Oid table)
{
	if (check_enable_rls(table, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security hides rows of %s from this role", tables_name(table)),
				 errhint("Call this as the table's owner, without FORCE ROW LEVEL SECURITY, or as a role with BYPASSRLS.")));
}

static void
require_column(Relation rel, const char *column)
{
	AttrNumber	number = get_attnum(RelationGetRelid(rel), column);

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation %s does not exist",
						column, tables_name(RelationGetRelid(rel)))));
	if (!inside_holds(TupleDescAttr(RelationGetDescr(rel), number - 1)->atttypid))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of relation %s is not encrypted",
						column, tables_name(RelationGetRelid(rel)))));
}

static bool
may(Oid table, const TableColumns *columns, AclMode mode)
{
	if (pg_class_aclcheck(table, GetUserId(), mode) == ACLCHECK_OK)
		return true;
	for (int i = 0; i < columns->n; i++)
	{
		if (pg_attribute_aclcheck(table, columns->numbers[i], GetUserId(), mode) != ACLCHECK_OK)
			return false;
	}
	return columns->n > 0;
}

void
tables_require(Oid table, const char *column, AclMode mode)
{
	Relation	rel;
	TableColumns columns;

	require_kind(table);
	rel = table_open(table, AccessShareLock);
	if (RELATION_IS_OTHER_TEMP(rel))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s is a temporary table of another session", tables_name(table))));
	if (column != NULL)
		require_column(rel, column);
	columns = tables_columns(rel, column);
	/* one at a time: several in a mask are alternatives */
	for (AclMode bit = 1; bit != 0 && bit <= mode; bit <<= 1)
	{
		if ((mode & bit) != 0 && !may(table, &columns, bit))
			aclcheck_error(ACLCHECK_NO_PRIV, get_relkind_objtype(rel->rd_rel->relkind),
						   RelationGetRelationName(rel));
	}
	require_no_policies(table);
	table_close(rel, AccessShareLock);
}

List *
tables_storage(Oid table)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(table, NoLock, NULL))
	{
		char		relkind = get_rel_relkind(lfirst_oid(lc));

		if (is_table(relkind))
			result = lappend_oid(result, lfirst_oid(lc));
		else if (relkind == RELKIND_FOREIGN_TABLE)
			ereport(NOTICE,
					(errmsg("%s is a foreign table and is left out", tables_name(lfirst_oid(lc))),
					 errhint("Call this on the server that has its rows.")));
	}
	return result;
}

/* All relations of this database that a test is true of, but temporary ones. */
static List *
find_tables(bool parents, bool (*test) (Relation rel))
{
	Relation	catalog = table_open(RelationRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(catalog, 0, NULL);
	HeapTuple	tuple;
	List	   *found = NIL;
	List	   *result = NIL;
	ListCell   *lc;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_class class = (Form_pg_class) GETSTRUCT(tuple);

		if ((is_table(class->relkind) ||
			 (parents && class->relkind == RELKIND_PARTITIONED_TABLE)) &&
			class->relpersistence != RELPERSISTENCE_TEMP)
			found = lappend_oid(found, class->oid);
	}
	table_endscan(scan);
	table_close(catalog, AccessShareLock);
	list_sort(found, list_oid_cmp);
	foreach(lc, found)
	{
		Relation	rel = try_table_open(lfirst_oid(lc), AccessShareLock);

		if (rel == NULL)
			continue;
		if (test(rel))
			result = lappend_oid(result, lfirst_oid(lc));
		table_close(rel, AccessShareLock);
	}
	return result;
}

static bool
has_values(Relation rel)
{
	return tables_columns(rel, NULL).n > 0;
}

static bool
has_searchable(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && inside_searchable(att->atttypid, att->atttypmod))
			return true;
	}
	return false;
}

List *
tables_all(void)
{
	return find_tables(false, has_values);
}

List *
tables_searchable(void)
{
	return find_tables(true, has_searchable);
}

TableColumns
tables_columns(Relation rel, const char *column)
{
	TupleDesc	desc = RelationGetDescr(rel);
	TableColumns columns = {0};

	columns.numbers = palloc(Max(desc->natts, 1) * sizeof(AttrNumber));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attgenerated != '\0' ||
			(column != NULL && namestrcmp(&att->attname, column) != 0) ||
			!inside_holds(att->atttypid))
			continue;
		columns.numbers[columns.n++] = att->attnum;
	}
	return columns;
}

AttrNumber
tables_school(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgfoid == sql_function(SQL_ENFORCE_TENANT) &&
			trigger->tgenabled != TRIGGER_DISABLED && trigger->tgnargs == 1)
			return get_attnum(RelationGetRelid(rel), trigger->tgargs[0]);
	}
	return InvalidAttrNumber;
}

char *
tables_school_text(Datum value, Oid base_type, Oid output)
{
	char	   *text = OidOutputFunctionCall(output, value);

	if (base_type == BPCHAROID)
	{
		for (int len = strlen(text); len > 0 && text[len - 1] == ' '; len--)
			text[len - 1] = '\0';
	}
	return text;
}

BlockNumber
tables_blocks(Oid relid)
{
	Relation	rel = try_table_open(relid, AccessShareLock);
	BlockNumber blocks = 0;

	if (rel == NULL)
		return 0;
	blocks = RelationGetNumberOfBlocks(rel);
	table_close(rel, AccessShareLock);
	return blocks;
}
