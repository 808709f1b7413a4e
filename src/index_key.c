/*
 * index_key.c
 *		nomp_crypt.rotate_index_key: a school's fingerprints under another key.
 *
 * Fingerprints are compared with each other, so they change all together: one
 * transaction makes the new key, and takes every fingerprint of the school in
 * every table of the database anew.  Unique indexes and foreign keys hold all
 * along, because equal values have equal fingerprints before and after.
 *
 * Locks: writers are kept out from the start, of parents too: a row for a
 * partition gets its fingerprint before the partition is locked.  At the end
 * readers as well, until the commit: none may look up with the new key in a
 * snapshot from before it, nor the other way round.  Whoever waited for one of
 * these locks hears of the new key with it.
 *
 * The caller needs his own rights on all those tables and in the school; only
 * the making of the key is the extension's owner's.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "inside.h"
#include "miscadmin.h"
#include "progress.h"
#include "reencrypt.h"
#include "rights.h"
#include "storage/lmgr.h"
#include "sweep.h"
#include "tables.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

NC_FUNCTION(nc_rotate_index_key);

/* The new key, by the extension's own function; its version. */
static int32
make_key(FunctionCallInfo fcinfo, Datum tenant)
{
	HeapTuple	proc = SearchSysCache1(PROCOID, ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	Oid			type = TEXTOID;
	Oid			user;
	int			context;
	bool		isnull;
	int32		version;

	if (!HeapTupleIsValid(proc))
		elog(ERROR, "cache lookup failed for function %u", fcinfo->flinfo->fn_oid);
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(((Form_pg_proc) GETSTRUCT(proc))->proowner,
						   context | SECURITY_LOCAL_USERID_CHANGE);
	ReleaseSysCache(proc);
	if (SPI_execute_with_args("SELECT nomp_crypt._new_index_key($1)", 1, &type, &tenant,
							  NULL, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "a new index key could not be made");
	version = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SetUserIdAndSecContext(user, context);
	return version;
}

/* Locked against writers, and the caller may change all of them. */
static void
lock_tables(List *tables)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_MATVIEW)
			continue;
		tables_require(lfirst_oid(lc), NULL, ACL_SELECT | ACL_UPDATE);
		LockRelationOid(lfirst_oid(lc), ShareRowExclusiveLock);
	}
}

static void
change_tables(List *tables, const TenantRow *tenant, SweepCounts *counts)
{
	int			done = 0;
	ListCell   *lc;

	progress_phase("changing fingerprints", "tables", list_length(tables));
	foreach(lc, tables)
	{
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_RELATION)
			sweep_fingerprints(lfirst_oid(lc), tenant, counts);
		progress_done(++done);
	}
}

/* A table that came meanwhile has fingerprints by the old key. */
static void
require_no_more(List *tables)
{
	List	   *more = list_difference_oid(tables_searchable(), tables);

	if (more != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("%s got a searchable column meanwhile", tables_name(linitial_oid(more))),
				 errhint("Nothing was changed. Repeat the call.")));
}

/* Their content is their tables'; they hold no newer fingerprints until then. */
static void
refresh_views(List *tables)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		if (get_rel_relkind(lfirst_oid(lc)) != RELKIND_MATVIEW)
			continue;
		if (SPI_execute(psprintf("REFRESH MATERIALIZED VIEW %s", tables_name(lfirst_oid(lc))),
						false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "a materialized view could not be refreshed");
	}
}

/*
 * nomp_crypt.rotate_index_key(tenant text) returns int4
 *
 * A new index key for the school; its version.  Needs UPDATE and SELECT on all
 * tables with searchable columns, ownership of such materialized views, and
 * the rights "encrypt" and "decrypt" in the school.  Raises 42501, 42704,
 * 55000, 55006, 25006, NC001 to NC005; nothing is changed then.
 */
Datum
nc_rotate_index_key(PG_FUNCTION_ARGS)
{
	List	   *tables = NIL;
	SweepCounts counts = {0};
	TenantRow	tenant;
	int32		version;
	ListCell   *lc;

	PreventCommandDuringRecovery("nomp_crypt.rotate_index_key()");
	PreventCommandIfReadOnly("nomp_crypt.rotate_index_key()");
	reencrypt_tenant(PG_GETARG_TEXT_PP(0), &tenant);
	rights_require(&tenant, RIGHT_DECRYPT);
	rights_require(&tenant, RIGHT_ENCRYPT);
	(void) SPI_connect();
	progress_start("rotate_index_key", tenant.id, false);
	progress_phase("waiting for writers", "tables", 0);
	tables = tables_searchable();
	lock_tables(tables);
	version = make_key(fcinfo, PG_GETARG_DATUM(0));
	CommandCounterIncrement();
	change_tables(tables, &tenant, &counts);
	CommandCounterIncrement();
	progress_phase("waiting for readers", "tables", 0);
	foreach(lc, tables)
	{
		if (get_rel_relkind(lfirst_oid(lc)) != RELKIND_MATVIEW)
			LockRelationOid(lfirst_oid(lc), AccessExclusiveLock);
	}
	require_no_more(tables);
	refresh_views(tables);
	progress_end();
	SPI_finish();
	ereport(NOTICE,
			(errmsg("%lld fingerprints of tenant \"%s\" in %d tables are by index key version %d",
					(long long) counts.values, tenant.id, list_length(tables), version)));
	PG_RETURN_INT32(version);
}
