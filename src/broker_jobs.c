/*
 * broker_jobs.c
 *		What the broker has to ask the keystore for, and who waits for it.
 *
 * A job is one request to the helper, on behalf of any number of waiting
 * slots (single flight) or of the background check.  Private to the broker:
 * no lock.  Holds wrapped keys only.
 */
#include "postgres.h"

#include "broker_jobs.h"
#include "cipher.h"
#include "keystat.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "warmer.h"

StaticAssertDecl(sizeof(CreateAnswer) <= REQUEST_BODY_MAX,
				 "an answer must fit into a slot");
StaticAssertDecl(sizeof(CreateRequest) <= REQUEST_BODY_MAX,
				 "a request must fit into a slot");

StaticAssertDecl(sizeof(WrapRequest) <= REQUEST_BODY_MAX,
				 "a request must fit into a slot");

static dlist_head queue = DLIST_STATIC_INIT(queue);
static int	queue_length = 0;
static uint64 next_id = 1;

static Job *
new_job(KsOp op, const void *body, uint32 len, uint64 epoch)
{
	Job		   *job = MemoryContextAllocZero(TopMemoryContext, sizeof(Job));

	job->id = next_id++;
	job->op = op;
	job->epoch = epoch;
	job->len = len;
	memcpy(&job->body, body, len);
	return job;
}

static void
count_queue(int change)
{
	queue_length += change;
	keystat_queue(0, queue_length);
}

static void
put_last(Job *job)
{
	dlist_push_tail(&queue, &job->node);
	count_queue(1);
}

static void
add_waiter(Job *job, int slot, uint64 serial)
{
	Waiter	   *waiter = MemoryContextAlloc(TopMemoryContext, sizeof(Waiter));

	waiter->slot = slot;
	waiter->serial = serial;
	waiter->next = job->waiters;
	job->waiters = waiter;
}

static void
count_outcome(const Job *job, KsStatus status)
{
	if (job->sent_at != 0)
	{
		if (keystat_done(0, job->op, job->is_check, status, lease_boot_now() - job->sent_at))
			warmer_launch_soon();	/* it is back after an outage */
	}
	else if (jobs_wanted(job))
		keystat_not_sent(0, status);
}

/* Count a job, answer all who wait for it, and forget it. */
void
jobs_finish(Job *job, KsStatus status, const char *reason,
			const uint8 *answer, size_t len, const WorkingKey *key)
{
	Waiter	   *waiter = job->waiters;

	count_outcome(job, status);
	while (waiter != NULL)
	{
		Waiter	   *next = waiter->next;

		request_answer(waiter->slot, waiter->serial, status, reason,
					   answer, len, key);
		pfree(waiter);
		waiter = next;
	}
	pfree(job);
}

/* Does anybody still wait for it? */
bool
jobs_wanted(const Job *job)
{
	/* a confirmation is posted: nobody waits for it, but it must be done */
	if (job->is_check || job->op == KS_OP_CONFIRM)
		return true;
	for (Waiter *waiter = job->waiters; waiter != NULL; waiter = waiter->next)
	{
		if (request_waiting(waiter->slot, waiter->serial))
			return true;
	}
	return false;
}

static bool
same_unwrap(const Job *job, const UnwrapRequest *what, uint64 epoch)
{
	const UnwrapRequest *have = &job->body.unwrap;

	return job->op == KS_OP_UNWRAP && !job->is_check && job->epoch == epoch &&
		have->own_transaction == what->own_transaction &&
		strcmp(have->label, what->label) == 0 &&
		memcmp(have->keys[0].key_check, what->keys[0].key_check, KEY_CHECK_LEN) == 0;
}

/* The job that already asks for the same key, if any. */
static Job *
find_same(Job *current, const UnwrapRequest *what, uint64 epoch)
{
	dlist_iter	iter;

	if (current != NULL && same_unwrap(current, what, epoch))
		return current;
	dlist_foreach(iter, &queue)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (same_unwrap(job, what, epoch))
			return job;
	}
	return NULL;
}

/* Turn a taken request into a job, or a place beside one. */
static void
enqueue(Job *current, int slot, const TakenRequest *taken)
{
	Job		   *job = NULL;

	if (taken->op == KS_OP_UNWRAP)
	{
		const UnwrapRequest *what = &taken->body.unwrap;
		WorkingKey	key;

		if (what->nkeys < 1 || what->nkeys > KS_MAX_KEYS)
		{
			request_answer(slot, taken->serial, KS_REFUSED, "malformed request", NULL, 0, NULL);
			return;
		}
		if (taken->epoch == keyring_epoch() &&
			keyring_peek(&what->keys[0].place, what->keys[0].key_check,
						 what->own_transaction, &key))
		{
			request_answer(slot, taken->serial, KS_OK, "", NULL, 0, &key);
			cipher_wipe(&key, sizeof(key));
			return;
		}
		job = find_same(current, what, taken->epoch);
	}
	if (job == NULL)
	{
		job = new_job(taken->op, taken->body.bytes, taken->len, taken->epoch);
		put_last(job);
	}
	add_waiter(job, slot, taken->serial);
}

/* Take every submitted request; "current" is the job that was sent, or NULL. */
void
jobs_collect(Job *current)
{
	static TakenRequest taken;

	for (int i = 0; i < MaxBackends; i++)
	{
		if (request_take(i, &taken))
			enqueue(current, i, &taken);
	}
}

void
jobs_add_check(KsOp op, const UnwrapRequest *what)
{
	Job		   *job = new_job(op, what,
							  offsetof(UnwrapRequest, keys) + sizeof(KeySpec),
							  keyring_epoch());

	job->is_check = true;
	put_last(job);
}

bool
jobs_empty(void)
{
	return dlist_is_empty(&queue);
}

Job *
jobs_pop(void)
{
	count_queue(-1);
	return dlist_container(Job, node, dlist_pop_head_node(&queue));
}

void
jobs_put_first(Job *job)
{
	dlist_push_head(&queue, &job->node);
	count_queue(1);
}
