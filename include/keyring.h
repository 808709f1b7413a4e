/*
 * keyring.h
 *		The node's bounded table of working keys, in shared memory.
 *
 * Only the broker puts keys in; backends copy them out (never a pointer).
 * One counter, the epoch, tells every holder of a copy that keys have been
 * revoked: a copy is good while the epoch it was made under is the current
 * one and its lease has not run out.
 */
#ifndef NOMP_KEYRING_H
#define NOMP_KEYRING_H

#include "keyspec.h"
#include "lease.h"
#include "port/atomics.h"

#define WORKING_KEY_LEN		32

/* A copy of a working key; the holder wipes it. */
typedef struct WorkingKey
{
	uint8		bytes[WORKING_KEY_LEN];
	Lease		lease;
} WorkingKey;

extern void keyring_init(void);
extern void keyring_shmem_request(void);
extern void keyring_shmem_startup(void);

/* Moves when keys are revoked: what was read or copied before is void. */
extern pg_atomic_uint64 *keyring_epoch_word;

static inline uint64
keyring_epoch(void)
{
	return pg_atomic_read_u64(keyring_epoch_word);
}

extern bool keyring_lookup(const KeyPlace *place, const uint8 key_check[KEY_CHECK_LEN],
						   bool own_transaction, WorkingKey *out);
extern bool keyring_insert(const UnwrapRequest *from, int which,
						   const WorkingKey *key, uint64 epoch, bool wanted);
extern uint64 keyring_revoke(const uint8 tenant[16]);
extern bool keyring_holds(const uint8 tenant[16]);

/* For the broker: leases, background checks. */
extern bool keyring_peek(const KeyPlace *place, const uint8 key_check[KEY_CHECK_LEN],
						 bool own_transaction, WorkingKey *out);
extern void keyring_expire(void);
extern void keyring_wipe_all(void);
extern void keyring_forget_kek(const char *label);
extern int	keyring_slots(void);
extern bool keyring_next_check(int *at, int *left, int64 checked_before,
							   bool (*wanted) (const char *serial, void *arg), void *arg,
							   UnwrapRequest *out);
extern int	keyring_renew(const char *label, Lease lease);

/* For whoever loads keys ahead. */
extern bool keyring_has(const KeySpec *spec);
extern int	keyring_room(void);

/* For whoever watches. */
typedef struct KeyringView
{
	int			entries;
	int			capacity;
	uint64		hits;
	uint64		misses;
	uint64		evictions;
	uint64		expirations;
	uint64		revocations;
	int64		soonest_end;	/* of a lease, in us from now; 0: no entries */
} KeyringView;

typedef struct KeyringUse
{
	uint8		tenant[16];
	int64		lease_left;		/* us */
	int64		used_at;		/* seconds of the wall clock; 0: never */
	int64		busyness;		/* seconds in which it was used, of late */
} KeyringUse;

extern void keyring_count_miss(void);
extern void keyring_view(KeyringView *out);
extern KeyringUse *keyring_uses(int *n);

#endif							/* NOMP_KEYRING_H */
