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
#include "broker_answer.h"
#include "broker_codec.h"
#include "broker_jobs.h"
#include "broker_route.h"
#include "broker_wrap.h"
#include "cipher.h"
#include "holders.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/sinval.h"
#include "stores.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"
#include "warmer.h"
#include "worker.h"

#define TICK_MS			1000	/* leases are swept this often */

static int	key_check_interval = 300;	/* seconds */

static int64 next_tick = 0;
static int64 next_cycle = 0;
static int64 cycle_start = 0;

void
broker_init(void)
{
	BackgroundWorker worker = worker_of("nomp_crypt_broker_main", "nomp_crypt broker");

	DefineCustomIntVariable("nomp_crypt.key_check_interval",
							"How often the keystore is asked again for keys in use.",
							NULL,
							&key_check_interval, 300, 1, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);

	worker.bgw_restart_time = 1;
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
					request_timeout_ms(), body, w.len);
	cipher_wipe(body, w.len);
	return sent;
}

/* ---- the helpers ---- */

/* Making a key is not: nobody knows how far it came. */
static bool
may_be_repeated(const Job *job)
{
	return job->op != KS_OP_CREATE_KEK && job->op != KS_OP_SETUP;
}

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
	if (status == KS_CRASHED && !job->repeated && may_be_repeated(job))
	{
		job->repeated = true;
		jobs_put_first(job);
		return;
	}
	answer_note(job, status, why);
	answer_failed(job, status, why);
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
					answer_take(store->current, status, &body);
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

/*
 * Send what a keystore can be asked for next.  In an outage one at a time may
 * try, and none behind it waits.
 */
static void
start_next_job(Store *store)
{
	if (outage_pauses(&store->outage, lease_boot_now()))
	{
		route_refuse(store, false);
		return;
	}
	if (store->current != NULL && store->outage.failures > 0)
		route_refuse(store, store->current->is_probe);
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
			answer_failed(job, status, "");
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
		warmer_launch_due(now);
		next_tick = now + TICK_MS * INT64CONST(1000);
	}
	if (now >= next_cycle)
	{
		for (int i = 0; i < stores_count; i++)
		{
			/* one slower than the interval must not be asked for the first keys only */
			if (stores[i]->check_cursor == PG_INT32_MAX)
				stores[i]->check_cursor = 0;
			stores[i]->ask_serial = stores_count > 1;
		}
		cycle_start = now;
		next_cycle = now + key_check_interval * INT64CONST(1000000);
	}
}

static void
wait_for_store(WaitEventSet *set, const Store *store, int64 *until)
{
	if (helper_running(&store->link))
		AddWaitEventToSet(set, WL_SOCKET_READABLE, helper_socket(&store->link), NULL, NULL);
	if (store->current != NULL)
		*until = Min(*until, deadline(store));
}

/* Wait until a helper or a backend has something, or something is due. */
static void
wait_for_events(void)
{
	WaitEventSet *set = CreateWaitEventSet(CurrentMemoryContext, 2 + 2 * MAX_KEYSTORES);
	WaitEvent	event;
	int64		until = Min(next_tick, next_cycle);

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < stores_count; i++)
		wait_for_store(set, stores[i], &until);
	for (int i = 0; i < MAX_KEYSTORES; i++)
	{
		if (stores_leaving[i] != NULL)
			wait_for_store(set, stores_leaving[i], &until);
	}
	(void) WaitEventSetWait(set, (long) Max((until - lease_boot_now() + 999) / 1000, 0),
							&event, 1, PG_WAIT_EXTENSION);
	FreeWaitEventSet(set);
}

/*
 * A keystore is no longer configured; what was under way goes to another.
 * False: it has to end what must not be begun twice.
 */
static bool
drop_store(Store *store)
{
	if (store->current != NULL && !may_be_repeated(store->current))
		return false;
	if (store->current != NULL)
		jobs_put_first(store->current);
	if (helper_running(&store->link))
		ereport(LOG, (errmsg("keystore helper belongs to another keystore setting; it is replaced")));
	store_stop(store);
	return true;
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
		stores[i]->outage.failures = 0;
	}
}

/* What there is to do for a keystore, but sending. */
static void
attend(Store *store, int64 now)
{
	read_helper(store);
	if (store->current != NULL && now >= deadline(store))
		replace_helper(store, KS_TIMEOUT, "did not answer in time");
}

static void
attend_stores(int64 now)
{
	for (int i = 0; i < stores_count; i++)
	{
		if (!helper_running(&stores[i]->link) && now >= stores[i]->next_start)
			(void) store_ensure_helper(stores[i]);
		attend(stores[i], now);
	}
	for (int i = 0; i < MAX_KEYSTORES; i++)
	{
		if (stores_leaving[i] == NULL)
			continue;
		attend(stores_leaving[i], now);
		stores_try_drop(i, drop_store);
	}
}

/* A helper that is working has a second to come to its end. */
static void
leave(int code, Datum arg)
{
	request_broker_ready(false);
	keyring_wipe_all();
	access_table_close();
	for (int i = 0; i < stores_count; i++)
		store_stop(stores[i]);
	for (int i = 0; i < MAX_KEYSTORES; i++)
	{
		if (stores_leaving[i] != NULL)
			store_stop(stores_leaving[i]);
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
