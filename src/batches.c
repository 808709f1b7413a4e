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
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/spin.h"
#include "tables.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

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
batches_lag(void)
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

/* One try; false if the lock was not to be had in time. */
static bool
try_lock(Oid relid, LOCKMODE mode, int milliseconds)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool locked = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int			level = NewGUCNestLevel();

		(void) set_config_option("lock_timeout", psprintf("%d", milliseconds), PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		LockRelationOid(relid, mode);
		AtEOXact_GUC(true, level);
		ReleaseCurrentSubTransaction();
		locked = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE &&
			geterrcode() != ERRCODE_T_R_DEADLOCK_DETECTED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return locked;
}

void
batches_lock(Oid relid, LOCKMODE mode, const LockPatience *patience)
{
	for (int i = 0; i < patience->tries; i++)
	{
		if (try_lock(relid, mode, Max(patience->milliseconds, 1)))
			return;
		batches_nap(patience->pause);
	}
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("could not lock %s in %d tries of %d ms", tables_name(relid),
					patience->tries, patience->milliseconds),
			 errhint("Somebody uses it all the time, perhaps in a long transaction: see pg_locks. Repeat the call; it goes on where it was.")));
}
