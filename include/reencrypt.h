/*
 * reencrypt.h
 *		A value again, under another key of its tenant or of another one.
 */
#ifndef NOMP_REENCRYPT_H
#define NOMP_REENCRYPT_H

#include "envelope.h"

/*
 * Encrypt what was opened of a value again, with the newest key of tenant
 * "to".  A fingerprint stays where the tenant does; elsewhere it is made
 * anew, after the modifier's normalisation, or with modifier -1 after that
 * which made the old one.  Raises 42501, 55000, NC001 to NC004.
 */
extern bytea *reencrypt_payload(const ValueView *view, const bytea *payload,
								const TenantRow *owner, const TenantRow *to,
								int32 typmod);

/*
 * The fingerprint that what was opened of a value should have in a column of
 * that modifier, by a tenant's newest index key.
 */
extern void reencrypt_fingerprint(const ValueView *view, const bytea *payload,
								  const TenantRow *tenant, int rights, int32 typmod,
								  uint8 fingerprint[VALUE_FINGERPRINT_LEN]);

/* The tenant of that id.  Raises 42704. */
extern void reencrypt_tenant(text *name, TenantRow *tenant);

#endif							/* NOMP_REENCRYPT_H */
