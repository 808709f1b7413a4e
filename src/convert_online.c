/*
 * convert_online.c
 *		CALL nomp_crypt.encrypt_column_online: a plain column becomes an
 *		encrypted one while others read and write the table.
 *
 * What is short and needs an exclusive lock, adding a column with a trigger and
 * swapping the two, is one transaction each, tried again and again with a lock
 * that is queued for a moment only.  Everything long runs beside writers:
 * filling in the rows in batches, below their triggers, building indexes
 * concurrently, and at last one look at all rows in one snapshot, which
 * decrypts and compares each; what is found missing or different is made
 * again, until nothing is.
 *
 * Where it is stands in nomp_crypt.conversion, so that the same call goes on
 * after whatever ended it.  The steps are SQL functions (nomp_crypt--1.0.sql),
 * with the caller's rights.
 */
#include "postgres.h"

#include "access/xact.h"
#include "batches.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "convert_files.h"
#include "convert_fill.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "progress.h"
#include "steps.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tables.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

NC_FUNCTION(nc_encrypt_column_online);
NC_FUNCTION(nc_cancel_conversion);

#define PAUSE			500		/* milliseconds between tries for a lock */
#define NAP				1000	/* and between looks at rows that others hold */
#define MAX_FRUITLESS	3		/* passes that mend nothing */
#define LOCK_CLASS		0x6e6f6d71	/* any number that is no catalog's */

typedef struct Online
{
	MemoryContext context;		/* for what outlives a transaction */
	Oid			table;
	char	   *name;
	pg_uuid_t	uuid;
	char		text[37];
	char		state[NAMEDATALEN];
	int			batch_size;
	bool		rewrite;
	LockPatience lock;
	Throttle	throttle;
	List	   *storage;
	FillCounts	counts;			/* of the last pass */
} Online;

/* ---- steps ---- */

static Datum
run(Online *job, const char *sql, int nargs, const Oid *types, const Datum *values, bool *isnull)
{
	Oid			all_types[3] = {UUIDOID};
	Datum		all_values[3] = {UUIDPGetDatum(&job->uuid)};

	for (int i = 0; i < nargs; i++)
	{
		all_types[i + 1] = types[i];
		all_values[i + 1] = values[i];
	}
	if (SPI_execute_with_args(sql, nargs + 1, all_types, all_values, NULL, false, 0) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "a step returned no row");
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, isnull);
}

static Datum
run_step(Online *job, const char *sql)
{
	bool		isnull;

	return run(job, sql, 0, NULL, NULL, &isnull);
}

/* The text that a step returns, for longer than its transaction, or NULL. */
static char *
run_text(Online *job, const char *sql)
{
	bool		isnull;
	Datum		value = run(job, sql, 0, NULL, NULL, &isnull);

	return isnull ? NULL : MemoryContextStrdup(job->context, TextDatumGetCString(value));
}

static void
read_state(Online *job)
{
	char	   *state = run_text(job, "SELECT (nomp_crypt._conversion($1)).state");

	strlcpy(job->state, state == NULL ? "" : state, sizeof(job->state));
}

static bool
is_state(const Online *job, const char *state)
{
	return strcmp(job->state, state) == 0;
}

/* A step that waits for locks, perhaps one against everybody. */
typedef struct LockedStep
{
	Online	   *job;
	const char *sql;
	LOCKMODE	mode;			/* NoLock: whatever it takes itself */
	int			nargs;
	Oid			types[2];
	Datum		values[2];
	bool		result;
} LockedStep;

static void
run_locked_step(void *arg)
{
	LockedStep *step = arg;
	bool		isnull;
	Datum		value;

	if (step->mode != NoLock)
		LockRelationOid(step->job->table, step->mode);
	value = run(step->job, step->sql, step->nargs, step->types, step->values, &isnull);
	step->result = !isnull && SPI_gettypeid(SPI_tuptable->tupdesc, 1) == BOOLOID &&
		DatumGetBool(value);
}

static bool
run_locked(LockedStep *step)
{
	batches_try(run_locked_step, step, step->job->table, &step->job->lock);
	steps_commit();
	return step->result;
}

/* ---- filling ---- */

/* One batch; what it allocates is gone with its transaction. */
static BlockNumber
fill_batch(Online *job, Oid relid, BlockNumber from, BlockNumber to, bool all)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	tables_require(job->table, NULL, ACL_SELECT | ACL_UPDATE);
	from = convert_fill(relid, job->text, from, to, job->batch_size, all, &job->counts);
	MemoryContextSwitchTo(old);
	SPI_commit();
	return from;
}

static void
fill(Online *job)
{
	BlockNumber *ends = MemoryContextAlloc(job->context, list_length(job->storage) * sizeof(BlockNumber));
	int64		total = 0;
	ListCell   *lc;

	foreach(lc, job->storage)
	{
		ends[foreach_current_index(lc)] = tables_blocks(lfirst_oid(lc));
		total += ends[foreach_current_index(lc)];
	}
	batches_phase(&job->throttle, "encrypting", "blocks", total);
	foreach(lc, job->storage)
	{
		BlockNumber at = 0;

		while (at < ends[foreach_current_index(lc)])
		{
			BlockNumber next = fill_batch(job, lfirst_oid(lc), at, ends[foreach_current_index(lc)], false);

			batches_pause(&job->throttle, job->throttle.done + next - at);
			at = next;
		}
	}
}

/* ---- indexes ---- */

/*
 * CREATE or DROP INDEX CONCURRENTLY, which commits by itself, as if the client
 * had sent it: right after a commit nothing of this procedure is in its way.
 */
static void
run_alone(Online *job, const char *sql)
{
	PlannedStmt *stmt;
	MemoryContext old;

	SPI_commit();
	SPI_finish();
	if (SPI_inside_nonatomic_context())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("encrypt_column_online cannot build indexes inside another procedure"),
				 errhint("Call it alone: it goes on where it was.")));
	old = MemoryContextSwitchTo(job->context);
	stmt = makeNode(PlannedStmt);
	stmt->commandType = CMD_UTILITY;
	stmt->canSetTag = false;
	stmt->utilityStmt = linitial_node(RawStmt, raw_parser(sql, RAW_PARSE_DEFAULT))->stmt;
	PushActiveSnapshot(GetTransactionSnapshot());
	ProcessUtility(stmt, sql, false, PROCESS_UTILITY_TOPLEVEL, NULL, NULL, None_Receiver, NULL);
	while (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
	MemoryContextSwitchTo(old);
	(void) SPI_connect_ext(SPI_OPT_NONATOMIC);
}

static void
build_indexes(Online *job)
{
	char	   *sql;

	progress_phase("building indexes", "indexes", 0);
	while ((sql = run_text(job, "SELECT nomp_crypt._online_next_index($1)")) != NULL)
		run_alone(job, sql);
	SPI_commit();
}

/* ---- looking at every row ---- */

typedef struct WrongBlock
{
	Oid			relid;
	BlockNumber block;
} WrongBlock;

/* Blocks whose copies are missing or wrong; how many rows that is. */
static int64
look_at_all(Online *job, WrongBlock **blocks, int *n)
{
	Oid			type = UUIDOID;
	Datum		value = UUIDPGetDatum(&job->uuid);
	int64		rows = 0;

	if (SPI_execute_with_args("SELECT w.relation, w.block, w.rows FROM nomp_crypt._online_wrong($1) w",
							  1, &type, &value, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "a step returned no rows");
	*n = SPI_processed;
	*blocks = MemoryContextAlloc(job->context, Max(*n, 1) * sizeof(WrongBlock));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		(*blocks)[i].relid = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		(*blocks)[i].block = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
		rows += DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3, &isnull));
	}
	SPI_commit();
	return rows;
}

static void
refuse_rows(Online *job, int64 rows)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%lld rows of %s cannot be encrypted as they are", (long long) rows, job->name),
			 errdetail("For %lld of them the tenant is not known, or its keys are not to be had.",
					   (long long) job->counts.failed),
			 errhint("nomp_crypt.encrypt_column_preview() says by tenants which they are. Correct them and repeat the call: it goes on where it was.")));
}

/* Until one look at all rows finds nothing wrong. */
static void
verify(Online *job)
{
	int64		before = PG_INT64_MAX;
	int			fruitless = 0;

	for (;;)
	{
		WrongBlock *blocks;
		int			n;
		int64		rows;

		progress_phase("decrypting and comparing", "rows", 0);
		rows = look_at_all(job, &blocks, &n);
		if (rows == 0)
			return;
		memset(&job->counts, 0, sizeof(job->counts));
		batches_phase(&job->throttle, "encrypting what is left", "blocks", n);
		for (int i = 0; i < n; i++)
		{
			(void) fill_batch(job, blocks[i].relid, blocks[i].block, blocks[i].block + 1, true);
			batches_pause(&job->throttle, i + 1);
		}
		pfree(blocks);
		if (job->counts.held > 0)
			batches_nap(NAP);
		else if (rows >= before && ++fruitless == MAX_FRUITLESS)
			refuse_rows(job, rows);
		before = rows;
	}
}

/* ---- the whole ---- */

static void
prepare(Online *job)
{
	LockedStep	step = {.job = job,.sql = "SELECT nomp_crypt._online_prepare($1)",.mode = AccessExclusiveLock};

	progress_phase("adding the column", "columns", 1);
	(void) run_locked(&step);
	read_state(job);
}

/* As a text that outlives the transaction. */
static Datum
keep_text(Online *job, const char *string)
{
	MemoryContext old = MemoryContextSwitchTo(job->context);
	Datum		kept = CStringGetTextDatum(string);

	MemoryContextSwitchTo(old);
	return kept;
}

/*
 * What can go wrong is asked for before the look at all rows, and compared
 * under the lock.
 */
static void
swap(Online *job)
{
	LockedStep	step = {.job = job,.mode = AccessExclusiveLock,.nargs = 2,.types = {INT8OID, TEXTOID}};

	step.sql = "SELECT nomp_crypt._online_swap($1, $2, $3)";
	do
	{
		step.values[0] = run_step(job, "SELECT nomp_crypt._online_missed($1)");
		step.values[1] = keep_text(job, run_text(job, "SELECT nomp_crypt._online_triggers($1)"));
		SPI_commit();
		verify(job);
		progress_phase("swapping the columns", "columns", 1);
	} while (!run_locked(&step));
	read_state(job);
}

static void
finish(Online *job)
{
	LockedStep	step = {.job = job,.sql = "SELECT nomp_crypt._online_after($1)"};

	progress_phase("checking constraints", "constraints", 0);
	while (run_locked(&step))
		;
}

static void
convert(Online *job)
{
	read_state(job);
	SPI_commit();
	if (is_state(job, "begun"))
		prepare(job);
	if (is_state(job, "filling"))
	{
		(void) run_step(job, "SELECT nomp_crypt._online_triggers($1)");
		SPI_commit();
		fill(job);
		build_indexes(job);
		swap(job);
	}
	if (is_state(job, "swapped"))
		finish(job);
}

/* ---- the procedures ---- */

/* One session at a time: a lock that is the session's, whatever is committed. */
static void
lock_tag(LOCKTAG *tag, Oid table)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, LOCK_CLASS, table, 0);
}

static void
begin_alone(const Online *job)
{
	LOCKTAG		tag;

	lock_tag(&tag, job->table);
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another session is converting a column of %s", job->name),
				 errhint("See nomp_crypt.progress; pg_cancel_backend() ends it.")));
}

static void
end_alone(const Online *job)
{
	LOCKTAG		tag;

	lock_tag(&tag, job->table);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

static Online *
begin(FunctionCallInfo fcinfo, const char *name)
{
	MemoryContext context = AllocSetContextCreate(PortalContext, "nomp_crypt conversion",
												  ALLOCSET_DEFAULT_SIZES);
	Online	   *job = MemoryContextAllocZero(context, sizeof(Online));

	steps_begin(fcinfo, name);
	PreventCommandIfReadOnly(psprintf("nomp_crypt.%s()", name));
	job->context = context;
	job->table = PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0);
	job->name = MemoryContextStrdup(context, tables_name(job->table));
	return job;
}

static void
read_lock(FunctionCallInfo fcinfo, Online *job, int argument)
{
	job->lock.milliseconds = batches_interval(PG_GETARG_INTERVAL_P(argument)) / 1000;
	job->lock.tries = PG_GETARG_INT32(argument + 1);
	job->lock.pause = PAUSE;
	if (job->lock.milliseconds < 1 || job->lock.tries < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lock_timeout and tries must be positive")));
}

static void
refuse_nulls(FunctionCallInfo fcinfo, int n, int may_be_null, int may_be_null_too)
{
	for (int i = 0; i < n; i++)
	{
		if (PG_ARGISNULL(i) && i != may_be_null && i != may_be_null_too)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only normalise and max_lag may be null")));
	}
}

/* In the caller's search_path: his expression is read. */
static void
put_on_record(FunctionCallInfo fcinfo, Online *job)
{
	Oid			types[7] = {REGCLASSOID, NAMEOID, TEXTOID, BOOLOID, TEXTOID, BOOLOID, BOOLOID};
	Datum		values[7];
	char		nulls[7];
	bool		isnull;

	for (int i = 0; i < 7; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	if (SPI_execute_with_args("SELECT nomp_crypt._online_begin($1, $2, e.school, e.expression, e.columns, $4, $5, $6, $7) "
							  "FROM nomp_crypt._tenant_expression($1, $2, $3) e",
							  7, types, values, nulls, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "a conversion returned no row");
	job->uuid = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	uuid_text(&job->uuid, job->text);
	steps_commit();
}

static void
read_arguments(FunctionCallInfo fcinfo, Online *job)
{
	MemoryContext old;

	job->batch_size = PG_GETARG_INT32(7);
	job->throttle.max_lag = batches_size(fcinfo, 8);
	job->throttle.delay = batches_interval(PG_GETARG_INTERVAL_P(9));
	read_lock(fcinfo, job, 10);
	job->rewrite = PG_GETARG_BOOL(12);
	if (job->batch_size < 1 || job->throttle.delay < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be positive, delay not negative")));
	old = MemoryContextSwitchTo(job->context);
	job->storage = tables_storage(job->table);
	MemoryContextSwitchTo(old);
}

/*
 * CALL nomp_crypt.encrypt_column_online(table_name regclass, column_name name,
 *		tenant_expression text, searchable boolean, normalise text,
 *		drop_dependents boolean, enforce boolean, batch_size int4, max_lag text,
 *		delay interval, lock_timeout interval, tries int4, rewrite boolean)
 *
 * max_lag is bytes of WAL that standbys may have yet to replay, with units.
 * Raises what encrypt_column raises; 2D000 inside a transaction block, 25006,
 * 55000, 55006, 55P03, 23505.
 */
Datum
nc_encrypt_column_online(PG_FUNCTION_ARGS)
{
	Online	   *job = begin(fcinfo, "encrypt_column_online");

	refuse_nulls(fcinfo, 13, 4, 8);
	read_arguments(fcinfo, job);
	begin_alone(job);
	PG_TRY();
	{
		progress_start("encrypt_column_online", job->name, true);
		progress_phase("looking for unknown tenants", "rows", 0);
		put_on_record(fcinfo, job);
		convert(job);
		if (job->rewrite)
			convert_files(job->table, &job->lock, USECS_PER_HOUR);
		else
			ereport(NOTICE,
					(errmsg("%s: plain values are left in its files until they are rewritten", job->name),
					 errhint("CALL nomp_crypt.rewrite_table('%s') does it, under a lock.", job->name)));
		progress_end();
	}
	PG_FINALLY();
	{
		end_alone(job);
	}
	PG_END_TRY();
	SPI_finish();
	MemoryContextDelete(job->context);
	PG_RETURN_NULL();
}

/*
 * CALL nomp_crypt.cancel_conversion(table_name regclass, column_name name,
 *		lock_timeout interval, tries int4)
 *
 * Everything as it was, until the swap.  Raises 42704 if there is none, 55000
 * after it, 2D000, 25006, 55006, 55P03.
 */
Datum
nc_cancel_conversion(PG_FUNCTION_ARGS)
{
	Online	   *job = begin(fcinfo, "cancel_conversion");
	LockedStep	step = {.job = job,.sql = "SELECT nomp_crypt._online_cancel($1)",.mode = AccessExclusiveLock};
	Oid			types[2] = {REGCLASSOID, NAMEOID};
	Datum		values[2] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	bool		isnull;
	Datum		uuid;

	refuse_nulls(fcinfo, 4, -1, -1);
	read_lock(fcinfo, job, 2);
	begin_alone(job);
	PG_TRY();
	{
		if (SPI_execute_with_args("SELECT (nomp_crypt._conversion_of($1, $2)).uuid", 2, types, values,
								  NULL, false, 1) != SPI_OK_SELECT)
			elog(ERROR, "a step returned no row");
		uuid = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		if (isnull)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("no conversion of that column of %s is under way", job->name),
					 errhint("See nomp_crypt.conversion.")));
		job->uuid = *DatumGetUUIDP(uuid);
		(void) run_locked(&step);
	}
	PG_FINALLY();
	{
		end_alone(job);
	}
	PG_END_TRY();
	SPI_finish();
	MemoryContextDelete(job->context);
	PG_RETURN_NULL();
}
