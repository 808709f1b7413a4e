/*
 * reencrypt_table.c
 *		CALL nomp_crypt.reencrypt(table, column): all values of a table to the
 *		newest key of their own school.
 *
 * Goes through the blocks in batches, each a transaction of its own, so that
 * it holds few locks for a short time and loses nothing when it is
 * interrupted: repeated, it passes over what is done.  Rows move while it
 * runs, and may move behind it; so when it is through it looks for what is
 * left, in one snapshot, and does that, until nothing is left but rows that
 * others hold for too long, or that do not open.
 *
 * Between batches it waits for standbys that are behind, as far as they are
 * connected.  An invoker procedure: it needs the caller's rights.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "batches.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "progress.h"
#include "storage/bufmgr.h"
#include "steps.h"
#include "sweep.h"
#include "tables.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

NC_FUNCTION(nc_reencrypt_table);

#define NOTICE_EVERY	(30 * USECS_PER_SEC)
#define MAX_FRUITLESS	3		/* others may have been quicker, but not always */
#define NAP				200		/* milliseconds between looks at others */

typedef struct Job
{
	Oid			table;
	char	   *name;
	char	   *column;			/* NULL: all */
	List	   *storage;		/* relations */
	int			batch_size;
	int64		patience;		/* microseconds */
	Throttle	throttle;
	int64		done;			/* blocks */
	TimestampTz noticed;
	SweepCounts counts;
} Job;

/* Commit, report, and leave room for others. */
static void
end_batch(Job *job)
{
	TimestampTz now;

	SPI_commit();
	now = GetCurrentTimestamp();
	if (now - job->noticed > NOTICE_EVERY)
	{
		ereport(NOTICE,
				(errmsg("%s: %lld of %lld blocks, %lld values re-encrypted", job->name,
						(long long) job->done, (long long) job->throttle.total,
						(long long) job->counts.values)));
		job->noticed = now;
	}
	batches_pause(&job->throttle, job->done);
}

/* One batch; what it allocates is gone with its transaction. */
static BlockNumber
run_batch(Job *job, Oid relid, BlockNumber from, BlockNumber to, SweepCounts *counts)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	tables_require(job->table, job->column, ACL_SELECT | ACL_UPDATE);
	from = sweep_newest(relid, job->column, from, to, job->batch_size, counts);
	MemoryContextSwitchTo(old);
	return from;
}

/* All blocks that there were at the start. */
static void
first_pass(Job *job)
{
	BlockNumber *ends = palloc(list_length(job->storage) * sizeof(BlockNumber));
	int64		total = 0;
	ListCell   *lc;

	foreach(lc, job->storage)
	{
		ends[foreach_current_index(lc)] = tables_blocks(lfirst_oid(lc));
		total += ends[foreach_current_index(lc)];
	}
	batches_phase(&job->throttle, "re-encrypting", "blocks", total);
	foreach(lc, job->storage)
	{
		BlockNumber at = 0;
		BlockNumber end = ends[foreach_current_index(lc)];

		while (at < end)
		{
			BlockNumber next = run_batch(job, lfirst_oid(lc), at, end, &job->counts);

			job->done += next - at;
			at = next;
			end_batch(job);
		}
	}
}

/* What is left in a relation; the number of rows, and what has been done. */
static int64
do_rest(Job *job, Oid relid)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt pass",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int64		left = 0;
	List	   *blocks;
	ListCell   *lc;

	tables_require(job->table, job->column, ACL_SELECT | ACL_UPDATE);
	blocks = sweep_find(relid, job->column, &left);
	MemoryContextSwitchTo(old);
	SPI_commit();
	foreach(lc, blocks)
	{
		SweepCounts counts = {0};
		BlockNumber block = lfirst_oid(lc);

		(void) run_batch(job, relid, block, block + 1, &counts);
		job->counts.values += counts.values;
		job->counts.rows += counts.rows;
		job->counts.locked += counts.locked;
		end_batch(job);
	}
	MemoryContextDelete(context);
	return left;
}

/*
 * Until nothing is left, or nothing that can be done.  Returns the number of
 * rows that are left.
 */
static int64
further_passes(Job *job)
{
	TimestampTz last_success = GetCurrentTimestamp();
	int			fruitless = 0;

	batches_phase(&job->throttle, "looking for what is left", "blocks", 0);
	for (;;)
	{
		int64		rows_before = job->counts.rows;
		int64		left = 0;
		ListCell   *lc;

		job->counts.locked = 0;
		foreach(lc, job->storage)
			left += do_rest(job, lfirst_oid(lc));
		if (left == 0)
			return 0;
		if (job->counts.rows > rows_before)
		{
			last_success = GetCurrentTimestamp();
			fruitless = 0;
		}
		else if (job->counts.locked > 0 ?
				 GetCurrentTimestamp() - last_success > job->patience :
				 ++fruitless == MAX_FRUITLESS)
			return left;
		if (job->counts.locked > 0)
		{
			progress_phase("waiting for rows that others hold", "rows", job->counts.locked);
			batches_nap(NAP);
		}
	}
}

static void
report(const Job *job, int64 remaining)
{
	const int64 *left = job->counts.left;

	ereport(NOTICE,
			(errmsg("%s: %lld values re-encrypted", job->name, (long long) job->counts.values)));
	if (left[VALUE_ERASED] + left[VALUE_SUSPENDED] + left[VALUE_UNKNOWN] + left[VALUE_DAMAGED] > 0)
		ereport(NOTICE,
				(errmsg("%s: left as they are: %lld values of erased and %lld of suspended tenants, %lld whose key is unknown, %lld damaged",
						job->name, (long long) left[VALUE_ERASED],
						(long long) left[VALUE_SUSPENDED], (long long) left[VALUE_UNKNOWN],
						(long long) left[VALUE_DAMAGED]),
				 errhint("CALL nomp_crypt.verify('%s') names the rows.", job->name)));
	if (remaining > 0)
		ereport(NOTICE,
				(errmsg("%s: %lld rows are left, %lld of them locked by others", job->name,
						(long long) remaining, (long long) job->counts.locked),
				 job->counts.locked > 0 ? errhint("Repeat the call.") :
				 errhint("They do not open.")));
}

static void
read_arguments(FunctionCallInfo fcinfo, Job *job)
{
	memset(job, 0, sizeof(*job));
	for (int i = 0; i < 6; i++)
	{
		if (PG_ARGISNULL(i) && i != 1 && i != 3)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only column_name and max_lag may be null")));
	}
	job->table = tables_by_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	job->name = tables_name(job->table);
	job->column = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	job->batch_size = PG_GETARG_INT32(2);
	job->throttle.max_lag = batches_size(fcinfo, 3);
	job->throttle.delay = batches_interval(PG_GETARG_INTERVAL_P(4));
	job->patience = batches_interval(PG_GETARG_INTERVAL_P(5));
	job->noticed = GetCurrentTimestamp();
	if (job->batch_size < 1 || job->throttle.delay < 0 || job->patience < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be positive, delay and patience not negative")));
}

static Datum
result_row(FunctionCallInfo fcinfo, int64 remaining)
{
	TupleDesc	desc;
	Datum		value = Int64GetDatum(remaining);
	bool		isnull = false;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), &value, &isnull));
}

/*
 * CALL nomp_crypt.reencrypt(table_name text, column_name text,
 *		batch_size int4, max_lag text, delay interval, patience interval,
 *		INOUT remaining int8)
 *
 * batch_size is rows to a transaction; max_lag is bytes of WAL that standbys
 * may have yet to replay, with units; patience is how long it comes back to
 * rows that others hold.  Raises 2D000 inside a transaction block, 25006,
 * 42501, NC004; leaves what cannot be opened.
 */
Datum
nc_reencrypt_table(PG_FUNCTION_ARGS)
{
	Job		   *job;
	int64		remaining;

	steps_begin(fcinfo, "reencrypt");
	PreventCommandIfReadOnly("nomp_crypt.reencrypt()");
	job = palloc(sizeof(Job));
	read_arguments(fcinfo, job);
	tables_require(job->table, job->column, ACL_SELECT | ACL_UPDATE);
	if (get_rel_relkind(job->table) == RELKIND_MATVIEW)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s is a materialized view", job->name),
				 errhint("Refresh it after its tables have been re-encrypted.")));
	job->storage = tables_storage(job->table);
	progress_start("reencrypt", job->name, true);
	first_pass(job);
	remaining = further_passes(job);
	report(job, remaining);
	progress_end();
	SPI_finish();
	return result_row(fcinfo, remaining);
}
