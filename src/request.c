/*
 * request.c
 *		A backend's side of asking the broker, and the slots between them.
 *
 * Secrets: one WorkingKey per slot, in an array of its own, written by the
 * broker with its answer, wiped by the backend when it has copied it, by the
 * broker when the backend is gone, and when the postmaster leaves.  Data keys
 * never come here.
 *
 * Lock: each slot's spinlock, held for a memcpy at most.
 */
#include "postgres.h"

#include "cipher.h"
#include "miscadmin.h"
#include "request.h"
#include "secret.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

typedef enum SlotState
{
	SLOT_FREE,
	SLOT_SUBMITTED,				/* the broker may take it */
	SLOT_TAKEN,					/* the broker works on it */
	SLOT_DONE					/* the answer is in it */
} SlotState;

typedef struct RequestSlot
{
	slock_t		mutex;			/* guards all below */
	SlotState	state;
	uint64		serial;
	Latch	   *owner;
	KsOp		op;
	KeystoreRef store;			/* that the request is for */
	KsStatus	status;
	char		reason[REQUEST_REASON_MAX];
	uint64		epoch;			/* when the rows behind the request were read */
	uint32		len;			/* of body: the request, then the answer */
	union
	{
		uint8		bytes[REQUEST_BODY_MAX];
		UnwrapRequest unwrap;
	}			body;
} RequestSlot;

typedef struct RequestShared
{
	slock_t		mutex;			/* guards broker */
	Latch	   *broker;			/* NULL while none is running */
} RequestShared;

static int	keystore_timeout = 10000;	/* ms */

static RequestShared *shared = NULL;
static RequestSlot *slots = NULL;
static WorkingKey *secrets = NULL;
static bool exit_hook_set = false;

void
request_init(void)
{
	DefineCustomIntVariable("nomp_crypt.keystore_timeout",
							"How long to wait for the keystore.",
							NULL,
							&keystore_timeout, 10000, 100, 600000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
}

int
request_timeout_ms(void)
{
	return keystore_timeout;
}

static Size
shared_size(void)
{
	Size		size = MAXALIGN(sizeof(RequestShared));

	return add_size(size, mul_size(MaxBackends, sizeof(RequestSlot)));
}

void
request_shmem_request(void)
{
	RequestAddinShmemSpace(shared_size());
	secret_shmem_request(mul_size(MaxBackends, sizeof(WorkingKey)));
}

void
request_shmem_startup(void)
{
	bool		found;
	char	   *p;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	p = ShmemInitStruct("nomp_crypt requests", shared_size(), &found);
	shared = (RequestShared *) p;
	slots = (RequestSlot *) (p + MAXALIGN(sizeof(RequestShared)));
	secrets = secret_shmem_startup("nomp_crypt request secrets",
								   mul_size(MaxBackends, sizeof(WorkingKey)), &found);
	if (!found)
	{
		memset(p, 0, shared_size());
		SpinLockInit(&shared->mutex);
		for (int i = 0; i < MaxBackends; i++)
			SpinLockInit(&slots[i].mutex);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* ---- the broker's side ---- */

/* The broker is there (its latch is this process's), or leaves. */
void
request_broker_ready(bool ready)
{
	SpinLockAcquire(&shared->mutex);
	shared->broker = ready ? MyLatch : NULL;
	SpinLockRelease(&shared->mutex);
	/* what an earlier broker had taken is this one's to answer */
	for (int i = 0; ready && i < MaxBackends; i++)
	{
		SpinLockAcquire(&slots[i].mutex);
		if (slots[i].state == SLOT_TAKEN)
			slots[i].state = SLOT_SUBMITTED;
		SpinLockRelease(&slots[i].mutex);
	}
}

/* Take a submitted request, with a copy of its body. */
bool
request_take(int i, TakenRequest *out)
{
	RequestSlot *slot = &slots[i];
	bool		taken = false;

	if (slot->state != SLOT_SUBMITTED)	/* racy look; the latch brings us back */
		return false;
	SpinLockAcquire(&slot->mutex);
	if (slot->state == SLOT_SUBMITTED)
	{
		slot->state = SLOT_TAKEN;
		out->serial = slot->serial;
		out->op = slot->op;
		out->store = slot->store;
		out->epoch = slot->epoch;
		out->len = slot->len;
		memcpy(out->body.bytes, slot->body.bytes, slot->len);
		taken = true;
	}
	SpinLockRelease(&slot->mutex);
	return taken;
}

/* Does the backend still wait for the answer? */
bool
request_waiting(int i, uint64 serial)
{
	RequestSlot *slot = &slots[i];
	bool		waiting;

	SpinLockAcquire(&slot->mutex);
	waiting = slot->serial == serial && slot->state == SLOT_TAKEN;
	SpinLockRelease(&slot->mutex);
	return waiting;
}

/* How many sessions wait for an answer, about. */
int
request_num_waiting(void)
{
	int			waiting = 0;

	for (int i = 0; i < MaxBackends; i++)
	{
		SlotState	state = slots[i].state; /* racy look: it is for people */

		waiting += state == SLOT_SUBMITTED || state == SLOT_TAKEN;
	}
	return waiting;
}

bool
request_broker_running(void)
{
	bool		running;

	SpinLockAcquire(&shared->mutex);
	running = shared->broker != NULL;
	SpinLockRelease(&shared->mutex);
	return running;
}

/* Answer, unless the backend has given up. */
void
request_answer(int i, uint64 serial, KsStatus status, const char *reason,
			   const uint8 *answer, size_t len, const WorkingKey *key)
{
	RequestSlot *slot = &slots[i];
	Latch	   *owner = NULL;

	Assert(len <= REQUEST_BODY_MAX);
	SpinLockAcquire(&slot->mutex);
	if (slot->state == SLOT_TAKEN && slot->serial == serial)
	{
		slot->status = status;
		strlcpy(slot->reason, reason, REQUEST_REASON_MAX);
		slot->len = (uint32) len;
		if (len > 0)
			memcpy(slot->body.bytes, answer, len);
		if (key != NULL)
			secrets[i] = *key;
		slot->state = SLOT_DONE;
		owner = slot->owner;
	}
	SpinLockRelease(&slot->mutex);
	if (owner != NULL)
		SetLatch(owner);
}

/* ---- the backends' side ---- */

/* Take the slot back, whatever the broker is doing with it. */
static void
release_slot(RequestSlot *slot)
{
	SpinLockAcquire(&slot->mutex);
	slot->state = SLOT_FREE;
	slot->serial++;
	slot->owner = NULL;
	cipher_wipe(&secrets[slot - slots], sizeof(WorkingKey));
	SpinLockRelease(&slot->mutex);
}

static void
release_at_exit(int code, Datum arg)
{
	RequestSlot *slot;

	if (MyProc == NULL)
		return;
	slot = &slots[MyProc->pgprocno];
	if (slot->state == SLOT_SUBMITTED &&
		(slot->op == KS_OP_CONFIRM || slot->op == KS_OP_HEAD))
		return;					/* posted; the broker takes it without us */
	release_slot(slot);
}

/* Wake the broker; false if there is none. */
static bool
wake_broker(void)
{
	Latch	   *broker;

	SpinLockAcquire(&shared->mutex);
	broker = shared->broker;
	SpinLockRelease(&shared->mutex);
	if (broker == NULL)
		return false;
	SetLatch(broker);
	return true;
}

/* Wait until the slot has that state; false on timeout. */
static bool
wait_for_state(RequestSlot *slot, SlotState state, int timeout_ms)
{
	TimestampTz start = GetCurrentTimestamp();

	for (;;)
	{
		SlotState	now;
		long		left;

		SpinLockAcquire(&slot->mutex);
		now = slot->state;
		SpinLockRelease(&slot->mutex);
		if (now >= state)
			return true;
		left = timeout_ms - TimestampDifferenceMilliseconds(start, GetCurrentTimestamp());
		if (left <= 0)
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Fill this backend's slot and wake the broker, which may be starting yet. */
static KsStatus
submit(RequestSlot *slot, KsOp op, const KeystoreRef *store,
	   const void *body, size_t len, uint64 epoch)
{
	if (len > REQUEST_BODY_MAX)
		return KS_REFUSED;
	if (!exit_hook_set)
	{
		before_shmem_exit(release_at_exit, 0);
		exit_hook_set = true;
	}
	SpinLockAcquire(&slot->mutex);
	slot->serial++;
	slot->op = op;
	slot->store = *store;
	slot->epoch = epoch;
	slot->len = (uint32) len;
	memcpy(slot->body.bytes, body, len);
	slot->owner = MyLatch;
	slot->state = SLOT_SUBMITTED;
	SpinLockRelease(&slot->mutex);
	return wake_broker() ? KS_OK : KS_NO_BROKER;
}

/*
 * Submit and wait.  On return the answer is in the slot (status KS_OK or
 * what the broker said), or the broker is missing or late.  Interruptible.
 */
static KsStatus
ask(RequestSlot *slot, KsOp op, const KeystoreRef *store,
	const void *body, size_t len, uint64 epoch, char *reason)
{
	volatile KsStatus status;

	reason[0] = '\0';
	PG_TRY();
	{
		bool		answered;

		/* a posted request, which nobody waits for, may not be taken yet */
		if (slot->state == SLOT_SUBMITTED)
			(void) wait_for_state(slot, SLOT_TAKEN, 1000);
		status = submit(slot, op, store, body, len, epoch);
		/* a broker that is starting finds submitted slots by itself */
		answered = wait_for_state(slot, SLOT_DONE,
								  status == KS_OK ? keystore_timeout + 500 :
								  Min(keystore_timeout, 5000));
		if (answered)
		{
			status = slot->status;
			strlcpy(reason, slot->reason, REQUEST_REASON_MAX);
		}
		else if (status == KS_OK)
			status = KS_TIMEOUT;
	}
	PG_CATCH();
	{
		release_slot(slot);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return status;
}

/* Ask for keys; copies the first one out. */
static KsStatus
ask_for_key(const UnwrapRequest *what, uint64 epoch, WorkingKey *out, char *reason)
{
	RequestSlot *slot = &slots[MyProc->pgprocno];
	KeystoreRef store = {{0}, 0};
	KsStatus	status;

	strlcpy(store.serial, what->serial, sizeof(store.serial));
	status = ask(slot, KS_OP_UNWRAP, &store, what,
				 offsetof(UnwrapRequest, keys) + what->nkeys * sizeof(KeySpec),
				 epoch, reason);
	if (status == KS_OK)
		*out = secrets[slot - slots];
	release_slot(slot);
	return status;
}

/*
 * Have a school's keys unwrapped and put into the keyring; copies out the
 * first one.  KS_RETRY: keys were revoked since "epoch", read the rows again.
 * reason has REQUEST_REASON_MAX bytes and is for the server log.
 */
KsStatus
request_key(const UnwrapRequest *what, uint64 epoch, WorkingKey *out, char *reason)
{
	keyring_count_miss();
	return ask_for_key(what, epoch, out, reason);
}

/* The same before anybody needs it. */
KsStatus
request_ahead(UnwrapRequest *what, uint64 epoch, WorkingKey *out, char *reason)
{
	what->ahead = true;
	return ask_for_key(what, epoch, out, reason);
}

/* Any other operation: bodies as in protocol.h. */
KsStatus
request_keystore(KsOp op, const KeystoreRef *store, const uint8 *body, size_t len,
				 uint8 *answer, size_t size, size_t *answer_len, char *reason)
{
	RequestSlot *slot = &slots[MyProc->pgprocno];
	KsStatus	status;

	*answer_len = 0;
	status = ask(slot, op, store, body, len, 0, reason);
	if (status == KS_OK)
	{
		if (slot->len > size)
			status = KS_REFUSED;
		else
		{
			memcpy(answer, slot->body.bytes, slot->len);
			*answer_len = slot->len;
		}
	}
	/* only CREATE_KEK and WRAP answer with secrets, and the broker replaces those */
	release_slot(slot);
	return status;
}

/*
 * Ask for something without waiting for the answer.  For the end of a
 * transaction, where nothing may fail; what is lost is found again later.
 */
void
request_post(KsOp op, const KeystoreRef *store, const uint8 *body, size_t len)
{
	if (slots[MyProc->pgprocno].state == SLOT_SUBMITTED)
		(void) wait_for_state(&slots[MyProc->pgprocno], SLOT_TAKEN, 200);
	(void) submit(&slots[MyProc->pgprocno], op, store, body, len, 0);
}
