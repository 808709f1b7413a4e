/*
 * envelope.h
 *		Plaintext into values and back: rights, key, cipher, format.
 */
#ifndef NOMP_ENVELOPE_H
#define NOMP_ENVELOPE_H

#include "catalog.h"
#include "value.h"

/*
 * Encrypt for a tenant; the payload is in its stored form (UTF-8 for text).
 * Raises 42501, NC001 to NC005.
 */
extern bytea *envelope_seal(const TenantRow *tenant, uint8 type_code,
							const char *payload, size_t len);

/*
 * Decrypt; palloc'd, zero-terminated payload.  Raises 42501, NC001 to NC005.
 */
extern char *envelope_open(const ValueView *value, size_t *len);

/* Parse, or raise NC005. */
extern void envelope_parse(const bytea *value, ValueView *view);

/* Whose value is it?  False if its key is not known here.  No rights check. */
extern bool envelope_tenant(const ValueView *value, TenantRow *row);

/* Known to be that tenant's, its key being here?  Touches no catalog. */
extern bool envelope_known_owner(const ValueView *value, const pg_uuid_t *tenant);

#endif							/* NOMP_ENVELOPE_H */
