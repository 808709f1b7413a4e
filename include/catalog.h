/*
 * catalog.h
 *		Reads the extension's own tables, the same way everywhere.
 *
 * Right in parallel workers, under REPEATABLE READ, on a standby and during
 * logical decoding, where SPI and ordinary snapshots are stale or fail.
 * Checks no privileges: that is the caller's (rights.h).
 */
#ifndef NOMP_CATALOG_H
#define NOMP_CATALOG_H

#include "keyring.h"
#include "utils/snapshot.h"
#include "utils/uuid.h"
#include "value.h"

#define SQL_VERSION		"1.0"	/* of the SQL objects that this library is for */

typedef enum TenantState
{
	TENANT_ACTIVE,
	TENANT_SUSPENDED,
	TENANT_FENCED,
	TENANT_ERASED
} TenantState;

typedef struct TenantRow
{
	pg_uuid_t	uuid;
	char		id[NAMEDATALEN * 2];
	TenantState state;
} TenantRow;

typedef struct KeyRow
{
	KeySpec		spec;
	pg_uuid_t	kek;
	bool		own_transaction;	/* written by the current transaction */
	bool		has_wrapped;
} KeyRow;

/* Column keystore of nomp_crypt.kek: a token's serial, or a key service's ARN. */
#define KEYSTORE_PREFIX	"pkcs11:serial="
#define KEYSTORE_ARN	"arn:"

#define RIGHT_ENCRYPT	1
#define RIGHT_DECRYPT	2
#define RIGHT_SEARCH	4
#define RIGHT_LOAD		8

typedef void (*RightCallback) (const char *role, const pg_uuid_t *tenant, int rights, void *arg);
typedef void (*TenantCallback) (const TenantRow *row, void *arg);
typedef void (*RecordCallback) (const char *jws, void *arg);
typedef void (*KeyCallback) (const KeyRow *row, void *arg);

extern Oid	catalog_schema(void);
extern Oid	catalog_relation(const char *name);
extern Oid	catalog_type(void);

extern bool catalog_keystore_serial(const char *keystore,
									char serial[KEYSPEC_SERIAL_MAX]);
extern bool catalog_installation(pg_uuid_t *uuid);
extern bool catalog_tenant_by_id(const char *id, TenantRow *row);
extern bool catalog_tenant_by_uuid(const pg_uuid_t *uuid, TenantRow *row);
extern void catalog_tenants(TenantCallback callback, void *arg);
extern bool catalog_any_living_tenant(void);
extern bool catalog_key_by_id(const uint8 key_id[VALUE_KEY_ID_LEN], KeyRow *row);
/* Was that key there when a snapshot was taken? */
extern bool catalog_key_in_snapshot(const uint8 key_id[VALUE_KEY_ID_LEN], Snapshot snapshot);
extern bool catalog_current_key(const pg_uuid_t *tenant, KeyRow *row);
extern bool catalog_index_key(const pg_uuid_t *tenant, KeyRow *row);
extern void catalog_index_keys(KeyCallback callback, void *arg);
extern bool catalog_unwrap_request(const KeyRow *wanted, UnwrapRequest *out);
/* The register's records about a school; nothing in them is verified. */
extern void catalog_records(const pg_uuid_t *tenant, RecordCallback callback, void *arg);
extern bool catalog_label_exists(const char *label);
extern void catalog_rights(const pg_uuid_t *tenant, RightCallback callback, void *arg);
extern void catalog_all_rights(RightCallback callback, void *arg);

extern void uuid_text(const pg_uuid_t *uuid, char out[37]);
extern bool uuid_parse(const char *text, pg_uuid_t *out);

#endif							/* NOMP_CATALOG_H */
