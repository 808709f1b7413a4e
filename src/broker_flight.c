/*
 * broker_flight.c
 *		What keystores were asked and have not answered yet.
 *
 * A helper says in its greeting how many requests it works on at once: one
 * for a token, many for a key service, whose answers take their time on the
 * way.  Each request has a deadline of its own.
 *
 * A helper that works on one, and lets that one's deadline pass, is killed and
 * replaced.  One that works on many is so only if nothing at all came from it
 * for as long, or too many of its requests were given up: its others are then
 * sent again.  Else that one request has failed, and the broker remembers its
 * number: an answer that comes after all is wiped, and belongs to nobody.
 *
 * A helper that dies: each request is repeated once, if it may be.
 *
 * Private to the broker.  Data keys are in the link's buffer until the frame
 * is done with.
 */
#include "postgres.h"

#include "broker_answer.h"
#include "broker_flight.h"
#include "broker_heads.h"

/* ---- how much at once ---- */

/* In an outage one at a time tries; a destruction does not take its turn. */
bool
flight_room(const Store *store)
{
	const int	limit = store->outage.failures > 0 ? 1 : store->max_in_flight;

	return !store->probing && !store->alone && helper_takes_more(&store->link) &&
		store->in_flight - store->aside < limit &&
		store->in_flight + store->n_given_up < store->max_in_flight;
}

/* How many background checks at once: there is always room for sessions. */
int
flight_checks(const Store *store)
{
	return store->outage.failures > 0 ? 1 : Max(store->max_in_flight / 2, 1);
}

/* ---- what comes back ---- */

static Job *
find_job(const Store *store, uint64 id)
{
	dlist_iter	iter;

	dlist_foreach(iter, &jobs_sent)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (job->store == store && job->id == id)
			return job;
	}
	return NULL;
}

/* Was the request of that number given up?  It is no more under way. */
static bool
take_late(Store *store, uint64 id)
{
	for (int i = 0; i < store->n_given_up; i++)
	{
		if (store->given_up[i] != id)
			continue;
		store->given_up[i] = store->given_up[--store->n_given_up];
		return true;
	}
	return false;
}

static void
hello_answered(Store *store, KsStatus status, WireReader *r)
{
	unsigned	version = (unsigned) wire_get_uint(r, 2);
	int			at_once = (int) wire_get_uint(r, 2);
	bool		forgets_keys = wire_get_uint(r, 1) == 1;

	if (status != KS_OK || !wire_done(r) || version != KS_PROTOCOL_VERSION)
	{
		flight_replace(store, NULL, KS_NO_HELPER, "speaks another protocol version");
		return;
	}
	store->max_in_flight = Min(Max(at_once, 1), KS_MAX_IN_FLIGHT);
	store->forgets_keys = forgets_keys;
}

static void
take_frame(Store *store, uint64 id, KsStatus status, WireReader *body)
{
	Job		   *job;

	store->heard_at = lease_boot_now();
	if (id == 0)
		hello_answered(store, status, body);
	else if ((job = find_job(store, id)) != NULL)
		answer_take(job, status, body);
	else if (!take_late(store, id))
		flight_replace(store, NULL, KS_CRASHED, "answered what nobody asked");
}

static void
read_helper(Store *store)
{
	uint64		id;
	KsStatus	status;
	WireReader	body;

	while (helper_running(&store->link))
	{
		switch (helper_read(&store->link, &id, &status, &body))
		{
			case HELPER_NOTHING:
				return;
			case HELPER_GONE:
				flight_replace(store, NULL, KS_CRASHED, "ended unexpectedly");
				return;
			case HELPER_FRAME:
				take_frame(store, id, status, &body);
				break;
		}
	}
}

/* ---- what does not ---- */

/* Does a request make the register's key?  The end of its body says so. */
static bool
makes_register_key(const Job *job)
{
	return job->op == KS_OP_REGISTER_KEY && job->len > 0 &&
		job->body.bytes[job->len - 1] == KS_MAKE;
}

/* Making a key is not: nobody knows how far it came. */
static bool
may_be_repeated(const Job *job)
{
	return job->op != KS_OP_CREATE_KEK && job->op != KS_OP_SETUP && !makes_register_key(job);
}

/* What a keystore works on, in the order in which it was sent. */
static int
jobs_of(const Store *store, Job *list[KS_MAX_IN_FLIGHT])
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &jobs_sent)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (job->store == store && n < KS_MAX_IN_FLIGHT)
			list[n++] = job;
	}
	return n;
}

static void
fail(Job *job, KsStatus status, const char *why)
{
	answer_note(job, status, why);
	answer_failed(job, status, why);
}

/* May it be sent once more, now that its helper is gone? */
static bool
try_again(Job *job, KsStatus status)
{
	if (!may_be_repeated(job) || status == KS_NO_HELPER || (status == KS_CRASHED && job->repeated))
		return false;
	if (status == KS_CRASHED)
		job->repeated = true;
	return true;
}

/*
 * Replace a helper that is gone or must go.  The guilty request, if it is
 * known, fails with that status; the others are repeated, or fail.
 */
void
flight_replace(Store *store, Job *guilty, KsStatus status, const char *why)
{
	Job		   *list[KS_MAX_IN_FLIGHT];
	int			n = jobs_of(store, list);

	if (n == 0)
		store_stop(store);
	store_kill(store);
	ereport(LOG, (errmsg("keystore helper %s; it is replaced", why)));
	if (guilty != NULL)
		fail(guilty, status, why);
	/* those that go back keep their order */
	while (--n >= 0)
	{
		if (list[n] == guilty)
			continue;
		if (try_again(list[n], status))
			jobs_put_first(list[n]);
		else
			fail(list[n], guilty != NULL ? KS_CRASHED : status, why);
	}
}

/* The request's deadline has passed. */
static void
give_up(Store *store, Job *job)
{
	static const char *const why = "did not answer in time";

	if (store->max_in_flight == 1 || store->heard_at <= job->sent_at ||
		(store->n_given_up + 1) * 2 > store->max_in_flight)
	{
		flight_replace(store, job, KS_TIMEOUT, why);
		return;
	}
	store->given_up[store->n_given_up++] = job->id;
	heads_given_up(store, job);
	fail(job, KS_TIMEOUT, why);
}

static inline int64
deadline(const Job *job)
{
	return job->sent_at + request_timeout_ms() * INT64CONST(1000);
}

/* The request that must be answered next, or NULL. */
static Job *
most_urgent(const Store *store)
{
	Job		   *found = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &jobs_sent)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (job->store == store && (found == NULL || job->sent_at < found->sent_at))
			found = job;
	}
	return found;
}

int64
flight_deadline(const Store *store)
{
	const Job  *job = most_urgent(store);

	return job == NULL ? PG_INT64_MAX : deadline(job);
}

/* Take what came, hand on what did not go, give up what is late. */
void
flight_attend(Store *store, int64 now)
{
	Job		   *job;

	read_helper(store);
	if (helper_running(&store->link) && !helper_flush(&store->link))
		flight_replace(store, NULL, KS_CRASHED, "does not take requests");
	while ((job = most_urgent(store)) != NULL && now >= deadline(job))
		give_up(store, job);
}

/*
 * The keystore is no longer configured: what it works on waits again.  False
 * if some of it must not be begun twice.
 */
bool
flight_put_back(Store *store)
{
	Job		   *list[KS_MAX_IN_FLIGHT];
	int			n = jobs_of(store, list);

	for (int i = 0; i < n; i++)
	{
		if (!may_be_repeated(list[i]))
			return false;
	}
	while (--n >= 0)
		jobs_put_first(list[n]);
	return true;
}
