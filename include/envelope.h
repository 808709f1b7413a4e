/*
 * envelope.h
 *		Plaintext into values and back: rights, key, cipher, format.
 */
#ifndef NOMP_ENVELOPE_H
#define NOMP_ENVELOPE_H

#include "rows.h"
#include "value.h"

/*
 * Encrypt for a tenant; the payload is in its stored form (inner.h), the
 * fingerprint may be NULL.  "rights" are alternatives: any one will do, the
 * first is named in the error.  Raises 42501, NC001 to NC005.
 */
extern bytea *envelope_seal(const TenantRow *tenant, int rights, uint8 type_code,
							const char *payload, size_t len,
							const uint8 *fingerprint);

/*
 * Decrypt, with any one of those rights.  The palloc'd payload as a varlena,
 * so that the payload of a text is a text (inner_take_payload); a zero byte
 * follows it.  Raises 42501, NC001 to NC005.
 */
extern bytea *envelope_open(const ValueView *value, int rights);

/* What can be done with a value, without raising it. */
typedef enum ValueState
{
	VALUE_OPENS,
	VALUE_ERASED,
	VALUE_SUSPENDED,
	VALUE_UNKNOWN,				/* its key */
	VALUE_DAMAGED
} ValueState;

/*
 * By the rows that belong to its key, which is not asked for.  The owner's id
 * is empty if it is not known; the key's facts are filled in for VALUE_OPENS.
 */
extern ValueState envelope_state(const ValueView *value, TenantRow *owner,
								 KeyFacts *key);

/* Is that the key that its owner's new values are made with?  Raises NC003. */
extern bool envelope_is_newest(const TenantRow *owner, const KeyFacts *key);

/*
 * Decrypt, with the right "decrypt"; the payload as envelope_open has it, if
 * the value opens.  Raises 42501 and NC004 only.
 */
extern ValueState envelope_try_open(const ValueView *value, TenantRow *owner,
									bytea **payload);

/* Wipe and free what envelope_open gave. */
extern void envelope_wipe(bytea *payload);

/*
 * Is the same payload in two values of that tenant?  Says false wherever that
 * cannot be found out at once: no right "decrypt", no key in this node's
 * memory, a damaged value.  Raises none of that.  Counts as reading one.
 */
extern bool envelope_same_payload(const TenantRow *tenant, const ValueView *a,
								  const ValueView *b);

/*
 * Fingerprint of a canonical text (canonical.h) in that tenant: the first 16
 * bytes of HMAC-SHA-256 under k_idx.  key_id is the index key's, or NULL.
 * Raises 42501, NC001 to NC005.
 */
extern void envelope_fingerprint(const TenantRow *tenant, int rights,
								 const char *text, size_t len,
								 uint8 fingerprint[VALUE_FINGERPRINT_LEN],
								 uint8 *key_id);

/*
 * The same for many tenants, whose rights and states were checked together
 * with their index keys' rows, all read after keyring_epoch() gave "epoch".
 * False if keys have been revoked since: read everything again.
 */
typedef struct FingerprintTarget
{
	TenantRow	tenant;
	KeyFacts	key;
	uint8		fingerprint[VALUE_FINGERPRINT_LEN];
} FingerprintTarget;

extern bool envelope_fingerprint_all(FingerprintTarget *targets, int count,
									 uint64 epoch, const char *text, size_t len);

/* Parse, or raise NC005. */
extern void envelope_parse(const bytea *value, ValueView *view);

/* Whose value is it?  False if its key is not known here.  No rights check. */
extern bool envelope_tenant(const ValueView *value, TenantRow *row);

/* Is it what a searchable column is compared with (search.c), and no value? */
extern bool envelope_is_probe(const ValueView *value);

/* Known to be that tenant's, its key being here?  Touches no catalog. */
extern bool envelope_known_owner(const ValueView *value, const pg_uuid_t *tenant);

#endif							/* NOMP_ENVELOPE_H */
