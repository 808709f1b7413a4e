/*
 * broker.c
 *		The background worker between backends and keystore.
 *
 * It takes requests from the slots, sends them to the keystore helper one at
 * a time, keeps the keyring's leases and asks the keystore again for keys in
 * use.  It knows no table and no SQL: whatever it needs stands in a request.
 *
 * Secrets: data keys exist here between a helper's frame and the derivation
 * of a working key; the frame buffer and the locals are wiped.  Working keys
 * go to the keyring and to the asking slot.
 *
 * A helper that dies, hangs or answers nonsense is killed and replaced; the
 * job under way is repeated once if it may be.  The broker's own death by
 * signal is, as for any process attached to shared memory, a crash restart of
 * the server.
 */
#include "postgres.h"

#include "access_table.h"
#include "broker.h"
#include "broker_codec.h"
#include "broker_jobs.h"
#include "broker_wrap.h"
#include "cipher.h"
#include "helper_link.h"
#include "holders.h"
#include "keystat.h"
#include "miscadmin.h"
#include "outage.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/sinval.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"
#include "warmer.h"
#include "worker.h"

#define TICK_MS			1000	/* leases are swept this often */
#define START_RETRY_MS	10000	/* when nobody asks */

static char *keystore_uri = NULL;
static int	key_check_interval = 300;	/* seconds */

static void replace_helper(KsStatus status, const char *why);

static Job *current = NULL;		/* sent, not answered */
static Outage outage = {0};
static char *started_uri = NULL;	/* the running helper's */
static const char *outdated = NULL; /* why it must be replaced */
static char pin_stamp[128] = "";
static int64 next_start = 0;
static int64 next_tick = 0;
static int64 next_cycle = 0;
static int64 cycle_start = 0;
static int	check_cursor = PG_INT32_MAX;

static bool
check_keystore(char **newval, void **extra, GucSource source)
{
	if (*newval != NULL && strcasestr(*newval, "pin-value") != NULL)
	{
		GUC_check_errmsg("a PIN must not stand in \"nomp_crypt.keystore\"");
		GUC_check_errhint("Write it to a file that only the server's user can read, and name that with pin-source=file:/path.");
		/* do not let the message repeat it */
		GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
		return false;
	}
	return true;
}

void
broker_init(void)
{
	BackgroundWorker worker = worker_of("nomp_crypt_broker_main", "nomp_crypt broker");

	DefineCustomStringVariable("nomp_crypt.keystore",
							   "URI of the HSM or key service that holds the keys.",
							   "For example pkcs11:token=nomp?module-path=/path/module.so&pin-source=file:/path/pin",
							   &keystore_uri, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_keystore, NULL, NULL);
	DefineCustomIntVariable("nomp_crypt.key_check_interval",
							"How often the keystore is asked again for keys in use.",
							NULL,
							&key_check_interval, 300, 1, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);

	worker.bgw_restart_time = 1;
	RegisterBackgroundWorker(&worker);
}

const char *
broker_keystore(void)
{
	return keystore_uri;
}

/* Answer a job's waiters, and forget it. */
static void
finish(Job *job, KsStatus status, const char *reason,
	   const uint8 *answer, size_t len, const WorkingKey *key)
{
	const int64 now = lease_boot_now();

	if (job == current)
		current = NULL;
	if (job->sent_at != 0)
		outage_note(&outage, status, reason, now - job->sent_at, now);
	jobs_finish(job, status, reason, answer, len, key);
}

/* Send a body for a job, and wipe it: it may have a data key in it. */
static bool
send_body(const Job *job, KsOp op, WireWriter *w)
{
	bool		sent = !w->bad && helper_send(job->id, op, w->buf, w->len);

	cipher_wipe(w->buf, w->len);
	return sent;
}

static bool
send_job(Job *job)
{
	static uint8 body[KS_MAX_FRAME];
	WireWriter	w = {body, sizeof(body), 0, false};
	KsOp		op = job->op;

	if (job->op == KS_OP_UNWRAP)
		codec_put_unwrap(&w, &job->body.unwrap);
	else if (job->op == KS_OP_CREATE_KEK)
		codec_put_create(&w, &job->body.create);
	else if (job->op == KS_OP_WRAP)
		op = wrap_begin(job, &w);
	else if (job->is_check)
		codec_put_see(&w, &job->body.unwrap);
	else
		wire_put(&w, job->body.bytes, job->len);
	return send_body(job, op, &w);
}

/* ---- answers ---- */

/*
 * The keystore says, with its canary present, that a KEK in use is gone, or
 * must not be used.
 */
static void
revoke_gone(const UnwrapRequest *what, KsStatus status)
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

/*
 * The KEK of a background check is gone.  If the school has a later one, it
 * was retired: its keys will be asked for under that one, and no session need
 * notice.  So too if it was made by a transaction that never committed.
 */
static void
see_answered(Job *job, WireReader *r)
{
	const UnwrapRequest *what = &job->body.unwrap;
	bool		later;

	if (codec_get_later(r, what, &later) && (later || what->own_transaction))
		keyring_forget_kek(what->label);
	else
		revoke_gone(what, KS_KEY_ABSENT);
	finish(job, KS_OK, "", NULL, 0, NULL);
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
		finish(job, KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL, 0, NULL);
	else if (wanted == KS_OK && stale)
		finish(job, KS_RETRY, "", NULL, 0, NULL);
	else
		finish(job, wanted, "", NULL, 0, wanted == KS_OK ? &first : NULL);
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
		keystat_renewed(0, keyring_renew(what->label, key.lease));
	cipher_wipe(&key, sizeof(key));
	finish(job, status, "", NULL, 0, NULL);
}

static void
create_answered(Job *job, WireReader *r)
{
	static CreateAnswer answer;

	if (codec_get_create(r, &job->body.create, &answer))
		finish(job, KS_OK, "", (uint8 *) &answer, sizeof(answer), NULL);
	else
		finish(job, KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL, 0, NULL);
}

/* One frame of several: go on to the next, within the job's time. */
static void
wrap_job_answered(Job *job, WireReader *r)
{
	uint8		body[WRAP_BODY_MAX];
	WireWriter	w = {body, sizeof(body), 0, false};
	KsOp		op = KS_OP_WRAP;
	KsStatus	status = wrap_answered(job, r, &op, &w);

	if (status != KS_OK)
		finish(job, status, "the key is not the one that its row names", NULL, 0, NULL);
	else if (w.len == 0)
		finish(job, KS_OK, "", (uint8 *) &job->body.wrap.key, sizeof(KeySpec), NULL);
	else if (!send_body(job, op, &w))
		replace_helper(KS_CRASHED, "does not take requests");
}

/* The helper answered with an error: remember, tell, revoke as it says. */
static void
error_answered(Job *job, KsStatus status, WireReader *r)
{
	char		reason[512];
	char		stamp[sizeof(pin_stamp)];
	const bool	verdict = status == KS_KEY_ABSENT || status == KS_KEY_DISABLED;

	wire_get_cstr(r, reason, sizeof(reason));
	wire_get_cstr(r, stamp, sizeof(stamp));
	if (r->bad)
		strlcpy(reason, "malformed answer from the keystore helper", sizeof(reason));
	else if (status == KS_PIN_INCORRECT)
		strlcpy(pin_stamp, stamp, sizeof(pin_stamp));
	if (status == KS_KEY_ABSENT && job->is_check)
		jobs_add_check(KS_OP_SEE, &job->body.unwrap);
	else if (verdict && job->op == KS_OP_UNWRAP)
		revoke_gone(&job->body.unwrap, status);
	if (job->is_check && !verdict)
	{
		ereport(LOG,
				(errmsg("could not check the keys in use with the keystore"),
				 errdetail_log("status %d: %s", (int) status, reason)));
		check_cursor = PG_INT32_MAX;	/* no use asking for the rest now */
	}
	finish(job, status, reason, NULL, 0, NULL);
}

/*
 * Pass an answer without secrets on.  After a destruction the helper is
 * replaced first: what the module's own memory may remember goes with it.
 */
static void
other_answered(Job *job, WireReader *r)
{
	static uint8 answer[REQUEST_BODY_MAX];
	size_t		len = r->len;

	if (len > REQUEST_BODY_MAX)
	{
		finish(job, KS_MODULE_ERROR, "oversized answer from the keystore helper", NULL, 0, NULL);
		return;
	}
	memcpy(answer, r->buf, len);
	if (job->op == KS_OP_DESTROY || job->op == KS_OP_DESTROY_KEK)
		helper_stop();
	finish(job, KS_OK, "", answer, len, NULL);
}

static void
answered(Job *job, KsStatus status, WireReader *r)
{
	if (status != KS_OK)
		error_answered(job, status, r);
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

/* ---- the helper ---- */

/* Making a key is not: nobody knows how far it came. */
static bool
may_be_repeated(const Job *job)
{
	return job->op != KS_OP_CREATE_KEK && job->op != KS_OP_SETUP;
}

/* Replace a helper that is gone or must go; repeat or fail its job. */
static void
replace_helper(KsStatus status, const char *why)
{
	Job		   *job = current;

	if (job == NULL)
		helper_stop();
	helper_kill();
	ereport(LOG, (errmsg("keystore helper %s; it is replaced", why)));
	current = NULL;
	if (job == NULL)
		return;
	if (status == KS_CRASHED && !job->repeated && may_be_repeated(job))
	{
		job->repeated = true;
		jobs_put_first(job);
		return;
	}
	if (job->is_check && status == KS_TIMEOUT)
		check_cursor = PG_INT32_MAX;	/* not a timeout for each key in use */
	finish(job, status, why, NULL, 0, NULL);
}

/*
 * Settings have changed: the next request needs another helper.  The one under
 * way is begun again with it, or, if it may not be, finished by the old one.
 */
static void
replace_outdated(void)
{
	if (outdated == NULL || (current != NULL && !may_be_repeated(current)))
		return;
	if (current != NULL)
		jobs_put_first(current);
	else
		helper_stop();
	current = NULL;
	helper_kill();
	ereport(LOG, (errmsg("keystore helper %s; it is replaced", outdated)));
	outdated = NULL;
}

static void
read_helper(void)
{
	uint64		id;
	KsStatus	status;
	WireReader	body;

	while (helper_running())
	{
		switch (helper_read(&id, &status, &body))
		{
			case HELPER_NOTHING:
				return;
			case HELPER_GONE:
				replace_helper(KS_CRASHED, "ended unexpectedly");
				return;
			case HELPER_FRAME:
				if (id == 0)
				{
					if (status != KS_OK || wire_get_uint(&body, 2) != KS_PROTOCOL_VERSION)
						replace_helper(KS_NO_HELPER, "speaks another protocol version");
				}
				else if (current != NULL && id == current->id)
					answered(current, status, &body);
				else
					replace_helper(KS_CRASHED, "answered what nobody asked");
				break;
		}
	}
}

/* Start a helper if none runs.  KS_OK, or why there is none. */
static KsStatus
ensure_helper(void)
{
	if (keystore_uri == NULL || keystore_uri[0] == '\0')
		return KS_NOT_CONFIGURED;
	if (helper_running())
		return KS_OK;
	next_start = lease_boot_now() + START_RETRY_MS * INT64CONST(1000);
	outdated = NULL;
	if (!helper_start(keystore_uri, pin_stamp))
		return KS_NO_HELPER;
	if (started_uri != NULL)
		pfree(started_uri);
	started_uri = MemoryContextStrdup(TopMemoryContext, keystore_uri);
	keystat_helper_started(0);
	return KS_OK;
}

/*
 * Send the next job that somebody waits for.  In an outage one at a time may
 * try, and none behind it waits.
 */
static void
start_next_job(void)
{
	while (!jobs_empty() && (current == NULL || outage.failures > 0))
	{
		Job		   *job = jobs_pop();
		KsStatus	status;

		if (!jobs_wanted(job))
		{
			finish(job, KS_TIMEOUT, "", NULL, 0, NULL);
			continue;
		}
		if (current != NULL || outage_pauses(&outage, lease_boot_now()))
		{
			finish(job, outage.status, outage.reason, NULL, 0, NULL);
			continue;
		}
		status = ensure_helper();
		if (status != KS_OK)
		{
			finish(job, status, "", NULL, 0, NULL);
			continue;
		}
		current = job;
		job->sent_at = lease_boot_now();
		if (!send_job(job))
			replace_helper(KS_CRASHED, "does not take requests");
	}
}

static void
check_deadline(int64 now)
{
	if (current != NULL &&
		now - current->sent_at >= request_timeout_ms() * INT64CONST(1000))
		replace_helper(KS_TIMEOUT, "did not answer in time");
}

/* ---- leases and background checks ---- */

static void
run_checks(int64 now)
{
	if (now >= next_tick)
	{
		keyring_expire();
		holders_end_stragglers();
		access_table_write_due();
		warmer_launch_due(now);
		next_tick = now + TICK_MS * INT64CONST(1000);
	}
	/* a keystore slower than the interval must not be asked for the first keys only */
	if (now >= next_cycle && check_cursor == PG_INT32_MAX)
	{
		check_cursor = 0;
		cycle_start = now;
		next_cycle = now + key_check_interval * INT64CONST(1000000);
	}
	/* one at a time, and only when nobody waits */
	if (current == NULL && jobs_empty() && check_cursor != PG_INT32_MAX &&
		!outage_pauses(&outage, now))
	{
		static UnwrapRequest what;

		if (keyring_next_check(&check_cursor, cycle_start, &what))
			jobs_add_check(KS_OP_UNWRAP, &what);
		else
			check_cursor = PG_INT32_MAX;
	}
}

/* Milliseconds until something is due. */
static long
time_to_wait(int64 now)
{
	int64		until = next_tick;

	if (check_cursor == PG_INT32_MAX)
		until = Min(until, next_cycle);
	if (current != NULL)
		until = Min(until, current->sent_at + request_timeout_ms() * INT64CONST(1000));
	else if (outage_pauses(&outage, now))
		until = Min(until, outage.until);
	else if (check_cursor != PG_INT32_MAX || !jobs_empty())
		return 0;
	return (long) Max((until - now + 999) / 1000, 0);
}

static void
reload_settings(void)
{
	ProcessConfigFile(PGC_SIGHUP);
	next_cycle = Min(next_cycle, lease_boot_now() + key_check_interval * INT64CONST(1000000));
	if (helper_running() && strcmp(started_uri, keystore_uri) != 0)
		outdated = "belongs to another keystore setting";
	else if (helper_running() && pin_stamp[0] != '\0')
		outdated = "was refused its PIN";
	pin_stamp[0] = '\0';		/* the token's PIN may have been changed */
	outage.failures = 0;
	next_start = 0;
}

static void
leave(int code, Datum arg)
{
	request_broker_ready(false);
	keyring_wipe_all();
	access_table_close();
	if (current == NULL)
		helper_stop();
	helper_kill();
}

void
nomp_crypt_broker_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	before_shmem_exit(leave, 0);
	request_broker_ready(true);
	access_table_open();
	next_cycle = lease_boot_now() + key_check_interval * INT64CONST(1000000);

	while (!ShutdownRequestPending)
	{
		int64		now;
		int			events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;

		CHECK_FOR_INTERRUPTS();
		if (catchupInterruptPending)
			ProcessCatchupInterrupt();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			reload_settings();
		}
		now = lease_boot_now();
		if (!helper_running() && now >= next_start)
			(void) ensure_helper();
		read_helper();
		check_deadline(now);
		replace_outdated();
		/* who comes in an outage does not wait with the one that tries */
		jobs_collect(outage.failures > 0 ? NULL : current);
		run_checks(now);
		start_next_job();

		if (helper_running())
			events |= WL_SOCKET_READABLE;
		(void) WaitLatchOrSocket(MyLatch, events, helper_socket(),
								 time_to_wait(lease_boot_now()), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	proc_exit(1);				/* 0 would mean: do not start me again */
}
