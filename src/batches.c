/*
 * batches.c
 *		For commands that go through a table in many transactions: locks that
 *		are tried for a while, pauses, and waiting for standbys.
 *
 * A lock that conflicts with everybody's is queued for a moment only: while it
 * waits, everybody else waits behind it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "batches.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "progress.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/spin.h"
#include "tables.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define NAP		200				/* milliseconds between looks at standbys */

int64
batches_interval(Interval *interval)
{
	return interval->time + (interval->day + interval->month * (int64) DAYS_PER_MONTH) * USECS_PER_DAY;
}

void
batches_nap(long milliseconds)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 milliseconds, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

int64
batches_size(FunctionCallInfo fcinfo, int argument)
{
	return PG_ARGISNULL(argument) ? -1 :
		DatumGetInt64(DirectFunctionCall1(pg_size_bytes, PG_GETARG_DATUM(argument)));
}

/* How many bytes of WAL the slowest connected standby has yet to replay. */
static int64
lag(void)
{
	XLogRecPtr	now = GetFlushRecPtr(NULL);
	XLogRecPtr	least = now;

	for (int i = 0; WalSndCtl != NULL && i < max_wal_senders; i++)
	{
		WalSnd	   *sender = &WalSndCtl->walsnds[i];
		XLogRecPtr	applied = InvalidXLogRecPtr;

		SpinLockAcquire(&sender->mutex);
		if (sender->pid != 0 && sender->state >= WALSNDSTATE_CATCHUP)
			applied = sender->apply;
		SpinLockRelease(&sender->mutex);
		if (!XLogRecPtrIsInvalid(applied))
			least = Min(least, applied);
	}
	return (int64) (now - least);
}

void
batches_phase(Throttle *throttle, const char *phase, const char *unit, int64 total)
{
	throttle->phase = phase;
	throttle->unit = unit;
	throttle->total = total;
	throttle->done = 0;
	progress_phase(phase, unit, total);
}

void
batches_pause(Throttle *throttle, int64 done)
{
	throttle->done = done;
	progress_done(done);
	if (throttle->delay > 0)
		batches_nap(throttle->delay / 1000);
	if (throttle->max_lag < 0 || lag() <= throttle->max_lag)
		return;
	progress_phase("waiting for standbys", throttle->unit, throttle->total);
	progress_done(done);
	if (!throttle->waited)
		ereport(NOTICE,
				(errmsg("waiting for standbys that are more than %lld bytes behind",
						(long long) throttle->max_lag)));
	throttle->waited = true;
	while (lag() > throttle->max_lag)
		batches_nap(NAP);
	progress_phase(throttle->phase, throttle->unit, throttle->total);
	progress_done(done);
}

static bool
is_worth_another_try(int code)
{
	return code == ERRCODE_LOCK_NOT_AVAILABLE || code == ERRCODE_T_R_DEADLOCK_DETECTED;
}

/* One try; false if a lock was not to be had in time. */
static bool
try(void (*work) (void *arg), void *arg, int milliseconds)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int			level = NewGUCNestLevel();

		(void) set_config_option("lock_timeout", psprintf("%d", milliseconds), PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		work(arg);
		AtEOXact_GUC(true, level);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (!is_worth_another_try(geterrcode()))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

void
batches_try(void (*work) (void *arg), void *arg, Oid relid, const LockPatience *patience)
{
	for (int i = 0; i < patience->tries; i++)
	{
		if (try(work, arg, Max(patience->milliseconds, 1)))
			return;
		SPI_commit();			/* nobody shall wait for us meanwhile */
		batches_nap(patience->pause);
	}
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("could not lock %s in %d tries of %d ms", tables_name(relid),
					patience->tries, patience->milliseconds),
			 errhint("Somebody uses it all the time, perhaps in a long transaction: see pg_locks. Repeat the call; it goes on where it was.")));
}

typedef struct WantedLock
{
	Oid			relid;
	LOCKMODE	mode;
} WantedLock;

static void
lock(void *arg)
{
	WantedLock *wanted = arg;

	LockRelationOid(wanted->relid, wanted->mode);
}

void
batches_lock(Oid relid, LOCKMODE mode, const LockPatience *patience)
{
	WantedLock	wanted = {.relid = relid,.mode = mode};

	batches_try(lock, &wanted, relid, patience);
}
