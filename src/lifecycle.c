/*
 * lifecycle.c
 *		How long keys live: the setting, and the procedures that act on it.
 */
#include "postgres.h"

#include "admin.h"
#include "compat.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

NC_FUNCTION(nc_backup_retention);

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
