/*
 * erase.c
 *		CALL nomp_crypt.erase_tenant: drives an erasure through its steps.
 *
 * The steps are SQL functions of nomp_crypt--1.0.sql, each safe alone and
 * harmless when repeated; this procedure runs them in order and commits after
 * each.  Every step commits what it is about to do before it is done, so that
 * after a crash between any two of them the same call goes on where it was:
 *
 *		request   suspended, the case is on record        | wipe this node
 *		(grace)
 *		fence     irreversible, keys seen in the keystore  | wipe
 *		submit    about to destroy                         |
 *		destroy   on the standbys? destroyed and no longer
 *		          seen; tombstone                          | wipe
 *
 * A case that is finished, here or at the publisher that sent it, only has this
 * node's memory wiped.
 *
 * An invoker procedure, because a definer one cannot commit.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "admin.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "compat.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

NC_FUNCTION(nc_erase_tenant);
NC_FUNCTION(nc_require_synced);
NC_FUNCTION(nc_committed);
NC_FUNCTION(nc_erasure_grace);

static int	erasure_grace = 24 * 60 * 60;	/* seconds */

void
erase_init(void)
{
	DefineCustomIntVariable("nomp_crypt.erasure_grace",
							"How long a requested erasure can still be withdrawn before a repeated call executes it.",
							"0 executes at once.",
							&erasure_grace, 24 * 60 * 60, 0, 365 * 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

/* Run one step; the single value it returns as text, or NULL. */
static char *
run_step(const char *sql, int nargs, char **args)
{
	Oid			types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[3];
	char		nulls[3];

	for (int i = 0; i < nargs; i++)
	{
		nulls[i] = args[i] == NULL ? 'n' : ' ';
		values[i] = args[i] == NULL ? (Datum) 0 : CStringGetTextDatum(args[i]);
	}
	if (SPI_execute_with_args(sql, nargs, types, values, nulls, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "an erasure step returned no row");
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/* Commit durably, whatever the session's synchronous_commit says. */
static void
commit_step(void)
{
	if (synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	SPI_commit();
}

/*
 * nomp_crypt._require_synced(lsn pg_lsn) returns void
 *
 * Raises 55000 unless the WAL up to there has reached the synchronous
 * standbys, if there are any: a cancelled wait for them is only a warning to
 * PostgreSQL.
 */
Datum
nc_require_synced(PG_FUNCTION_ARGS)
{
	/* a case that was restored from a dump has another server's position */
	XLogRecPtr	lsn = Min(PG_GETARG_LSN(0), GetFlushRecPtr(NULL));
	XLogRecPtr	flushed;

	if (max_wal_senders == 0 || SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		PG_RETURN_VOID();
	LWLockAcquire(SyncRepLock, LW_SHARED);
	flushed = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
	LWLockRelease(SyncRepLock);
	if (flushed < lsn)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the erasure has not reached the synchronous standbys"),
				 errhint("Nothing was destroyed. Repeat the call when they have caught up.")));
	PG_RETURN_VOID();
}

/*
 * nomp_crypt._committed(xid) returns boolean: false for what this transaction
 * itself has written.
 */
Datum
nc_committed(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!TransactionIdIsCurrentTransactionId(PG_GETARG_TRANSACTIONID(0)));
}

/* nomp_crypt._erasure_grace() returns interval */
Datum
nc_erasure_grace(PG_FUNCTION_ARGS)
{
	Interval   *grace = palloc0(sizeof(Interval));

	grace->time = erasure_grace * USECS_PER_SEC;
	PG_RETURN_INTERVAL_P(grace);
}

static bool
called_atomically(FunctionCallInfo fcinfo)
{
	return fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic;
}

static char *
optional_text(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/*
 * CALL nomp_crypt.erase_tenant(id text, reason text, reference text)
 *
 * Repeatable after a failure or crash at any point.  With a grace period the
 * first call requests and a later one executes.  Raises 2D000 inside a
 * transaction block, 42704 for an unknown tenant, 22023 for an unknown
 * reason, 55000 where this server may not destroy, NC004.
 */
Datum
nc_erase_tenant(PG_FUNCTION_ARGS)
{
	char	   *args[3];
	char	   *due;

	if (called_atomically(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("erase_tenant cannot run inside a transaction block"),
				 errhint("It commits between its steps: call it alone, with the driver's autocommit on.")));
	PreventCommandDuringRecovery("nomp_crypt.erase_tenant()");
	(void) SPI_connect_ext(SPI_OPT_NONATOMIC);
	for (int i = 0; i < 3; i++)
		args[i] = optional_text(fcinfo, i);

	args[0] = run_step("SELECT nomp_crypt._erase_request($1, $2, $3)::pg_catalog.text", 3, args);
	commit_step();
	(void) run_step("SELECT nomp_crypt._erase_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, args);

	due = run_step("SELECT nomp_crypt._erase_due($1::pg_catalog.uuid)", 1, args);
	commit_step();
	if (due == NULL || due[0] != '\0')
	{
		if (due != NULL)
			ereport(NOTICE,
					(errmsg("the tenant is suspended; its erasure can be executed from %s on", due),
					 errhint("Call erase_tenant again then.")));
		SPI_finish();
		PG_RETURN_VOID();
	}

	(void) run_step("SELECT nomp_crypt._erase_fence($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	commit_step();
	(void) run_step("SELECT nomp_crypt._erase_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	(void) run_step("SELECT nomp_crypt._erase_submit($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	commit_step();
	(void) run_step("SELECT nomp_crypt._erase_destroy($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	commit_step();
	(void) run_step("SELECT nomp_crypt._erase_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	commit_step();
	SPI_finish();
	PG_RETURN_VOID();
}
