/*
 * access_log.c
 *		Audit of use: who read, wrote and searched how many values of whom.
 *
 * Owns nomp_crypt.log_access.  envelope.c reports every value that it opened,
 * sealed or fingerprinted; here they are counted for the transaction, by role
 * and tenant, and handed over at its end, however it ends: to the server log,
 * or to the node's table (access_table.h).  Numbers only, never a value.  No
 * table is written, so it works on a standby.
 *
 * The role is the current user at the time of use: a SECURITY DEFINER
 * function counts as its owner.
 *
 * An aborted transaction cannot look anything up, so names are resolved when
 * a role first uses a tenant.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access_log.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

NC_FUNCTION(nc_access);

typedef struct UseKey
{
	Oid			role;
	pg_uuid_t	tenant;
} UseKey;

typedef struct Use
{
	UseKey		key;
	AccessEntry entry;			/* its hour is not filled in */
} Use;

static const struct config_enum_entry log_options[] = {
	{"none", ACCESS_LOG_NONE, false},
	{"hourly", ACCESS_LOG_HOURLY, false},
	{"transaction", ACCESS_LOG_TRANSACTION, false},
	{NULL, 0, false}
};

int			access_log = ACCESS_LOG_NONE;

static HTAB *uses = NULL;		/* of this transaction, in a context of its own */
static MemoryContext uses_context = NULL;
static Use *last_use = NULL;
static int	strictest = ACCESS_LOG_NONE;	/* of the settings in force at a use */

/* Who and whose, in words. */
static void
name_use(AccessKey *names, const UseKey *key)
{
	char	   *database = get_database_name(MyDatabaseId);
	char	   *role = GetUserNameFromId(key->role, true);
	TenantRow	tenant;

	memset(names, 0, sizeof(*names));
	strlcpy(names->database, database != NULL ? database : "?", sizeof(names->database));
	if (role != NULL)
		strlcpy(names->role, role, sizeof(names->role));
	else
		snprintf(names->role, sizeof(names->role), "%u", key->role);
	if (catalog_tenant_by_uuid(&key->tenant, &tenant))
		strlcpy(names->tenant, tenant.id, sizeof(names->tenant));
	else
		uuid_text(&key->tenant, names->tenant);
}

static Use *
find_use(const UseKey *key)
{
	AccessKey	names;
	bool		found;
	Use		   *use;

	if (uses == NULL)
	{
		HASHCTL		ctl = {0};

		if (uses_context == NULL)
			uses_context = AllocSetContextCreate(TopMemoryContext, "nomp_crypt access",
												 ALLOCSET_SMALL_SIZES);
		ctl.keysize = sizeof(UseKey);
		ctl.entrysize = sizeof(Use);
		ctl.hcxt = uses_context;
		uses = hash_create("nomp_crypt access", 16, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	use = hash_search(uses, key, HASH_FIND, NULL);
	if (use != NULL)
		return use;
	name_use(&names, key);		/* may raise: before there is an entry */
	use = hash_search(uses, key, HASH_ENTER, &found);
	memset(&use->entry, 0, sizeof(use->entry));
	use->entry.key = names;
	return use;
}

/* One more; the second half of the functions in the header. */
void
access_note(const pg_uuid_t *tenant, AccessKind kind)
{
	Oid			role = GetUserId();

	if (last_use == NULL || last_use->key.role != role ||
		memcmp(&last_use->key.tenant, tenant, UUID_LEN) != 0)
	{
		UseKey		key;

		memset(&key, 0, sizeof(key));
		key.role = role;
		key.tenant = *tenant;
		last_use = find_use(&key);
	}
	last_use->entry.counts[kind]++;
	strictest = Max(strictest, access_log);
}

/* Hand the transaction's counts over.  Looks nothing up: it may be aborting. */
static void
report(void)
{
	HASH_SEQ_STATUS scan;
	Use		   *use;
	bool		hourly = strictest == ACCESS_LOG_HOURLY;

	if (uses == NULL)
		return;
	hash_seq_init(&scan, uses);
	while ((use = hash_seq_search(&scan)) != NULL)
	{
		if (!hourly)
			access_write_transaction(&use->entry, IsParallelWorker());
		else if (!access_table_add(&use->entry))
		{
			use->entry.key.hour = GetCurrentTimestamp() / USECS_PER_HOUR;
			access_write_hour(&use->entry);
		}
	}
	uses = NULL;
	last_use = NULL;
	strictest = ACCESS_LOG_NONE;
	MemoryContextReset(uses_context);
}

/*
 * Before a commit rather than after: an error in writing the log is an error
 * of the transaction then.  What came before a commit that fails has been
 * reported once and is not again.
 */
static void
at_xact_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
			report();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PREPARE:
			break;
	}
}

void
access_log_init(void)
{
	DefineCustomEnumVariable("nomp_crypt.log_access",
							 "Whether the server log says who used how many values of which school: none, hourly or transaction.",
							 NULL,
							 &access_log, ACCESS_LOG_NONE, log_options,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	RegisterXactCallback(at_xact_event, NULL);
}

/*
 * nomp_crypt._access() returns setof (hour timestamptz, role name,
 *		tenant text, read bigint, written bigint, searched bigint)
 *
 * This database's counts on this node that the log does not have yet.
 */
Datum
nc_access(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *database = get_database_name(MyDatabaseId);
	AccessEntry *entries;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	entries = access_table_copy(&n);
	for (int i = 0; i < n; i++)
	{
		AccessEntry *entry = &entries[i];
		Datum		values[3 + ACCESS_KINDS];
		bool		nulls[3 + ACCESS_KINDS] = {false};

		if (database == NULL || strcmp(database, entry->key.database) != 0)
			continue;
		values[0] = TimestampTzGetDatum(entry->key.hour * USECS_PER_HOUR);
		values[1] = DirectFunctionCall1(namein, CStringGetDatum(entry->key.role));
		values[2] = CStringGetTextDatum(entry->key.tenant);
		for (int kind = 0; kind < ACCESS_KINDS; kind++)
			values[3 + kind] = Int64GetDatum((int64) entry->counts[kind]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
