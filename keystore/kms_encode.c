/*
 * kms_encode.c
 *		What the service's JSON carries as text, and the register's key and
 *		signatures; all by OpenSSL.
 *
 * Secrets: data keys pass through, in the callers' buffers.
 */
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/obj_mac.h>
#include <openssl/x509.h>

#include "kms.h"

#define P256_BYTES	32

/* Encode; false if there is no room for the text and its end. */
bool
kms_base64(const uint8_t *data, size_t len, char *out, size_t size)
{
	if (len > KS_MAX_FRAME || (len + 2) / 3 * 4 + 1 > size)
		return false;
	return EVP_EncodeBlock((unsigned char *) out, data, (int) len) >= 0;
}

/*
 * Decode what is base64 to the letter: OpenSSL's decoder is lenient, so its
 * result is encoded again and compared.
 */
bool
kms_unbase64(const char *text, uint8_t *out, size_t size, size_t *len)
{
	uint8_t		decoded[3 * 1024];
	char		again[4 * 1024 + 1];
	const size_t text_len = strlen(text);
	size_t		n = text_len / 4 * 3;
	bool		ok;

	if (text_len == 0 || text_len % 4 != 0 || n > sizeof(decoded))
		return false;
	ok = EVP_DecodeBlock(decoded, (const unsigned char *) text, (int) text_len) == (int) n;
	n -= (size_t) (text[text_len - 1] == '=') + (size_t) (text[text_len - 2] == '=');
	ok = ok && n <= size && kms_base64(decoded, n, again, sizeof(again)) &&
		strcmp(again, text) == 0;
	if (ok)
	{
		memcpy(out, decoded, n);
		*len = n;
	}
	OPENSSL_cleanse(decoded, sizeof(decoded));
	OPENSSL_cleanse(again, sizeof(again));
	return ok;
}

/* A public key that is just the bytes given; NULL if it is none on P-256. */
static EVP_PKEY *
read_p256(const uint8_t *spki, size_t len)
{
	const uint8_t *p = spki;
	EVP_PKEY   *key = len <= KS_MAX_PUBLIC_KEY ? d2i_PUBKEY(NULL, &p, (long) len) : NULL;
	char		group[32];

	if (key != NULL && p == spki + len && EVP_PKEY_get_base_id(key) == EVP_PKEY_EC &&
		EVP_PKEY_get_group_name(key, group, sizeof(group), NULL) == 1 &&
		strcmp(group, SN_X9_62_prime256v1) == 0)
		return key;
	EVP_PKEY_free(key);
	return NULL;
}

bool
kms_is_p256(const uint8_t *spki, size_t len)
{
	EVP_PKEY   *key = read_p256(spki, len);

	EVP_PKEY_free(key);
	return key != NULL;
}

/* A signature as JWS has it: r and s, 32 bytes each. */
bool
kms_signature_raw(const uint8_t *der, size_t len, uint8_t out[KS_SIGNATURE_LEN])
{
	const uint8_t *p = der;
	ECDSA_SIG  *sig = d2i_ECDSA_SIG(NULL, &p, (long) len);
	bool		ok = sig != NULL && p == der + len &&
		BN_bn2binpad(ECDSA_SIG_get0_r(sig), out, P256_BYTES) == P256_BYTES &&
		BN_bn2binpad(ECDSA_SIG_get0_s(sig), out + P256_BYTES, P256_BYTES) == P256_BYTES;

	ECDSA_SIG_free(sig);
	return ok;
}

/* Is it this key's signature of this digest? */
bool
kms_signature_holds(const uint8_t *spki, size_t spki_len, const uint8_t digest[KS_DIGEST_LEN],
					const uint8_t *der, size_t len)
{
	EVP_PKEY   *key = read_p256(spki, spki_len);
	EVP_PKEY_CTX *ctx = key != NULL ? EVP_PKEY_CTX_new(key, NULL) : NULL;
	bool		ok = ctx != NULL && EVP_PKEY_verify_init(ctx) == 1 &&
		EVP_PKEY_verify(ctx, der, len, digest, KS_DIGEST_LEN) == 1;

	EVP_PKEY_CTX_free(ctx);
	EVP_PKEY_free(key);
	return ok;
}
