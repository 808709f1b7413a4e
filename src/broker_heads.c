/*
 * broker_heads.c
 *		The register's heads, on their way to a keystore one after the other.
 *
 * Sessions post them and wait for nothing.  A keystore that works on many
 * requests at once takes them in no order, and what it remembers must not go
 * back.  So each is told one at a time, and none while its helper is still at
 * one that was given up; and one is sent only if no later one is there, sent
 * or waiting.  Later is the one of the higher record: the broker takes what
 * sessions posted in the order of their slots.
 *
 * What a service does with a request whose helper was killed, nobody knows:
 * that the number only grows is seen to by the helper as well.
 *
 * Private to the broker.  No secrets.
 */
#include "postgres.h"

#include "broker_heads.h"

#define SET_AT		(2 + 36)	/* in the body, after the installation */
#define HEAD_AT		(SET_AT + 1)

static inline bool
sets_head(const Job *job)
{
	return job->op == KS_OP_HEAD && job->len > HEAD_AT + 2 && job->body.bytes[SET_AT] == 1;
}

/* The record that a head is of; what is malformed is not later than any. */
static uint64
number_of(const Job *job)
{
	uint64		number = 0;

	for (uint32 i = HEAD_AT + 2; i < job->len; i++)
	{
		const uint8 c = job->body.bytes[i];

		if (c < '0' || c > '9')
			break;
		number = number * 10 + (c - '0');
	}
	return number;
}

/* Of the same register, for the same keystore, and later? */
static bool
is_later(const Job *other, const Job *job)
{
	uint64		a;
	uint64		b;

	if (other == job || !sets_head(other) ||
		strcmp(other->ref.serial, job->ref.serial) != 0 ||
		(job->ref.serial[0] == '\0' && other->ref.place != job->ref.place) ||
		memcmp(other->body.bytes, job->body.bytes, SET_AT) != 0)
		return false;
	a = number_of(other);
	b = number_of(job);
	return a > b || (a == b && other->id > job->id);
}

/* Is a head of no more use, because a later one is under way or will be? */
bool
heads_superseded(const Job *job)
{
	dlist_head *const lists[] = {&jobs_sent, &jobs_waiting};
	dlist_iter	iter;

	if (!sets_head(job))
		return false;
	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			if (is_later(dlist_container(Job, node, iter.cur), job))
				return true;
		}
	}
	return false;
}

/* The later one does for both. */
void
heads_drop(Job *job)
{
	jobs_finish(job, KS_OK, "", job->body.bytes + HEAD_AT, job->len - HEAD_AT, NULL);
}

/* Nobody waits for its answer any more, but the helper is at it. */
void
heads_given_up(Store *store, const Job *job)
{
	if (sets_head(job))
		store->late_head = job->id;
}

/* Is it a head, and the keystore at another?  Who reads what it remembers does not wait. */
bool
heads_must_wait(const Store *store, const Job *job)
{
	dlist_iter	iter;

	if (!sets_head(job))
		return false;
	dlist_foreach(iter, &jobs_sent)
	{
		const Job  *other = dlist_container(Job, node, iter.cur);

		if (other->store == store && sets_head(other))
			return true;
	}
	for (int i = 0; i < store->n_given_up; i++)
	{
		if (store->given_up[i] == store->late_head)
			return true;
	}
	return false;
}
