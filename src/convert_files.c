/*
 * convert_files.c
 *		CALL nomp_crypt.rewrite_table: nothing plain is left in the files of a
 *		table whose columns were converted.
 *
 * A column that was dropped stays in every row until the row is written anew,
 * and old versions of rows stay in the pages.  PostgreSQL's own rewrite, that of
 * VACUUM FULL, leaves both behind, in a file that was made for it.  The old
 * file is removed with the commit.
 *
 * Samples of the plain values were in pg_statistic; deleted, they lie in its
 * pages.  So it is rewritten too, as soon as nobody can see them any more.
 *
 * An invoker procedure; what it may do is up to the SQL functions that it
 * calls (nomp_crypt--1.0.sql), which refuse whoever does not own the table.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "batches.h"
#include "catalog/pg_authid_d.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_statistic_ext_data.h"
#include "catalog/pg_type.h"
#include "commands/cluster.h"
#include "compat.h"
#include "convert_files.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "progress.h"
#include "steps.h"
#include "storage/procarray.h"
#include "tables.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

NC_FUNCTION(nc_rewrite_table);

#define PAUSE	500				/* milliseconds between tries */

typedef struct Rewriting
{
	Oid			table;
	bool		force;
	LockPatience patience;
	int64		microseconds;	/* how long it waits for old snapshots */
} Rewriting;

/* Lock a relation and write it anew, in this transaction. */
static void
write_anew(Oid relid, const LockPatience *patience)
{
	ClusterParams params = {0};

	batches_lock(relid, AccessExclusiveLock, patience);
	PushActiveSnapshot(GetTransactionSnapshot());
	NC_WRITE_ANEW(relid, &params);
	PopActiveSnapshot();
}

/*
 * One step, an SQL function of a relation and something else.  Nothing but its
 * name is looked up by name, so the caller's search_path does not matter.
 */
static bool
step(const char *sql, Oid relid, Oid type, Datum argument)
{
	Oid			types[2] = {REGCLASSOID, type};
	Datum		values[2] = {ObjectIdGetDatum(relid), argument};
	int			nargs = OidIsValid(type) ? 2 : 1;
	bool		isnull;
	Datum		result;

	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "a step returned no row");
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return !isnull && SPI_gettypeid(SPI_tuptable->tupdesc, 1) == BOOLOID && DatumGetBool(result);
}

/*
 * What is on record is for nobody to write but us: a step that the caller may
 * not run.  An error ends the transaction, and with it this.
 */
static void
note(const char *sql, Oid relid, Oid type, Datum argument)
{
	Oid			role;
	int			context;

	GetUserIdAndSecContext(&role, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	(void) step(sql, relid, type, argument);
	SetUserIdAndSecContext(role, context);
}

/* The relations that hold the table's rows, each in a transaction of its own. */
static void
rewrite_files(Rewriting *job)
{
	List	   *storage = tables_storage(job->table);
	ListCell   *lc;
	int			done = 0;

	progress_phase("rewriting", "tables", list_length(storage));
	foreach(lc, storage)
	{
		if (step("SELECT nomp_crypt._needs_rewrite($1, $2)", lfirst_oid(lc), BOOLOID,
				 BoolGetDatum(job->force)))
		{
			write_anew(lfirst_oid(lc), &job->patience);
			note("SELECT nomp_crypt._note_rewrite($1)", lfirst_oid(lc), InvalidOid, 0);
		}
		steps_commit();
		progress_done(++done);
	}
}

/* Can anybody still see what was deleted from a catalog before "xid"? */
static bool
is_seen_by_nobody(Oid catalog, TransactionId xid)
{
	Relation	rel = table_open(catalog, AccessShareLock);
	TransactionId oldest = GetOldestNonRemovableTransactionId(rel);

	table_close(rel, AccessShareLock);
	return TransactionIdFollowsOrEquals(oldest, xid);
}

/*
 * What was on record at "start", by transactions that are still under way too,
 * has ended, and nobody can see what it deleted.  False if somebody could for
 * longer than we wait.
 */
static bool
wait_for_snapshots(Rewriting *job, TimestampTz start)
{
	TransactionId xid = ReadNextTransactionId();

	progress_phase("waiting for old snapshots", "catalogs", 0);
	while (!is_seen_by_nobody(StatisticRelationId, xid))
	{
		if (GetCurrentTimestamp() - start > job->microseconds)
			return false;
		steps_commit();
		batches_nap(PAUSE);
	}
	return true;
}

static void
rewrite_statistics(Rewriting *job)
{
	TimestampTz start = GetCurrentTimestamp();
	static const Oid catalogs[] = {StatisticRelationId, StatisticExtDataRelationId};

	if (!step("SELECT nomp_crypt._needs_statistics($1)", job->table, InvalidOid, 0))
		return;
	steps_commit();
	if (!wait_for_snapshots(job, start))
	{
		ereport(WARNING,
				(errmsg("plain values may be left in pg_statistic"),
				 errdetail("A transaction, a replication slot or a standby may still see what was deleted there."),
				 errhint("Repeat the call when it has ended.")));
		return;
	}
	progress_phase("rewriting statistics", "catalogs", lengthof(catalogs));
	for (int i = 0; i < lengthof(catalogs); i++)
	{
		write_anew(catalogs[i], &job->patience);
		steps_commit();
		progress_done(i + 1);
	}
	note("SELECT nomp_crypt._note_statistics($1, $2)", job->table, TIMESTAMPTZOID,
		 TimestampTzGetDatum(start));
	steps_commit();
}

void
convert_files(Oid table, const LockPatience *patience, int64 microseconds)
{
	Rewriting	job = {.table = table,.patience = *patience,.microseconds = microseconds};

	rewrite_files(&job);
	rewrite_statistics(&job);
}

static void
read_arguments(FunctionCallInfo fcinfo, Rewriting *job)
{
	for (int i = 0; i < 5; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments must not be null")));
	}
	job->table = PG_GETARG_OID(0);
	job->force = PG_GETARG_BOOL(1);
	job->patience.milliseconds = batches_interval(PG_GETARG_INTERVAL_P(2)) / 1000;
	job->patience.tries = PG_GETARG_INT32(3);
	job->patience.pause = PAUSE;
	job->microseconds = batches_interval(PG_GETARG_INTERVAL_P(4));
	if (job->patience.milliseconds < 1 || job->patience.tries < 1 || job->microseconds < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lock_timeout and tries must be positive, patience not negative")));
}

/*
 * CALL nomp_crypt.rewrite_table(table_name regclass, force boolean,
 *		lock_timeout interval, tries int4, patience interval)
 *
 * "force" rewrites what needs none by what is on record.  Raises 2D000 inside
 * a transaction block, 25006, 42501, 55P03.
 */
Datum
nc_rewrite_table(PG_FUNCTION_ARGS)
{
	Rewriting  *job;

	steps_begin(fcinfo, "rewrite_table");
	PreventCommandIfReadOnly("nomp_crypt.rewrite_table()");
	job = palloc0(sizeof(Rewriting));
	read_arguments(fcinfo, job);
	progress_start("rewrite_table", tables_name(job->table), true);
	rewrite_files(job);
	rewrite_statistics(job);
	progress_end();
	SPI_finish();
	PG_RETURN_NULL();
}
