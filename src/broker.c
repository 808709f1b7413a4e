/*
 * broker.c
 *		The background worker between backends and keystore.
 *
 * It takes requests from the slots, sends them to the keystores' helpers, to
 * each as many as it works on at once, keeps the keyring's leases and asks the keystores again
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
#include "broker_flight.h"
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

/* ---- what to ask ---- */

/* Does this keystore check keys of that serial in the background? */
static bool
checks(const char *serial, void *arg)
{
	const Store *holder = stores_holder(serial);

	return holder != NULL ? holder == arg : ((Store *) arg)->place == 0;
}

/* Queue a background check of that keystore, if one is due and nobody waits. */
static bool
add_check(Store *store)
{
	static UnwrapRequest what;

	while (store->check_left > 0 && store->checking < flight_checks(store))
	{
		if (!keyring_next_check(&store->check_at, &store->check_left, cycle_start, checks, store, &what))
			return false;
		/* one of its keys speaks for all under a KEK */
		if (jobs_checking(what.label))
			continue;
		(void) jobs_add_check(store, KS_OP_UNWRAP, &what);
		return true;
	}
	return false;
}

/*
 * Send what a keystore can be asked for next.  In an outage one at a time may
 * try, and none behind it waits.
 */
static void
start_next_jobs(Store *store)
{
	if (outage_pauses(&store->outage, lease_boot_now()))
	{
		route_refuse(store, false);
		return;
	}
	if (store->in_flight > store->aside && store->outage.failures > 0)
		route_refuse(store, store->probing);
	while (flight_room(store))
	{
		Job		   *job = route_next(store);
		KsStatus	status;

		if (job == NULL && add_check(store))
			continue;
		if (job == NULL)
			return;
		jobs_take(job, store);
		job->is_certain = route_matches(store, job);
		status = store_ensure_helper(store);
		if (status != KS_OK)
		{
			answer_failed(job, status, "");
			continue;
		}
		job->sent_at = lease_boot_now();
		if (!send_job(store, job))
			flight_replace(store, NULL, KS_CRASHED, "does not take requests");
	}
}

/* Have every keystore that has room work, as long as there is something to do. */
static void
start_jobs(void)
{
	for (int i = 0; i < stores_count; i++)
		start_next_jobs(stores[i]);
	route_settle();
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
			/* one slower than the interval goes on with its round */
			if (stores[i]->check_left == 0)
				stores[i]->check_left = keyring_slots();
			stores[i]->check_failures = 0;
			stores[i]->check_told = false;
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
		AddWaitEventToSet(set, helper_takes_more(&store->link) ? WL_SOCKET_READABLE :
						  WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE,
						  helper_socket(&store->link), NULL, NULL);
	*until = Min(*until, flight_deadline(store));
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
	if (!flight_put_back(store))
		return false;
	if (helper_running(&store->link))
		ereport(LOG, (errmsg("keystore helper belongs to another keystore setting; it is replaced")));
	store_stop(store);
	jobs_forget_checks(store);
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
			flight_replace(stores[i], NULL, KS_CRASHED, "was refused its PIN");
		stores[i]->pin_stamp[0] = '\0'; /* the token's PIN may have been changed */
		stores[i]->outage.failures = 0;
	}
}

static void
attend_stores(int64 now)
{
	for (int i = 0; i < stores_count; i++)
	{
		if (!helper_running(&stores[i]->link) && now >= stores[i]->next_start)
			(void) store_ensure_helper(stores[i]);
		flight_attend(stores[i], now);
	}
	for (int i = 0; i < MAX_KEYSTORES; i++)
	{
		if (stores_leaving[i] == NULL)
			continue;
		flight_attend(stores_leaving[i], now);
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
