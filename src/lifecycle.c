/*
 * lifecycle.c
 *		CALL nomp_crypt.suspend_tenant, resume_tenant, destroy_expired_keks.
 *
 * Steps as in steps.h.  Suspension: first the state, which sessions and
 * standbys go by; then this node's memory; then the keystore, for whoever
 * has not got the state: a standby that lags, a restored backup.  Back in the
 * other order, so that no school is active whose keys do not open.
 *
 * The end of a KEK: it was seen and is about to go; committed, and replayed
 * by everybody who might still read with it; destroyed and seen to be gone.
 */
#include "postgres.h"

#include "admin.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "steps.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "storage/latch.h"

NC_FUNCTION(nc_backup_retention);
NC_FUNCTION(nc_suspend_tenant);
NC_FUNCTION(nc_resume_tenant);
NC_FUNCTION(nc_destroy_expired_keks);

/* Standbys say every wal_receiver_status_interval what they have replayed. */
#define STANDBY_WAIT_MS	30000
#define STANDBY_POLL_MS	100

#define DAY		(24 * 60 * 60)

static int	backup_retention = 35 * DAY;	/* seconds */

void
lifecycle_init(void)
{
	DefineCustomIntVariable("nomp_crypt.backup_retention",
							"How long a key of the keystore that is no longer used is kept for backups that need it.",
							"Must exceed the age of the oldest backup that anybody may restore.",
							&backup_retention, 35 * 24 * 60 * 60, 0, 20 * 365 * DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

/* nomp_crypt._backup_retention() returns interval */
Datum
nc_backup_retention(PG_FUNCTION_ARGS)
{
	Interval   *retention = palloc0(sizeof(Interval));

	retention->time = backup_retention * USECS_PER_SEC;
	PG_RETURN_INTERVAL_P(retention);
}

static char *
id_argument(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
}

/*
 * CALL nomp_crypt.suspend_tenant(id text)
 *
 * Repeatable after a failure at any point.  Raises 2D000 inside a transaction
 * block, 42704, NC001, 55000 if its erasure is past the fence or this server
 * may not, 55006; and NC004 when the school is suspended and the keystore
 * could not be told.
 */
Datum
nc_suspend_tenant(PG_FUNCTION_ARGS)
{
	char	   *id = id_argument(fcinfo);
	char	   *tenant;
	char	   *obeyed;

	steps_begin(fcinfo, "suspend_tenant");
	tenant = steps_run("SELECT nomp_crypt._suspend($1)::pg_catalog.text", 1, &id);
	steps_commit();
	(void) steps_run("SELECT nomp_crypt._suspend_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, &tenant);
	steps_commit();
	obeyed = steps_run("SELECT nomp_crypt._suspend_keys($1::pg_catalog.uuid)::pg_catalog.text", 1, &tenant);
	steps_commit();
	if (strcmp(obeyed, "true") != 0)
		ereport(NOTICE,
				(errmsg("the keystore does not disable all keys: whoever restores a backup can read the tenant's values with it"),
				 errhint("On this server and its standbys the tenant is suspended.")));
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * CALL nomp_crypt.resume_tenant(id text)
 *
 * Repeatable.  Raises 2D000, 42704, NC001, NC004, and 55000 if the school's
 * erasure has been requested.
 */
Datum
nc_resume_tenant(PG_FUNCTION_ARGS)
{
	char	   *id = id_argument(fcinfo);
	char	   *tenant;

	steps_begin(fcinfo, "resume_tenant");
	tenant = steps_run("SELECT nomp_crypt._resume_keys($1)::pg_catalog.text", 1, &id);
	steps_commit();
	(void) steps_run("SELECT nomp_crypt._resume($1::pg_catalog.uuid)::pg_catalog.text", 1, &tenant);
	steps_commit();
	SPI_finish();
	PG_RETURN_VOID();
}

/* Give whoever follows a little time to say that it has replayed. */
static void
await_replay(char *lsn)
{
	TimestampTz start = GetCurrentTimestamp();

	while (steps_run("SELECT nomp_crypt._behind($1::pg_catalog.pg_lsn)", 1, &lsn) != NULL &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), STANDBY_WAIT_MS))
	{
		steps_commit();			/* statistics are of the transaction's start */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 STANDBY_POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	steps_commit();
}

static char *
next_expired(char *after, bool submitted)
{
	return steps_run(submitted ?
					 "SELECT nomp_crypt._next_expired($1::pg_catalog.uuid, true)::pg_catalog.text" :
					 "SELECT nomp_crypt._next_expired($1::pg_catalog.uuid, false)::pg_catalog.text",
					 1, &after);
}

/*
 * CALL nomp_crypt.destroy_expired_keks()
 *
 * Repeatable.  A KEK that is not in the keystore is left, with a warning; one
 * whose keystore destroys later counts when it is seen to be gone.
 * Raises 2D000 inside a transaction block, NC004, and 55000 if a standby or a
 * slot is behind or this server may not destroy.
 */
Datum
nc_destroy_expired_keks(PG_FUNCTION_ARGS)
{
	char	   *kek = NULL;
	char	   *lsn;
	char	   *gone;
	int			destroyed = 0;
	int			pending = 0;

	steps_begin(fcinfo, "destroy_expired_keks");
	/* of all first, so that waiting for replay is done once */
	while ((kek = next_expired(kek, false)) != NULL)
	{
		(void) steps_run("SELECT nomp_crypt._expire_submit($1::pg_catalog.uuid)::pg_catalog.text", 1, &kek);
		steps_commit();
	}
	lsn = steps_run("SELECT nomp_crypt._expire_lsn()::pg_catalog.text", 0, NULL);
	if (lsn != NULL)
		await_replay(lsn);
	while ((kek = next_expired(kek, true)) != NULL)
	{
		gone = steps_run("SELECT nomp_crypt._expire_destroy($1::pg_catalog.uuid)::pg_catalog.text", 1, &kek);
		steps_commit();
		destroyed += gone != NULL && strcmp(gone, "1") == 0;
		pending += gone != NULL && strcmp(gone, "0") == 0;
	}
	if (pending == 0)
		ereport(NOTICE, (errmsg("keys destroyed that no backup needs any more: %d", destroyed)));
	else
		ereport(NOTICE,
				(errmsg("keys destroyed that no backup needs any more: %d; their keystore will destroy: %d",
						destroyed, pending),
				 errhint("See nomp_crypt.kek.pending_until. A later call sees that they are gone.")));
	SPI_finish();
	PG_RETURN_VOID();
}
