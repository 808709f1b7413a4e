/*
 * type_io.h
 *		Text and binary form of values, and the session rule that chooses.
 */
#ifndef NOMP_TYPE_IO_H
#define NOMP_TYPE_IO_H

#include "catalog.h"

/* Text form of the value itself, whatever the session. */
extern char *type_text_form(const bytea *value);

/* Encrypt server-encoded text for the session's tenant, or refuse. */
extern bytea *type_from_text(const char *text, size_t len, int32 typmod);

/*
 * Encrypt a value of a built-in type for a tenant: converted to the
 * modifier's type, fingerprint and all.  With modifier -1 it is stored as
 * what it is, without a fingerprint.
 */
extern bytea *type_seal(const TenantRow *tenant, int rights, Datum value,
						Oid type, int32 typmod, bool explicit);

/* Decrypt, with any one of those rights, to a built-in type. */
extern Datum type_open(const ValueView *view, int rights, Oid type, int32 modifier,
					   bool explicit);

/*
 * The same for a comparison: inside a tenant, of that tenant's value, with
 * the right "decrypt".  Raises NC006 outside, 55000 for another tenant's.
 */
extern Datum type_open_in_session(const ValueView *view, Oid type);

/* Decrypt to server-encoded text, for whoever holds the right. */
extern char *type_to_text(const bytea *value);

/* Raise NC005 unless the value fits the modifier; needs no key. */
extern void type_check_modifier(const bytea *value, int32 typmod);

/*
 * While this is raised, literals of the type are refused: they would be
 * stored in a definition, or in a plan where nothing checks their tenant.
 */
extern int	type_refuse_literals;
extern void type_refuse_literal(void) pg_attribute_noreturn();

#endif							/* NOMP_TYPE_IO_H */
