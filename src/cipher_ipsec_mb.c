/*
 * cipher_ipsec_mb.c
 *		AES-256 and AES-256-GCM by Intel's libipsec-mb: the same bytes as
 *		OpenSSL's, at a third of the price for a short value, because there is
 *		nothing between the caller and the cipher.
 *
 * Called by cipher.c through cipher_engine.h, on machines that have AES and
 * carry-less multiplication in hardware; elsewhere the library is slow and
 * not constant in time, and is not used.
 *
 * The library is taken only in a build that clears the registers and stack it
 * used (its feature SAFE_DATA).  Its manager holds no secret and is inherited
 * across fork.  Expanded keys are in the structs below and nowhere else.
 */
#ifdef WITH_IPSEC_MB

#define NO_COMPAT_IMB_API_053
#include <intel-ipsec-mb.h>
#include <stdlib.h>
#include <string.h>

#include "cipher.h"
#include "cipher_engine.h"

#define ALIGNMENT		64

#define NEEDED \
	(IMB_FEATURE_AESNI | IMB_FEATURE_PCLMULQDQ | IMB_FEATURE_SAFE_DATA | \
	 IMB_FEATURE_SELF_TEST | IMB_FEATURE_SELF_TEST_PASS)

struct AesKey
{
	uint8_t		encrypt[15 * AES_BLOCK_LEN];
	uint8_t		decrypt[15 * AES_BLOCK_LEN];	/* comes with it, not used */
} __attribute__((aligned(ALIGNMENT)));

struct CipherCtx
{
	struct gcm_key_data gcm;
} __attribute__((aligned(ALIGNMENT)));

static IMB_MGR *manager = NULL;

static bool
ipsec_mb_prepare(void)
{
	IMB_ARCH	arch;

	if (manager != NULL)
		return true;
	manager = alloc_mb_mgr(0);
	if (manager == NULL)
		return false;
	init_mb_mgr_auto(manager, &arch);
	if (imb_get_errno(manager) == 0 && (manager->features & NEEDED) == NEEDED &&
		(manager->features & IMB_FEATURE_AESNI_EMU) == 0)
		return true;
	free_mb_mgr(manager);
	manager = NULL;
	return false;
}

static const char *
ipsec_mb_version(void)
{
	return imb_get_version_str();
}

/*
 * One struct of each kind is kept, wiped, for the next who wants one: a short
 * transaction needs one or two and would spend more on memory than on keys.
 */
static void *
new_struct(void **spare, size_t size)
{
	void	   *fresh = *spare;

	*spare = NULL;
	if (fresh != NULL)
		return fresh;
	fresh = aligned_alloc(ALIGNMENT, size);
	if (fresh != NULL)
		memset(fresh, 0, size);
	return fresh;
}

static void
free_struct(void **spare, void *old, size_t size)
{
	if (old == NULL)
		return;
	explicit_bzero(old, size);
	if (*spare == NULL)
		*spare = old;
	else
		free(old);
}

static void *spare_aes = NULL;
static void *spare_gcm = NULL;

static AesKey *
ipsec_mb_aes_new(const uint8_t key[AES_KEY_LEN])
{
	AesKey	   *aes = new_struct(&spare_aes, sizeof(AesKey));

	if (aes != NULL)
		IMB_AES_KEYEXP_256(manager, key, aes->encrypt, aes->decrypt);
	return aes;
}

/* The library does ECB at once, however many jobs it can take. */
static bool
ipsec_mb_aes_encrypt(AesKey *aes, const uint8_t *in, size_t len, uint8_t *out)
{
	IMB_JOB    *job = IMB_GET_NEXT_JOB(manager);

	memset(job, 0, sizeof(*job));
	job->cipher_mode = IMB_CIPHER_ECB;
	job->cipher_direction = IMB_DIR_ENCRYPT;
	job->chain_order = IMB_ORDER_CIPHER_HASH;
	job->hash_alg = IMB_AUTH_NULL;
	job->src = in;
	job->dst = out;
	job->msg_len_to_cipher_in_bytes = len;
	job->enc_keys = aes->encrypt;
	job->dec_keys = aes->decrypt;
	job->key_len_in_bytes = AES_KEY_LEN;
	job = IMB_SUBMIT_JOB_NOCHECK(manager);
	return job != NULL && job->status == IMB_STATUS_COMPLETED;
}

static void
ipsec_mb_aes_free(AesKey *aes)
{
	free_struct(&spare_aes, aes, sizeof(*aes));
}

static CipherCtx *
ipsec_mb_gcm_new(void)
{
	return new_struct(&spare_gcm, sizeof(CipherCtx));
}

static bool
ipsec_mb_gcm_key(CipherCtx *ctx, const uint8_t key[AES_KEY_LEN])
{
	IMB_AES256_GCM_PRE(manager, key, &ctx->gcm);
	return true;
}

static void
ipsec_mb_gcm_free(CipherCtx *ctx)
{
	free_struct(&spare_gcm, ctx, sizeof(*ctx));
}

/*
 * The library refuses a pointer that is NULL even where there is nothing to
 * read or write.
 */
static const uint8_t nothing[AES_BLOCK_LEN];

static bool
ipsec_mb_gcm_seal(CipherCtx *ctx, const uint8_t nonce[GCM_NONCE_LEN],
				  const uint8_t *aad, size_t aad_len,
				  const uint8_t *plain, size_t len, uint8_t *out)
{
	struct gcm_context_data state;

	IMB_AES256_GCM_ENC(manager, &ctx->gcm, &state, out, plain != NULL ? plain : nothing, len,
					   nonce, aad != NULL ? aad : nothing, aad_len, out + len, GCM_TAG_LEN);
	return imb_get_errno(NULL) == 0;
}

/* The library computes the tag that should be there; we compare. */
static bool
ipsec_mb_gcm_open(CipherCtx *ctx, const uint8_t nonce[GCM_NONCE_LEN],
				  const uint8_t *aad, size_t aad_len,
				  const uint8_t *in, size_t len, uint8_t *out)
{
	struct gcm_context_data state;
	uint8_t		unused[AES_BLOCK_LEN];
	uint8_t		tag[GCM_TAG_LEN];

	IMB_AES256_GCM_DEC(manager, &ctx->gcm, &state, out != NULL ? out : unused, in, len,
					   nonce, aad != NULL ? aad : nothing, aad_len, tag, GCM_TAG_LEN);
	return imb_get_errno(NULL) == 0 && cipher_equal(tag, in + len, GCM_TAG_LEN);
}

const CipherEngine cipher_ipsec_mb = {
	.name = "ipsec-mb",
	.prepare = ipsec_mb_prepare,
	.version = ipsec_mb_version,
	.aes_new = ipsec_mb_aes_new,
	.aes_encrypt = ipsec_mb_aes_encrypt,
	.aes_free = ipsec_mb_aes_free,
	.gcm_new = ipsec_mb_gcm_new,
	.gcm_key = ipsec_mb_gcm_key,
	.gcm_free = ipsec_mb_gcm_free,
	.gcm_seal = ipsec_mb_gcm_seal,
	.gcm_open = ipsec_mb_gcm_open,
};

#endif							/* WITH_IPSEC_MB */
