/*
 * broker.c
 *		The background worker between backends and keystore.
 *
 * It takes requests from the slots, sends them to the keystores' helpers, to
 * each one at a time, keeps the keyring's leases and asks the keystores again
 * for keys in use.  It knows no table and no SQL: whatever it needs stands in a request.
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
#include "broker_route.h"
#include "broker_wrap.h"
#include "cipher.h"
#include "holders.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/sinval.h"
#include "stores.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#define TICK_MS			1000	/* leases are swept this often */

static int	key_check_interval = 300;	/* seconds */

static int64 next_tick = 0;
static int64 next_cycle = 0;
static int64 cycle_start = 0;

void
broker_init(void)
{
	BackgroundWorker worker = {0};

	DefineCustomIntVariable("nomp_crypt.key_check_interval",
							"How often the keystore is asked again for keys in use.",
							NULL,
							&key_check_interval, 300, 1, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "nomp_crypt", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "nomp_crypt_broker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "nomp_crypt broker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "nomp_crypt broker", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

static bool
send_job(Store *store, Job *job)
{
	static uint8 body[KS_MAX_FRAME];
	WireWriter	w = {body, sizeof(body), 0, false};
	KsOp		op = job->op;
	bool		sent;

	if (job->op == KS_OP_UNWRAP)
		codec_put_unwrap(&w, &job->body.unwrap);
	else if (job->op == KS_OP_CREATE_KEK)
		codec_put_create(&w, &job->body.create);
	else if (job->op == KS_OP_WRAP)
		op = wrap_put(job, &w);
	else if (job->is_check)
		codec_put_see(&w, &job->body.unwrap);
	else
		wire_put(&w, job->body.bytes, job->len);
	/* there may be a data key in it */
	sent = !w.bad &&
		helper_send(&store->link, job->id, op, job->is_certain ? job->ref.serial : "",
					body, w.len);
	cipher_wipe(body, w.len);
	return sent;
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
 * The KEK of a background check is gone.  If the school has a later one, in
 * whichever keystore, it was retired: its keys will be asked for under that one, and no session need
 * notice.  So too if it was made by a transaction that never committed.
 */
static void
see_answered(Job *job, WireReader *r)
{
	const UnwrapRequest *what = &job->body.unwrap;
	bool		later;

	if (!codec_get_later(r, what, &later))
		revoke_gone(what, KS_KEY_ABSENT);
	else if (later || what->own_transaction)
		keyring_forget_kek(what->label);
	else if (route_see_next(job))
		return;
	else
		revoke_gone(what, KS_KEY_ABSENT);
	jobs_finish(job, KS_OK, "", NULL, 0, NULL);
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
		if (status == KS_OK && !keyring_insert(what, i, &key, job->epoch))
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
	WorkingKey	key = {0};
	const uint8 *dek;
	size_t		len;

	if (wire_get_uint(r, 1) == KS_OK)
	{
		len = wire_get_str(r, &dek);
		if (wire_done(r) && codec_working_key(&what->keys[0], dek, len, &key))
			keyring_renew(what->label, key.lease);
		cipher_wipe(&key, sizeof(key));
	}
	jobs_finish(job, KS_OK, "", NULL, 0, NULL);
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

/* Which token it is. */
static void
probe_answered(Job *job, WireReader *r)
{
	Store	   *store = job->store;
	char		serial[KEYSPEC_SERIAL_MAX];
	const uint8 *label;

	(void) wire_get_str(r, &label);
	wire_get_cstr(r, serial, sizeof(serial));
	if (r->bad || serial[0] == '\0')
		route_probe_failed(store, KS_MODULE_ERROR, "the token has no serial number");
	else
		strlcpy(store->serial, serial, sizeof(store->serial));
	store->ask_serial = false;
	jobs_finish(job, KS_OK, "", NULL, 0, NULL);
}

/* A job ends with an error, unless another keystore may do better. */
static void
fail(Job *job, KsStatus status, const char *reason)
{
	if (job->is_probe)
	{
		job->store->ask_serial = false;
		route_probe_failed(job->store, status, reason);
	}
	else if (route_elsewhere(job, status, reason))
		return;
	/* the key is gone, and nobody says that the school has a later one */
	if (job->is_check && job->op == KS_OP_SEE)
		revoke_gone(&job->body.unwrap, KS_KEY_ABSENT);
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
	if (job->op == KS_OP_UNWRAP && status == KS_KEY_ABSENT && job->is_certain && job->is_check)
	{
		jobs_add_check(job->check_of, KS_OP_SEE, &job->body.unwrap);
		route_end(job, status, reason);
		return;
	}
	if (job->op == KS_OP_UNWRAP &&
		(status == KS_KEY_DISABLED || (status == KS_KEY_ABSENT && job->is_certain)))
		revoke_gone(&job->body.unwrap, status);
	fail(job, status, reason);
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
		jobs_finish(job, KS_MODULE_ERROR, "oversized answer from the keystore helper", NULL, 0, NULL);
		return;
	}
	memcpy(answer, r->buf, len);
	if (job->op == KS_OP_DESTROY || job->op == KS_OP_DESTROY_KEK)
		store_stop(job->store);
	jobs_finish(job, KS_OK, "", answer, len, NULL);
}

static void
answered(Job *job, KsStatus status, WireReader *r)
{
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

/* ---- the helpers ---- */

/* Replace a helper that is gone or must go; repeat or fail its job. */
static void
replace_helper(Store *store, KsStatus status, const char *why)
{
	Job		   *job = store->current;

	if (job == NULL)
		store_stop(store);
	store_kill(store);
	ereport(LOG, (errmsg("keystore helper %s; it is replaced", why)));
	if (job == NULL)
		return;
	if (status == KS_CRASHED && !job->repeated &&
		job->op != KS_OP_CREATE_KEK && job->op != KS_OP_SETUP)
	{
		job->repeated = true;
		jobs_put_first(job);
		return;
	}
	fail(job, status, why);
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
				replace_helper(store, KS_CRASHED, "ended unexpectedly");
				return;
			case HELPER_FRAME:
				if (id == 0)
				{
					if (status != KS_OK || wire_get_uint(&body, 2) != KS_PROTOCOL_VERSION)
						replace_helper(store, KS_NO_HELPER, "speaks another protocol version");
				}
				else if (store->current != NULL && id == store->current->id)
					answered(store->current, status, &body);
				else
					replace_helper(store, KS_CRASHED, "answered what nobody asked");
				break;
		}
	}
}

/* Does this keystore check keys of that serial in the background? */
static bool
checks(const char *serial, void *arg)
{
	const Store *holder = stores_holder(serial);

	return holder != NULL ? holder == arg : ((Store *) arg)->place == 0;
}

/*
 * Queue a background check of that keystore, if one is due: one at a time, and
 * only when nobody waits.
 */
static bool
add_check(Store *store)
{
	static UnwrapRequest what;

	if (store->checking || store->check_cursor == PG_INT32_MAX)
		return false;
	if (keyring_next_check(&store->check_cursor, cycle_start, checks, store, &what))
		jobs_add_check(store, KS_OP_UNWRAP, &what);
	else
		store->check_cursor = PG_INT32_MAX;
	return store->checking;
}

/* Send what a keystore can be asked for next. */
static void
start_next_job(Store *store)
{
	while (store->current == NULL)
	{
		Job		   *job = route_next(store);
		KsStatus	status;

		if (job == NULL && add_check(store))
			continue;
		if (job == NULL)
			return;
		job->store = store;
		store->current = job;
		job->is_certain = route_matches(store, job);
		status = store_ensure_helper(store);
		if (status != KS_OK)
		{
			fail(job, status, "");
			continue;
		}
		job->sent_at = lease_boot_now();
		if (!send_job(store, job))
			replace_helper(store, KS_CRASHED, "does not take requests");
	}
}

/* Have every keystore that is idle work, as long as there is something to do. */
static void
start_jobs(void)
{
	for (int i = 0; i < stores_count; i++)
		start_next_job(stores[i]);
	route_settle();
}

static inline int64
deadline(const Store *store)
{
	return store->current->sent_at + request_timeout_ms() * INT64CONST(1000);
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
		next_tick = now + TICK_MS * INT64CONST(1000);
	}
	if (now >= next_cycle)
	{
		for (int i = 0; i < stores_count; i++)
		{
			stores[i]->check_cursor = 0;
			stores[i]->ask_serial = stores_count > 1;
		}
		cycle_start = now;
		next_cycle = now + key_check_interval * INT64CONST(1000000);
	}
}

/* Wait until a helper or a backend has something, or something is due. */
static void
wait_for_events(void)
{
	WaitEventSet *set = CreateWaitEventSet(CurrentMemoryContext, 2 + MAX_KEYSTORES);
	WaitEvent	event;
	int64		until = Min(next_tick, next_cycle);

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < stores_count; i++)
	{
		if (helper_running(&stores[i]->link))
			AddWaitEventToSet(set, WL_SOCKET_READABLE, helper_socket(&stores[i]->link),
							  NULL, NULL);
		if (stores[i]->current != NULL)
			until = Min(until, deadline(stores[i]));
	}
	(void) WaitEventSetWait(set, (long) Max((until - lease_boot_now() + 999) / 1000, 0),
							&event, 1, PG_WAIT_EXTENSION);
	FreeWaitEventSet(set);
}

/* A keystore is no longer configured; what was under way goes to another. */
static void
drop_store(Store *store)
{
	if (helper_running(&store->link))
		replace_helper(store, KS_CRASHED, "belongs to another keystore setting");
}

static void
reload_settings(void)
{
	ProcessConfigFile(PGC_SIGHUP);
	next_cycle = Min(next_cycle, lease_boot_now() + key_check_interval * INT64CONST(1000000));
	stores_arrange(drop_store);
	route_forget();
	for (int i = 0; i < stores_count; i++)
	{
		if (helper_running(&stores[i]->link) && stores[i]->pin_stamp[0] != '\0')
			replace_helper(stores[i], KS_CRASHED, "was refused its PIN");
		stores[i]->pin_stamp[0] = '\0'; /* the token's PIN may have been changed */
	}
}

/* What there is to do for each keystore, but sending. */
static void
attend_stores(int64 now)
{
	for (int i = 0; i < stores_count; i++)
	{
		Store	   *store = stores[i];

		if (!helper_running(&store->link) && now >= store->next_start)
			(void) store_ensure_helper(store);
		read_helper(store);
		if (store->current != NULL && now >= deadline(store))
			replace_helper(store, KS_TIMEOUT, "did not answer in time");
	}
}

static void
leave(int code, Datum arg)
{
	request_broker_ready(false);
	keyring_wipe_all();
	access_table_close();
	for (int i = 0; i < stores_count; i++)
	{
		if (stores[i]->current == NULL)
			store_stop(stores[i]);
		store_kill(stores[i]);
	}
}

void
nomp_crypt_broker_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	before_shmem_exit(leave, 0);
	stores_arrange(drop_store);
	request_broker_ready(true);
	access_table_open();
	next_cycle = lease_boot_now() + key_check_interval * INT64CONST(1000000);

	while (!ShutdownRequestPending)
	{
		int64		now;

		CHECK_FOR_INTERRUPTS();
		if (catchupInterruptPending)
			ProcessCatchupInterrupt();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			reload_settings();
		}
		now = lease_boot_now();
		attend_stores(now);
		jobs_collect();
		run_checks(now);
		start_jobs();
		wait_for_events();
		ResetLatch(MyLatch);
	}
	proc_exit(1);				/* 0 would mean: do not start me again */
}
