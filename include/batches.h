/*
 * batches.h
 *		For commands that go through a table in many transactions: locks that
 *		are tried for a while, pauses, and waiting for standbys.
 */
#ifndef NOMP_BATCHES_H
#define NOMP_BATCHES_H

#include "postgres.h"

#include "storage/lockdefs.h"
#include "utils/timestamp.h"

/* How a command takes a lock that others must not wait behind for long. */
typedef struct LockPatience
{
	int			milliseconds;	/* how long it queues for the lock, each time */
	int			tries;
	int			pause;			/* milliseconds between tries */
} LockPatience;

/* In microseconds. */
extern int64 batches_interval(Interval *interval);

/* Sleep for so long, interruptibly, outside a transaction or in one. */
extern void batches_nap(long milliseconds);

/*
 * Lock a relation until the end of the transaction.  Between tries the
 * transaction holds no new lock.  Raises 55P03 after the last one.
 */
extern void batches_lock(Oid relid, LOCKMODE mode, const LockPatience *patience);

/* How many bytes of WAL the slowest connected standby has yet to replay. */
extern int64 batches_lag(void);

#endif							/* NOMP_BATCHES_H */
