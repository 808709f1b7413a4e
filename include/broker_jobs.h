/*
 * broker_jobs.h
 *		What the broker has to ask the keystore for, and who waits for it.
 */
#ifndef NOMP_BROKER_JOBS_H
#define NOMP_BROKER_JOBS_H

#include "lib/ilist.h"
#include "request.h"

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
	KeystoreRef ref;			/* the keystore that it is for */
	struct Store *store;		/* where it was sent to, NULL while it waits */
	struct Store *check_of;		/* the background check's own */
	bool		is_check;
	bool		is_probe;		/* asks for the token's serial */
	bool		is_alone;		/* sent where nothing else is under way */
	bool		is_aside;		/* destroys keys, and was sent beside others */
	bool		repeated;
	bool		is_certain;		/* sent to the token that it is for */
	bool		misled;			/* sent to a token that was another meanwhile */
	uint32		tried;			/* places where it was of no use */
	uint32		seen;			/* places where a check has looked for later keys */
	KsStatus	verdict;		/* and what was said of the one that it is about */
	KsStatus	trouble;		/* what was in the way there, and in words */
	char		reason[REQUEST_REASON_MAX];
	uint8		step;			/* of KS_OP_WRAP, see broker_wrap.c */
	uint8		dek[KS_DEK_LEN];	/* the data key between two steps */
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

extern dlist_head jobs_waiting; /* not sent, in order */
extern dlist_head jobs_sent;	/* and not answered */

extern void jobs_collect(void);
extern Job *jobs_add_check(struct Store *store, KsOp op, const UnwrapRequest *what);
extern Job *jobs_new_probe(struct Store *store, const Job *cause);
extern bool jobs_checking(const char *label);
extern void jobs_forget_checks(const struct Store *store);
extern bool jobs_destroys(const Job *job);
extern bool jobs_alone(const Job *job, const struct Store *store);
extern void jobs_take(Job *job, struct Store *store);
extern void jobs_put_first(Job *job);
extern void jobs_redirect(Job *job, const char *serial);
extern bool jobs_wanted(const Job *job);
extern void jobs_finish(Job *job, KsStatus status, const char *reason,
						const uint8 *answer, size_t len, const WorkingKey *key);

#endif							/* NOMP_BROKER_JOBS_H */
