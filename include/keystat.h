/*
 * keystat.h
 *		What became of the requests to the keystore, counted on this node.
 *
 * The broker alone counts; everybody may look.
 */
#ifndef NOMP_KEYSTAT_H
#define NOMP_KEYSTAT_H

#include "datatype/timestamp.h"
#include "protocol.h"

#define KEYSTAT_KEYSTORES	4	/* by place in the settings */

typedef enum KeystatCall
{
	KEYSTAT_UNWRAPS,
	KEYSTAT_CHECKS,
	KEYSTAT_CREATES,
	KEYSTAT_DESTROYS,
	KEYSTAT_OTHERS,
	KEYSTAT_CALLS				/* how many kinds there are */
} KeystatCall;

typedef enum KeystatFailure
{
	KEYSTAT_TIMEOUT,
	KEYSTAT_HELPER,
	KEYSTAT_LOGIN,
	KEYSTAT_TOKEN,
	KEYSTAT_MODULE,
	KEYSTAT_ABSENT,
	KEYSTAT_DAMAGED,
	KEYSTAT_REFUSED,
	KEYSTAT_FAILURES			/* how many kinds there are */
} KeystatFailure;

/* A look at them.  Times of 0 mean never. */
typedef struct KeystatView
{
	uint64		calls[KEYSTAT_CALLS];
	uint64		failures[KEYSTAT_FAILURES];
	uint64		renewals;
	uint64		helper_starts;
	uint64		queue;
	uint64		queue_longest;
	int64		p50;			/* microseconds, no more than an eighth too high */
	int64		p95;
	int64		p99;
	int64		max;
	TimestampTz last_ok;
	TimestampTz last_failed;
	TimestampTz since;
} KeystatView;

extern void keystat_shmem_request(void);
extern void keystat_shmem_startup(void);
extern void keystat_view(int keystore, KeystatView *out);

/* The broker's. */
extern bool keystat_done(int keystore, KsOp op, bool is_check, KsStatus status,
						 int64 microseconds);
extern void keystat_not_sent(int keystore, KsStatus status);
extern void keystat_renewed(int keystore, int keys);
extern void keystat_helper_started(int keystore);
extern void keystat_queue(int keystore, int length);

#endif							/* NOMP_KEYSTAT_H */
