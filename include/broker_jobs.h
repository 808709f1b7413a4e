/*
 * broker_jobs.h
 *		What the broker has to ask the keystore for, and who waits for it.
 */
#ifndef NOMP_BROKER_JOBS_H
#define NOMP_BROKER_JOBS_H

#include "request.h"
#include "lib/ilist.h"

typedef struct Waiter
{
	int			slot;
	uint64		serial;
	struct Waiter *next;
} Waiter;

typedef struct Job
{
	dlist_node	node;
	uint64		id;
	KsOp		op;
	bool		is_check;		/* the background check's own */
	bool		repeated;
	uint8		step;			/* of KS_OP_WRAP, see broker_wrap.c */
	int64		sent_at;		/* CLOCK_BOOTTIME, us; 0: not yet */
	uint64		epoch;
	Waiter	   *waiters;
	uint32		len;
	union
	{
		uint8		bytes[REQUEST_BODY_MAX];
		UnwrapRequest unwrap;
		CreateRequest create;
		WrapRequest wrap;
	}			body;
} Job;

extern void jobs_collect(Job *current);
extern void jobs_add_check(KsOp op, const UnwrapRequest *what);
extern bool jobs_empty(void);
extern Job *jobs_pop(void);
extern void jobs_put_first(Job *job);
extern bool jobs_wanted(const Job *job);
extern void jobs_finish(Job *job, KsStatus status, const char *reason,
						const uint8 *answer, size_t len, const WorkingKey *key);

#endif							/* NOMP_BROKER_JOBS_H */
