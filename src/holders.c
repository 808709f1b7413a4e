/*
 * holders.c
 *		Which processes hold copies of keys, and how to make them forget.
 *
 * One entry per PGPROC, written by its owner only; no lock.  The ordering
 * that matters: a holder raises its flag, then copies a key, then looks at
 * the epoch; a revoker raises the epoch, then looks at the flags.  Whichever
 * comes second sees the other (both are full barriers).
 *
 * A holder also says whose keys it may hold, as one bit of 256 by the
 * tenant's first byte: revoking one school's keys must not terminate a busy
 * session of another.
 *
 * Reaching a holder: a catch-up interrupt (SIGUSR1), before which an
 * invalidation message is queued so that the interrupt has something to
 * process.  Idle sessions and those idle in a transaction wipe when they
 * process it; a busy one zeroes its key bytes in the signal handler
 * (mykeys.c), but can free its cipher contexts only at its next value: if it
 * has not done so in time it is terminated, by whoever waits for it or, where
 * nobody does, as on a standby, by the broker.
 */
#include "postgres.h"

#include <signal.h>

#include "holders.h"
#include "keyring.h"
#include "lease.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "storage/shmem.h"
#include "storage/sinval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define POLL_MS				5
#define TERMINATE_AFTER_MS	2000
#define GIVE_UP_AFTER_MS	30000

/* Each on cache lines of its own: it is written in every transaction. */
typedef struct Holder
{
	pg_atomic_uint32 holding;
	pg_atomic_uint64 acked;
	pg_atomic_uint64 tenants[4];	/* a set of first bytes */
	pid_t		pid;
	BackendId	backend_id;
} pg_attribute_aligned(PG_CACHE_LINE_SIZE) Holder;

/* When keys of tenants with that first byte were last revoked. */
typedef struct Revocation
{
	pg_atomic_uint64 epoch;
	pg_atomic_uint64 at;		/* CLOCK_BOOTTIME */
} Revocation;

typedef struct HoldersShared
{
	Revocation	revocations[256];
	Holder		holders[FLEXIBLE_ARRAY_MEMBER];
} HoldersShared;

static Holder *holders = NULL;
static Revocation *revocations = NULL;

static Size
shared_size(void)
{
	return add_size(offsetof(HoldersShared, holders), mul_size(MaxBackends, sizeof(Holder)));
}

void
holders_shmem_request(void)
{
	RequestAddinShmemSpace(shared_size());
}

void
holders_shmem_startup(void)
{
	HoldersShared *shared;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("nomp_crypt holders", shared_size(), &found);
	holders = shared->holders;
	revocations = shared->revocations;
	if (!found)
	{
		for (int i = 0; i < lengthof(shared->revocations); i++)
		{
			pg_atomic_init_u64(&revocations[i].epoch, 0);
			pg_atomic_init_u64(&revocations[i].at, 0);
		}
		for (int i = 0; i < MaxBackends; i++)
		{
			pg_atomic_init_u32(&holders[i].holding, 0);
			pg_atomic_init_u64(&holders[i].acked, 0);
			for (int j = 0; j < 4; j++)
				pg_atomic_init_u64(&holders[i].tenants[j], 0);
			holders[i].pid = 0;
			holders[i].backend_id = InvalidBackendId;
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Announce this process; to be called before it copies a key of "epoch". */
void
holders_claim(uint64 epoch)
{
	Holder	   *me = &holders[MyProc->pgprocno];

	me->pid = MyProcPid;
	me->backend_id = MyBackendId;
	pg_atomic_exchange_u64(&me->acked, epoch);
	pg_atomic_exchange_u32(&me->holding, 1);
}

/* This process is about to copy a key of that tenant. */
void
holders_note(const uint8 tenant[16])
{
	(void) pg_atomic_fetch_or_u64(&holders[MyProc->pgprocno].tenants[tenant[0] / 64],
								  UINT64CONST(1) << (tenant[0] % 64));
}

/* For the owner, who alone writes there. */
static void
forget_tenants(Holder *holder)
{
	for (int i = 0; i < 4; i++)
	{
		if (pg_atomic_read_u64(&holder->tenants[i]) != 0)
			(void) pg_atomic_exchange_u64(&holder->tenants[i], 0);
	}
}

/* This process holds nothing any more. */
void
holders_release(void)
{
	forget_tenants(&holders[MyProc->pgprocno]);
	pg_atomic_exchange_u32(&holders[MyProc->pgprocno].holding, 0);
}

/* This process has wiped everything it had copied before "epoch". */
void
holders_ack(uint64 epoch)
{
	forget_tenants(&holders[MyProc->pgprocno]);
	pg_atomic_exchange_u64(&holders[MyProc->pgprocno].acked, epoch);
}

/* Has a revocation come that this process has not acknowledged?  Signal-safe. */
bool
holders_must_wipe(void)
{
	return holders != NULL && MyProc != NULL &&
		pg_atomic_read_u64(&holders[MyProc->pgprocno].acked) != keyring_epoch();
}

static bool
still_holds(Holder *holder, const uint8 tenant[16], uint64 epoch)
{
	return pg_atomic_read_u32(&holder->holding) != 0 &&
		pg_atomic_read_u64(&holder->acked) < epoch &&
		(pg_atomic_read_u64(&holder->tenants[tenant[0] / 64]) &
		 UINT64CONST(1) << (tenant[0] % 64)) != 0;
}

/*
 * Queue an invalidation that matches no relation, for its callbacks alone,
 * and interrupt every holder of the tenant's keys that is behind.
 */
void
holders_poke(const uint8 tenant[16])
{
	uint64		epoch = keyring_epoch();
	SharedInvalidationMessage msg;

	pg_atomic_write_u64(&revocations[tenant[0]].at, (uint64) lease_boot_now());
	pg_atomic_write_u64(&revocations[tenant[0]].epoch, epoch);
	memset(&msg, 0, sizeof(msg));
	msg.rc.id = SHAREDINVALRELCACHE_ID;
	msg.rc.dbId = InvalidOid;
	msg.rc.relId = FirstGenbkiObjectId - 1;
	SendSharedInvalidMessages(&msg, 1);

	for (int i = 0; i < MaxBackends; i++)
	{
		Holder	   *holder = &holders[i];

		if (i != MyProc->pgprocno && still_holds(holder, tenant, epoch))
			SendProcSignal(holder->pid, PROCSIG_CATCHUP_INTERRUPT,
						   holder->backend_id);
	}
}

static void
terminate(pid_t pid)
{
	if (BackendPidGetProc(pid) == NULL)
		return;
	ereport(LOG,
			(errmsg("terminating process %d, which cannot wipe its copies of revoked keys in time",
					(int) pid)));
	(void) kill(pid, SIGTERM);
}

/* Has a key that this process may hold been revoked too long ago? */
static bool
is_late(Holder *holder, int64 now)
{
	uint64		acked = pg_atomic_read_u64(&holder->acked);

	for (int i = 0; i < lengthof(holder->tenants); i++)
	{
		uint64		set = pg_atomic_read_u64(&holder->tenants[i]);

		for (int bit = 0; set != 0; bit++, set >>= 1)
		{
			Revocation *revoked = &revocations[64 * i + bit];

			if ((set & 1) != 0 && acked < pg_atomic_read_u64(&revoked->epoch) &&
				now - (int64) pg_atomic_read_u64(&revoked->at) >
				TERMINATE_AFTER_MS * INT64CONST(1000))
				return true;
		}
	}
	return false;
}

/* For the broker, now and then: end those that nobody waits for, once each. */
void
holders_end_stragglers(void)
{
	static pid_t ended = 0;

	for (int i = 0; i < MaxBackends; i++)
	{
		Holder	   *holder = &holders[i];

		if (i == MyProc->pgprocno || pg_atomic_read_u32(&holder->holding) == 0 ||
			holder->pid == ended || !is_late(holder, lease_boot_now()))
			continue;
		ended = holder->pid;
		terminate(ended);
	}
}

/*
 * Wait until no other process holds a key of the tenant from before "epoch";
 * terminate those that cannot be reached.  Interruptible.
 *
 * Errors: 55006 (object_in_use) if a process outlives its termination.
 */
void
holders_await(const uint8 tenant[16], uint64 epoch)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		terminated = false;

	for (;;)
	{
		int			behind = 0;
		pid_t		straggler = 0;
		bool		late = TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
													  TERMINATE_AFTER_MS);

		for (int i = 0; i < MaxBackends; i++)
		{
			Holder	   *holder = &holders[i];

			if (i == MyProc->pgprocno || !still_holds(holder, tenant, epoch))
				continue;
			behind++;
			straggler = holder->pid;
			if (late && !terminated)
				terminate(straggler);
		}
		if (behind == 0)
			return;
		terminated = terminated || late;
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), GIVE_UP_AFTER_MS))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("process %d still holds copies of revoked keys", (int) straggler),
					 errhint("Find out what it is doing, end it, and repeat the call.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}
