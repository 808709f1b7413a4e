/*
 * broker_route.c
 *		Which keystore is asked for what.
 *
 * A request for a key says in which token the key was made, by its serial
 * number (nomp_crypt.kek).  A keystore whose helper has not said yet which
 * token it has is asked for that first, and by itself: one that hangs then
 * keeps only those waiting who need it.
 *
 * A key whose token is nowhere is looked for everywhere: a token may have
 * been restored, or be one of several with the same keys, under another
 * serial.  But that it is absent is believed only of the token that it was
 * made in.  Not found elsewhere means that its keystore is not configured.
 *
 * Private to the broker.  No secrets.
 */
#include "postgres.h"

#include "broker_checks.h"
#include "broker_codec.h"
#include "broker_heads.h"
#include "broker_route.h"

#define SCHOOL_LEN		36		/* of a uuid's text */
#define MAX_CREATING	4		/* KEKs at once: key services allow few a second */

typedef enum Choice
{
	NOT_FOR_IT,
	SEND,
	PROBE_FIRST,
	NO_USE
} Choice;

static inline bool
by_serial(const Job *job)
{
	return job->ref.serial[0] != '\0';
}

/* Is the keystore's token the one that the job is for? */
bool
route_matches(const Store *store, const Job *job)
{
	return by_serial(job) && strcmp(store->serial, job->ref.serial) == 0;
}

static Choice
choose(const Store *store, const Job *job)
{
	if (!by_serial(job))
		return job->ref.place == store->place ? SEND : NOT_FOR_IT;
	if ((job->tried & (1U << store->place)) != 0)
		return NOT_FOR_IT;
	if (route_matches(store, job))
		return SEND;
	if (stores_holder(job->ref.serial) != NULL)
		return NOT_FOR_IT;
	if (store->uri[0] == '\0')
		return NO_USE;
	if (store->serial[0] == '\0')
		return PROBE_FIRST;
	return job->op == KS_OP_UNWRAP || job->op == KS_OP_WRAP ? SEND : NO_USE;
}

/* The school whose data keys a request brings, as text, or NULL. */
static const char *
school_of(const Job *job)
{
	switch (job->op)
	{
		case KS_OP_UNWRAP:
			return codec_school(job->body.unwrap.label);
		case KS_OP_WRAP:
			return codec_school(job->body.wrap.label);
		case KS_OP_CREATE_KEK:
			return job->body.create.tenant;
		default:
			return NULL;
	}
}

/* Does one request destroy the keys that the other one has to do with? */
static bool
destroys_for(const Job *job, const Job *other)
{
	const char *school = school_of(other);

	return jobs_destroys(job) && school != NULL &&
		memmem(job->body.bytes, job->len, school, SCHOOL_LEN) != NULL;
}

/*
 * A destruction goes beside everybody else's requests, but not beside those
 * for the same school's keys, whichever was sent first: a helper has those
 * keys in memory until it has answered.  What was given up is over there too:
 * a helper is told how long it is waited for, and ends before that.
 */
static bool
must_keep_apart(const Store *store, const Job *job)
{
	dlist_iter	iter;

	if (store->aside == 0 && !jobs_destroys(job))
		return false;
	dlist_foreach(iter, &jobs_sent)
	{
		const Job  *other = dlist_container(Job, node, iter.cur);

		if (other->store == store && (destroys_for(job, other) || destroys_for(other, job)))
			return true;
	}
	return false;
}

/* What a keystore with room is to be asked now, or NULL. */
Job *
route_next(Store *store)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &jobs_waiting)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);
		Choice		choice = choose(store, job);

		if (heads_superseded(job))
		{
			heads_drop(job);
			continue;
		}
		if (choice == NO_USE)
			job->tried |= 1U << store->place;
		if (choice != SEND && choice != PROBE_FIRST)
			continue;
		if (!jobs_wanted(job))
		{
			jobs_finish(job, KS_TIMEOUT, "", NULL, 0, NULL);
			continue;
		}
		if (choice == PROBE_FIRST)
			return jobs_new_probe(store, job);
		if (jobs_alone(job, store) && store->in_flight > 0)
			return NULL;		/* nothing else is begun until it can go */
		if (must_keep_apart(store, job))
			continue;
		if (job->op == KS_OP_CREATE_KEK && store->creating >= MAX_CREATING)
			continue;
		if (heads_must_wait(store, job))
			continue;
		return job;
	}
	return store->ask_serial && store->serial[0] == '\0' && store->uri[0] != '\0' ?
		jobs_new_probe(store, NULL) : NULL;
}

/* It was of no use to ask there; what was in the way first is told at the end. */
static void
note_trouble(Job *job, const Store *store, KsStatus status, const char *reason)
{
	job->tried |= 1U << store->place;
	if (status == KS_KEY_ABSENT || status == KS_NOT_YET || status == KS_OTHER_TOKEN ||
		job->trouble != KS_OK)
		return;
	job->trouble = status;
	strlcpy(job->reason, reason, sizeof(job->reason));
}

/*
 * A keystore answered with an error.  True if that is not the last word, and
 * the job waits again.
 */
bool
route_elsewhere(Job *job, KsStatus status, const char *reason)
{
	Store	   *store = job->store;

	if (!by_serial(job))
		return false;
	if (status == KS_OTHER_TOKEN)
		store->serial[0] = '\0';	/* ask again which it is */
	if (status == KS_OTHER_TOKEN && !job->misled)
		job->misled = true;
	else if (status != KS_OTHER_TOKEN && job->is_certain)
		return false;
	else
		note_trouble(job, store, status, reason);
	jobs_put_first(job);
	return true;
}

/*
 * A keystore showed no key of those that a background check looks for.  True
 * if there is another that was not asked, and the job waits for it.
 */
bool
route_see_next(Job *job)
{
	job->seen |= 1U << job->store->place;
	for (int i = 0; i < stores_count; i++)
	{
		if ((job->seen & (1U << i)) != 0 || stores[i]->uri[0] == '\0')
			continue;
		job->ref.serial[0] = '\0';
		job->ref.place = i;
		jobs_put_first(job);
		return true;
	}
	return false;
}

/* A keystore does not say which token it has: nothing can be asked of it. */
void
route_probe_failed(Store *store, KsStatus status, const char *reason)
{
	dlist_iter	iter;

	dlist_foreach(iter, &jobs_waiting)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (choose(store, job) == PROBE_FIRST)
			note_trouble(job, store, status, reason);
	}
}

/*
 * In an outage: those who wait for the keystore, but perhaps the first, are
 * told so, unless another keystore may have what they want.
 */
void
route_refuse(Store *store, bool keep_first)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &jobs_waiting)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);
		Choice		choice = choose(store, job);

		if (choice != SEND && choice != PROBE_FIRST)
			continue;
		if (keep_first)
			keep_first = false;
		else if (by_serial(job) && !route_matches(store, job))
			note_trouble(job, store, store->outage.status, store->outage.reason);
		else
			route_end(job, store->outage.status, store->outage.reason);
	}
}

/* A job ends with an error. */
void
route_end(Job *job, KsStatus status, const char *reason)
{
	if (job->is_check)
		checks_failed(job, status, reason);
	jobs_finish(job, status, reason, NULL, 0, NULL);
}

static bool
tried_everywhere(const Job *job)
{
	return job->tried == (1U << stores_count) - 1;
}

static bool
any_configured(void)
{
	for (int i = 0; i < stores_count; i++)
	{
		if (stores[i]->uri[0] != '\0')
			return true;
	}
	return false;
}

/* Answer those whom no keystore can be asked for. */
void
route_settle(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &jobs_waiting)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (!by_serial(job) && job->ref.place >= stores_count)
			route_end(job, KS_NOT_CONFIGURED, "");
		else if (by_serial(job) && tried_everywhere(job))
			route_end(job, job->trouble != KS_OK ? job->trouble :
					  any_configured() ? KS_OTHER_TOKEN : KS_NOT_CONFIGURED,
					  job->reason);
	}
}

/* The keystores have changed their places: what was tried is of no meaning. */
void
route_forget(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &jobs_waiting)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (job->is_probe)
		{
			jobs_finish(job, KS_CRASHED, "", NULL, 0, NULL);
			continue;
		}
		job->tried = 0;
		job->trouble = KS_OK;
		job->reason[0] = '\0';
	}
}
