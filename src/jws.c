/*
 * jws.c
 *		Records that are signed: JWS (RFC 7515), compact, ES256 and nothing else.
 *
 * The protected header has one form, to the letter: alg, kid, typ.  Whatever
 * else a record's header says, another algorithm, a key of its own (jwk, x5c,
 * jku), an extension (crit), makes it nobody's record.  A key is found by its
 * thumbprint (RFC 7638) among those that the caller trusts.
 *
 * Makes no signature: the digest goes to the keystore.  No secrets here.
 */
#include "postgres.h"

#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

#include "common/base64.h"
#include "jws.h"

#define HEADER_BEFORE	"{\"alg\":\"ES256\",\"kid\":\""
#define HEADER_AFTER	"\",\"typ\":\"nomp-crypt-record\"}"

/* ---- base64url, from PostgreSQL's base64 ---- */

static char *
encode(const void *bytes, size_t len)
{
	int			room = pg_b64_enc_len((int) len);
	char	   *text = palloc(room + 1);
	int			n = pg_b64_encode(bytes, (int) len, text, room);

	if (n < 0)
		elog(ERROR, "could not encode a record");
	while (n > 0 && text[n - 1] == '=')
		n--;
	text[n] = '\0';
	for (char *p = text; *p != '\0'; p++)
		*p = *p == '+' ? '-' : *p == '/' ? '_' : *p;
	return text;
}

char *
jws_decode(const char *text, size_t len, size_t *out_len)
{
	size_t		padded = (len + 3) / 4 * 4;
	char	   *copy = palloc(padded + 1);
	char	   *bytes = palloc(padded + 1);
	char	   *again;
	int			n;

	for (size_t i = 0; i < padded; i++)
	{
		char		c = i < len ? text[i] : '=';

		if (i < len && !isalnum((unsigned char) c) && c != '-' && c != '_')
			return NULL;
		copy[i] = c == '-' ? '+' : c == '_' ? '/' : c;
	}
	n = pg_b64_decode(copy, (int) padded, bytes, (int) padded);
	if (n < 0)
		return NULL;
	bytes[n] = '\0';
	*out_len = n;
	/* bits that say nothing must be zero: one text for the same bytes */
	again = encode(bytes, n);
	return strlen(again) == len && memcmp(again, text, len) == 0 ? bytes : NULL;
}

/* ---- keys ---- */

static EVP_PKEY *
parse_key(const uint8 *spki, size_t len)
{
	const uint8 *p = spki;
	EVP_PKEY   *pkey = d2i_PUBKEY(NULL, &p, (long) len);

	if (pkey != NULL && p != spki + len)
	{
		EVP_PKEY_free(pkey);
		pkey = NULL;
	}
	return pkey;
}

/* Is it a key of P-256, and a point of it? */
static bool
is_good(EVP_PKEY *pkey)
{
	char		group[32] = "";
	size_t		len;
	EVP_PKEY_CTX *ctx;
	bool		good;

	if (EVP_PKEY_get_base_id(pkey) != EVP_PKEY_EC ||
		EVP_PKEY_get_group_name(pkey, group, sizeof(group), &len) != 1 ||
		strcmp(group, "prime256v1") != 0)
		return false;
	ctx = EVP_PKEY_CTX_new(pkey, NULL);
	good = ctx != NULL && EVP_PKEY_public_check(ctx) == 1;
	EVP_PKEY_CTX_free(ctx);
	return good;
}

char *
jws_jwk(const JwsKey *key)
{
	const uint8 *x = key->spki + JWS_SPKI_LEN - JWS_POINT_LEN + 1;

	return psprintf("{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"%s\",\"y\":\"%s\"}",
					encode(x, 32), encode(x + 32, 32));
}

bool
jws_key(const uint8 *spki, size_t len, JwsKey *out)
{
	EVP_PKEY   *pkey;
	char	   *jwk;
	uint8		digest[KS_DIGEST_LEN];
	bool		good;

	if (len != JWS_SPKI_LEN || spki[len - JWS_POINT_LEN] != 4)
		return false;
	pkey = parse_key(spki, len);
	good = pkey != NULL && is_good(pkey);
	EVP_PKEY_free(pkey);
	if (!good)
		return false;
	memcpy(out->spki, spki, len);
	jwk = jws_jwk(out);			/* its members are in the thumbprint's order */
	jws_digest(jwk, digest);
	strlcpy(out->kid, encode(digest, sizeof(digest)), sizeof(out->kid));
	return true;
}

/* ---- records ---- */

void
jws_digest(const char *input, uint8 digest[KS_DIGEST_LEN])
{
	if (EVP_Digest(input, strlen(input), digest, NULL, EVP_sha256(), NULL) != 1)
		elog(ERROR, "could not hash a record");
}

char *
jws_input(const JwsKey *key, const char *payload)
{
	char	   *header = psprintf(HEADER_BEFORE "%s" HEADER_AFTER, key->kid);

	return psprintf("%s.%s", encode(header, strlen(header)), encode(payload, strlen(payload)));
}

char *
jws_finish(const char *input, const uint8 signature[KS_SIGNATURE_LEN])
{
	return psprintf("%s.%s", input, encode(signature, KS_SIGNATURE_LEN));
}

bool
jws_names(const char *jws, char kid[JWS_KID_LEN + 1])
{
	const size_t before = strlen(HEADER_BEFORE);
	size_t		len;
	char	   *header = jws_decode(jws, strcspn(jws, "."), &len);

	if (header == NULL || len != before + JWS_KID_LEN + strlen(HEADER_AFTER) ||
		strlen(header) != len || memcmp(header, HEADER_BEFORE, before) != 0 ||
		strcmp(header + before + JWS_KID_LEN, HEADER_AFTER) != 0)
		return false;
	strlcpy(kid, header + before, JWS_KID_LEN + 1);
	return strspn(kid, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == JWS_KID_LEN;
}

/* ECDSA over SHA-256: r and s, 32 bytes each. */
static bool
verify(const JwsKey *key, const char *input, size_t len, const uint8 *signature)
{
	EVP_PKEY   *pkey = parse_key(key->spki, JWS_SPKI_LEN);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	ECDSA_SIG  *sig = ECDSA_SIG_new();
	BIGNUM	   *r = BN_bin2bn(signature, 32, NULL);
	BIGNUM	   *s = BN_bin2bn(signature + 32, 32, NULL);
	uint8	   *der = NULL;
	int			der_len = 0;
	bool		good = pkey != NULL && ctx != NULL && sig != NULL && r != NULL && s != NULL;

	if (good && ECDSA_SIG_set0(sig, r, s) == 1)
	{
		r = s = NULL;			/* sig's now */
		der_len = i2d_ECDSA_SIG(sig, &der);
	}
	good = good && der_len > 0 &&
		EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, pkey) == 1 &&
		EVP_DigestVerify(ctx, der, der_len, (const uint8 *) input, len) == 1;
	OPENSSL_free(der);
	BN_free(r);
	BN_free(s);
	ECDSA_SIG_free(sig);
	EVP_MD_CTX_free(ctx);
	EVP_PKEY_free(pkey);
	return good;
}

char *
jws_open(const char *jws, const JwsKey *key)
{
	char		kid[JWS_KID_LEN + 1];
	const char *payload = strchr(jws, '.');
	const char *end = payload != NULL ? strchr(payload + 1, '.') : NULL;
	size_t		len;
	char	   *signature;
	char	   *text;

	if (end == NULL || !jws_names(jws, kid) || strcmp(kid, key->kid) != 0)
		return NULL;
	signature = jws_decode(end + 1, strlen(end + 1), &len);
	if (signature == NULL || len != KS_SIGNATURE_LEN ||
		!verify(key, jws, end - jws, (uint8 *) signature))
		return NULL;
	text = jws_decode(payload + 1, end - payload - 1, &len);
	return text != NULL && strlen(text) == len ? text : NULL;
}
