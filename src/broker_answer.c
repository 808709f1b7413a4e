/*
 * broker_answer.c
 *		What the broker does with the answers of the keystores' helpers.
 *
 * Private to the broker.  Secrets: data keys exist here between a helper's
 * frame and the derivation of a working key; the locals are wiped.  Working
 * keys go to the keyring and to the asking slot.
 */
#include "postgres.h"

#include "broker_answer.h"
#include "broker_checks.h"
#include "broker_codec.h"
#include "broker_route.h"
#include "broker_wrap.h"
#include "cipher.h"
#include "keystat.h"

/*
 * A request that had been sent is over.  That a token says which it is ends no
 * outage.  That a destruction beside others fails begins none: a service asks
 * it for other credentials, and those who read say themselves how they fare.
 */
void
answer_note(Job *job, KsStatus status, const char *reason)
{
	const int64 now = lease_boot_now();
	const char *label = job->is_check || job->op == KS_OP_UNWRAP ? job->body.unwrap.label :
	job->op == KS_OP_WRAP ? job->body.wrap.label : "";

	if (status == KS_OK ? !job->is_probe : !job->is_aside)
		outage_note(&job->store->outage, status, label, reason, now - job->sent_at, now);
}

/*
 * The KEK of a background check is gone, or must not be used.  If the school
 * has a later one that may be, in whichever keystore, it was retired: its keys
 * will be asked for under that one, and no session need notice.  So too if it
 * is gone, and was made by a transaction that never committed.
 */
static void
see_answered(Job *job, WireReader *r)
{
	const UnwrapRequest *what = &job->body.unwrap;
	bool		later;

	if (!codec_get_later(r, what, &later))
		route_end(job, KS_MODULE_ERROR, "malformed answer from the keystore helper");
	else if (later || (what->own_transaction && job->verdict == KS_KEY_ABSENT))
	{
		keyring_forget_kek(what->label);
		jobs_finish(job, KS_OK, "", NULL, 0, NULL);
	}
	else if (!route_see_next(job))
	{
		checks_revoke(what, job->verdict);
		jobs_finish(job, KS_OK, "", NULL, 0, NULL);
	}
}

static void
unwrap_answered(Job *job, WireReader *r)
{
	const UnwrapRequest *what = &job->body.unwrap;
	KsStatus	wanted = KS_MODULE_ERROR;
	WorkingKey	first = {0};
	bool		stale = false;

	for (int i = 0; i < what->nkeys && !r->bad; i++)
	{
		KsStatus	status = (KsStatus) wire_get_uint(r, 1);
		const uint8 *dek;
		size_t		len = wire_get_str(r, &dek);
		WorkingKey	key = {0};

		if (r->bad)
			break;
		if (status == KS_OK && !codec_working_key(&what->keys[i], dek, len, &key))
			status = KS_INTEGRITY;
		if (i == 0)
			wanted = status;
		if (status == KS_OK && !keyring_insert(what, i, &key, job->epoch, i == 0 && !what->ahead))
			stale = true;
		if (status == KS_OK && i == 0)
			first = key;
		cipher_wipe(&key, sizeof(key));
	}
	if (!wire_done(r))
		jobs_finish(job, KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL, 0, NULL);
	else if (wanted == KS_OK && stale)
		jobs_finish(job, KS_RETRY, "", NULL, 0, NULL);
	else
		jobs_finish(job, wanted, "", NULL, 0, wanted == KS_OK ? &first : NULL);
	cipher_wipe(&first, sizeof(first));
}

/* A background check went well: the KEK is there and opens its keys. */
static void
check_answered(Job *job, WireReader *r)
{
	const UnwrapRequest *what = &job->body.unwrap;
	KsStatus	status = (KsStatus) wire_get_uint(r, 1);
	WorkingKey	key = {0};
	const uint8 *dek;
	size_t		len = wire_get_str(r, &dek);

	if (!wire_done(r))
		status = KS_MODULE_ERROR;
	else if (status == KS_OK && !codec_working_key(&what->keys[0], dek, len, &key))
		status = KS_INTEGRITY;
	if (status == KS_OK)
		keystat_renewed(job->store->place, keyring_renew(what->label, key.lease));
	if (status == KS_OK && job->check_of != NULL)
		job->check_of->check_failures = 0;
	cipher_wipe(&key, sizeof(key));
	jobs_finish(job, status, "", NULL, 0, NULL);
}

static void
create_answered(Job *job, WireReader *r)
{
	static CreateAnswer answer;

	if (codec_get_create(r, &job->body.create, &answer))
		jobs_finish(job, KS_OK, "", (uint8 *) &answer, sizeof(answer), NULL);
	else
		jobs_finish(job, KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL, 0, NULL);
}

/* Which token it is.  Its next helper is told by which key this one knew that. */
static void
probe_answered(Job *job, WireReader *r)
{
	Store	   *store = job->store;
	char		serial[KEYSPEC_SERIAL_MAX];
	char		canary[KS_MAX_REFERENCE + 1];

	wire_get_cstr(r, serial, sizeof(serial));
	wire_get_cstr(r, canary, sizeof(canary));
	if (wire_done(r))
		strlcpy(store->canary, canary, sizeof(store->canary));
	if (!wire_done(r) || (serial[0] == '\0' && strncmp(store->uri, "pkcs11:", 7) == 0))
		route_probe_failed(store, KS_MODULE_ERROR, "the token has no serial number");
	else if (serial[0] == '\0')	/* a key service without a key of ours */
		route_probe_failed(store, KS_OTHER_TOKEN, "");
	else
		strlcpy(store->serial, serial, sizeof(store->serial));
	store->ask_serial = false;
	jobs_finish(job, KS_OK, "", NULL, 0, NULL);
}

/* A job ends with an error, unless another keystore may do better. */
void
answer_failed(Job *job, KsStatus status, const char *reason)
{
	if (job->is_probe)
	{
		job->store->ask_serial = false;
		route_probe_failed(job->store, status, reason);
	}
	else if (route_elsewhere(job, status, reason))
		return;
	route_end(job, status, reason);
}

/* One frame of several: go on with the next, perhaps elsewhere. */
static void
wrap_job_answered(Job *job, WireReader *r)
{
	KsStatus	status = wrap_answered(job, r);

	if (status != KS_OK)
		jobs_finish(job, status, "the key is not the one that its row names", NULL, 0, NULL);
	else if (wrap_done(job))
		jobs_finish(job, KS_OK, "", (uint8 *) &job->body.wrap.key, sizeof(KeySpec), NULL);
	else
		jobs_put_first(job);
}

/* May the school's keys not be used any more?  Only its own token says that one is gone. */
static bool
is_verdict(const Job *job, KsStatus status)
{
	return status == KS_KEY_DISABLED || (status == KS_KEY_ABSENT && job->is_certain);
}

/* The helper answered with an error: remember, tell, revoke as it says. */
static void
error_answered(Job *job, KsStatus status, WireReader *r)
{
	Store	   *store = job->store;
	char		reason[512];
	char		stamp[MAX_PIN_STAMP];

	wire_get_cstr(r, reason, sizeof(reason));
	wire_get_cstr(r, stamp, sizeof(stamp));
	if (r->bad)
		strlcpy(reason, "malformed answer from the keystore helper", sizeof(reason));
	else if (status == KS_PIN_INCORRECT)
		strlcpy(store->pin_stamp, stamp, sizeof(store->pin_stamp));
	answer_note(job, status, reason);
	if (job->op == KS_OP_UNWRAP && is_verdict(job, status))
	{
		if (job->is_check)
		{
			checks_ask_for_later(job, status);
			route_end(job, status, reason);
			return;
		}
		checks_revoke(&job->body.unwrap, status);
	}
	answer_failed(job, status, reason);
}

/*
 * Pass an answer without secrets on.  After a destruction a helper that may
 * remember keys is replaced first: what the module has in memory goes with it.
 * One that forgets keys has none of the school's at this moment, because no
 * request for them was under way beside this one (broker_route.c).  What was
 * unwrapped before is in the keyring and in sessions: the fence comes before
 * the destruction, they are wiped after it, and what was asked for before
 * that belongs to an older epoch, which the keyring does not take.
 */
static void
other_answered(Job *job, WireReader *r)
{
	static uint8 answer[REQUEST_BODY_MAX];
	size_t		len = r->len;

	if (len > REQUEST_BODY_MAX)
	{
		jobs_finish(job, KS_MODULE_ERROR, "oversized answer from the keystore helper", NULL, 0, NULL);
		return;
	}
	memcpy(answer, r->buf, len);
	if (jobs_alone(job, job->store))
		store_stop(job->store);
	jobs_finish(job, KS_OK, "", answer, len, NULL);
}

void
answer_take(Job *job, KsStatus status, WireReader *r)
{
	if (status == KS_OK)
		answer_note(job, status, "");
	if (status != KS_OK)
		error_answered(job, status, r);
	else if (job->is_probe)
		probe_answered(job, r);
	else if (job->is_check && job->op == KS_OP_SEE)
		see_answered(job, r);
	else if (job->is_check)
		check_answered(job, r);
	else if (job->op == KS_OP_UNWRAP)
		unwrap_answered(job, r);
	else if (job->op == KS_OP_CREATE_KEK)
		create_answered(job, r);
	else if (job->op == KS_OP_WRAP)
		wrap_job_answered(job, r);
	else
		other_answered(job, r);
}
