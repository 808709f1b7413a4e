/*
 * rows.h
 *		What the extension's tables say, remembered until they change.
 *
 * The same answers as catalog.h's, for every transaction's hot path.  No
 * secrets: keys stay wrapped in their table.
 */
#ifndef NOMP_ROWS_H
#define NOMP_ROWS_H

#include "catalog.h"

/* What a key's row says without its wrapped bytes. */
typedef struct KeyFacts
{
	KeyPlace	place;
	uint8		key_check[KEY_CHECK_LEN];
	bool		own_transaction;	/* see KeyRow; such a row is not remembered */
} KeyFacts;

/*
 * For what is remembered elsewhere: call the first before reading; when the
 * second gives another number than then, it may be wrong.
 */
extern void rows_listen(void);
extern uint64 rows_changes;

static inline uint64
rows_generation(void)
{
	return rows_changes;
}

/* False if there is no such row. */
extern bool rows_tenant(const pg_uuid_t *uuid, TenantRow *row);
extern bool rows_tenant_by_id(const char *id, TenantRow *row);
extern bool rows_key(const uint8 key_id[VALUE_KEY_ID_LEN], KeyFacts *facts);

/* The key that a tenant's new values, or fingerprints, are made with. */
extern bool rows_current_key(const pg_uuid_t *tenant, bool is_index, KeyFacts *facts);

extern void rows_take_facts(KeyFacts *facts, const KeyRow *row);

#endif							/* NOMP_ROWS_H */
