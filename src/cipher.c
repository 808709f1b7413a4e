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
 * Who wipes what: the callers' keys are read, never kept as bytes.  A
 * CipherRoot holds the key as OpenSSL's key schedule, a CipherMac as the state
 * of the hash that has begun with it.  A CipherCtx holds a derived key (never
 * the key it came from) twice, as bytes and as OpenSSL's key schedule.  Their
 * free functions wipe them.  Everything on the way is wiped
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
#define TWO_BLOCKS		(2 * BLOCK_LEN)
#define GCM_NONCE_LEN	(CIPHER_NONCE_LEN - CIPHER_PREFIX_LEN)

/*
 * Deeper than OpenSSL goes below our own frames with a key: for its key
 * derivation and MAC, and for keying a cipher that is there already.
 */
#define SCRUB_DEEP		8192
#define SCRUB_SHALLOW	1536

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

/* AES under the key that others are derived from, and CMAC's subkey of it. */
struct CipherRoot
{
	EVP_CIPHER_CTX *ecb;
	uint8_t		subkey[BLOCK_LEN];
};

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
	bool		seal_keyed;		/* with the key below */
	bool		open_keyed;
	uint8_t		key[CIPHER_KEY_LEN];
};

struct CipherMac
{
	EVP_MAC_CTX *hmac;
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
 * and what is left of a key in them, below this frame.  In blocks of the size
 * of a register, because this is paid at each derived key.
 */
typedef uint64_t Chunk __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) void
overwrite(volatile Chunk *dead, size_t len)
{
	for (size_t i = 0; i < len / sizeof(Chunk); i++)
		dead[i] = (Chunk)
		{
			0, 0
		};
}

static NOINLINE CLEAR_REGISTERS void
scrub_stack(void)
{
	Chunk		dead[SCRUB_DEEP / sizeof(Chunk)];

	overwrite(dead, sizeof(dead));
}

static NOINLINE CLEAR_REGISTERS void
scrub_shallow(void)
{
	Chunk		dead[SCRUB_SHALLOW / sizeof(Chunk)];

	overwrite(dead, sizeof(dead));
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

static NOINLINE bool
key_root(CipherRoot *root, const uint8_t key[CIPHER_KEY_LEN])
{
	static const uint8_t zeros[BLOCK_LEN];

	root->ecb = EVP_CIPHER_CTX_new();
	if (root->ecb == NULL ||
		EVP_EncryptInit_ex(root->ecb, aes_ecb, NULL, key, NULL) != 1 ||
		EVP_CIPHER_CTX_set_padding(root->ecb, 0) != 1 ||
		!encrypt_blocks(root->ecb, zeros, BLOCK_LEN, root->subkey))
		return false;
	double_block(root->subkey);
	return true;
}

CipherRoot *
cipher_root(const uint8_t key[CIPHER_KEY_LEN])
{
	CipherRoot *root = fetch_ciphers() ? OPENSSL_zalloc(sizeof(*root)) : NULL;
	bool		ok = root != NULL && key_root(root, key);

	scrub_shallow();
	if (!finish(ok))
	{
		cipher_root_free(root);
		return NULL;
	}
	return root;
}

void
cipher_root_free(CipherRoot *root)
{
	if (root == NULL)
		return;
	EVP_CIPHER_CTX_free(root->ecb);
	OPENSSL_clear_free(root, sizeof(*root));
}

/* The derived key of XAES-256-GCM: CMAC over two one-block messages. */
static NOINLINE bool
derive_key(CipherRoot *root, const uint8_t prefix[CIPHER_PREFIX_LEN],
		   uint8_t derived[CIPHER_KEY_LEN])
{
	uint8_t		message[TWO_BLOCKS];
	bool		ok;

	for (int half = 0; half < 2; half++)
	{
		const uint8_t head[4] = {0, (uint8_t) (half + 1), 'X', 0};
		uint64_t	m[2];
		uint64_t	subkey[2];

		memcpy(m, head, sizeof(head));
		memcpy((uint8_t *) m + sizeof(head), prefix, CIPHER_PREFIX_LEN);
		memcpy(subkey, root->subkey, BLOCK_LEN);
		m[0] ^= subkey[0];
		m[1] ^= subkey[1];
		memcpy(message + half * BLOCK_LEN, m, BLOCK_LEN);
	}
	ok = encrypt_blocks(root->ecb, message, sizeof(message), derived);
	OPENSSL_cleanse(message, sizeof(message));
	return ok;
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
cipher_derive(CipherRoot *root, const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	CipherCtx  *ctx = OPENSSL_zalloc(sizeof(*ctx));

	if (ctx != NULL && cipher_derive_again(ctx, root, prefix))
		return ctx;
	cipher_free(ctx);
	return NULL;
}

bool
cipher_derive_again(CipherCtx *ctx, CipherRoot *root,
					const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	ctx->seal_keyed = ctx->open_keyed = false;
	return finish(derive_key(root, prefix, ctx->key));
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
	uint8_t		rest[BLOCK_LEN];	/* GCM writes nothing here */
	int			done = 0;

	return EVP_CipherFinal_ex(gcm, rest, &done) == 1 && done == 0;
}

/*
 * No cipher and no key are given with the nonce, which keeps the key
 * schedule; a cipher without a key would drop it.
 */
static inline bool
begin_sealing(EVP_CIPHER_CTX *gcm, const uint8_t nonce_tail[GCM_NONCE_LEN])
{
	return gcm != NULL && EVP_EncryptInit_ex2(gcm, NULL, NULL, nonce_tail, NULL) == 1;
}

static inline bool
take_tag(EVP_CIPHER_CTX *gcm, uint8_t *tag)
{
	OSSL_PARAM	params[] = {
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, CIPHER_TAG_LEN),
		OSSL_PARAM_END
	};

	return EVP_CIPHER_CTX_get_params(gcm, params) == 1;
}

/* Nonce and expected tag at once; see key_context. */
static inline bool
begin_opening(EVP_CIPHER_CTX *gcm, const uint8_t nonce_tail[GCM_NONCE_LEN],
			  const uint8_t *tag)
{
	OSSL_PARAM	params[] = {
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TLS1_SET_IV_INV,
								(void *) nonce_tail, GCM_NONCE_LEN),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, (void *) tag, CIPHER_TAG_LEN),
		OSSL_PARAM_END
	};

	return gcm != NULL && EVP_CIPHER_CTX_set_params(gcm, params) == 1;
}

bool
cipher_seal(CipherCtx *ctx, const uint8_t nonce_tail[12],
			const uint8_t *aad, size_t aad_len,
			const uint8_t *plain, size_t len, uint8_t *out)
{
	EVP_CIPHER_CTX *gcm = keyed_context(ctx, true);

	return finish(begin_sealing(gcm, nonce_tail) &&
				  update(gcm, aad, aad_len, NULL) &&
				  update(gcm, plain, len, out) &&
				  end_message(gcm) &&
				  take_tag(gcm, out + len));
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

	ok = begin_opening(gcm, nonce_tail, in + plain_len) &&
		update(gcm, aad, aad_len, NULL) &&
		update(gcm, in, plain_len, out) &&
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

CipherMac *
cipher_mac(const uint8_t key[CIPHER_KEY_LEN])
{
	CipherMac  *mac = prepare_hmac() ? OPENSSL_zalloc(sizeof(*mac)) : NULL;
	bool		ok;

	if (mac != NULL)
		mac->hmac = EVP_MAC_CTX_dup(hmac_sha256);
	ok = mac != NULL && mac->hmac != NULL &&
		EVP_MAC_init(mac->hmac, key, CIPHER_KEY_LEN, NULL) == 1;
	scrub_shallow();
	if (!finish(ok))
	{
		cipher_mac_free(mac);
		return NULL;
	}
	return mac;
}

void
cipher_mac_free(CipherMac *mac)
{
	if (mac == NULL)
		return;
	EVP_MAC_CTX_free(mac->hmac);	/* wipes the key */
	OPENSSL_free(mac);
}

/* Initialised without a key, the context starts again with the one it has. */
static NOINLINE bool
run_hmac(CipherMac *mac, const uint8_t *data, size_t len, uint8_t out[CIPHER_MAC_LEN])
{
	uint8_t		whole[32];
	size_t		done = 0;
	bool		ok;

	ok = EVP_MAC_init(mac->hmac, NULL, 0, NULL) == 1 &&
		EVP_MAC_update(mac->hmac, data, len) == 1 &&
		EVP_MAC_final(mac->hmac, whole, &done, sizeof(whole)) == 1 &&
		done == sizeof(whole);
	if (ok)
		memcpy(out, whole, CIPHER_MAC_LEN);
	OPENSSL_cleanse(whole, sizeof(whole));
	return ok;
}

bool
cipher_mac_take(CipherMac *mac, const uint8_t *data, size_t len,
				uint8_t out[CIPHER_MAC_LEN])
{
	bool		ok = run_hmac(mac, data, len, out);

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
