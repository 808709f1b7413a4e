/*
 * keystat.c
 *		What became of the requests to the keystore, counted on this node.
 *
 * One set of counters per keystore, in shared memory, from the server's start
 * (or its last crash) on.  The broker is the only writer, so a count is a
 * read and a write, with no lock and no atomic addition; a reader may see
 * counts of which one is a request ahead of another.
 *
 * Latencies are kept as a histogram with a fixed logarithmic scale: the first
 * eight buckets are a microsecond wide, and from there each octave has eight
 * buckets, so a percentile is never more than an eighth too high.
 */
#include "postgres.h"

#include "keystat.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#define STEPS_BITS		3		/* buckets per octave, as a power of two */
#define STEPS			(1 << STEPS_BITS)
#define OCTAVES			30		/* up to 2^32 us, more than an hour */
#define BUCKETS			((OCTAVES + 1) * STEPS)

typedef struct Counters
{
	pg_atomic_uint64 calls[KEYSTAT_CALLS];
	pg_atomic_uint64 failures[KEYSTAT_FAILURES];
	pg_atomic_uint64 renewals;
	pg_atomic_uint64 helper_starts;
	pg_atomic_uint64 queue;
	pg_atomic_uint64 queue_longest;
	pg_atomic_uint64 max;
	pg_atomic_uint64 last_ok;
	pg_atomic_uint64 last_failed;
	pg_atomic_uint64 latencies[BUCKETS];
} Counters;

typedef struct KeystatShared
{
	TimestampTz since;
	Counters	keystores[KEYSTAT_KEYSTORES];
} KeystatShared;

static KeystatShared *shared = NULL;

void
keystat_shmem_request(void)
{
	RequestAddinShmemSpace(MAXALIGN(sizeof(KeystatShared)));
}

void
keystat_shmem_startup(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("nomp_crypt keystore statistics", sizeof(KeystatShared), &found);
	if (!found)
	{
		/* all of it is counters, for which zero is a start */
		memset(shared, 0, sizeof(*shared));
		shared->since = GetCurrentTimestamp();
	}
	LWLockRelease(AddinShmemInitLock);
}

static void
add(pg_atomic_uint64 *counter, uint64 n)
{
	pg_atomic_write_u64(counter, pg_atomic_read_u64(counter) + n);
}

static void
raise_to(pg_atomic_uint64 *counter, uint64 value)
{
	if (pg_atomic_read_u64(counter) < value)
		pg_atomic_write_u64(counter, value);
}

/* ---- the scale ---- */

static int
bucket_of(uint64 us)
{
	int			octave;

	if (us < STEPS)
		return (int) us;
	octave = pg_leftmost_one_pos64(us) - STEPS_BITS;
	if (octave >= OCTAVES)
		return BUCKETS - 1;
	return (octave + 1) * STEPS + (int) (us >> octave) - STEPS;
}

/* The longest time that falls into a bucket. */
static uint64
bucket_end(int bucket)
{
	int			octave = bucket / STEPS - 1;

	if (octave < 0)
		return bucket;
	return ((UINT64CONST(1) << octave) * (bucket % STEPS + STEPS + 1)) - 1;
}

/* That part of all calls took no longer. */
static int64
percentile(const uint64 *latencies, uint64 total, double part, int64 max)
{
	uint64		wanted = (uint64) (part * total);
	uint64		sum = 0;

	for (int i = 0; i < BUCKETS; i++)
	{
		sum += latencies[i];
		if (sum > wanted)
			return Min((int64) bucket_end(i), max);
	}
	return max;
}

/* ---- the broker's ---- */

static KeystatCall
call_of(KsOp op, bool is_check)
{
	if (is_check)
		return KEYSTAT_CHECKS;
	switch (op)
	{
		case KS_OP_UNWRAP:
			return KEYSTAT_UNWRAPS;
		case KS_OP_CREATE_KEK:
			return KEYSTAT_CREATES;
		case KS_OP_DESTROY:
		case KS_OP_DESTROY_KEK:
		case KS_OP_REMOVE:
			return KEYSTAT_DESTROYS;
		default:
			return KEYSTAT_OTHERS;
	}
}

/* KEYSTAT_FAILURES for what is none. */
static KeystatFailure
failure_of(KsStatus status)
{
	switch (status)
	{
		case KS_OK:
		case KS_RETRY:
			return KEYSTAT_FAILURES;
		case KS_TIMEOUT:
			return KEYSTAT_TIMEOUT;
		case KS_CRASHED:
		case KS_NO_HELPER:
		case KS_NO_BROKER:
			return KEYSTAT_HELPER;
		case KS_PIN_FILE:
		case KS_PIN_INCORRECT:
		case KS_PIN_LOCKED:
		case KS_CREDENTIALS:
		case KS_ACCESS_DENIED:
			return KEYSTAT_LOGIN;
		case KS_TOKEN_MISSING:
		case KS_TOKEN_WRONG:
		case KS_OTHER_TOKEN:
		case KS_REGION:
		case KS_MECHANISM_MISSING:
			return KEYSTAT_TOKEN;
		case KS_KEY_ABSENT:
			return KEYSTAT_ABSENT;
		case KS_INTEGRITY:
			return KEYSTAT_DAMAGED;
		case KS_REFUSED:
		case KS_KEY_DISABLED:
		case KS_EXISTS:
		case KS_UNSUPPORTED:
		case KS_NOT_YET:
			return KEYSTAT_REFUSED;
		case KS_BAD_URI:
		case KS_MODULE_LOAD:
		case KS_MODULE_ERROR:
		case KS_NETWORK:
		case KS_CLOCK_SKEW:
		case KS_THROTTLED:
		case KS_NOT_CONFIGURED:
			break;
	}
	return KEYSTAT_MODULE;
}

static void
note_outcome(Counters *counters, KsStatus status)
{
	KeystatFailure failure = failure_of(status);

	if (failure == KEYSTAT_FAILURES)
		return;
	add(&counters->failures[failure], 1);
	pg_atomic_write_u64(&counters->last_failed, (uint64) GetCurrentTimestamp());
}

/*
 * A request was sent, and answered, or given up after that long.  True for the
 * first one that went well since one that did not.
 */
bool
keystat_done(int keystore, KsOp op, bool is_check, KsStatus status, int64 microseconds)
{
	Counters   *counters = &shared->keystores[keystore];
	uint64		us = (uint64) Max(microseconds, 0);
	bool		recovered;

	add(&counters->calls[call_of(op, is_check)], 1);
	add(&counters->latencies[bucket_of(us)], 1);
	raise_to(&counters->max, us);
	note_outcome(counters, status);
	if (failure_of(status) != KEYSTAT_FAILURES)
		return false;
	recovered = pg_atomic_read_u64(&counters->last_failed) > pg_atomic_read_u64(&counters->last_ok);
	pg_atomic_write_u64(&counters->last_ok, (uint64) GetCurrentTimestamp());
	return recovered;
}

/* A request could not be sent. */
void
keystat_not_sent(int keystore, KsStatus status)
{
	note_outcome(&shared->keystores[keystore], status);
}

void
keystat_renewed(int keystore, int keys)
{
	add(&shared->keystores[keystore].renewals, keys);
}

void
keystat_helper_started(int keystore)
{
	add(&shared->keystores[keystore].helper_starts, 1);
}

void
keystat_queue(int keystore, int length)
{
	pg_atomic_write_u64(&shared->keystores[keystore].queue, length);
	raise_to(&shared->keystores[keystore].queue_longest, length);
}

/* ---- everybody's ---- */

void
keystat_view(int keystore, KeystatView *out)
{
	Counters   *counters = &shared->keystores[keystore];
	uint64		latencies[BUCKETS];
	uint64		total = 0;

	for (int i = 0; i < KEYSTAT_CALLS; i++)
		out->calls[i] = pg_atomic_read_u64(&counters->calls[i]);
	for (int i = 0; i < KEYSTAT_FAILURES; i++)
		out->failures[i] = pg_atomic_read_u64(&counters->failures[i]);
	out->renewals = pg_atomic_read_u64(&counters->renewals);
	out->helper_starts = pg_atomic_read_u64(&counters->helper_starts);
	out->queue = pg_atomic_read_u64(&counters->queue);
	out->queue_longest = pg_atomic_read_u64(&counters->queue_longest);
	out->max = (int64) pg_atomic_read_u64(&counters->max);
	out->last_ok = (TimestampTz) pg_atomic_read_u64(&counters->last_ok);
	out->last_failed = (TimestampTz) pg_atomic_read_u64(&counters->last_failed);
	out->since = shared->since;
	for (int i = 0; i < BUCKETS; i++)
	{
		latencies[i] = pg_atomic_read_u64(&counters->latencies[i]);
		total += latencies[i];
	}
	out->p50 = percentile(latencies, total, 0.50, out->max);
	out->p95 = percentile(latencies, total, 0.95, out->max);
	out->p99 = percentile(latencies, total, 0.99, out->max);
}
