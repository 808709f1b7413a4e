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
 *		(grace, approvals, whatever else it waits for: erase_case.c)
 *		fence     irreversible, keys seen in the keystore  | wipe
 *		disable   in the keystore, where it can            |
 *		submit    about to destroy                         |
 *		destroy   on the standbys? destroyed and no longer
 *		          seen, in one keystore after the other;
 *		          tombstone                                | wipe
 *
 * In a keystore that destroys later, destroy asks for that and sees that the
 * keys are pending; the case is then pending too, and the same call looks
 * again: still pending; gone, the tombstone; or cancelled there by somebody,
 * and then nothing happens until resubmit_erasure.
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
#include "executor/spi.h"
#include "compat.h"
#include "erase.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "steps.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

NC_FUNCTION(nc_erase_tenant);
NC_FUNCTION(nc_resubmit_erasure);
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
	erase_case_init();
	nodes_init();
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
				 errmsg("the last step has not reached the synchronous standbys"),
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

static char *
optional_text(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/*
 * CALL nomp_crypt.erase_tenant(id text, reason text, reference text)
 *
 * Repeatable after a failure or crash at any point.  With a grace period, or
 * where approvals are asked for, the first call requests and a later one
 * executes.  Raises 2D000 inside a transaction block, 42704 for an unknown
 * tenant, 22023 for an unknown reason, 55000 where this server may not destroy
 * or more than time is missing to a case that was there before, NC004.
 */
Datum
nc_erase_tenant(PG_FUNCTION_ARGS)
{
	char	   *args[3];
	char	   *before;
	char	   *waits;

	steps_begin(fcinfo, "erase_tenant");
	for (int i = 0; i < 3; i++)
		args[i] = optional_text(fcinfo, i);

	before = steps_run("SELECT nomp_crypt._erase_open($1)::pg_catalog.text", 1, args);
	args[0] = steps_run("SELECT nomp_crypt._erase_request($1, $2, $3)::pg_catalog.text", 3, args);
	steps_commit();
	(void) steps_run("SELECT nomp_crypt._erase_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, args);

	waits = steps_run("SELECT nomp_crypt._erase_due($1::pg_catalog.uuid)", 1, args);
	steps_commit();
	if (waits != NULL && waits[0] != '\0')
	{
		if (before != NULL)
			(void) steps_run("SELECT nomp_crypt._erase_refuse($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
		ereport(NOTICE,
				(errmsg("the tenant is suspended; its erasure %s", waits),
				 errhint("Call erase_tenant again then.")));
	}
	else if (waits != NULL)
		erase_execute(args);
	SPI_finish();
	PG_RETURN_VOID();
}

/* From the fence on, for the case in args[0]; each step commits. */
void
erase_execute(char **args)
{
	char	   *left;

	(void) steps_run("SELECT nomp_crypt._erase_fence($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	steps_commit();
	(void) steps_run("SELECT nomp_crypt._erase_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	(void) steps_run("SELECT nomp_crypt._erase_disable($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	steps_commit();
	(void) steps_run("SELECT nomp_crypt._erase_submit($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	steps_commit();
	do
	{
		left = steps_run("SELECT nomp_crypt._erase_destroy($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
		steps_commit();
	} while (strcmp(left, "0") != 0);
	(void) steps_run("SELECT nomp_crypt._erase_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, args);
	steps_commit();
}

/*
 * CALL nomp_crypt.resubmit_erasure(id text)
 *
 * Asks the keystore again, after somebody cancelled the destruction there.
 * Repeatable.  Raises 2D000, 42704, 55000 if nothing was cancelled, NC004.
 */
Datum
nc_resubmit_erasure(PG_FUNCTION_ARGS)
{
	char	   *args[1];

	steps_begin(fcinfo, "resubmit_erasure");
	args[0] = optional_text(fcinfo, 0);
	args[0] = steps_run("SELECT nomp_crypt._erase_resubmit($1)::pg_catalog.text", 1, args);
	steps_commit();
	erase_execute(args);
	SPI_finish();
	PG_RETURN_VOID();
}
