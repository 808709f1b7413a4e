/*
 * ddl_guard.c
 *		Definitions that would mislead or lose data are refused.
 *
 * A column of the type needs a modifier; without fingerprints a unique index,
 * primary key or foreign key over it would never find an equal, nor would a
 * comparison in a stored expression, which no planner hook sees; a constant of the type in a
 * definition would belong to one school, and so would all values of a table
 * that is converted inside one; and DROP EXTENSION would take the keys of
 * living schools with it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_trigger.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "compare_guard.h"
#include "guard.h"
#include "parser/parse_type.h"
#include "rewrite_parts.h"
#include "session.h"
#include "tables.h"
#include "tcop/utility.h"
#include "type_io.h"
#include "typemod.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

static object_access_hook_type next_access = NULL;
static ProcessUtility_hook_type next_utility = NULL;

/* Does the row, as this command sees it, exist?  Uncommitted ones included. */
static HeapTuple
fetch_own(Relation rel, Oid index, AttrNumber column, Oid oid, SysScanDesc *scan)
{
	ScanKeyData key;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(oid));
	*scan = systable_beginscan(rel, index, true, SnapshotSelf, 1, &key);
	return systable_getnext(*scan);
}

static bool
stores_rows(char relkind)
{
	return relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE ||
		relkind == RELKIND_FOREIGN_TABLE || relkind == RELKIND_MATVIEW ||
		relkind == RELKIND_COMPOSITE_TYPE;	/* a column may be of it */
}

static char
relkind_of(Oid relid)
{
	Relation	rel = table_open(RelationRelationId, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tuple = fetch_own(rel, ClassOidIndexId, Anum_pg_class_oid, relid, &scan);
	char		kind = HeapTupleIsValid(tuple) ?
	((Form_pg_class) GETSTRUCT(tuple))->relkind : '\0';

	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return kind;
}

/* Does a column hold our type, in a domain or an array perhaps, bare? */
static bool
is_bare(Form_pg_attribute att, Oid ours)
{
	int32		typmod = att->atttypmod;
	Oid			type = getBaseTypeAndTypmod(att->atttypid, &typmod);
	Oid			element = get_element_type(type);

	if (OidIsValid(element))
		type = getBaseTypeAndTypmod(element, &typmod);
	return type == ours && typmod < 0;
}

/* Refuse bare columns of our type; attnum 0 means every column. */
static void
check_columns(Oid relid, char relkind, int attnum, Oid ours)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

	if (!stores_rows(relkind))
		return;
	rel = table_open(AttributeRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_attribute_attrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, AttributeRelidNumIndexId, true, SnapshotSelf, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_attribute att = (Form_pg_attribute) GETSTRUCT(tuple);

		if (att->attisdropped || (attnum != 0 && att->attnum != attnum))
			continue;
		if (is_bare(att, ours))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
					 errmsg("column \"%s\" needs to say what is encrypted", NameStr(att->attname)),
					 errhint("Declare it encrypted(text), for example; in a query, cast it to that.")));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* A column's type, domains looked through, and its modifier. */
static Oid
own_attribute_type(Oid relid, AttrNumber attnum, int32 *typmod)
{
	Relation	rel = table_open(AttributeRelationId, AccessShareLock);
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			type = InvalidOid;

	*typmod = -1;
	ScanKeyInit(&key[0], Anum_pg_attribute_attrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	ScanKeyInit(&key[1], Anum_pg_attribute_attnum, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(attnum));
	scan = systable_beginscan(rel, AttributeRelidNumIndexId, true, SnapshotSelf, 2, key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		*typmod = ((Form_pg_attribute) GETSTRUCT(tuple))->atttypmod;
		type = getBaseTypeAndTypmod(((Form_pg_attribute) GETSTRUCT(tuple))->atttypid, typmod);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return type;
}

static void
refuse_equality(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s needs searchable columns", what),
			 errdetail("Without a fingerprint two encryptions of the same value differ, so it would never find an equal."),
			 errhint("Declare the column encrypted(text, searchable).")));
}

/* Can this column's values be told equal?  True for other types. */
static bool
has_equality(Oid relid, AttrNumber attnum, Oid ours)
{
	int32		typmod;
	Oid			type = own_attribute_type(relid, attnum, &typmod);

	return type == ours ? typemod_searchable(typmod) : !compare_guard_holds(type, ours);
}

/*
 * Refuse a unique index or exclusion constraint that would find no equal.
 * The table's columns say of which type its columns are: a hash index's own
 * are integers.
 */
static void
check_index(Oid indexid, Oid ours)
{
	Relation	rel = table_open(IndexRelationId, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tuple = fetch_own(rel, IndexRelidIndexId, Anum_pg_index_indexrelid,
								  indexid, &scan);
	Form_pg_index form = HeapTupleIsValid(tuple) ? (Form_pg_index) GETSTRUCT(tuple) : NULL;
	bool		refuse = false;

	if (form != NULL && (form->indisunique || form->indisexclusion))
	{
		for (int i = 0; i < form->indnkeyatts; i++)
			refuse = refuse ||
				(form->indkey.values[i] != 0 ?
				 !has_equality(form->indrelid, form->indkey.values[i], ours) :
				 !has_equality(indexid, i + 1, ours));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (refuse)
		refuse_equality("a unique or exclusion constraint");
}

static int
key_columns(HeapTuple tuple, AttrNumber column, Relation rel, int16 **numbers)
{
	bool		isnull;
	Datum		keys = heap_getattr(tuple, column, RelationGetDescr(rel), &isnull);
	ArrayType  *array = isnull ? NULL : DatumGetArrayTypePCopy(keys);

	*numbers = isnull ? NULL : (int16 *) ARR_DATA_PTR(array);
	return isnull ? 0 : ARR_DIMS(array)[0];
}

/* Both sides of a foreign key must be found by the same fingerprints. */
static void
check_key_pair(Oid from, AttrNumber from_column, Oid to, AttrNumber to_column, Oid ours)
{
	int32		from_mod;
	int32		to_mod;
	Oid			from_type = own_attribute_type(from, from_column, &from_mod);
	Oid			to_type = own_attribute_type(to, to_column, &to_mod);

	if (!compare_guard_holds(from_type, ours) && !compare_guard_holds(to_type, ours))
		return;
	if (from_type == ours && to_type == ours && rewrite_same_search(from_mod, to_mod) &&
		typemod_type_code(from_mod) == typemod_type_code(to_mod))
		return;
	if (from_type == ours && to_type == ours &&
		typemod_searchable(from_mod) && typemod_searchable(to_mod))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a foreign key needs columns of the same type that are searchable in the same way"),
				 errhint("Declare both alike.")));
	refuse_equality("a foreign key");
}

static void
check_constraint(Oid constraint, Oid ours)
{
	Relation	rel = table_open(ConstraintRelationId, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tuple = fetch_own(rel, ConstraintOidIndexId, Anum_pg_constraint_oid,
								  constraint, &scan);
	Oid			from = InvalidOid;
	Oid			to = InvalidOid;
	int16	   *from_columns = NULL;
	int16	   *to_columns = NULL;
	int			n = 0;

	if (HeapTupleIsValid(tuple) &&
		((Form_pg_constraint) GETSTRUCT(tuple))->contype == CONSTRAINT_FOREIGN)
	{
		from = ((Form_pg_constraint) GETSTRUCT(tuple))->conrelid;
		to = ((Form_pg_constraint) GETSTRUCT(tuple))->confrelid;
		n = key_columns(tuple, Anum_pg_constraint_conkey, rel, &from_columns);
		(void) key_columns(tuple, Anum_pg_constraint_confkey, rel, &to_columns);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	for (int i = 0; i < n; i++)
		check_key_pair(from, from_columns[i], to, to_columns[i], ours);
}

/*
 * Refuse stored expressions that compare values: they may run without ever
 * passing the planner hook.  They are in that column of the catalog's rows
 * that belong to oid.
 */
static void
check_expressions(Oid catalog, Oid index, AttrNumber key, Oid oid,
				  AttrNumber column, Oid ours)
{
	Relation	rel = table_open(catalog, AccessShareLock);
	List	   *expressions = NIL;
	ListCell   *lc;
	SysScanDesc scan;
	HeapTuple	tuple;

	for (tuple = fetch_own(rel, index, key, oid, &scan);
		 HeapTupleIsValid(tuple);
		 tuple = systable_getnext(scan))
	{
		bool		isnull;
		Datum		tree = heap_getattr(tuple, column, RelationGetDescr(rel), &isnull);

		if (!isnull)
			expressions = lappend(expressions, stringToNode(TextDatumGetCString(tree)));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	foreach(lc, expressions)
		(void) compare_guard_check(lfirst(lc), ours, true);
}

/* What a relation's definition must not hold; sub is a column or 0. */
static void
check_relation(ObjectAccessType access, Oid relid, int sub, Oid ours)
{
	char		kind = relkind_of(relid);

	if (kind != RELKIND_INDEX && kind != RELKIND_PARTITIONED_INDEX)
		check_columns(relid, kind, sub, ours);
	else if (access == OAT_POST_CREATE)
	{
		check_index(relid, ours);
		check_expressions(IndexRelationId, IndexRelidIndexId, Anum_pg_index_indexrelid,
						  relid, Anum_pg_index_indexprs, ours);
		check_expressions(IndexRelationId, IndexRelidIndexId, Anum_pg_index_indexrelid,
						  relid, Anum_pg_index_indpred, ours);
	}
}

/*
 * Dropping the extension drops the tenants' table first, when its rows can
 * still be read.
 */
static void
check_drop(Oid relid)
{
	char	   *name = get_rel_name(relid);

	if (name == NULL || strcmp(name, "tenant") != 0 ||
		!OidIsValid(get_extension_oid("nomp_crypt", true)) ||
		catalog_relation("tenant") != relid)
		return;
	if (catalog_any_living_tenant())
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop extension nomp_crypt while tenants exist"),
				 errdetail("Their wrapped keys are in its tables; without them their values can never be read again."),
				 errhint("Erase the tenants first, or drop the database.")));
}

static void
object_access(ObjectAccessType access, Oid class, Oid object, int sub, void *arg)
{
	Oid			ours;

	if (next_access != NULL)
		next_access(access, class, object, sub, arg);
	if (access == OAT_FUNCTION_EXECUTE)
		return;					/* comes for each function that a query calls */
	if (access == OAT_DROP && class == RelationRelationId && sub == 0)
		check_drop(object);
	if (access != OAT_POST_CREATE && access != OAT_POST_ALTER)
		return;
	if (!OidIsValid(ours = catalog_type()))
		return;
	switch (class)
	{
		case RelationRelationId:
			check_relation(access, object, sub, ours);
			break;
		case ConstraintRelationId:
			check_constraint(object, ours);
			check_expressions(class, ConstraintOidIndexId, Anum_pg_constraint_oid,
							  object, Anum_pg_constraint_conbin, ours);
			break;
		case AttrDefaultRelationId:
			/* the object is the table */
			check_expressions(class, AttrDefaultIndexId, Anum_pg_attrdef_adrelid,
							  object, Anum_pg_attrdef_adbin, ours);
			break;
		case TriggerRelationId:
			check_expressions(class, TriggerOidIndexId, Anum_pg_trigger_oid,
							  object, Anum_pg_trigger_tgqual, ours);
			break;
		default:
			break;
	}
}

/* A range compares its ends as soon as it is made. */
static void
check_range(CreateRangeStmt *stmt)
{
	ListCell   *lc;
	Oid			ours = catalog_type();

	foreach(lc, OidIsValid(ours) ? stmt->params : NIL)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "subtype") == 0 &&
			compare_guard_holds(typenameTypeId(NULL, defGetTypeName(option)), ours))
			refuse_equality("a range");
	}
}

/* Does a column of that name hold our values already, or not exist? */
static bool
is_ours_already(Oid relid, const char *column, Oid ours)
{
	AttrNumber	number = get_attnum(relid, column);

	return number <= 0 || compare_guard_holds(get_atttype(relid, number), ours);
}

/*
 * Inside a tenant a plain column must not become an encrypted one by ALTER
 * TABLE alone: every row's value would be that tenant's.
 */
static void
check_alter(AlterTableStmt *stmt)
{
	Oid			ours = catalog_type();
	Oid			relid;
	ListCell   *lc;

	if (!OidIsValid(ours) || session_tenant() == NULL)
		return;
	relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	foreach(lc, OidIsValid(relid) ? stmt->cmds : NIL)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype != AT_AlterColumnType ||
			!compare_guard_holds(typenameTypeId(NULL, castNode(ColumnDef, cmd->def)->typeName), ours) ||
			is_ours_already(relid, cmd->name, ours))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\" cannot become encrypted by ALTER TABLE inside a tenant", cmd->name),
				 errdetail("Every row's value would be encrypted for tenant \"%s\".", session_tenant()),
				 errhint("SELECT nomp_crypt.encrypt_column('%s', '%s', '<the column that says whose row it is>') encrypts each row's value for its own tenant.",
						 tables_name(relid), cmd->name)));
	}
}

/* Statements whose expressions are stored. */
static bool
stores_expressions(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreateStmt:
		case T_CreateForeignTableStmt:
		case T_AlterTableStmt:
		case T_IndexStmt:
		case T_CreatePolicyStmt:
		case T_AlterPolicyStmt:
		case T_CreateTrigStmt:
		case T_RuleStmt:
		case T_ViewStmt:
		case T_CreateDomainStmt:
		case T_AlterDomainStmt:
		case T_CreateStatsStmt:
		case T_CreateFunctionStmt:
			return true;
		default:
			return false;
	}
}

/* A function whose body is text and whose parameters have no defaults. */
static bool
checks_text(Node *stmt)
{
	CreateFunctionStmt *create = (CreateFunctionStmt *) stmt;
	ListCell   *lc;

	if (!IsA(stmt, CreateFunctionStmt) || create->sql_body != NULL)
		return false;
	foreach(lc, create->parameters)
	{
		if (lfirst_node(FunctionParameter, lc)->defexpr != NULL)
			return false;
	}
	return true;
}

static void
utility(PlannedStmt *pstmt, const char *source, bool readOnlyTree,
		ProcessUtilityContext context, ParamListInfo params,
		QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	LiteralMode before = type_literal_mode;

	if (IsA(pstmt->utilityStmt, CreateRangeStmt))
		check_range((CreateRangeStmt *) pstmt->utilityStmt);
	if (IsA(pstmt->utilityStmt, AlterTableStmt))
		check_alter((AlterTableStmt *) pstmt->utilityStmt);
	if (checks_text(pstmt->utilityStmt))
		type_literal_mode = LITERALS_CHECKED;
	else if (stores_expressions(pstmt->utilityStmt))
		type_literal_mode = LITERALS_REFUSED;
	PG_TRY();
	{
		if (next_utility != NULL)
			next_utility(pstmt, source, readOnlyTree, context, params, env, dest, qc);
		else
			standard_ProcessUtility(pstmt, source, readOnlyTree, context, params,
									env, dest, qc);
	}
	PG_FINALLY();
	{
		type_literal_mode = before;
	}
	PG_END_TRY();
}

void
ddl_guard_init(void)
{
	next_access = object_access_hook;
	object_access_hook = object_access;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = utility;
}
