/*
 * value.h
 *		Byte layout of a stored value, format version 1; the only file beside
 *		value.c that knows it.
 *
 *		byte 0        format: high nibble 1; bit 0: has fingerprint; rest 0
 *		byte 1        type code
 *		bytes 2..9    key_id
 *		bytes 10..33  nonce
 *		[16 bytes]    fingerprint, if flagged
 *		rest          ciphertext, then a 16-byte tag
 *
 * Works on plain memory; no PostgreSQL header, no key.
 */
#ifndef NOMP_VALUE_H
#define NOMP_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VALUE_KEY_ID_LEN		8
#define VALUE_NONCE_LEN			24
#define VALUE_FINGERPRINT_LEN	16
#define VALUE_TAG_LEN			16
#define VALUE_MIN_LEN			(10 + VALUE_NONCE_LEN + VALUE_TAG_LEN)
#define VALUE_MAX_AAD			(10 + VALUE_FINGERPRINT_LEN)

/* Type codes are part of the format: never reuse, never renumber. */
#define VALUE_TYPE_TEXT			1
#define VALUE_TYPE_VARCHAR		2
#define VALUE_TYPE_BPCHAR		3
#define VALUE_TYPE_BYTEA		4
#define VALUE_TYPE_BOOL			5
#define VALUE_TYPE_INT2			6
#define VALUE_TYPE_INT4			7
#define VALUE_TYPE_INT8			8
#define VALUE_TYPE_FLOAT4		9
#define VALUE_TYPE_FLOAT8		10
#define VALUE_TYPE_NUMERIC		11
#define VALUE_TYPE_MONEY		12
#define VALUE_TYPE_DATE			13
#define VALUE_TYPE_TIME			14
#define VALUE_TYPE_TIMETZ		15
#define VALUE_TYPE_TIMESTAMP	16
#define VALUE_TYPE_TIMESTAMPTZ	17
#define VALUE_TYPE_INTERVAL		18
#define VALUE_TYPE_UUID			19
#define VALUE_TYPE_INET			20
#define VALUE_TYPE_JSON			21
#define VALUE_TYPE_JSONB		22
#define VALUE_TYPE_INT4RANGE	23
#define VALUE_TYPE_INT8RANGE	24
#define VALUE_TYPE_NUMRANGE		25
#define VALUE_TYPE_DATERANGE	26
#define VALUE_TYPE_TSRANGE		27
#define VALUE_TYPE_TSTZRANGE	28
#define VALUE_TYPE_LAST			28
#define VALUE_TYPE_ARRAY		0x80	/* added: a one-dimensional array of it */

/* A parsed header; the pointers point into the caller's bytes. */
typedef struct ValueView
{
	uint8_t		type_code;
	const uint8_t *start;
	const uint8_t *key_id;
	const uint8_t *nonce;
	const uint8_t *fingerprint; /* NULL if there is none */
	const uint8_t *body;		/* ciphertext and tag */
	size_t		body_len;
} ValueView;

/* Parse and check; false for anything that is not a version 1 value. */
extern bool value_parse(const uint8_t *bytes, size_t len, ValueView *view);

/* The fingerprint of a well-formed value that has one, else NULL: for indexes. */
extern const uint8_t *value_fingerprint(const uint8_t *bytes, size_t len);

/* Total size of a value with that much plaintext; SIZE_MAX if none can be. */
extern size_t value_size(size_t plain_len, bool has_fingerprint);

/*
 * Write everything before the ciphertext; returns where the ciphertext goes.
 * fingerprint may be NULL.
 */
extern uint8_t *value_write_header(uint8_t *out, uint8_t type_code,
								   const uint8_t key_id[VALUE_KEY_ID_LEN],
								   const uint8_t nonce[VALUE_NONCE_LEN],
								   const uint8_t *fingerprint);

/*
 * The additional authenticated data of a value: where it is, in the value
 * itself or put together in "room" (VALUE_MAX_AAD bytes), and its length.
 */
extern const uint8_t *value_aad(const ValueView *view, uint8_t *room, size_t *len);

#endif							/* NOMP_VALUE_H */
