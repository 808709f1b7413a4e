/*
 * warmer.c
 *		Keeps the busiest schools' keys in this node's memory.
 *
 * The broker has no database, so it cannot know which schools there are, nor
 * which of them are suspended or have new keys by now.  So now and then, and
 * first when it starts, it has short-lived workers do it: one without a
 * database that goes through the databases, and for each of them, one after
 * the other, one that calls nomp_crypt._keep_warm() there and ends.  That
 * loads what nomp_crypt.busy remembers and is not in the keyring, and writes
 * down on a primary who is busy.
 *
 * No secret passes through here.  A worker that fails takes nothing with it;
 * the next one tries again.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "lease.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "warmer.h"
#include "worker.h"

static int	warm_interval = 300;	/* seconds */

/* The broker's. */
static BackgroundWorkerHandle *running = NULL;
static int64 next_launch = 0;

void
warmer_init(void)
{
	DefineCustomIntVariable("nomp_crypt.warm_interval",
							"How often the busiest schools' keys are loaded that are not in memory.",
							"0 switches it off.",
							&warm_interval, 300, 0, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

/* Start a worker for a database, or for going through them; NULL: no room. */
static BackgroundWorkerHandle *
launch(Oid database, pid_t notify)
{
	BackgroundWorker worker = worker_of("nomp_crypt_warmer_main", "nomp_crypt warmer");
	BackgroundWorkerHandle *handle;

	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = notify;
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
}

/* For the broker: the keystore is back, say. */
void
warmer_launch_soon(void)
{
	next_launch = 0;
}

/* For the broker: is it time, and is the last one gone? */
void
warmer_launch_due(int64 now)
{
	MemoryContext old;
	pid_t		pid;

	if (warm_interval == 0 || now < next_launch)
		return;
	if (running != NULL && GetBackgroundWorkerPid(running, &pid) != BGWH_STOPPED)
		return;
	if (running != NULL)
		pfree(running);
	old = MemoryContextSwitchTo(TopMemoryContext);
	running = launch(InvalidOid, 0);
	MemoryContextSwitchTo(old);
	next_launch = now + warm_interval * INT64CONST(1000000);
}

/* ---- the workers ---- */

/* The databases that can be connected to. */
static List *
databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *found = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;

		/* a negative limit below -1 marks a database that was half dropped */
		if (!database->datallowconn || database->datistemplate || database->datconnlimit < -1)
			continue;
		old = MemoryContextSwitchTo(context);
		found = lappend_oid(found, database->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	return found;
}

static void
warm_each_database(void)
{
	ListCell   *lc;
	List	   *all = databases();

	foreach(lc, all)
	{
		BackgroundWorkerHandle *handle = launch(lfirst_oid(lc), MyProcPid);

		if (handle == NULL)
			ereport(LOG,
					(errmsg("no room for a worker that loads keys"),
					 errhint("Raise max_worker_processes.")));
		if (handle == NULL || WaitForBackgroundWorkerShutdown(handle) == BGWH_POSTMASTER_DIED)
			return;
	}
}

/* In this worker's database, if the extension is there. */
static void
warm_this_database(void)
{
	StartTransactionCommand();
	if (OidIsValid(get_extension_oid("nomp_crypt", true)))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		(void) SPI_connect();
		pgstat_report_activity(STATE_RUNNING, "nomp_crypt._keep_warm()");
		if (SPI_execute("SELECT nomp_crypt._keep_warm()", false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not load keys");
		SPI_finish();
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);
}

void
nomp_crypt_warmer_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (!OidIsValid(database))
	{
		BackgroundWorkerInitializeConnection(NULL, NULL, 0);
		warm_each_database();
		return;
	}
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	warm_this_database();
}
