/*
 * rights.c
 *		May the current role do this with that school?
 *
 * Rights are rows of nomp_crypt.tenant_right, by role name.  Nobody has any
 * by default; a superuser needs them too (he can grant them to himself: an
 * audit line, not a barrier).  Answers are kept for some schools until rows or
 * roles change (rows.h), or keys are revoked.
 *
 * Owns nomp_crypt.require_tls too: whoever wants to use a key passes
 * rights_require once per transaction and school at least, so this is the
 * place to look at the connection.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "catalog/pg_database.h"
#include "errors.h"
#include "miscadmin.h"
#include "rights.h"
#include "rows.h"
#include "session.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"

#define CACHE_SIZE	256			/* direct-mapped by the tenant's first byte */
#define MAX_KNOWN	16384		/* more than that and all are forgotten */

typedef struct RightsKey
{
	pg_uuid_t	tenant;
	Oid			role;
} RightsKey;

typedef struct CachedRights
{
	RightsKey	key;
	int			rights;
	uint64		epoch;			/* 0: nothing is cached here */
	uint64		generation;
} CachedRights;

/* The last ones of each place; behind them, those that had to make room. */
static CachedRights cache[CACHE_SIZE];
static HTAB *known = NULL;
static uint64 known_at = 0;		/* the number of rows_generation() */
static bool require_tls = false;

void
rights_init(void)
{
	DefineCustomBoolVariable("nomp_crypt.require_tls",
							 "Whether keys may be used only over encrypted connections and unix sockets.",
							 NULL,
							 &require_tls, false,
							 PGC_SUSET, 0, NULL, NULL, NULL);
}

/* Does the current role act as that one, being a superuser aside? */
static bool
acts_as(Oid role)
{
	if (superuser())
		return is_member_of_role_nosuper(GetUserId(), role);
	return has_privs_of_role(GetUserId(), role);
}

static void
add_rights(const char *role, const pg_uuid_t *tenant, int rights, void *arg)
{
	Oid			oid = get_role_oid(role, true);

	if (OidIsValid(oid) && acts_as(oid))
		*(int *) arg |= rights;
}

static inline CachedRights *
entry_for(const pg_uuid_t *tenant)
{
	return &cache[tenant->data[0] % CACHE_SIZE];
}

static inline bool
is_current(const CachedRights *entry, const pg_uuid_t *tenant)
{
	return entry->key.role == GetUserId() &&
		entry->epoch == keyring_epoch() && entry->generation == rows_generation() &&
		memcmp(&entry->key.tenant, tenant, UUID_LEN) == 0;
}

/* Known to be held, without looking anywhere; touches no catalog. */
bool
rights_cached(const pg_uuid_t *tenant, int right)
{
	CachedRights *entry = entry_for(tenant);

	return is_current(entry, tenant) && (entry->rights & right) != 0 &&
		!(require_tls && session_in_clear());
}

/* What was looked up before for that tenant and the current role, or a new entry. */
static CachedRights *
known_for(const pg_uuid_t *tenant)
{
	RightsKey	key;
	CachedRights *entry;
	bool		found;

	if (known != NULL && (known_at != rows_generation() ||
						  hash_get_num_entries(known) >= MAX_KNOWN))
	{
		hash_destroy(known);
		known = NULL;
	}
	if (known == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(RightsKey);
		ctl.entrysize = sizeof(CachedRights);
		known = hash_create("nomp_crypt rights", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		known_at = rows_generation();
	}
	memset(&key, 0, sizeof(key));
	key.tenant = *tenant;
	key.role = GetUserId();
	entry = hash_search(known, &key, HASH_ENTER, &found);
	if (!found)
		entry->epoch = 0;
	return entry;
}

/* Read the current role's rights from the table. */
static CachedRights
look_up(const pg_uuid_t *tenant)
{
	CachedRights result;

	memset(&result, 0, sizeof(result));
	result.epoch = keyring_epoch();
	rows_listen();
	result.generation = rows_generation();
	result.key.tenant = *tenant;
	result.key.role = GetUserId();
	catalog_rights(tenant, add_rights, &result.rights);
	return result;
}

bool
rights_has(const pg_uuid_t *tenant, int right)
{
	CachedRights *entry = entry_for(tenant);
	CachedRights now;

	if (is_current(entry, tenant))
		return (entry->rights & right) != 0;
	now = *known_for(tenant);
	if (!is_current(&now, tenant))
	{
		now = look_up(tenant);
		*known_for(tenant) = now;
	}
	*entry = now;
	return (now.rights & right) != 0;
}

/* The first of several, any of which would do. */
static const char *
right_name(int rights)
{
	if (rights & RIGHT_ENCRYPT)
		return "encrypt";
	if (rights & RIGHT_DECRYPT)
		return "decrypt";
	return rights & RIGHT_SEARCH ? "search" : "load";
}

/* A connection that may carry values.  Raises 28000. */
void
rights_require_connection(void)
{
	if (require_tls && session_in_clear())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("keys may not be used over a connection without encryption"),
				 errhint("Connect with sslmode=require or gssencmode=require; nomp_crypt.require_tls is on.")));
}

/* Any one of those rights.  Raises 42501, 28000. */
void
rights_require(const TenantRow *tenant, int right)
{
	rights_require_connection();
	if (!rights_has(&tenant->uuid, right))
		error_right_missing(right_name(right), tenant->id);
}

typedef struct Holdings
{
	int			right;
	RightsHeld *found;
	NameData	role;			/* the last one seen; grants come in runs */
	bool		is_mine;
} Holdings;

static void
add_tenant(const char *role, const pg_uuid_t *tenant, int rights, void *arg)
{
	static const pg_uuid_t all = {{0}};
	Holdings   *held = arg;
	RightsHeld *found = held->found;

	if ((rights & held->right) == 0)
		return;
	if (strcmp(NameStr(held->role), role) != 0)
	{
		Oid			oid = get_role_oid(role, true);

		namestrcpy(&held->role, role);
		held->is_mine = OidIsValid(oid) && acts_as(oid);
	}
	if (!held->is_mine)
		return;
	if (memcmp(tenant, &all, UUID_LEN) == 0)
	{
		found->everywhere = true;
		return;
	}
	if (found->count == found->room)
	{
		found->room = Max(64, 2 * found->room);
		found->tenants = found->tenants == NULL ?
			palloc(found->room * sizeof(pg_uuid_t)) :
			repalloc(found->tenants, found->room * sizeof(pg_uuid_t));
	}
	found->tenants[found->count++] = *tenant;
}

static int
compare_uuids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

/* Where does the current role hold that right?  One scan, whatever the number. */
void
rights_holdings(int right, RightsHeld *found)
{
	Holdings	held = {.right = right,.found = found};

	rights_require_connection();
	memset(found, 0, sizeof(*found));
	catalog_all_rights(add_tenant, &held);
	if (found->count > 0)
		qsort(found->tenants, found->count, sizeof(pg_uuid_t), compare_uuids);
}

bool
rights_held(const RightsHeld *found, const pg_uuid_t *tenant)
{
	return found->everywhere ||
		(found->count > 0 &&
		 bsearch(tenant, found->tenants, found->count, sizeof(pg_uuid_t), compare_uuids) != NULL);
}

/*
 * May the current role store ciphertext as it stands?  tenant is NULL if the
 * value's key is not known here.
 */
bool
rights_may_load(const pg_uuid_t *tenant)
{
	if (superuser() || has_rolreplication(GetUserId()) ||
		pg_database_ownercheck(MyDatabaseId, GetUserId()))
		return true;
	return tenant != NULL && rights_has(tenant, RIGHT_LOAD);
}
