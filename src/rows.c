/*
 * rows.c
 *		What the extension's tables say, remembered until they change.
 *
 * A transaction that reads one value would spend most of its time on the rows
 * that belong to its key.  They are remembered across transactions, like
 * PostgreSQL's own catalogs: a trigger on each of the tables (nc_rows_changed)
 * sends a relcache invalidation with the change, which reaches every session,
 * here and on standbys, before its next statement, and the changing session
 * itself before its next command.
 *
 * Nothing is remembered that was read while such a message came in, nor the
 * absence of a row, nor a key of the current transaction, which is not yet
 * like others (keyring.h).  Rights (rights.c) depend on roles too, so changes
 * of roles count as changes here.
 *
 * No secrets: wrapped keys are read from the table each time.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "compat.h"
#include "relchange.h"
#include "rows.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

NC_FUNCTION(nc_rows_changed);

/* More than that and all is forgotten: memory stays bounded. */
#define MAX_REMEMBERED	16384

typedef struct KnownTenant
{
	pg_uuid_t	uuid;			/* hash key */
	TenantRow	row;
	bool		has_current[2]; /* by is_index */
	KeyFacts	current[2];
} KnownTenant;

typedef struct KnownKey
{
	uint8		key_id[VALUE_KEY_ID_LEN];	/* hash key */
	KeyFacts	facts;
} KnownKey;

static const char *const table_names[] = {"tenant", "tenant_key", "tenant_right"};
static Oid	tables[lengthof(table_names)];
static bool registered = false;

uint64		rows_changes = 1;
static uint64 listening_at = 0; /* the number when the tables were looked up */
static uint64 remembered_at = 0;	/* the number of what is remembered */
static MemoryContext context = NULL;
static HTAB *tenants = NULL;
static HTAB *keys = NULL;
static KnownTenant *last_tenant = NULL; /* most often the one asked for next */

static void
at_relcache(Oid relid)
{
	bool		ours = !OidIsValid(relid);

	for (int i = 0; i < lengthof(tables); i++)
		ours = ours || relid == tables[i];
	if (ours)
		rows_changes++;
}

static void
at_syscache(Datum arg, int cacheid, uint32 hashvalue)
{
	rows_changes++;
}

void
rows_listen(void)
{
	if (listening_at == rows_changes)
		return;
	if (!registered)
	{
		relchange_listen(at_relcache);
		CacheRegisterSyscacheCallback(AUTHOID, at_syscache, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, at_syscache, (Datum) 0);
		registered = true;
	}
	for (int i = 0; i < lengthof(tables); i++)
		tables[i] = catalog_relation(table_names[i]);
	listening_at = rows_changes;
}

static HTAB *
make_table(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		ctl = {0};

	ctl.keysize = key_size;
	ctl.entrysize = entry_size;
	ctl.hcxt = context;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Forget what may be wrong. */
static void
refresh(void)
{
	if (keys != NULL && remembered_at == rows_changes)
		return;
	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "nomp_crypt rows",
										ALLOCSET_SMALL_SIZES);
	tenants = keys = NULL;
	last_tenant = NULL;
	MemoryContextReset(context);
	tenants = make_table("nomp_crypt tenants", UUID_LEN, sizeof(KnownTenant));
	keys = make_table("nomp_crypt keys", VALUE_KEY_ID_LEN, sizeof(KnownKey));
	rows_listen();
	remembered_at = rows_changes;
}

static KnownTenant *
find_tenant(const pg_uuid_t *uuid)
{
	refresh();
	if (last_tenant == NULL || memcmp(&last_tenant->uuid, uuid, UUID_LEN) != 0)
		last_tenant = hash_search(tenants, uuid, HASH_FIND, NULL);
	return last_tenant;
}

/* A place in a table; a full one is emptied first, with the other. */
static void *
make_room(HTAB **table, const void *key)
{
	if (hash_get_num_entries(*table) >= MAX_REMEMBERED)
	{
		remembered_at = 0;
		refresh();
	}
	return hash_search(*table, key, HASH_ENTER, NULL);
}

bool
rows_tenant(const pg_uuid_t *uuid, TenantRow *row)
{
	KnownTenant *known;
	uint64		before;

	known = find_tenant(uuid);
	if (known != NULL)
	{
		*row = known->row;
		return true;
	}
	before = rows_changes;
	if (!catalog_tenant_by_uuid(uuid, row))
		return false;
	if (before == rows_changes)
	{
		known = make_room(&tenants, uuid);
		known->row = *row;
		known->has_current[false] = known->has_current[true] = false;
	}
	return true;
}

/* Sessions ask for their own tenant, over and over: the last one is kept. */
bool
rows_tenant_by_id(const char *id, TenantRow *row)
{
	static TenantRow last;
	static uint64 read_at = 0;
	uint64		before;

	if (read_at != rows_changes || strcmp(last.id, id) != 0)
	{
		rows_listen();
		read_at = 0;
		before = rows_changes;
		if (!catalog_tenant_by_id(id, &last))
			return false;
		read_at = before;
	}
	*row = last;
	return true;
}

void
rows_take_facts(KeyFacts *facts, const KeyRow *row)
{
	facts->place = row->spec.place;
	memcpy(facts->key_check, row->spec.key_check, KEY_CHECK_LEN);
	facts->own_transaction = row->own_transaction;
}

bool
rows_key(const uint8 key_id[VALUE_KEY_ID_LEN], KeyFacts *facts)
{
	KnownKey   *known;
	KeyRow		row;
	uint64		before;

	refresh();
	known = hash_search(keys, key_id, HASH_FIND, NULL);
	if (known != NULL)
	{
		*facts = known->facts;
		return true;
	}
	before = rows_changes;
	if (!catalog_key_by_id(key_id, &row))
		return false;
	rows_take_facts(facts, &row);
	if (before == rows_changes && !row.own_transaction)
	{
		known = make_room(&keys, key_id);
		known->facts = *facts;
	}
	return true;
}

bool
rows_current_key(const pg_uuid_t *tenant, bool is_index, KeyFacts *facts)
{
	KnownTenant *known;
	KeyRow		row;
	uint64		before;

	known = find_tenant(tenant);
	if (known != NULL && known->has_current[is_index])
	{
		*facts = known->current[is_index];
		return true;
	}
	before = rows_changes;
	if (!(is_index ? catalog_index_key : catalog_current_key) (tenant, &row))
		return false;
	rows_take_facts(facts, &row);
	if (known != NULL && before == rows_changes && !row.own_transaction)
	{
		known->current[is_index] = *facts;
		known->has_current[is_index] = true;
	}
	return true;
}

/*
 * nomp_crypt._rows_changed() returns trigger
 *
 * Once for each statement that changes one of the tables above, and for each
 * row that logical replication applies to them.
 */
Datum
nc_rows_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("nomp_crypt._rows_changed must be called as a trigger")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}
