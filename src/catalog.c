/*
 * catalog.c
 *		Reads the extension's own tables, the same way everywhere.
 *
 * One scan function, one snapshot: the non-historic catalog snapshot, which
 * is taken anew for relations without a syscache.  Attribute numbers below
 * are those of nomp_crypt--1.0.sql.
 *
 * Every byte of a row is somebody's input: lengths are checked here, truth is
 * checked by the key_check after unwrapping.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog.h"
#include "errors.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* nomp_crypt.installation */
#define INST_UUID		1
/* nomp_crypt.tenant */
#define TENANT_UUID		1
#define TENANT_ID		2
#define TENANT_STATE	3
/* nomp_crypt.kek */
#define KEK_UUID		1
#define KEK_KEYSTORE	4
#define KEK_LABEL		5
#define KEK_CREATED_AT	7
/* nomp_crypt.tenant_key */
#define KEY_ID			1
#define KEY_TENANT		2
#define KEY_PURPOSE		3
#define KEY_VERSION		4
#define KEY_KEK			6
#define KEY_WRAPPED		7
#define KEY_CHECK		8
#define KEY_STATE		9
/* nomp_crypt.tenant_right */
#define RIGHT_ROLE		1
#define RIGHT_TENANT	2
#define RIGHT_FIRST		3		/* encrypt, decrypt, search, load */

/* nomp_crypt.register */
#define RECORD_JWS		3
#define RECORD_SCHOOL	6

/* A scan of one of our tables, by one of its indexes. */
typedef struct OwnScan
{
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc scan;
} OwnScan;

/* In a snapshot, or with NULL as things are now. */
static void
begin_scan_in(OwnScan *own, Snapshot snapshot, const char *table, const char *index,
			  AttrNumber column, RegProcedure equals, Datum value)
{
	ScanKeyData key;
	Oid			relid = catalog_relation(table);

	own->rel = table_open(relid, AccessShareLock);
	own->snapshot = RegisterSnapshot(snapshot != NULL ? snapshot :
									 GetNonHistoricCatalogSnapshot(relid));
	if (index != NULL)
		ScanKeyInit(&key, column, BTEqualStrategyNumber, equals, value);
	own->scan = systable_beginscan(own->rel,
								   index != NULL ? catalog_relation(index) : InvalidOid,
								   index != NULL, own->snapshot,
								   index != NULL ? 1 : 0, &key);
}

static void
begin_scan(OwnScan *own, const char *table, const char *index,
		   AttrNumber column, RegProcedure equals, Datum value)
{
	begin_scan_in(own, NULL, table, index, column, equals, value);
}

static HeapTuple
next_row(OwnScan *own)
{
	return systable_getnext(own->scan);
}

static void
end_scan(OwnScan *own)
{
	systable_endscan(own->scan);
	UnregisterSnapshot(own->snapshot);
	table_close(own->rel, AccessShareLock);
}

static Datum
column(OwnScan *own, HeapTuple tuple, AttrNumber number, bool *isnull)
{
	return heap_getattr(tuple, number, RelationGetDescr(own->rel), isnull);
}

/* A text column into a buffer; false if null or too long. */
static bool
text_column(OwnScan *own, HeapTuple tuple, AttrNumber number, char *out, size_t size)
{
	bool		isnull;
	Datum		datum = column(own, tuple, number, &isnull);
	char	   *string;

	if (isnull)
		return false;
	string = TextDatumGetCString(datum);
	return strlcpy(out, string, size) < size;
}

/* A bytea column into a buffer; its length, or -1 if null or too long. */
static int
bytea_column(OwnScan *own, HeapTuple tuple, AttrNumber number, uint8 *out, size_t size)
{
	bool		isnull;
	Datum		datum = column(own, tuple, number, &isnull);
	bytea	   *bytes;
	size_t		len;

	if (isnull)
		return -1;
	bytes = DatumGetByteaPP(datum);
	len = VARSIZE_ANY_EXHDR(bytes);
	if (len > size)
		return -1;
	memcpy(out, VARDATA_ANY(bytes), len);
	return (int) len;
}

static void
uuid_column(OwnScan *own, HeapTuple tuple, AttrNumber number, pg_uuid_t *out)
{
	bool		isnull;
	Datum		datum = column(own, tuple, number, &isnull);

	memset(out, 0, sizeof(*out));
	if (!isnull)
		*out = *DatumGetUUIDP(datum);
}

/* The serial in what nomp_crypt.kek says of a keystore. */
bool
catalog_keystore_serial(const char *keystore, char serial[KEYSPEC_SERIAL_MAX])
{
	const size_t len = strlen(KEYSTORE_PREFIX);

	if (strncmp(keystore, KEYSTORE_PREFIX, len) == 0)
		keystore += len;
	else if (strncmp(keystore, KEYSTORE_ARN, strlen(KEYSTORE_ARN)) != 0)
		return false;
	return keystore[0] != '\0' &&
		strlcpy(serial, keystore, KEYSPEC_SERIAL_MAX) < KEYSPEC_SERIAL_MAX;
}

/* The installation this database belongs to; false if it has none yet. */
bool
catalog_installation(pg_uuid_t *uuid)
{
	OwnScan		own;
	HeapTuple	tuple;
	bool		found;

	begin_scan(&own, "installation", NULL, 0, 0, (Datum) 0);
	tuple = next_row(&own);
	found = HeapTupleIsValid(tuple);
	if (found)
		uuid_column(&own, tuple, INST_UUID, uuid);
	end_scan(&own);
	return found;
}

static TenantState
parse_state(const char *text)
{
	if (strcmp(text, "active") == 0)
		return TENANT_ACTIVE;
	if (strcmp(text, "suspended") == 0)
		return TENANT_SUSPENDED;
	if (strcmp(text, "fenced") == 0)
		return TENANT_FENCED;
	if (strcmp(text, "erased") == 0)
		return TENANT_ERASED;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("unknown state \"%s\" in nomp_crypt.tenant", text)));
}

static void
read_tenant(OwnScan *own, HeapTuple tuple, TenantRow *row)
{
	char		state[32];

	uuid_column(own, tuple, TENANT_UUID, &row->uuid);
	if (!text_column(own, tuple, TENANT_ID, row->id, sizeof(row->id)) ||
		!text_column(own, tuple, TENANT_STATE, state, sizeof(state)))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("malformed row in nomp_crypt.tenant")));
	row->state = parse_state(state);
}

/*
 * By id: the living one, else the one erased (an erased school that is
 * onboarded again is a new tenant with the same id).
 */
bool
catalog_tenant_by_id(const char *id, TenantRow *row)
{
	OwnScan		own;
	HeapTuple	tuple;
	bool		found = false;

	begin_scan(&own, "tenant", "tenant_id_idx", TENANT_ID, F_TEXTEQ,
			   CStringGetTextDatum(id));
	while (HeapTupleIsValid(tuple = next_row(&own)))
	{
		TenantRow	candidate;

		read_tenant(&own, tuple, &candidate);
		if (!found || row->state == TENANT_ERASED)
			*row = candidate;
		found = true;
	}
	end_scan(&own);
	return found;
}

bool
catalog_tenant_by_uuid(const pg_uuid_t *uuid, TenantRow *row)
{
	OwnScan		own;
	HeapTuple	tuple;
	bool		found;

	begin_scan(&own, "tenant", "tenant_pkey", TENANT_UUID, F_UUID_EQ,
			   UUIDPGetDatum(uuid));
	tuple = next_row(&own);
	found = HeapTupleIsValid(tuple);
	if (found)
		read_tenant(&own, tuple, row);
	end_scan(&own);
	return found;
}

/* Every school there is or was. */
void
catalog_tenants(TenantCallback callback, void *arg)
{
	OwnScan		own;
	HeapTuple	tuple;
	TenantRow	row;

	begin_scan(&own, "tenant", NULL, 0, 0, (Datum) 0);
	while (HeapTupleIsValid(tuple = next_row(&own)))
	{
		read_tenant(&own, tuple, &row);
		callback(&row, arg);
	}
	end_scan(&own);
}

bool
catalog_any_living_tenant(void)
{
	OwnScan		own;
	HeapTuple	tuple;
	bool		found = false;

	begin_scan(&own, "tenant", NULL, 0, 0, (Datum) 0);
	while (!found && HeapTupleIsValid(tuple = next_row(&own)))
	{
		TenantRow	row;

		read_tenant(&own, tuple, &row);
		found = row.state != TENANT_ERASED;
	}
	end_scan(&own);
	return found;
}

/* Fill in a key's row; false if it is malformed. */
static bool
read_key(OwnScan *own, HeapTuple tuple, KeyRow *row)
{
	char		purpose[16];
	uint8		key_id[VALUE_KEY_ID_LEN];
	bool		isnull;
	pg_uuid_t	tenant;
	int			len;

	memset(row, 0, sizeof(*row));
	uuid_column(own, tuple, KEY_TENANT, &tenant);
	memcpy(row->spec.place.tenant, tenant.data, UUID_LEN);
	uuid_column(own, tuple, KEY_KEK, &row->kek);
	row->spec.place.version = DatumGetInt32(column(own, tuple, KEY_VERSION, &isnull));
	row->own_transaction =
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	len = bytea_column(own, tuple, KEY_WRAPPED, row->spec.wrapped, KS_MAX_WRAPPED);
	row->has_wrapped = len > 0;
	row->spec.wrapped_len = (uint16) Max(len, 0);
	if (isnull || !text_column(own, tuple, KEY_PURPOSE, purpose, sizeof(purpose)))
		return false;
	row->spec.place.is_index = strcmp(purpose, "index") == 0;
	if (!row->spec.place.is_index && strcmp(purpose, "values") != 0)
		return false;
	if (bytea_column(own, tuple, KEY_ID, key_id, sizeof(key_id)) != VALUE_KEY_ID_LEN ||
		bytea_column(own, tuple, KEY_CHECK, row->spec.key_check, KEY_CHECK_LEN) != KEY_CHECK_LEN)
		return false;
	return memcmp(key_id, row->spec.key_check, VALUE_KEY_ID_LEN) == 0;
}

/* The key that a value names.  Raises NC005 for a row that is malformed. */
bool
catalog_key_by_id(const uint8 key_id[VALUE_KEY_ID_LEN], KeyRow *row)
{
	OwnScan		own;
	HeapTuple	tuple;
	bytea	   *id = palloc(VARHDRSZ + VALUE_KEY_ID_LEN);
	bool		found;
	bool		good = true;

	SET_VARSIZE(id, VARHDRSZ + VALUE_KEY_ID_LEN);
	memcpy(VARDATA(id), key_id, VALUE_KEY_ID_LEN);
	begin_scan(&own, "tenant_key", "tenant_key_pkey", KEY_ID, F_BYTEAEQ,
			   PointerGetDatum(id));
	tuple = next_row(&own);
	found = HeapTupleIsValid(tuple);
	if (found)
		good = read_key(&own, tuple, row);
	end_scan(&own);
	pfree(id);
	if (!good)
		error_integrity();
	return found;
}

bool
catalog_key_in_snapshot(const uint8 key_id[VALUE_KEY_ID_LEN], Snapshot snapshot)
{
	OwnScan		own;
	bytea	   *id = palloc(VARHDRSZ + VALUE_KEY_ID_LEN);
	bool		found;

	SET_VARSIZE(id, VARHDRSZ + VALUE_KEY_ID_LEN);
	memcpy(VARDATA(id), key_id, VALUE_KEY_ID_LEN);
	begin_scan_in(&own, snapshot, "tenant_key", "tenant_key_pkey", KEY_ID, F_BYTEAEQ,
				  PointerGetDatum(id));
	found = HeapTupleIsValid(next_row(&own));
	end_scan(&own);
	pfree(id);
	return found;
}

/* Is it a key of that purpose that may be written with? */
static bool
read_active_key(OwnScan *own, HeapTuple tuple, bool is_index, KeyRow *row)
{
	char		state[16];

	return read_key(own, tuple, row) && row->spec.place.is_index == is_index &&
		text_column(own, tuple, KEY_STATE, state, sizeof(state)) &&
		strcmp(state, "active") == 0;
}

static bool
newest_key(const pg_uuid_t *tenant, bool is_index, KeyRow *row)
{
	OwnScan		own;
	HeapTuple	tuple;
	bool		found = false;

	begin_scan(&own, "tenant_key", "tenant_key_tenant_idx", KEY_TENANT, F_UUID_EQ,
			   UUIDPGetDatum(tenant));
	while (HeapTupleIsValid(tuple = next_row(&own)))
	{
		KeyRow		candidate;

		if (!read_active_key(&own, tuple, is_index, &candidate))
			continue;
		if (!found || candidate.spec.place.version > row->spec.place.version)
			*row = candidate;
		found = true;
	}
	end_scan(&own);
	return found;
}

/* The school's newest key for values that may be written with. */
bool
catalog_current_key(const pg_uuid_t *tenant, KeyRow *row)
{
	return newest_key(tenant, false, row);
}

/* The school's key for fingerprints. */
bool
catalog_index_key(const pg_uuid_t *tenant, KeyRow *row)
{
	return newest_key(tenant, true, row);
}

/* Every school's key for fingerprints. */
void
catalog_index_keys(KeyCallback callback, void *arg)
{
	OwnScan		own;
	HeapTuple	tuple;
	KeyRow		row;

	begin_scan(&own, "tenant_key", NULL, 0, 0, (Datum) 0);
	while (HeapTupleIsValid(tuple = next_row(&own)))
	{
		if (read_active_key(&own, tuple, true, &row))
			callback(&row, arg);
	}
	end_scan(&own);
}

/* The KEK that wraps them, where it is, and since when: into a request. */
static bool
name_kek(const pg_uuid_t *kek, UnwrapRequest *out)
{
	OwnScan		own;
	HeapTuple	tuple;
	char		keystore[sizeof(KEYSTORE_PREFIX) + KEYSPEC_SERIAL_MAX];
	bool		found;
	bool		isnull = true;

	begin_scan(&own, "kek", "kek_pkey", KEK_UUID, F_UUID_EQ, UUIDPGetDatum(kek));
	tuple = next_row(&own);
	found = HeapTupleIsValid(tuple) &&
		text_column(&own, tuple, KEK_LABEL, out->label, sizeof(out->label)) &&
		text_column(&own, tuple, KEK_KEYSTORE, keystore, sizeof(keystore)) &&
		catalog_keystore_serial(keystore, out->serial);
	if (found)
		out->made = DatumGetTimestampTz(column(&own, tuple, KEK_CREATED_AT, &isnull));
	end_scan(&own);
	return found && !isnull;
}

/*
 * Ask for a key, and with it for the school's other keys under the same KEK.
 * False if the rows that belong to it are missing.
 */
bool
catalog_unwrap_request(const KeyRow *wanted, UnwrapRequest *out)
{
	OwnScan		own;
	HeapTuple	tuple;
	pg_uuid_t	installation;
	pg_uuid_t	tenant;

	if (!wanted->has_wrapped ||
		!catalog_installation(&installation) ||
		!name_kek(&wanted->kek, out))
		return false;
	uuid_text(&installation, out->installation);
	out->own_transaction = wanted->own_transaction;
	out->nkeys = 1;
	out->keys[0] = wanted->spec;
	memcpy(tenant.data, wanted->spec.place.tenant, UUID_LEN);

	begin_scan(&own, "tenant_key", "tenant_key_tenant_idx", KEY_TENANT, F_UUID_EQ,
			   UUIDPGetDatum(&tenant));
	while (out->nkeys < KS_MAX_KEYS && HeapTupleIsValid(tuple = next_row(&own)))
	{
		KeyRow		row;

		if (read_key(&own, tuple, &row) && row.has_wrapped &&
			memcmp(&row.kek, &wanted->kek, UUID_LEN) == 0 &&
			memcmp(row.spec.key_check, wanted->spec.key_check, KEY_CHECK_LEN) != 0)
			out->keys[out->nkeys++] = row.spec;
	}
	end_scan(&own);
	return true;
}

/* Does a row of nomp_crypt.kek name that key? */
bool
catalog_label_exists(const char *label)
{
	OwnScan		own;
	bool		found;

	begin_scan(&own, "kek", "kek_label_key", KEK_LABEL, F_TEXTEQ,
			   CStringGetTextDatum(label));
	found = HeapTupleIsValid(next_row(&own));
	end_scan(&own);
	return found;
}

void
catalog_records(const pg_uuid_t *tenant, RecordCallback callback, void *arg)
{
	OwnScan		own;
	HeapTuple	tuple;

	begin_scan(&own, "register", "register_school_idx", RECORD_SCHOOL, F_UUID_EQ,
			   UUIDPGetDatum(tenant));
	while (HeapTupleIsValid(tuple = next_row(&own)))
	{
		bool		isnull;
		Datum		jws = column(&own, tuple, RECORD_JWS, &isnull);

		if (!isnull)
			callback(TextDatumGetCString(jws), arg);
	}
	end_scan(&own);
}

/* The grants that a scan finds. */
static void
read_rights(OwnScan *own, RightCallback callback, void *arg)
{
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = next_row(own)))
	{
		int			rights = 0;
		bool		isnull;
		Datum		role = column(own, tuple, RIGHT_ROLE, &isnull);
		pg_uuid_t	tenant;

		if (isnull)
			continue;
		uuid_column(own, tuple, RIGHT_TENANT, &tenant);
		for (int i = 0; i < 4; i++)
		{
			if (DatumGetBool(column(own, tuple, RIGHT_FIRST + i, &isnull)) && !isnull)
				rights |= 1 << i;
		}
		callback(NameStr(*DatumGetName(role)), &tenant, rights, arg);
	}
	end_scan(own);
}

static void
rights_of(const pg_uuid_t *tenant, RightCallback callback, void *arg)
{
	OwnScan		own;

	begin_scan(&own, "tenant_right", "tenant_right_tenant_idx", RIGHT_TENANT,
			   F_UUID_EQ, UUIDPGetDatum(tenant));
	read_rights(&own, callback, arg);
}

/* Every grant for a tenant, and for all tenants (the zero uuid). */
void
catalog_rights(const pg_uuid_t *tenant, RightCallback callback, void *arg)
{
	static const pg_uuid_t all = {{0}};

	rights_of(tenant, callback, arg);
	rights_of(&all, callback, arg);
}

/* Every grant there is. */
void
catalog_all_rights(RightCallback callback, void *arg)
{
	OwnScan		own;

	begin_scan(&own, "tenant_right", NULL, 0, 0, (Datum) 0);
	read_rights(&own, callback, arg);
}
