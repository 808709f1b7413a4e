/*
 * broker_jobs.c
 *		What the broker has to ask the keystore for, and who waits for it.
 *
 * A job is one request to the helper, on behalf of any number of waiting
 * slots (single flight) or of the background check.  Private to the broker:
 * no lock.  Holds wrapped keys, and a data key while it is wrapped anew; jobs
 * are wiped when they end.
 */
#include "postgres.h"

#include "broker_jobs.h"
#include "cipher.h"
#include "keystat.h"
#include "miscadmin.h"
#include "stores.h"
#include "utils/memutils.h"
#include "warmer.h"

StaticAssertDecl(KEYSTAT_KEYSTORES == MAX_KEYSTORES, "a row for each");
StaticAssertDecl(sizeof(CreateAnswer) <= REQUEST_BODY_MAX,
				 "an answer must fit into a slot");
StaticAssertDecl(sizeof(CreateRequest) <= REQUEST_BODY_MAX,
				 "a request must fit into a slot");

StaticAssertDecl(sizeof(WrapRequest) <= REQUEST_BODY_MAX,
				 "a request must fit into a slot");

dlist_head	jobs_waiting = DLIST_STATIC_INIT(jobs_waiting);

dlist_head	jobs_sent = DLIST_STATIC_INIT(jobs_sent);

static uint64 next_id = 1;

static Job *
new_job(KsOp op, const KeystoreRef *ref, const void *body, uint32 len, uint64 epoch)
{
	Job		   *job = MemoryContextAllocZero(TopMemoryContext, sizeof(Job));

	job->id = next_id++;
	job->op = op;
	job->ref = *ref;
	job->epoch = epoch;
	job->len = len;
	memcpy(&job->body, body, len);
	return job;
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

/* The place of the keystore that a job is for, as far as is known. */
static int
place_of(const Job *job)
{
	const Store *store = stores_holder(job->ref.serial);

	if (store != NULL)
		return store->place;
	return job->ref.serial[0] == '\0' ? Min(job->ref.place, MAX_KEYSTORES - 1) : 0;
}

static void
count_outcome(const Job *job, KsStatus status)
{
	if (job->store != NULL && job->sent_at != 0)
	{
		if (keystat_done(job->store->place, job->op, job->is_check, status,
						 lease_boot_now() - job->sent_at))
			warmer_launch_soon();	/* it is back after an outage */
	}
	else if (jobs_wanted(job))
		keystat_not_sent(place_of(job), status);
}

/* Does it end keys in use?  An answer says that they are gone. */
bool
jobs_destroys(const Job *job)
{
	return job->op == KS_OP_DESTROY || job->op == KS_OP_DESTROY_KEK;
}

/*
 * What is destroyed must be gone from the helper's memory too.  One that may
 * remember keys goes with it, and what else it works on must not be in its way.
 */
bool
jobs_alone(const Job *job, const Store *store)
{
	return jobs_destroys(job) && !store->forgets_keys;
}

static void
enter_store(Job *job, Store *store)
{
	job->store = store;
	job->is_alone = jobs_alone(job, store);
	job->is_aside = (jobs_destroys(job) || job->op == KS_OP_REMOVE) && store->forgets_keys;
	store->in_flight++;
	store->creating += job->op == KS_OP_CREATE_KEK;
	store->aside += job->is_aside;
	store->probing |= job->is_probe;
	store->alone |= job->is_alone;
}

static void
leave_store(Job *job)
{
	Store	   *store = job->store;

	if (store == NULL)
		return;
	store->in_flight--;
	store->creating -= job->op == KS_OP_CREATE_KEK;
	store->aside -= job->is_aside;
	store->probing &= !job->is_probe;
	store->alone &= !job->is_alone;
	job->store = NULL;
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
	leave_store(job);
	if (job->check_of != NULL)
		job->check_of->checking--;
	dlist_delete(&job->node);
	cipher_wipe(job->dek, sizeof(job->dek));
	pfree(job);
}

/* Does anybody still wait for it? */
bool
jobs_wanted(const Job *job)
{
	/* what is posted nobody waits for, but it must be done: confirmations, heads */
	if (job->is_check || job->is_probe || job->op == KS_OP_CONFIRM || job->op == KS_OP_HEAD)
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

/* The job in a list that asks for the same key, if any. */
static Job *
find_same(dlist_head *list, const UnwrapRequest *what, uint64 epoch)
{
	dlist_iter	iter;

	dlist_foreach(iter, list)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (same_unwrap(job, what, epoch))
			return job;
	}
	return NULL;
}

/* Turn a taken request into a job, or a place beside one. */
static void
enqueue(int slot, const TakenRequest *taken)
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
		job = find_same(&jobs_sent, what, taken->epoch);
		/* who comes in an outage does not wait with the one that tries */
		if (job != NULL && job->store->outage.failures > 0)
			job = NULL;
		else if (job == NULL)
			job = find_same(&jobs_waiting, what, taken->epoch);
	}
	if (job == NULL)
	{
		job = new_job(taken->op, &taken->store, taken->body.bytes, taken->len, taken->epoch);
		dlist_push_tail(&jobs_waiting, &job->node);
	}
	add_waiter(job, slot, taken->serial);
}

/* How many jobs wait for each keystore. */
static void
count_waiting(void)
{
	int			waiting[MAX_KEYSTORES] = {0};
	dlist_iter	iter;

	dlist_foreach(iter, &jobs_waiting)
		waiting[place_of(dlist_container(Job, node, iter.cur))]++;
	for (int i = 0; i < MAX_KEYSTORES; i++)
		keystat_queue(i, waiting[i]);
}

/* Take every submitted request. */
void
jobs_collect(void)
{
	static TakenRequest taken;

	for (int i = 0; i < MaxBackends; i++)
	{
		if (request_take(i, &taken))
			enqueue(i, &taken);
	}
	count_waiting();
}

/* Ask for a key in use again, on behalf of one keystore's background check. */
Job *
jobs_add_check(Store *store, KsOp op, const UnwrapRequest *what)
{
	KeystoreRef ref = {{0}, 0};
	Job		   *job;

	strlcpy(ref.serial, what->serial, sizeof(ref.serial));
	job = new_job(op, &ref, what,
				  offsetof(UnwrapRequest, keys) + sizeof(KeySpec), keyring_epoch());
	job->is_check = true;
	job->check_of = store;
	store->checking++;
	dlist_push_tail(&jobs_waiting, &job->node);
	return job;
}

/* Is a KEK of that label being asked for in the background? */
bool
jobs_checking(const char *label)
{
	dlist_head *const lists[] = {&jobs_sent, &jobs_waiting};
	dlist_iter	iter;

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			Job		   *job = dlist_container(Job, node, iter.cur);

			if (job->is_check && strcmp(job->body.unwrap.label, label) == 0)
				return true;
		}
	}
	return false;
}

/* A keystore goes: its background checks are nobody's. */
void
jobs_forget_checks(const Store *store)
{
	dlist_head *const lists[] = {&jobs_sent, &jobs_waiting};
	dlist_iter	iter;

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			Job		   *job = dlist_container(Job, node, iter.cur);

			if (job->check_of == store)
				job->check_of = NULL;
		}
	}
}

/* The installation that a job is about, as a str of the protocol; NULL if about none. */
static const uint8 *
installation_of(const Job *job)
{
	static uint8 text[2 + 36] = {0, 36};
	const char *name;

	switch (job->is_check ? KS_OP_UNWRAP : job->op)
	{
		case KS_OP_UNWRAP:
			name = job->body.unwrap.installation;
			break;
		case KS_OP_CREATE_KEK:
			name = job->body.create.installation;
			break;
		case KS_OP_WRAP:
			name = job->body.wrap.installation;
			break;
		default:
			/* all others begin with it */
			return job->len >= sizeof(text) && job->body.bytes[0] == 0 && job->body.bytes[1] == 36 ?
				job->body.bytes : NULL;
	}
	if (strlen(name) != 36)
		return NULL;
	memcpy(text + 2, name, 36);
	return text;
}

/*
 * A question for the serial of a keystore's token, to be sent at once.  A key
 * service knows its own only by an installation's keys: that of the job that
 * makes us ask, or of the last one that did.
 */
Job *
jobs_new_probe(Store *store, const Job *cause)
{
	static uint8 installation[2 + 36];
	const KeystoreRef ref = {{0}, store->place};
	const uint8 *known = cause != NULL ? installation_of(cause) : NULL;
	Job		   *job;

	if (known != NULL)
		memcpy(installation, known, sizeof(installation));
	job = new_job(KS_OP_PROBE, &ref, installation, installation[1] != 0 ? sizeof(installation) : 2, 0);
	job->is_probe = true;
	dlist_push_tail(&jobs_waiting, &job->node);
	return job;
}

/* It waits no longer: it will be sent there. */
void
jobs_take(Job *job, Store *store)
{
	dlist_delete(&job->node);
	dlist_push_tail(&jobs_sent, &job->node);
	enter_store(job, store);
}

/* It must be sent again, before all others. */
void
jobs_put_first(Job *job)
{
	leave_store(job);
	dlist_delete(&job->node);
	dlist_push_head(&jobs_waiting, &job->node);
}

/* Its next frame is for the token of that serial. */
void
jobs_redirect(Job *job, const char *serial)
{
	strlcpy(job->ref.serial, serial, sizeof(job->ref.serial));
	job->tried = 0;
	job->trouble = KS_OK;
	job->reason[0] = '\0';
	job->misled = job->repeated = false;
}
