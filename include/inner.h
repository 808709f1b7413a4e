/*
 * inner.h
 *		The built-in types that can be inside an encrypted value.
 *
 * A type is named by its code (value.h), array bit included.  Plaintext takes
 * three forms: the type's Datum, its text in the server's encoding, and the
 * payload that is encrypted: UTF-8 for text-like types, else the binary send
 * format, whatever the session's encodings and settings.
 */
#ifndef NOMP_INNER_H
#define NOMP_INNER_H

#include "postgres.h"

/* The code of a type, 0 if it cannot be inside; and back, InvalidOid. */
extern uint8 inner_code(Oid type);
extern Oid	inner_type(uint8 code);

/* As SQL spells it: "date", "text[]". */
extern const char *inner_name(uint8 code);

/* "modifier" is the inner type's own, or -1.  Errors are the inner type's. */
extern Datum inner_from_text(uint8 code, int32 modifier, char *text);
extern char *inner_to_text(uint8 code, Datum value);

/* Palloc'd payload.  Raises 0A000 for arrays of more than one dimension. */
extern char *inner_payload(uint8 code, Datum value, size_t *len);

/*
 * Raises NC005 for a payload that is malformed, or the receive function's own
 * error.  Payloads were authenticated, so only a defect brings either.
 */
extern Datum inner_from_payload(uint8 code, const char *payload, size_t len);

/* The same for what envelope_open gave, which is wiped, or becomes the value. */
extern Datum inner_take_payload(uint8 code, bytea *payload);

/*
 * Convert between types by PostgreSQL's casts, text to anything by the
 * input function; then apply the modifier.  "explicit" as CAST has it.
 */
extern Datum inner_convert(Datum value, Oid from, uint8 code, int32 modifier,
						   bool explicit);

#endif							/* NOMP_INNER_H */
