/*
 * outage.c
 *		Leaves a keystore alone that takes its time to fail.
 *
 * A keystore that hangs would otherwise collect waiting sessions, each for
 * nomp_crypt.keystore_timeout, until no connection is left.  So after a
 * request that failed slowly, and until one is answered, one request at a
 * time is let through and all others are refused at once with its error.  The
 * first is let through at once, for hangs that pass; the next ones after a
 * pause as long as the failure took, with some jitter, because other nodes
 * wait for the same keystore.  Failures that come quickly make nobody wait and
 * begin no outage: they may be about one school only.  Nor does one while
 * others that were sent later are answered: it is about that request.  Nor one
 * that the keystore itself reports of a key, until it does so of another: a
 * service may take seconds to say that it will not use that one.
 *
 * Called by the broker alone.  No secrets here.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "outage.h"

#define SLOW_US			1000000
#define MAX_PAUSE_US	5000000

/* Was the keystore unavailable, whatever the request was about? */
static bool
unavailable(KsStatus status)
{
	switch (status)
	{
		case KS_MODULE_LOAD:
		case KS_MODULE_ERROR:
		case KS_TOKEN_MISSING:
		case KS_TIMEOUT:
		case KS_CRASHED:
		case KS_NETWORK:
		case KS_CREDENTIALS:
			return true;
		default:
			return false;
	}
}

/* May a failure be about one key?  Not if another one's was the last. */
static bool
about_one_key(Outage *outage, KsStatus status, const char *label)
{
	if (status != KS_MODULE_ERROR || label[0] == '\0' ||
		(outage->suspect[0] != '\0' && strcmp(outage->suspect, label) != 0))
		return false;
	strlcpy(outage->suspect, label, sizeof(outage->suspect));
	return true;
}

/*
 * A request that had been sent is over, after so many microseconds.  label: the
 * key that it was for, "" if for none.
 */
void
outage_note(Outage *outage, KsStatus status, const char *label, const char *reason,
			int64 took, int64 now)
{
	const int64 sent_at = now - took;
	const bool	failed = unavailable(status) &&
		(took >= SLOW_US || outage->failures > 0);

	/* others sent with it were answered, or failed before it: that is known */
	if (failed && (outage->well_at > sent_at ||
				   (outage->failures > 0 && sent_at < outage->began)))
		return;
	if (failed && outage->failures == 0 && about_one_key(outage, status, label))
		return;
	if (!unavailable(status))
	{
		outage->well_at = now;
		outage->suspect[0] = '\0';
	}
	if (!failed)
	{
		if (outage->failures > 0)
			ereport(LOG, (errmsg("the keystore answers again")));
		outage->failures = 0;
		return;
	}
	if (outage->failures == 0)
		ereport(LOG,
				(errmsg("the keystore does not answer; until it does, one request at a time is sent to it"),
				 errdetail_log("status %d: %s", (int) status, reason)));
	if (outage->failures++ == 0)
	{
		outage->began = now;
		took = 0;
	}
	outage->until = now +
		(int64) (Min(took, MAX_PAUSE_US) * (0.75 + pg_prng_double(&pg_global_prng_state) / 2));
	outage->status = status;
	strlcpy(outage->reason, reason, sizeof(outage->reason));
}

/* Is the next request to be refused? */
bool
outage_pauses(const Outage *outage, int64 now)
{
	return outage->failures > 0 && now < outage->until;
}
