/*
 * value.c
 *		Byte layout of a stored value, format version 1.
 *
 * Works on plain memory with lengths checked before use; reads no key and no
 * plaintext, allocates nothing.  Nothing else in the project counts these
 * bytes.
 */
#include <string.h>

#include "value.h"

#define FORMAT_VERSION		0x10	/* in the high nibble */
#define FORMAT_FINGERPRINT	0x01
#define FORMAT_KNOWN_BITS	(0xf0 | FORMAT_FINGERPRINT)

#define OFFSET_FORMAT		0
#define OFFSET_TYPE			1
#define OFFSET_KEY_ID		2
#define OFFSET_NONCE		(OFFSET_KEY_ID + VALUE_KEY_ID_LEN)
#define OFFSET_FINGERPRINT	(OFFSET_NONCE + VALUE_NONCE_LEN)

_Static_assert(OFFSET_NONCE == 10, "nonce is bytes 10..33");
_Static_assert(OFFSET_FINGERPRINT == 34, "fingerprint or ciphertext from 34");
_Static_assert(VALUE_MIN_LEN == OFFSET_FINGERPRINT + VALUE_TAG_LEN,
			   "the shortest value is a header and a tag");
_Static_assert(VALUE_MAX_AAD == OFFSET_NONCE + VALUE_FINGERPRINT_LEN,
			   "the aad is what precedes the nonce, and the fingerprint");

/* Whether that type is part of format version 1. */
static bool
known_type(uint8_t type_code)
{
	uint8_t		element = type_code & ~VALUE_TYPE_ARRAY;

	return element >= VALUE_TYPE_TEXT && element <= VALUE_TYPE_LAST;
}

bool
value_parse(const uint8_t *bytes, size_t len, ValueView *view)
{
	size_t		body = OFFSET_FINGERPRINT;
	uint8_t		format;

	if (len < VALUE_MIN_LEN)
		return false;
	/* the tag is needed first, and in a scan is not at hand yet */
	__builtin_prefetch(bytes + len - VALUE_TAG_LEN);
	__builtin_prefetch(bytes + len - 1);
	format = bytes[OFFSET_FORMAT];
	if ((format & 0xf0) != FORMAT_VERSION ||
		(format & ~FORMAT_KNOWN_BITS) != 0 ||
		!known_type(bytes[OFFSET_TYPE]))
		return false;
	if (format & FORMAT_FINGERPRINT)
	{
		if (len - VALUE_MIN_LEN < VALUE_FINGERPRINT_LEN)
			return false;
		body += VALUE_FINGERPRINT_LEN;
	}

	view->type_code = bytes[OFFSET_TYPE];
	view->start = bytes;
	view->key_id = bytes + OFFSET_KEY_ID;
	view->nonce = bytes + OFFSET_NONCE;
	view->fingerprint = (format & FORMAT_FINGERPRINT) ?
		bytes + OFFSET_FINGERPRINT : NULL;
	view->body = bytes + body;
	view->body_len = len - body;
	return true;
}

const uint8_t *
value_fingerprint(const uint8_t *bytes, size_t len)
{
	if (len < VALUE_MIN_LEN + VALUE_FINGERPRINT_LEN ||
		bytes[OFFSET_FORMAT] != (FORMAT_VERSION | FORMAT_FINGERPRINT) ||
		!known_type(bytes[OFFSET_TYPE]))
		return NULL;
	return bytes + OFFSET_FINGERPRINT;
}

size_t
value_size(size_t plain_len, bool has_fingerprint)
{
	size_t		fixed = VALUE_MIN_LEN;

	if (has_fingerprint)
		fixed += VALUE_FINGERPRINT_LEN;
	return plain_len > SIZE_MAX - fixed ? SIZE_MAX : fixed + plain_len;
}

uint8_t *
value_write_header(uint8_t *out, uint8_t type_code,
				   const uint8_t key_id[VALUE_KEY_ID_LEN],
				   const uint8_t nonce[VALUE_NONCE_LEN],
				   const uint8_t *fingerprint)
{
	out[OFFSET_FORMAT] = FORMAT_VERSION;
	out[OFFSET_TYPE] = type_code;
	memcpy(out + OFFSET_KEY_ID, key_id, VALUE_KEY_ID_LEN);
	memcpy(out + OFFSET_NONCE, nonce, VALUE_NONCE_LEN);
	if (fingerprint == NULL)
		return out + OFFSET_FINGERPRINT;

	out[OFFSET_FORMAT] |= FORMAT_FINGERPRINT;
	memcpy(out + OFFSET_FINGERPRINT, fingerprint, VALUE_FINGERPRINT_LEN);
	return out + OFFSET_FINGERPRINT + VALUE_FINGERPRINT_LEN;
}

const uint8_t *
value_aad(const ValueView *view, uint8_t *room, size_t *len)
{
	*len = OFFSET_NONCE;
	if (view->fingerprint == NULL)
		return view->start;

	memcpy(room, view->start, OFFSET_NONCE);
	memcpy(room + OFFSET_NONCE, view->fingerprint, VALUE_FINGERPRINT_LEN);
	*len += VALUE_FINGERPRINT_LEN;
	return room;
}
