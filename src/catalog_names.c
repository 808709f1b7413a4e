/*
 * catalog_names.c
 *		Where the extension's own things are: its schema, tables and type.
 *
 * The SQL objects' version is compared with the library's, once per backend
 * and after every change of a type.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "relchange.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#define SCHEMA_NAME		"nomp_crypt"

static bool version_checked = false;
static Oid	type_oid = InvalidOid;	/* of "encrypted" */
static bool type_known = false;	/* is type_oid current? */

static void
forget_type(Datum arg, int cacheid, uint32 hashvalue)
{
	type_known = false;
	version_checked = false;
}

/* The extension's row: schema of the type, version.  False if not created. */
static bool
extension_row(Oid *schema, char **version)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("nomp_crypt"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		*schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		*version = isnull ? pstrdup("") : TextDatumGetCString(datum);
		found = true;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * The type's OID, or InvalidOid where the extension does not exist.  Cheap
 * when nothing changed: hooks ask this for every statement.
 */
Oid
catalog_type(void)
{
	static bool registered = false;
	Oid			schema;
	char	   *version;

	if (type_known)
		return type_oid;
	if (!registered)
	{
		CacheRegisterSyscacheCallback(TYPEOID, forget_type, (Datum) 0);
		registered = true;
	}
	type_known = true;			/* a concurrent invalidation resets it */
	type_oid = InvalidOid;
	if (extension_row(&schema, &version))
		type_oid = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
								   CStringGetDatum("encrypted"),
								   ObjectIdGetDatum(schema));
	return type_oid;
}

/* Our schema; raises if the SQL objects are missing or of another version. */
Oid
catalog_schema(void)
{
	if (!version_checked)
	{
		Oid			schema;
		char	   *version;

		if (!extension_row(&schema, &version))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("extension \"nomp_crypt\" does not exist in this database"),
					 errhint("CREATE EXTENSION nomp_crypt;")));
		if (strcmp(version, SQL_VERSION) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the loaded library of nomp_crypt is for version %s, this database has version %s",
							SQL_VERSION, version),
					 errhint("ALTER EXTENSION nomp_crypt UPDATE; or restart the server with the matching library.")));
		version_checked = true;
		(void) catalog_type();	/* registers the invalidation callback */
	}
	return get_namespace_oid(SCHEMA_NAME, false);
}

/* Names are literals: the same one is at the same address, mostly. */
static struct
{
	const char *name;
	Oid			oid;
}			relations[32];
static int	num_relations = 0;

static void
forget_relation(Oid relid)
{
	for (int i = 0; i < num_relations; i++)
	{
		if (relations[i].oid == relid || !OidIsValid(relid))
			num_relations = 0;
	}
}

static void
remember_relation(const char *name, Oid oid)
{
	static bool registered = false;

	if (!registered)
		relchange_listen(forget_relation);
	registered = true;
	if (num_relations == lengthof(relations))
		num_relations = 0;
	relations[num_relations].name = name;
	relations[num_relations++].oid = oid;
}

/* One of our tables or indexes; the name is a string literal. */
Oid
catalog_relation(const char *name)
{
	Oid			schema;
	Oid			oid;

	for (int i = 0; i < num_relations && version_checked; i++)
	{
		if (relations[i].name == name)
			return relations[i].oid;
	}
	schema = catalog_schema();
	oid = get_relname_relid(name, schema);
	if (OidIsValid(oid))
		remember_relation(name, oid);
	else
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", SCHEMA_NAME, name)));
	return oid;
}
