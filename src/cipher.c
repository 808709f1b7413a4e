/*
 * cipher.c
 *		XAES-256-GCM, HKDF-SHA-256, HMAC-SHA-256, random bytes: the only file
 *		that calls OpenSSL's ciphers, MAC and key derivation.  Needs OpenSSL 3.0.
 *
 * XAES-256-GCM is the construction of https://c2sp.org/XAES-256-GCM: the key
 * and the first 12 nonce bytes give a derived key, and AES-256-GCM under the
 * derived key with the last 12 nonce bytes does the rest.  Callers keep the
 * CipherCtx and give only nonces, so that a scan derives once per writing
 * transaction and not once per value.
 *
 * Who wipes what: the callers' keys are read, never kept.  A CipherCtx holds
 * a derived key (never the key it came from) twice, as bytes and as OpenSSL's
 * key schedule; cipher_free wipes both.  Everything on the way is wiped
 * here, and the functions below that handle a key run in frames of their own,
 * so that scrub_stack() can overwrite what they and OpenSSL left on the
 * stack.
 *
 * One thread per process: the fetched algorithms are plain statics.  They
 * hold no secret and may be inherited across fork.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "cipher.h"

#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error "nomp_crypt needs OpenSSL 3.0 or later"
#endif

#define BLOCK_LEN		16
#define GCM_NONCE_LEN	(CIPHER_NONCE_LEN - CIPHER_PREFIX_LEN)

/* Deeper than OpenSSL's key derivation goes below our own frames. */
#define SCRUB_BYTES		8192

#define NOINLINE		__attribute__((noinline))

/* On return, leave nothing in the registers that a caller does not expect. */
#ifdef __has_attribute
#if __has_attribute(zero_call_used_regs)
#define CLEAR_REGISTERS __attribute__((zero_call_used_regs("all")))
#endif
#endif
#ifndef CLEAR_REGISTERS
#define CLEAR_REGISTERS
#endif

_Static_assert(GCM_NONCE_LEN == 12, "AES-GCM takes a 96-bit nonce");
_Static_assert(CIPHER_KEY_LEN == 2 * BLOCK_LEN, "two blocks make a derived key");
_Static_assert(CIPHER_PREFIX_LEN == BLOCK_LEN - 4, "prefix fills a block");

/*
 * One OpenSSL context per direction, keyed when first used: most transactions
 * only read or only write, and OpenSSL does not promise that a context keyed
 * for one direction may be turned round (on some machines it may not).  The
 * derived key is kept for the direction not used yet.
 */
struct CipherCtx
{
	EVP_CIPHER_CTX *seal;
	EVP_CIPHER_CTX *open;
	uint8_t		key[CIPHER_KEY_LEN];
};

/* Fetched once per process; fetching takes longer than sealing. */
static EVP_CIPHER *aes_ecb;
static EVP_CIPHER *aes_gcm;
static EVP_KDF *hkdf;
static EVP_MAC_CTX *hmac_sha256;	/* knows its digest, never has a key */

static bool
fetch_ciphers(void)
{
	if (aes_ecb == NULL)
		aes_ecb = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
	if (aes_gcm == NULL)
		aes_gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	return aes_ecb != NULL && aes_gcm != NULL;
}

/*
 * Leave no entry of ours in OpenSSL's error queue: the server's TLS code
 * would take it for its own.
 */
static bool
finish(bool ok)
{
	if (!ok)
		ERR_clear_error();
	return ok;
}

/*
 * Overwrite the dead frames of what the caller just called.  Calls nothing:
 * a function bound at its first call has the dynamic linker save registers,
 * and what is left of a key in them, below this frame.
 */
static NOINLINE CLEAR_REGISTERS void
scrub_stack(void)
{
	uint64_t	dead[SCRUB_BYTES / sizeof(uint64_t)];
	volatile uint64_t *p = dead;

	for (size_t i = 0; i < SCRUB_BYTES / sizeof(uint64_t); i++)
		p[i] = 0;
}

/* Multiply by x in GF(2^128), as in CMAC's subkey generation. */
static void
double_block(uint8_t block[BLOCK_LEN])
{
	uint8_t		overflow = (uint8_t) (0x87 & -(block[0] >> 7));

	for (int i = 0; i < BLOCK_LEN - 1; i++)
		block[i] = (uint8_t) (block[i] << 1 | block[i + 1] >> 7);
	block[BLOCK_LEN - 1] = (uint8_t) (block[BLOCK_LEN - 1] << 1 ^ overflow);
}

/* Encrypt whole blocks with an ECB context. */
static bool
encrypt_blocks(EVP_CIPHER_CTX *ecb, const uint8_t *in, int len, uint8_t *out)
{
	int			done = 0;

	return EVP_EncryptUpdate(ecb, out, &done, in, len) == 1 && done == len;
}

/* The derived key of XAES-256-GCM: CMAC over two one-block messages. */
static NOINLINE bool
derive_key(const uint8_t key[CIPHER_KEY_LEN],
		   const uint8_t prefix[CIPHER_PREFIX_LEN],
		   uint8_t derived[CIPHER_KEY_LEN])
{
	uint8_t		subkey[BLOCK_LEN] = {0};
	uint8_t		message[2 * BLOCK_LEN] = {0};
	EVP_CIPHER_CTX *ecb = EVP_CIPHER_CTX_new();
	bool		ok;

	ok = ecb != NULL &&
		EVP_EncryptInit_ex(ecb, aes_ecb, NULL, key, NULL) == 1 &&
		EVP_CIPHER_CTX_set_padding(ecb, 0) == 1 &&
		encrypt_blocks(ecb, message, BLOCK_LEN, subkey);
	if (ok)
	{
		double_block(subkey);
		for (int half = 0; half < 2; half++)
		{
			uint8_t    *m = message + half * BLOCK_LEN;

			m[1] = (uint8_t) (half + 1);
			m[2] = 'X';
			memcpy(m + 4, prefix, CIPHER_PREFIX_LEN);
			for (int i = 0; i < BLOCK_LEN; i++)
				m[i] ^= subkey[i];
		}
		ok = encrypt_blocks(ecb, message, sizeof(message), derived);
	}

	EVP_CIPHER_CTX_free(ecb);
	OPENSSL_cleanse(subkey, sizeof(subkey));
	OPENSSL_cleanse(message, sizeof(message));
	return ok;
}

/* The context of one direction, keyed if this is its first use. */
static NOINLINE EVP_CIPHER_CTX *
keyed_context(CipherCtx *ctx, bool for_seal)
{
	EVP_CIPHER_CTX **slot = for_seal ? &ctx->seal : &ctx->open;
	EVP_CIPHER_CTX *gcm;

	if (*slot != NULL)
		return *slot;

	gcm = EVP_CIPHER_CTX_new();
	if (gcm == NULL ||
		EVP_CipherInit_ex(gcm, aes_gcm, NULL, ctx->key, NULL, for_seal) != 1)
	{
		EVP_CIPHER_CTX_free(gcm);
		gcm = NULL;
	}
	scrub_stack();
	return *slot = gcm;
}

CipherCtx *
cipher_from_gcm_key(const uint8_t key[CIPHER_KEY_LEN])
{
	CipherCtx  *ctx = fetch_ciphers() ? OPENSSL_zalloc(sizeof(*ctx)) : NULL;

	if (!finish(ctx != NULL))
		return NULL;
	memcpy(ctx->key, key, CIPHER_KEY_LEN);
	return ctx;
}

CipherCtx *
cipher_derive(const uint8_t key[CIPHER_KEY_LEN],
			  const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	uint8_t		derived[CIPHER_KEY_LEN];
	CipherCtx  *ctx = NULL;

	if (finish(fetch_ciphers() && derive_key(key, prefix, derived)))
		ctx = cipher_from_gcm_key(derived);
	OPENSSL_cleanse(derived, sizeof(derived));
	scrub_stack();
	return ctx;
}

void
cipher_free(CipherCtx *ctx)
{
	if (ctx == NULL)
		return;
	EVP_CIPHER_CTX_free(ctx->seal);
	EVP_CIPHER_CTX_free(ctx->open);
	OPENSSL_clear_free(ctx, sizeof(*ctx));
}

/*
 * Start a message: its nonce, then its additional data.  No cipher and no key
 * are given, which keeps the key schedule; a cipher without a key would drop
 * it.
 */
static bool
begin_message(EVP_CIPHER_CTX *gcm, const uint8_t nonce_tail[GCM_NONCE_LEN],
			  const uint8_t *aad, size_t aad_len)
{
	int			done;

	return gcm != NULL && aad_len <= INT_MAX &&
		EVP_CipherInit_ex(gcm, NULL, NULL, NULL, nonce_tail, -1) == 1 &&
		(aad_len == 0 ||
		 EVP_CipherUpdate(gcm, NULL, &done, aad, (int) aad_len) == 1);
}

/* The message itself, in one piece; OpenSSL counts in ints. */
static bool
process_message(EVP_CIPHER_CTX *gcm, const uint8_t *in, size_t len,
				uint8_t *out)
{
	int			done = 0;

	return len == 0 ||
		(len <= INT_MAX &&
		 EVP_CipherUpdate(gcm, out, &done, in, (int) len) == 1 &&
		 (size_t) done == len);
}

/* Finish; when opening this is where the tag is compared. */
static bool
end_message(EVP_CIPHER_CTX *gcm)
{
	uint8_t		rest[BLOCK_LEN];	/* GCM writes nothing here */
	int			done = 0;

	return EVP_CipherFinal_ex(gcm, rest, &done) == 1 && done == 0;
}

bool
cipher_seal(CipherCtx *ctx, const uint8_t nonce_tail[12],
			const uint8_t *aad, size_t aad_len,
			const uint8_t *plain, size_t len, uint8_t *out)
{
	EVP_CIPHER_CTX *gcm = keyed_context(ctx, true);

	return finish(begin_message(gcm, nonce_tail, aad, aad_len) &&
				  process_message(gcm, plain, len, out) &&
				  end_message(gcm) &&
				  EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_GET_TAG,
									  CIPHER_TAG_LEN, out + len) == 1);
}

bool
cipher_open(CipherCtx *ctx, const uint8_t nonce_tail[12],
			const uint8_t *aad, size_t aad_len,
			const uint8_t *in, size_t len, uint8_t *out)
{
	EVP_CIPHER_CTX *gcm;
	size_t		plain_len;
	bool		ok;

	if (len < CIPHER_TAG_LEN)
		return false;
	plain_len = len - CIPHER_TAG_LEN;
	gcm = keyed_context(ctx, false);

	ok = begin_message(gcm, nonce_tail, aad, aad_len) &&
		EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_SET_TAG, CIPHER_TAG_LEN,
							(void *) (in + plain_len)) == 1 &&
		process_message(gcm, in, plain_len, out) &&
		end_message(gcm);
	if (!ok && plain_len > 0)
		OPENSSL_cleanse(out, plain_len);
	return finish(ok);
}

/* HKDF with extract and expand; no salt given means an empty one. */
static NOINLINE bool
run_hkdf(const uint8_t *ikm, size_t ikm_len,
		 const uint8_t *info, size_t info_len, uint8_t out[32])
{
	EVP_KDF_CTX *kdf;
	OSSL_PARAM	params[4];
	OSSL_PARAM *p = params;
	bool		ok;

	if (hkdf == NULL)
		hkdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	kdf = hkdf != NULL ? EVP_KDF_CTX_new(hkdf) : NULL;
	if (kdf == NULL)
		return false;

	*p++ = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST,
											(char *) "SHA256", 0);
	*p++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY,
											 (void *) ikm, ikm_len);
	if (info_len > 0)
		*p++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO,
												 (void *) info, info_len);
	*p = OSSL_PARAM_construct_end();
	ok = EVP_KDF_derive(kdf, out, 32, params) == 1;
	EVP_KDF_CTX_free(kdf);
	return ok;
}

bool
cipher_hkdf(const uint8_t *ikm, size_t ikm_len,
			const uint8_t *info, size_t info_len, uint8_t out[32])
{
	bool		ok;

	if (ikm_len == 0)
		return false;
	ok = run_hkdf(ikm, ikm_len, info, info_len, out);
	if (!ok)
		OPENSSL_cleanse(out, 32);
	scrub_stack();
	return finish(ok);
}

static bool
prepare_hmac(void)
{
	EVP_MAC    *mac;
	EVP_MAC_CTX *ctx;
	OSSL_PARAM	params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *) "SHA256", 0),
		OSSL_PARAM_construct_end()
	};

	if (hmac_sha256 != NULL)
		return true;
	mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	ctx = mac != NULL ? EVP_MAC_CTX_new(mac) : NULL;
	EVP_MAC_free(mac);			/* the context has its own reference */
	if (ctx == NULL)
		return false;
	if (EVP_MAC_CTX_set_params(ctx, params) != 1)
	{
		EVP_MAC_CTX_free(ctx);
		return false;
	}
	hmac_sha256 = ctx;
	return true;
}

static NOINLINE bool
run_hmac(const uint8_t key[CIPHER_KEY_LEN], const uint8_t *data, size_t len,
		 uint8_t out[CIPHER_MAC_LEN])
{
	uint8_t		whole[32];
	size_t		done = 0;
	EVP_MAC_CTX *ctx = prepare_hmac() ? EVP_MAC_CTX_dup(hmac_sha256) : NULL;
	bool		ok;

	ok = ctx != NULL &&
		EVP_MAC_init(ctx, key, CIPHER_KEY_LEN, NULL) == 1 &&
		EVP_MAC_update(ctx, data, len) == 1 &&
		EVP_MAC_final(ctx, whole, &done, sizeof(whole)) == 1 &&
		done == sizeof(whole);
	EVP_MAC_CTX_free(ctx);		/* wipes the key */
	if (ok)
		memcpy(out, whole, CIPHER_MAC_LEN);
	OPENSSL_cleanse(whole, sizeof(whole));
	return ok;
}

bool
cipher_hmac(const uint8_t key[CIPHER_KEY_LEN], const uint8_t *data, size_t len,
			uint8_t out[CIPHER_MAC_LEN])
{
	bool		ok = run_hmac(key, data, len, out);

	scrub_stack();
	return finish(ok);
}

/*
 * From the kernel, so that no state of a generator is shared across fork or
 * copied with a snapshot of a running server.
 */
bool
cipher_random(void *out, size_t len)
{
	uint8_t    *p = out;

	while (len > 0)
	{
		ssize_t		got = getrandom(p, len, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		p += got;
		len -= (size_t) got;
	}
	return true;
}

bool
cipher_equal(const void *a, const void *b, size_t len)
{
	return CRYPTO_memcmp(a, b, len) == 0;
}

void
cipher_wipe(void *secret, size_t len)
{
	OPENSSL_cleanse(secret, len);
}
