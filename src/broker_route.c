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

#include "broker_heads.h"
#include "broker_route.h"

#define MAX_CREATING	4		/* KEKs at once: key services allow few a second */
#define MAX_CHECK_FAILURES	32	/* in a row, until background checks pause */

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
		if (jobs_alone(job) && store->in_flight > 0)
			return NULL;		/* nothing else is begun until it can go */
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

/* May a failure to check one key be about that key alone? */
static bool
about_one_key(KsStatus status)
{
	switch (status)
	{
		case KS_ACCESS_DENIED:
		case KS_INTEGRITY:
		case KS_MODULE_ERROR:
		case KS_NOT_YET:
		case KS_REFUSED:
		case KS_REGION:
		case KS_UNSUPPORTED:
			return true;
		default:
			return false;
	}
}

/*
 * A background check has no result.  If that is about its key the others are
 * asked for all the same: one of them may be gone.  Else, or after so many in
 * a row, it is no use to ask for the rest now; the next round begins with it.
 */
static void
check_failed(const Job *job, KsStatus status, const char *reason)
{
	Store	   *store = job->check_of;

	if (store == NULL || !store->check_told)
		ereport(LOG,
				(errmsg("could not check the keys in use with the keystore"),
				 errdetail_log("key \"%s\", status %d: %s", job->body.unwrap.label,
							   (int) status, reason)));
	if (store == NULL)
		return;
	store->check_told = true;
	if (!about_one_key(status) || ++store->check_failures >= MAX_CHECK_FAILURES)
		store->check_left = 0;
}

/* A job ends with an error. */
void
route_end(Job *job, KsStatus status, const char *reason)
{
	const bool	verdict = status == KS_KEY_ABSENT || status == KS_KEY_DISABLED;

	if (job->is_check && verdict && job->check_of != NULL)
		job->check_of->check_failures = 0;
	if (job->is_check && !verdict && status != KS_OTHER_TOKEN)
		check_failed(job, status, reason);
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
			jobs_finish(job, KS_NOT_CONFIGURED, "", NULL, 0, NULL);
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
