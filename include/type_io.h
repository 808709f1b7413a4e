/*
 * type_io.h
 *		Text and binary form of values, and the session rule that chooses.
 */
#ifndef NOMP_TYPE_IO_H
#define NOMP_TYPE_IO_H

#include "catalog.h"

/* Text form of the value itself, whatever the session. */
extern char *type_text_form(const bytea *value);

/*
 * The rights, any one of which allows sealing: storing, with a column's
 * modifier, needs "encrypt"; a literal to search with is anybody's.
 */
#define RIGHTS_TO_SEAL(typmod) \
	((typmod) < 0 ? RIGHT_ENCRYPT | RIGHT_DECRYPT | RIGHT_SEARCH : RIGHT_ENCRYPT)

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
extern text *type_to_text(const bytea *value);

/* Encrypt server-encoded text as type text, without a fingerprint. */
extern bytea *type_seal_text(const TenantRow *tenant, int rights, const char *text,
							 size_t len);

/* Raise 22023 for ciphertext where plaintext is meant. */
extern void type_refuse_ciphertext(const char *text, size_t len);

/* Raise NC005 unless the value fits the modifier; needs no key. */
extern void type_check_modifier(const bytea *value, int32 typmod);

/* Raise NC005 for a probe: a value whose key is an index key. */
extern void type_refuse_probe(const ValueView *view);

/* Is it that tenant's?  If not, "owner" is filled in.  Raises NC003. */
extern bool type_is_own(const ValueView *view, const TenantRow *tenant,
						TenantRow *owner);

/* Raise what a value of another tenant than the session's is. */
extern void type_refuse_other(const TenantRow *owner, const TenantRow *tenant,
							  const char *hint) pg_attribute_noreturn();

/*
 * What the input function does.  Literals in a definition would be stored
 * with it, and are refused.  The body of an SQL function is stored as text,
 * and parsed for mistakes only: its literals belong to whoever calls it.
 */
typedef enum LiteralMode
{
	LITERALS_TAKEN,
	LITERALS_REFUSED,
	LITERALS_CHECKED			/* for syntax: each stands for any value */
} LiteralMode;

/*
 * While rows of a foreign table are converted, text is ciphertext, whatever the
 * session (foreign.c); the table's owner is asked for the right to load it.
 */
typedef struct TypeWire
{
	bool		as_stored;
	Oid			owner;			/* InvalidOid: the current role is asked */
} TypeWire;

extern TypeWire type_wire;

extern LiteralMode type_literal_mode;
extern void type_refuse_literal(void) pg_attribute_noreturn();

#endif							/* NOMP_TYPE_IO_H */
