/*
 * batches.h
 *		For commands that go through a table in many transactions: locks that
 *		are tried for a while, pauses, and waiting for standbys.
 */
#ifndef NOMP_BATCHES_H
#define NOMP_BATCHES_H

#include "postgres.h"

#include "fmgr.h"
#include "storage/lockdefs.h"
#include "utils/timestamp.h"

/* How a command takes a lock that others must not wait behind for long. */
typedef struct LockPatience
{
	int			milliseconds;	/* how long it queues for the lock, each time */
	int			tries;
	int			pause;			/* milliseconds between tries */
} LockPatience;

/* What a command does between its batches. */
typedef struct Throttle
{
	int64		max_lag;		/* bytes that standbys may be behind; -1: any */
	int64		delay;			/* microseconds */
	const char *phase;
	const char *unit;
	int64		done;
	int64		total;
	bool		waited;			/* has it said so? */
} Throttle;

/* In microseconds. */
extern int64 batches_interval(Interval *interval);

/* In bytes, with units; -1 for NULL. */
extern int64 batches_size(FunctionCallInfo fcinfo, int argument);

/* Sleep for so long, interruptibly. */
extern void batches_nap(long milliseconds);

/*
 * For a procedure that is connected to SPI and has done nothing in its
 * transaction yet: do that work, within which no lock is waited for longer
 * than the patience says.  If one was, commits and begins again.  Raises
 * 55P03 after the last time.
 */
extern void batches_try(void (*work) (void *arg), void *arg, Oid relid,
						const LockPatience *patience);

/* A lock on a relation, by the same means, until the end of the transaction. */
extern void batches_lock(Oid relid, LOCKMODE mode, const LockPatience *patience);

/* The next part of the work; and how far it is, after each batch. */
extern void batches_phase(Throttle *throttle, const char *phase, const char *unit, int64 total);
extern void batches_pause(Throttle *throttle, int64 done);

#endif							/* NOMP_BATCHES_H */
