/*
 * keyplace.c
 *		Binds a data key to its place; the labels of every key derivation.
 *
 * Labels and encoding are part of the format (docs/format.md): changing a
 * byte here makes every stored value unreadable.  Every field is prefixed
 * with its length, so that no two places share an encoding.  Reads the
 * caller's key, keeps nothing.
 */
#include <string.h>

#include "cipher.h"
#include "keyplace.h"

#define LABEL_WRAP		"nomp_crypt wrap v1"
#define LABEL_CHECK		"nomp_crypt key_check v1"
#define LABEL_VALUES	"nomp_crypt k_enc v1"
#define LABEL_INDEX		"nomp_crypt k_idx v1"
#define PURPOSE_VALUES	"values"
#define PURPOSE_INDEX	"index"

/* Three fields of place, and the longest label, each with its length. */
_Static_assert(2 + sizeof(LABEL_CHECK) - 1 + 2 + 16 +
			   2 + sizeof(PURPOSE_VALUES) - 1 + 2 + 4 <= KEYPLACE_MAX,
			   "the longest encoding fits");
_Static_assert(KEY_CHECK_LEN == 32, "key_check is one whole HKDF output");

/* Append a length-prefixed field; returns the end. */
static uint8_t *
put_field(uint8_t *p, const void *data, size_t len)
{
	p[0] = (uint8_t) (len >> 8);
	p[1] = (uint8_t) len;
	memcpy(p + 2, data, len);
	return p + 2 + len;
}

static uint8_t *
put_string(uint8_t *p, const char *s)
{
	return put_field(p, s, strlen(s));
}

/* lp(label) | place; returns the length. */
static size_t
encode(const KeyPlace *place, const char *label, uint8_t out[KEYPLACE_MAX])
{
	const uint8_t version[4] = {
		(uint8_t) (place->version >> 24), (uint8_t) (place->version >> 16),
		(uint8_t) (place->version >> 8), (uint8_t) place->version
	};
	uint8_t    *p = out;

	p = put_string(p, label);
	p = put_field(p, place->tenant, sizeof(place->tenant));
	p = put_string(p, place->is_index ? PURPOSE_INDEX : PURPOSE_VALUES);
	p = put_field(p, version, sizeof(version));
	return (size_t) (p - out);
}

/* HKDF of the data key for that label at that place. */
static bool
derive(const KeyPlace *place, const char *label, const uint8_t dek[32],
	   uint8_t out[32])
{
	uint8_t		info[KEYPLACE_MAX];
	size_t		len = encode(place, label, info);

	return cipher_hkdf(dek, 32, info, len, out);
}

size_t
keyplace_aad(const KeyPlace *place, uint8_t out[KEYPLACE_MAX])
{
	return encode(place, LABEL_WRAP, out);
}

bool
keyplace_check(const KeyPlace *place, const uint8_t dek[32],
			   uint8_t out[KEY_CHECK_LEN])
{
	return derive(place, LABEL_CHECK, dek, out);
}

bool
keyplace_working_key(const KeyPlace *place, const uint8_t dek[32],
					 uint8_t out[32])
{
	return derive(place, place->is_index ? LABEL_INDEX : LABEL_VALUES, dek, out);
}
