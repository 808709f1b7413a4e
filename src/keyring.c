/*
 * keyring.c
 *		The node's bounded table of working keys, in shared memory.
 *
 * This is the only place where working keys (k_enc, k_idx) live between
 * transactions.  It is not a cache of data keys: those exist in the broker
 * for the moment of derivation only.
 *
 * Layout: a hash table from key_check to a slot number; slot metadata (what
 * the broker needs to ask the keystore again); and the secrets, an array of
 * its own on its own pages, locked into memory and kept out of core dumps
 * where the system allows.  KeyringLock guards all three; the epoch is an
 * atomic.  Full, it evicts by second chance.
 *
 * Wiping: on eviction, on expiry, by keyring_revoke, when the broker stops,
 * and when the postmaster leaves or re-creates its shared memory.
 */
#include "postgres.h"

#include "cipher.h"
#include "keyring.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "secret.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/hsearch.h"

typedef struct KeyringSlot
{
	bool		in_use;
	bool		own_transaction;	/* KEK was still provisional when unwrapped */
	pg_atomic_uint32 used;		/* second chance */
	pg_atomic_uint64 used_at;	/* in ticks of the wall clock */
	uint32		busyness;		/* seconds in which it was used, older ones count less */
	Lease		lease;
	TimestampTz kek_made;
	int64		checked_at;		/* CLOCK_BOOTTIME of the last good unwrap */
	char		installation[37];
	char		label[KS_MAX_LABEL];
	char		serial[KEYSPEC_SERIAL_MAX];
	KeySpec		spec;
} KeyringSlot;

typedef struct KeyringIndex
{
	uint8		key_check[KEY_CHECK_LEN];	/* hash key */
	int			slot;
} KeyringIndex;

/* One process's counts, on a cache line of its own: nobody else writes them. */
typedef struct LookupCounts
{
	pg_atomic_uint64 hits;
	pg_atomic_uint64 misses;
	char		padding[PG_CACHE_LINE_SIZE - 2 * sizeof(pg_atomic_uint64)];
} LookupCounts;

typedef struct KeyringShared
{
	pg_atomic_uint64 epoch;
	int			count;
	int			hand;			/* where eviction looks next */
	int64		aged_at;		/* when busyness was halved; CLOCK_BOOTTIME */
	uint64		evictions;
	uint64		expirations;
	uint64		revocations;
	KeyringSlot slots[FLEXIBLE_ARRAY_MEMBER];
} KeyringShared;

#define HALF_LIFE		(INT64CONST(3600) * 1000000)	/* of busyness */

static int	max_cached_keys = 20000;

pg_atomic_uint64 *keyring_epoch_word = NULL;

static KeyringShared *keyring = NULL;
static HTAB *keyring_index = NULL;
static uint8 (*keyring_secrets)[WORKING_KEY_LEN] = NULL;
static LWLock *keyring_lock = NULL;
static LookupCounts *lookup_counts = NULL;	/* one per PGPROC, never reset */

void
keyring_init(void)
{
	DefineCustomIntVariable("nomp_crypt.max_cached_keys",
							"How many unwrapped keys the server keeps at most.",
							"Should exceed the number of keys in use.",
							&max_cached_keys, 20000, 16, 1000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
}

static Size
shared_size(void)
{
	return add_size(offsetof(KeyringShared, slots),
					mul_size(max_cached_keys, sizeof(KeyringSlot)));
}

static Size
counts_size(void)
{
	return mul_size(MaxBackends + 1, sizeof(LookupCounts));
}

static Size
secrets_size(void)
{
	return mul_size(max_cached_keys, WORKING_KEY_LEN);
}

void
keyring_shmem_request(void)
{
	RequestAddinShmemSpace(shared_size());
	RequestAddinShmemSpace(counts_size());
	secret_shmem_request(secrets_size());
	RequestAddinShmemSpace(hash_estimate_size(max_cached_keys,
											  sizeof(KeyringIndex)));
	RequestNamedLWLockTranche("nomp_crypt_keyring", 1);
}

void
keyring_shmem_startup(void)
{
	HASHCTL		ctl = {0};
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	keyring = ShmemInitStruct("nomp_crypt keyring", shared_size(), &found);
	keyring_epoch_word = &keyring->epoch;
	lookup_counts = (LookupCounts *)
		CACHELINEALIGN(ShmemInitStruct("nomp_crypt lookup counts", counts_size(), &found));
	keyring_secrets = secret_shmem_startup("nomp_crypt keyring secrets", secrets_size(), &found);
	keyring_lock = &GetNamedLWLockTranche("nomp_crypt_keyring")->lock;
	ctl.keysize = KEY_CHECK_LEN;
	ctl.entrysize = sizeof(KeyringIndex);
	keyring_index = ShmemInitHash("nomp_crypt key index", max_cached_keys,
								  max_cached_keys, &ctl, HASH_ELEM | HASH_BLOBS);
	if (!found)
	{
		memset(keyring, 0, shared_size());
		pg_atomic_init_u64(&keyring->epoch, 1);
		for (int i = 0; i < max_cached_keys; i++)
		{
			pg_atomic_init_u32(&keyring->slots[i].used, 0);
			pg_atomic_init_u64(&keyring->slots[i].used_at, 0);
		}
		memset(lookup_counts, 0, mul_size(MaxBackends, sizeof(LookupCounts)));
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Wipe one slot and forget it.  Caller holds the lock exclusively. */
static void
drop_slot(int i)
{
	KeyringSlot *slot = &keyring->slots[i];

	cipher_wipe(keyring_secrets[i], WORKING_KEY_LEN);
	hash_search(keyring_index, slot->spec.key_check, HASH_REMOVE, NULL);
	slot->in_use = false;
	keyring->count--;
}

/* Only this process writes them: neither lock nor atomic addition. */
static inline void
count(pg_atomic_uint64 *mine)
{
	pg_atomic_write_u64(mine, pg_atomic_read_u64(mine) + 1);
}

/* When is it, roughly: ticks of about a second, 2^20 us. */
static inline uint64
tick_of(int64 wall)
{
	return (uint64) wall >> 20;
}

/* Leave alone what says so already: others may have the cache line. */
static inline void
mark_used(KeyringSlot *slot, uint64 tick)
{
	if (pg_atomic_read_u32(&slot->used) == 0)
		pg_atomic_write_u32(&slot->used, 1);
	if (pg_atomic_read_u64(&slot->used_at) != tick)
		pg_atomic_write_u64(&slot->used_at, tick);
}

/*
 * Copy a key out.  The place must match too: key_check binds it, and a row
 * that claims otherwise is somebody's forgery.  A key that was unwrapped for
 * the transaction that creates its tenant is for that transaction only.
 */
static inline bool
copy_out(const KeyPlace *place, const uint8 key_check[KEY_CHECK_LEN],
		 bool own_transaction, WorkingKey *out)
{
	KeyringIndex *entry;
	int64		wall;
	bool		found = false;

	LWLockAcquire(keyring_lock, LW_SHARED);
	entry = hash_search(keyring_index, key_check, HASH_FIND, NULL);
	if (entry != NULL)
	{
		KeyringSlot *slot = &keyring->slots[entry->slot];

		if (memcmp(slot->spec.place.tenant, place->tenant, 16) == 0 &&
			slot->spec.place.is_index == place->is_index &&
			slot->spec.place.version == place->version &&
			(!slot->own_transaction || own_transaction) &&
			lease_valid_at(&slot->lease, &wall))
		{
			memcpy(out->bytes, keyring_secrets[entry->slot], WORKING_KEY_LEN);
			out->lease = slot->lease;
			mark_used(slot, tick_of(wall));
			found = true;
		}
	}
	LWLockRelease(keyring_lock);
	return found;
}

/* For a session.  What is not found is counted when it is asked for. */
bool
keyring_lookup(const KeyPlace *place, const uint8 key_check[KEY_CHECK_LEN],
			   bool own_transaction, WorkingKey *out)
{
	bool		found = copy_out(place, key_check, own_transaction, out);

	if (found)
		count(&lookup_counts[MyProc->pgprocno].hits);
	return found;
}

/* For the broker, on behalf of a session that did not find it. */
bool
keyring_peek(const KeyPlace *place, const uint8 key_check[KEY_CHECK_LEN],
			 bool own_transaction, WorkingKey *out)
{
	return copy_out(place, key_check, own_transaction, out);
}

/* A session asks the broker for a key. */
void
keyring_count_miss(void)
{
	count(&lookup_counts[MyProc->pgprocno].misses);
}

/* A free slot, by eviction if need be.  Caller holds the lock exclusively. */
static int
free_slot(void)
{
	for (;;)
	{
		int			i = keyring->hand;
		KeyringSlot *slot = &keyring->slots[i];

		keyring->hand = (i + 1) % max_cached_keys;
		if (!slot->in_use)
			return i;
		if (pg_atomic_exchange_u32(&slot->used, 0) == 0)
		{
			drop_slot(i);
			keyring->evictions++;
			return i;
		}
	}
}

/*
 * Put in key number "which" of a request, unless keys were revoked since
 * "epoch", when its rows were read.  wanted: somebody waits for this one.
 */
bool
keyring_insert(const UnwrapRequest *from, int which, const WorkingKey *key,
			   uint64 epoch, bool wanted)
{
	const KeySpec *spec = &from->keys[which];
	KeyringIndex *entry;
	KeyringSlot *slot;
	int64		wall;

	LWLockAcquire(keyring_lock, LW_EXCLUSIVE);
	if (pg_atomic_read_u64(&keyring->epoch) != epoch)
	{
		LWLockRelease(keyring_lock);
		return false;
	}
	entry = hash_search(keyring_index, spec->key_check, HASH_FIND, NULL);
	if (entry == NULL)
	{
		int			i = free_slot();

		entry = hash_search(keyring_index, spec->key_check, HASH_ENTER, NULL);
		entry->slot = i;
		keyring->count++;
		pg_atomic_write_u64(&keyring->slots[i].used_at, 0);
		keyring->slots[i].busyness = 0;
	}
	slot = &keyring->slots[entry->slot];
	slot->in_use = true;
	slot->own_transaction = from->own_transaction;
	slot->lease = key->lease;
	slot->kek_made = from->made;
	slot->checked_at = lease_boot_now();
	strlcpy(slot->installation, from->installation, sizeof(slot->installation));
	strlcpy(slot->label, from->label, sizeof(slot->label));
	strlcpy(slot->serial, from->serial, sizeof(slot->serial));
	slot->spec = *spec;
	memcpy(keyring_secrets[entry->slot], key->bytes, WORKING_KEY_LEN);
	pg_atomic_write_u32(&slot->used, 1);
	if (wanted && lease_valid_at(&key->lease, &wall))
		pg_atomic_write_u64(&slot->used_at, tick_of(wall));
	LWLockRelease(keyring_lock);
	return true;
}

/*
 * Revoke: wipe a school's keys here and make every copy of any key void.
 * Returns the new epoch; whoever needs certainty waits until all holders
 * have acknowledged it (holders.h).
 */
uint64
keyring_revoke(const uint8 tenant[16])
{
	uint64		epoch;

	LWLockAcquire(keyring_lock, LW_EXCLUSIVE);
	epoch = pg_atomic_add_fetch_u64(&keyring->epoch, 1);
	keyring->revocations++;
	for (int i = 0; i < max_cached_keys; i++)
	{
		KeyringSlot *slot = &keyring->slots[i];

		if (slot->in_use && memcmp(slot->spec.place.tenant, tenant, 16) == 0)
			drop_slot(i);
	}
	LWLockRelease(keyring_lock);
	return epoch;
}

bool
keyring_holds(const uint8 tenant[16])
{
	bool		found = false;

	LWLockAcquire(keyring_lock, LW_SHARED);
	for (int i = 0; i < max_cached_keys && !found; i++)
		found = keyring->slots[i].in_use &&
			memcmp(keyring->slots[i].spec.place.tenant, tenant, 16) == 0;
	LWLockRelease(keyring_lock);
	return found;
}

/* Once a second: wipe what has outlived its lease, note what is in use. */
void
keyring_expire(void)
{
	int64		boot_now = lease_boot_now();
	bool		age;

	LWLockAcquire(keyring_lock, LW_EXCLUSIVE);
	age = boot_now >= keyring->aged_at + HALF_LIFE;
	if (age)
		keyring->aged_at = boot_now;
	for (int i = 0; i < max_cached_keys; i++)
	{
		KeyringSlot *slot = &keyring->slots[i];
		int64		wall;

		if (!slot->in_use)
			continue;
		if (!lease_valid_at(&slot->lease, &wall))
		{
			drop_slot(i);
			keyring->expirations++;
			continue;
		}
		if (age)
			slot->busyness /= 2;
		if (pg_atomic_read_u64(&slot->used_at) + 1 >= tick_of(wall))
			slot->busyness++;
	}
	LWLockRelease(keyring_lock);
}

void
keyring_wipe_all(void)
{
	LWLockAcquire(keyring_lock, LW_EXCLUSIVE);
	pg_atomic_fetch_add_u64(&keyring->epoch, 1);
	for (int i = 0; i < max_cached_keys; i++)
	{
		if (keyring->slots[i].in_use)
			drop_slot(i);
	}
	LWLockRelease(keyring_lock);
}

/*
 * Forget what came from a KEK that is of no more use; copies stay good, as on
 * eviction.
 */
void
keyring_forget_kek(const char *label)
{
	LWLockAcquire(keyring_lock, LW_EXCLUSIVE);
	for (int i = 0; i < max_cached_keys; i++)
	{
		if (keyring->slots[i].in_use && strcmp(keyring->slots[i].label, label) == 0)
			drop_slot(i);
	}
	LWLockRelease(keyring_lock);
}

/* How many a round through all of them has to look at. */
int
keyring_slots(void)
{
	return max_cached_keys;
}

/*
 * Find, in a round that is at *at and has *left slots left, a key whose last good unwrap is older than
 * checked_before and whose keystore's serial is "wanted", as a request that
 * asks the keystore for it again.
 */
bool
keyring_next_check(int *at, int *left, int64 checked_before,
				   bool (*wanted) (const char *serial, void *arg), void *arg,
				   UnwrapRequest *out)
{
	bool		found = false;

	LWLockAcquire(keyring_lock, LW_SHARED);
	while (*left > 0 && !found)
	{
		KeyringSlot *slot = &keyring->slots[*at];

		*at = (*at + 1) % max_cached_keys;
		(*left)--;
		if (!slot->in_use || slot->checked_at >= checked_before ||
			!wanted(slot->serial, arg))
			continue;
		memset(out, 0, offsetof(UnwrapRequest, keys));
		strlcpy(out->installation, slot->installation, sizeof(out->installation));
		strlcpy(out->label, slot->label, sizeof(out->label));
		strlcpy(out->serial, slot->serial, sizeof(out->serial));
		out->own_transaction = slot->own_transaction;
		out->made = slot->kek_made;
		out->nkeys = 1;
		out->keys[0] = slot->spec;
		found = true;
	}
	LWLockRelease(keyring_lock);
	return found;
}

/* The KEK of that label opened a key just now: renew what it wraps; how many. */
int
keyring_renew(const char *label, Lease lease)
{
	int64		now = lease_boot_now();
	int			renewed = 0;

	LWLockAcquire(keyring_lock, LW_EXCLUSIVE);
	for (int i = 0; i < max_cached_keys; i++)
	{
		KeyringSlot *slot = &keyring->slots[i];

		if (slot->in_use && strcmp(slot->label, label) == 0)
		{
			slot->lease = lease;
			slot->checked_at = now;
			renewed++;
		}
	}
	LWLockRelease(keyring_lock);
	return renewed;
}

/* ---- for whoever loads keys ahead ---- */

bool
keyring_has(const KeySpec *spec)
{
	KeyringIndex *entry;
	bool		has;

	LWLockAcquire(keyring_lock, LW_SHARED);
	entry = hash_search(keyring_index, spec->key_check, HASH_FIND, NULL);
	has = entry != NULL && lease_valid(&keyring->slots[entry->slot].lease);
	LWLockRelease(keyring_lock);
	return has;
}

/* How many keys fit in without evicting others. */
int
keyring_room(void)
{
	int			room;

	LWLockAcquire(keyring_lock, LW_SHARED);
	room = max_cached_keys - keyring->count;
	LWLockRelease(keyring_lock);
	return room;
}

/* ---- for whoever watches ---- */

void
keyring_view(KeyringView *out)
{
	int64		soonest = PG_INT64_MAX;

	memset(out, 0, sizeof(*out));
	out->capacity = max_cached_keys;
	LWLockAcquire(keyring_lock, LW_SHARED);
	out->entries = keyring->count;
	out->evictions = keyring->evictions;
	out->expirations = keyring->expirations;
	out->revocations = keyring->revocations;
	for (int i = 0; i < max_cached_keys; i++)
	{
		if (keyring->slots[i].in_use)
			soonest = Min(soonest, lease_left(&keyring->slots[i].lease));
	}
	LWLockRelease(keyring_lock);
	if (out->entries > 0)
		out->soonest_end = soonest;
	for (int i = 0; i < MaxBackends; i++)
	{
		out->hits += pg_atomic_read_u64(&lookup_counts[i].hits);
		out->misses += pg_atomic_read_u64(&lookup_counts[i].misses);
	}
}

/* A palloc'd list of the keys that are there, no bytes of theirs in it. */
KeyringUse *
keyring_uses(int *n)
{
	KeyringUse *uses = MemoryContextAllocHuge(CurrentMemoryContext,
											  mul_size(max_cached_keys, sizeof(KeyringUse)));

	*n = 0;
	LWLockAcquire(keyring_lock, LW_SHARED);
	for (int i = 0; i < max_cached_keys; i++)
	{
		KeyringSlot *slot = &keyring->slots[i];
		KeyringUse *use = &uses[*n];

		if (!slot->in_use)
			continue;
		memcpy(use->tenant, slot->spec.place.tenant, 16);
		use->lease_left = lease_left(&slot->lease);
		use->used_at = (int64) (pg_atomic_read_u64(&slot->used_at) << 20) / 1000000;
		use->busyness = slot->busyness;
		(*n)++;
	}
	LWLockRelease(keyring_lock);
	return uses;
}
