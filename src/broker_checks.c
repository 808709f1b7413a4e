/*
 * broker_checks.c
 *		What comes of asking a keystore again for keys in use.
 *
 * A check unwraps one key of a KEK again.  That the KEK is gone, or must not be
 * used, wipes its school's keys, unless the school has a later KEK that may be
 * used: that is asked for first (KS_OP_SEE), and whatever is in the way of an
 * answer wipes them too, at once.
 *
 * Private to the broker.  No secrets.
 */
#include "postgres.h"

#include "broker_checks.h"
#include "holders.h"

#define MAX_CHECK_FAILURES	32	/* in a row, until background checks pause */

/*
 * The keystore says, with its canary present, that a KEK in use is gone, or
 * must not be used.
 */
void
checks_revoke(const UnwrapRequest *what, KsStatus status)
{
	const uint8 *tenant = what->keys[0].place.tenant;

	if (!keyring_holds(tenant))
		return;
	ereport(LOG,
			(errmsg(status == KS_KEY_DISABLED ?
					"the key \"%s\" is disabled in the keystore: its school's keys are wiped" :
					"the keystore no longer has the key \"%s\": its school's keys are wiped",
					what->label)));
	(void) keyring_revoke(tenant);
	holders_poke(tenant);
}

/* A check's KEK is gone, or must not be used: has its school a later one? */
void
checks_ask_for_later(const Job *job, KsStatus verdict)
{
	Store	   *store = job->check_of != NULL ? job->check_of : job->store;
	Job		   *see = jobs_add_check(store, KS_OP_SEE, &job->body.unwrap);

	see->verdict = verdict;
	jobs_put_first(see);		/* what must be wiped waits for nobody */
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
no_result(const Job *job, KsStatus status, const char *reason)
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

/*
 * A background check ends without the answer that all is well.  If it had asked
 * for a later KEK, nobody says that the school has one.
 */
void
checks_failed(const Job *job, KsStatus status, const char *reason)
{
	const bool	verdict = status == KS_KEY_ABSENT || status == KS_KEY_DISABLED;

	if (job->op == KS_OP_SEE)
		checks_revoke(&job->body.unwrap, job->verdict);
	if (verdict && job->check_of != NULL)
		job->check_of->check_failures = 0;
	if (!verdict && status != KS_OTHER_TOKEN)
		no_result(job, status, reason);
}
