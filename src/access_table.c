/*
 * access_table.c
 *		Counts of use, per role, tenant and hour, for the whole node.
 *
 * A bounded hash table in shared memory, guarded by one lock.  Backends add
 * at the end of a transaction; the broker writes the hours that are over to
 * the server log and removes them.  Nothing is dropped: when the table is
 * nearly full the broker writes all of it, and when it is full, or no broker
 * takes it over (as at shutdown), the backend writes its own line.  Only a
 * crash of the server loses what had not been written.
 *
 * Names, not OIDs: the broker has no database to look them up in.
 */
#include "postgres.h"

#include "access_table.h"
#include "datatype/timestamp.h"
#include "pgtime.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#define CAPACITY		8192
#define NEARLY_FULL		(CAPACITY / 8 * 7)
#define BATCH			64		/* written without the lock */

typedef struct AccessShared
{
	bool		open;			/* does a broker take care of it? */
} AccessShared;

static AccessShared *shared = NULL;
static HTAB *table = NULL;
static LWLock *lock = NULL;

void
access_table_shmem_request(void)
{
	RequestAddinShmemSpace(MAXALIGN(sizeof(AccessShared)));
	RequestAddinShmemSpace(hash_estimate_size(CAPACITY, sizeof(AccessEntry)));
	RequestNamedLWLockTranche("nomp_crypt_access", 1);
}

void
access_table_shmem_startup(void)
{
	HASHCTL		ctl = {0};
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("nomp_crypt access", sizeof(AccessShared), &found);
	if (!found)
		shared->open = false;
	lock = &GetNamedLWLockTranche("nomp_crypt_access")->lock;
	ctl.keysize = sizeof(AccessKey);
	ctl.entrysize = sizeof(AccessEntry);
	table = ShmemInitHash("nomp_crypt access counts", CAPACITY, CAPACITY, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	LWLockRelease(AddinShmemInitLock);
}

static int64
hour_now(void)
{
	return GetCurrentTimestamp() / USECS_PER_HOUR;
}

bool
access_table_add(const AccessEntry *entry)
{
	AccessKey	key = entry->key;
	AccessEntry *sum = NULL;
	bool		found;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (shared->open)
	{
		key.hour = hour_now();
		sum = hash_search(table, &key,
						  hash_get_num_entries(table) < CAPACITY ? HASH_ENTER_NULL : HASH_FIND,
						  &found);
	}
	if (sum != NULL)
	{
		for (int i = 0; i < ACCESS_KINDS; i++)
			sum->counts[i] = (found ? sum->counts[i] : 0) + entry->counts[i];
	}
	LWLockRelease(lock);
	return sum != NULL;
}

AccessEntry *
access_table_copy(int *n)
{
	AccessEntry *copy = palloc(CAPACITY * sizeof(AccessEntry));
	HASH_SEQ_STATUS scan;
	AccessEntry *entry;

	*n = 0;
	LWLockAcquire(lock, LW_SHARED);
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
		copy[(*n)++] = *entry;
	LWLockRelease(lock);
	return copy;
}

/* Take some of what is to be written out of the table; how many. */
static int
take(AccessEntry *batch, bool all, int64 hour)
{
	HASH_SEQ_STATUS scan;
	AccessEntry *entry;
	int			n = 0;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!all && entry->key.hour == hour)
			continue;
		if (n == BATCH)
		{
			hash_seq_term(&scan);
			break;
		}
		batch[n++] = *entry;
		(void) hash_search(table, &entry->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(lock);
	return n;
}

static void
write_out(bool all)
{
	int64		hour = hour_now();
	AccessEntry batch[BATCH];
	int			n;

	do
	{
		n = take(batch, all, hour);
		for (int i = 0; i < n; i++)
			access_write_hour(&batch[i]);
	} while (n == BATCH);
}

void
access_table_open(void)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);
	shared->open = true;
	LWLockRelease(lock);
}

/* The hours that are over, or everything if the table is nearly full. */
void
access_table_write_due(void)
{
	static int64 last_hour = 0;
	int64		hour = hour_now();
	long		entries;

	LWLockAcquire(lock, LW_SHARED);
	entries = hash_get_num_entries(table);
	LWLockRelease(lock);
	if (entries >= NEARLY_FULL)
		write_out(true);
	else if (hour != last_hour)
		write_out(false);
	last_hour = hour;
}

void
access_table_close(void)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);
	shared->open = false;
	LWLockRelease(lock);
	write_out(true);
}

/* "2026-11-23 14:00 UTC" */
static void
hour_text(int64 hour, char *out, size_t size)
{
	pg_time_t	time = timestamptz_to_time_t(hour * USECS_PER_HOUR);
	struct pg_tm *tm = pg_gmtime(&time);

	snprintf(out, size, "%04d-%02d-%02d %02d:00 UTC",
			 tm->tm_year + 1900, tm->tm_mon + 1, tm->tm_mday, tm->tm_hour);
}

static void
write_line(const AccessEntry *entry, const char *when)
{
	ereport(LOG_SERVER_ONLY,
			(errmsg("nomp_crypt: access by role \"%s\" in database \"%s\" to tenant \"%s\", %s: %llu read, %llu written, %llu searched",
					entry->key.role, entry->key.database, entry->key.tenant, when,
					(unsigned long long) entry->counts[ACCESS_READ],
					(unsigned long long) entry->counts[ACCESS_WRITTEN],
					(unsigned long long) entry->counts[ACCESS_SEARCHED]),
			 errhidestmt(true), errhidecontext(true)));
}

void
access_write_hour(const AccessEntry *entry)
{
	char		hour[64];
	char		when[96];

	hour_text(entry->key.hour, hour, sizeof(hour));
	snprintf(when, sizeof(when), "hour from %s", hour);
	write_line(entry, when);
}

void
access_write_transaction(const AccessEntry *entry, bool by_worker)
{
	write_line(entry, by_worker ? "a transaction's parallel worker" : "one transaction");
}
