/*
 * broker_codec.c
 *		The broker's requests as bytes, and its answers back; key derivation.
 *
 * Data keys pass through here, in the reader's buffer, which helper_link.c
 * wipes; they are turned into working keys and key_checks and never copied.
 */
#include "postgres.h"

#include "broker_codec.h"
#include "cipher.h"
#include "utils/timestamp.h"

/* Seconds since then, or until then: clocks of two nodes may differ. */
static uint32
age_of(TimestampTz made)
{
	int64		age;

	if (TIMESTAMP_NOT_FINITE(made))
		return PG_UINT32_MAX;
	age = (GetCurrentTimestamp() - made) / USECS_PER_SEC;
	return (uint32) Min(Abs(age), (int64) PG_UINT32_MAX);
}

/* Body of KS_OP_UNWRAP. */
void
codec_put_unwrap(WireWriter *w, const UnwrapRequest *what)
{
	wire_put_str(w, what->installation, strlen(what->installation));
	wire_put_str(w, what->label, strlen(what->label));
	wire_put_uint(w, what->own_transaction ? 0 : 1, 1);
	wire_put_uint(w, age_of(what->made), 4);
	wire_put_uint(w, what->nkeys, 1);
	for (int i = 0; i < what->nkeys; i++)
	{
		uint8		aad[KEYPLACE_MAX];
		size_t		aad_len = keyplace_aad(&what->keys[i].place, aad);

		wire_put_str(w, aad, aad_len);
		wire_put_str(w, what->keys[i].wrapped, what->keys[i].wrapped_len);
	}
}

/* Body of KS_OP_CREATE_KEK. */
void
codec_put_create(WireWriter *w, const CreateRequest *what)
{
	wire_put_str(w, what->installation, strlen(what->installation));
	wire_put_str(w, what->tenant, strlen(what->tenant));
	wire_put_uint(w, what->generation, 4);
	wire_put_uint(w, what->nkeys, 1);
	for (int i = 0; i < what->nkeys; i++)
	{
		uint8		aad[KEYPLACE_MAX];
		size_t		aad_len = keyplace_aad(&what->places[i], aad);

		wire_put_str(w, aad, aad_len);
	}
}

/* Body of KS_OP_WRAP; without a data key, for a fresh one. */
void
codec_put_wrap(WireWriter *w, const WrapRequest *what, const uint8 *dek)
{
	uint8		aad[KEYPLACE_MAX];
	size_t		aad_len = keyplace_aad(&what->key.place, aad);

	wire_put_str(w, what->installation, strlen(what->installation));
	wire_put_str(w, what->label, strlen(what->label));
	wire_put_str(w, aad, aad_len);
	wire_put_str(w, dek, dek != NULL ? KS_DEK_LEN : 0);
}

/* Is that the data key that the key_check was made of, in its place? */
bool
codec_is_key(const KeySpec *spec, const uint8 *dek, size_t len)
{
	uint8		check[KEY_CHECK_LEN];

	return len == KS_DEK_LEN &&
		keyplace_check(&spec->place, dek, check) &&
		cipher_equal(check, spec->key_check, KEY_CHECK_LEN);
}

/* Derive the working key of one unwrapped data key; false if it is not it. */
bool
codec_working_key(const KeySpec *spec, const uint8 *dek, size_t len,
				   WorkingKey *out)
{
	bool		ok;

	ok = codec_is_key(spec, dek, len) &&
		keyplace_working_key(&spec->place, dek, out->bytes);
	out->lease = lease_start();
	return ok;
}

/*
 * Decode the answer to KS_OP_CREATE_KEK: wrapped keys and the key_checks of
 * the data keys beside them.  False if it is malformed.
 */
bool
codec_get_create(WireReader *r, const CreateRequest *what, CreateAnswer *answer)
{
	bool		ok = true;

	memset(answer, 0, sizeof(*answer));
	wire_get_cstr(r, answer->serial, sizeof(answer->serial));
	answer->nkeys = what->nkeys;
	for (int i = 0; i < what->nkeys && ok; i++)
	{
		KeySpec    *spec = &answer->keys[i];
		const uint8 *dek;
		const uint8 *wrapped;
		size_t		dek_len = wire_get_str(r, &dek);
		size_t		wrapped_len = wire_get_str(r, &wrapped);

		if (r->bad || dek_len != KS_DEK_LEN || wrapped_len > KS_MAX_WRAPPED)
			return false;
		spec->place = what->places[i];
		spec->wrapped_len = (uint16) wrapped_len;
		memcpy(spec->wrapped, wrapped, wrapped_len);
		ok = keyplace_check(&spec->place, dek, spec->key_check);
	}
	return ok && wire_done(r);
}

/*
 * Decode the answer to KS_OP_WRAP: the wrapped key, and the key_check of the
 * data key beside it.  False if it is malformed.
 */
bool
codec_get_wrap(WireReader *r, KeySpec *key, uint8 check[KEY_CHECK_LEN])
{
	const uint8 *dek;
	const uint8 *wrapped;
	size_t		dek_len = wire_get_str(r, &dek);
	size_t		wrapped_len = wire_get_str(r, &wrapped);

	if (!wire_done(r) || dek_len != KS_DEK_LEN || wrapped_len > KS_MAX_WRAPPED)
		return false;
	key->wrapped_len = (uint16) wrapped_len;
	memcpy(key->wrapped, wrapped, wrapped_len);
	return keyplace_check(&key->place, dek, check);
}

/* The school in a KEK's label, 36 characters and more; NULL if there is none. */
const char *
codec_school(const char *label)
{
	/* nomp_crypt:<installation>:<school>:<generation> */
	const size_t at = strlen("nomp_crypt:") + 36 + 1;

	return strlen(label) < at + 36 ? NULL : label + at;
}

/* Body of KS_OP_SEE, for the school of a KEK. */
void
codec_put_see(WireWriter *w, const UnwrapRequest *what)
{
	const char *school = codec_school(what->label);

	w->bad = w->bad || school == NULL;
	wire_put_str(w, what->installation, strlen(what->installation));
	wire_put_str(w, school, 36);
	wire_put_uint(w, 0, 4);
}

/* The number at the end of a KEK's label. */
static uint64
generation_of(const char *label)
{
	const char *colon = strrchr(label, ':');

	return colon == NULL ? 0 : strtoull(colon + 1, NULL, 10);
}

/*
 * Does the answer to KS_OP_SEE show a later KEK of the school's than the one
 * asked for, that may be used?  False if it is malformed.
 */
bool
codec_get_later(WireReader *r, const UnwrapRequest *what, bool *later)
{
	char		text[KS_MAX_LABEL + 1];
	char		reference[KS_MAX_REFERENCE + 1];
	bool		provisional;
	bool		usable;
	int			n;

	*later = false;
	wire_get_cstr(r, text, sizeof(text));
	n = (int) wire_get_uint(r, 2);
	for (int i = 0; i < n && !r->bad; i++)
	{
		wire_get_cstr(r, text, sizeof(text));
		provisional = wire_get_uint(r, 1) != 0;
		usable = wire_get_uint(r, 1) == KS_STATE_USABLE;
		*later |= usable && !provisional && generation_of(text) > generation_of(what->label);
		(void) wire_get_uint(r, 8);
		wire_get_cstr(r, reference, sizeof(reference));
	}
	return wire_done(r);
}
