/*
 * cipher_openssl.c
 *		AES-256 and AES-256-GCM by OpenSSL's EVP: for every machine.
 *
 * Called by cipher.c through cipher_engine.h.  A CipherCtx holds its key
 * twice, as bytes and as OpenSSL's key schedule; freeing it wipes both.
 *
 * One thread per process: the fetched algorithms are plain statics.  They
 * hold no secret and may be inherited across fork.
 */
#include <limits.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "cipher_engine.h"
#include "scrub.h"

#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error "nomp_crypt needs OpenSSL 3.0 or later"
#endif

struct AesKey
{
	EVP_CIPHER_CTX *ecb;
};

/*
 * One OpenSSL context per direction, keyed when first used: most transactions
 * only read or only write, and OpenSSL does not promise that a context keyed
 * for one direction may be turned round (on some machines it may not).  The
 * key is kept for the direction not used yet.
 */
struct CipherCtx
{
	EVP_CIPHER_CTX *seal;
	EVP_CIPHER_CTX *open;
	bool		seal_keyed;		/* with the key below */
	bool		open_keyed;
	uint8_t		key[AES_KEY_LEN];
};

/* Fetched once per process; fetching takes longer than sealing. */
static EVP_CIPHER *aes_ecb;
static EVP_CIPHER *aes_gcm;

static bool
openssl_prepare(void)
{
	if (aes_ecb == NULL)
		aes_ecb = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
	if (aes_gcm == NULL)
		aes_gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	return aes_ecb != NULL && aes_gcm != NULL;
}

static const char *
openssl_version(void)
{
	return OpenSSL_version(OPENSSL_VERSION);
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

static bool
openssl_aes_encrypt(AesKey *aes, const uint8_t *in, size_t len, uint8_t *out)
{
	int			done = 0;

	return finish(EVP_EncryptUpdate(aes->ecb, out, &done, in, (int) len) == 1 &&
				  done == (int) len);
}

static void
openssl_aes_free(AesKey *aes)
{
	if (aes == NULL)
		return;
	EVP_CIPHER_CTX_free(aes->ecb);
	OPENSSL_free(aes);
}

static AesKey *
openssl_aes_new(const uint8_t key[AES_KEY_LEN])
{
	AesKey	   *aes = OPENSSL_zalloc(sizeof(*aes));

	if (aes != NULL)
		aes->ecb = EVP_CIPHER_CTX_new();
	if (finish(aes != NULL && aes->ecb != NULL &&
			   EVP_EncryptInit_ex(aes->ecb, aes_ecb, NULL, key, NULL) == 1 &&
			   EVP_CIPHER_CTX_set_padding(aes->ecb, 0) == 1))
		return aes;
	openssl_aes_free(aes);
	return NULL;
}

/*
 * A context that is keyed again keeps its cipher: naming the cipher would
 * cost more.
 *
 * Opening gives each message's nonce as if it were the changing part of one
 * that TLS counts, with a fixed part of no bytes: that is the one way to set
 * nonce and tag in a single call, and a third faster than EVP_DecryptInit_ex.
 */
static NOINLINE bool
key_context(CipherCtx *ctx, bool for_seal)
{
	static const uint8_t no_nonce[GCM_NONCE_LEN];
	EVP_CIPHER_CTX **slot = for_seal ? &ctx->seal : &ctx->open;

	if (*slot != NULL)
		return EVP_CipherInit_ex(*slot, NULL, NULL, ctx->key, NULL, for_seal) == 1;
	*slot = EVP_CIPHER_CTX_new();
	return *slot != NULL &&
		EVP_CipherInit_ex(*slot, aes_gcm, NULL, ctx->key, NULL, for_seal) == 1 &&
		(for_seal ||
		 EVP_CIPHER_CTX_ctrl(*slot, EVP_CTRL_AEAD_SET_IV_FIXED, -1, (void *) no_nonce) == 1);
}

/* The context of one direction, keyed if this is its first use. */
static inline EVP_CIPHER_CTX *
keyed_context(CipherCtx *ctx, bool for_seal)
{
	bool	   *keyed = for_seal ? &ctx->seal_keyed : &ctx->open_keyed;

	if (!*keyed)
	{
		*keyed = key_context(ctx, for_seal);
		scrub_shallow();
		if (!*keyed)
			return NULL;
	}
	return for_seal ? ctx->seal : ctx->open;
}

static CipherCtx *
openssl_gcm_new(void)
{
	return OPENSSL_zalloc(sizeof(CipherCtx));
}

static bool
openssl_gcm_key(CipherCtx *ctx, const uint8_t key[AES_KEY_LEN])
{
	ctx->seal_keyed = ctx->open_keyed = false;
	memcpy(ctx->key, key, AES_KEY_LEN);
	return true;
}

static void
openssl_gcm_free(CipherCtx *ctx)
{
	if (ctx == NULL)
		return;
	EVP_CIPHER_CTX_free(ctx->seal);
	EVP_CIPHER_CTX_free(ctx->open);
	OPENSSL_clear_free(ctx, sizeof(*ctx));
}

/* OpenSSL counts in ints. */
static inline bool
update(EVP_CIPHER_CTX *gcm, const uint8_t *in, size_t len, uint8_t *out)
{
	int			done = 0;

	return len == 0 ||
		(len <= INT_MAX &&
		 EVP_CipherUpdate(gcm, out, &done, in, (int) len) == 1 &&
		 (size_t) done == len);
}

/* Finish; when opening this is where the tag is compared. */
static inline bool
end_message(EVP_CIPHER_CTX *gcm)
{
	uint8_t		rest[AES_BLOCK_LEN];	/* GCM writes nothing here */
	int			done = 0;

	return EVP_CipherFinal_ex(gcm, rest, &done) == 1 && done == 0;
}

/*
 * No cipher and no key are given with the nonce, which keeps the key
 * schedule; a cipher without a key would drop it.
 */
static inline bool
begin_sealing(EVP_CIPHER_CTX *gcm, const uint8_t nonce[GCM_NONCE_LEN])
{
	return gcm != NULL && EVP_EncryptInit_ex2(gcm, NULL, NULL, nonce, NULL) == 1;
}

static inline bool
take_tag(EVP_CIPHER_CTX *gcm, uint8_t *tag)
{
	OSSL_PARAM	params[] = {
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, GCM_TAG_LEN),
		OSSL_PARAM_END
	};

	return EVP_CIPHER_CTX_get_params(gcm, params) == 1;
}

/* Nonce and expected tag at once; see key_context. */
static inline bool
begin_opening(EVP_CIPHER_CTX *gcm, const uint8_t nonce[GCM_NONCE_LEN],
			  const uint8_t *tag)
{
	OSSL_PARAM	params[] = {
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TLS1_SET_IV_INV,
								(void *) nonce, GCM_NONCE_LEN),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, (void *) tag, GCM_TAG_LEN),
		OSSL_PARAM_END
	};

	return gcm != NULL && EVP_CIPHER_CTX_set_params(gcm, params) == 1;
}

static bool
openssl_gcm_seal(CipherCtx *ctx, const uint8_t nonce[GCM_NONCE_LEN],
				 const uint8_t *aad, size_t aad_len,
				 const uint8_t *plain, size_t len, uint8_t *out)
{
	EVP_CIPHER_CTX *gcm = keyed_context(ctx, true);

	return finish(begin_sealing(gcm, nonce) &&
				  update(gcm, aad, aad_len, NULL) &&
				  update(gcm, plain, len, out) &&
				  end_message(gcm) &&
				  take_tag(gcm, out + len));
}

static bool
openssl_gcm_open(CipherCtx *ctx, const uint8_t nonce[GCM_NONCE_LEN],
				 const uint8_t *aad, size_t aad_len,
				 const uint8_t *in, size_t len, uint8_t *out)
{
	EVP_CIPHER_CTX *gcm = keyed_context(ctx, false);

	return finish(begin_opening(gcm, nonce, in + len) &&
				  update(gcm, aad, aad_len, NULL) &&
				  update(gcm, in, len, out) &&
				  end_message(gcm));
}

const CipherEngine cipher_openssl = {
	.name = "openssl",
	.prepare = openssl_prepare,
	.version = openssl_version,
	.aes_new = openssl_aes_new,
	.aes_encrypt = openssl_aes_encrypt,
	.aes_free = openssl_aes_free,
	.gcm_new = openssl_gcm_new,
	.gcm_key = openssl_gcm_key,
	.gcm_free = openssl_gcm_free,
	.gcm_seal = openssl_gcm_seal,
	.gcm_open = openssl_gcm_open,
};
