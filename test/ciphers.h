/*
 * ciphers.h
 *		For the test programs: one value, one key.
 */
#ifndef NOMP_TEST_CIPHERS_H
#define NOMP_TEST_CIPHERS_H

#include <string.h>

#include "cipher.h"
#include "tap.h"
#include "value.h"

/* The vectors of https://c2sp.org/XAES-256-GCM, whose nonce is SPEC_NONCE. */
#define SPEC_NONCE		"ABCDEFGHIJKLMNOPQRSTUVWX"

typedef struct XaesVector
{
	uint8_t		key_byte;		/* 32 times */
	const char *aad;
	const char *derived;
	const char *sealed;
} XaesVector;

/* The top bit of L, which decides about the 0x87, is 0 in one and 1 in one. */
static const XaesVector xaes_vectors[] = {
	{0x01, "",
		"c8612c9ed53fe43e8e005b828a1631a0bbcb6ab2f46514ec4f439fcfd0fa969b",
	"ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
	{0x03, "c2sp.org/XAES-256-GCM",
		"e9c621d4cdd9b11b00a6427ad7e559aeedd66b3857646677748f8ca796cb3fd8",
	"986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
};

static inline CipherCtx *
derive(const uint8_t key[CIPHER_KEY_LEN], const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	CipherRoot *root = cipher_root(key);
	CipherCtx  *ctx = root != NULL ? cipher_derive(root, prefix) : NULL;

	cipher_root_free(root);
	return ctx;
}

static inline CipherCtx *
derive_or_bail(const uint8_t *key, const uint8_t *prefix)
{
	CipherCtx  *ctx = derive(key, prefix);

	if (ctx == NULL)
		tap_bail("no derived key");
	return ctx;
}

/* The additional data in a buffer; returns its length. */
static inline size_t
copy_aad(const ValueView *view, uint8_t out[VALUE_MAX_AAD])
{
	uint8_t		room[VALUE_MAX_AAD];
	size_t		len;
	const uint8_t *aad = value_aad(view, room, &len);

	memcpy(out, aad, len);
	return len;
}

/*
 * Run it with each engine of this build.  One that this machine cannot run,
 * for want of AES instructions, is said to be left out.
 */
static inline void
with_each_engine(void (*run) (const char *engine))
{
	if (!cipher_use("openssl"))
		tap_bail("no OpenSSL");
	run("openssl");
#ifdef WITH_IPSEC_MB
	if (cipher_use("ipsec-mb"))
		run("ipsec-mb");
	else
		tap_skip("ipsec-mb", "not for this processor");
#endif
}

#endif							/* NOMP_TEST_CIPHERS_H */
