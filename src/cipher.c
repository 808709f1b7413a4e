/*
 * cipher.c
 *		XAES-256-GCM, HKDF-SHA-256, HMAC-SHA-256, random bytes.
 *
 * XAES-256-GCM is the construction of https://c2sp.org/XAES-256-GCM: the key
 * and the first 12 nonce bytes give a derived key, and AES-256-GCM under the
 * derived key with the last 12 nonce bytes does the rest.  Callers keep the
 * CipherCtx and give only nonces, so that a scan derives once per writing
 * transaction and not once per value.
 *
 * AES and AES-GCM themselves are an engine's (cipher_engine.h), one for the
 * life of the process.  libipsec-mb is taken where it was built in, the
 * machine has what it needs, and it agrees with OpenSSL; otherwise OpenSSL.
 * Hashes and key derivation are OpenSSL's always.
 *
 * Who wipes what: the callers' keys are read, never kept as bytes.  A
 * CipherRoot holds the key as an AES key schedule, a CipherCtx a derived key
 * (never the key it came from); their free functions wipe them.  HMAC keeps
 * nothing.  Everything on the way is wiped here, and the functions below that
 * handle a key run in frames of their own, so that scrub.c can overwrite what
 * they and the libraries left on the stack.
 *
 * One thread per process: what is prepared once is in plain statics.  They
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
#include "cipher_engine.h"
#include "scrub.h"

#define TWO_BLOCKS		(2 * AES_BLOCK_LEN)
#define SHA256_BLOCK	64
#define SHA256_LEN		32

_Static_assert(GCM_NONCE_LEN == CIPHER_NONCE_LEN - CIPHER_PREFIX_LEN, "AES-GCM takes the rest");
_Static_assert(CIPHER_KEY_LEN == AES_KEY_LEN && CIPHER_TAG_LEN == GCM_TAG_LEN, "cipher_engine.h's");
_Static_assert(CIPHER_KEY_LEN == TWO_BLOCKS, "two blocks make a derived key");
_Static_assert(CIPHER_PREFIX_LEN == AES_BLOCK_LEN - 4, "prefix fills a block");

/* AES under the key that others are derived from, and CMAC's subkey of it. */
struct CipherRoot
{
	AesKey	   *aes;
	uint8_t		subkey[AES_BLOCK_LEN];
};

static const CipherEngine *engine = NULL;

/* Fetched once per process; fetching takes longer than hashing. */
static EVP_KDF *hkdf;
static EVP_MD *sha256;
static EVP_MD_CTX *hash;		/* holds no key once it is finished */

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

#ifdef WITH_IPSEC_MB

#define CHECK_MAX		300		/* bytes: more than one round of the widest code */

/* Seal with one engine, open with the other. */
static bool
agree(const CipherEngine *a, const CipherEngine *b, const uint8_t *key, size_t len)
{
	static const uint8_t nonce[GCM_NONCE_LEN] = {1, 2, 3};
	static const uint8_t plain[CHECK_MAX] = {4, 5, 6};
	uint8_t		sealed[CHECK_MAX + CIPHER_TAG_LEN];
	uint8_t		opened[CHECK_MAX];
	CipherCtx  *sealer = a->gcm_new();
	CipherCtx  *opener = b->gcm_new();
	bool		ok;

	ok = sealer != NULL && opener != NULL &&
		a->gcm_key(sealer, key) && b->gcm_key(opener, key) &&
		a->gcm_seal(sealer, nonce, key, len % 29, plain, len, sealed) &&
		b->gcm_open(opener, nonce, key, len % 29, sealed, len, opened) &&
		memcmp(plain, opened, len) == 0;
	if (ok)
	{
		sealed[len] ^= 1;
		ok = !b->gcm_open(opener, nonce, key, len % 29, sealed, len, opened);
	}
	a->gcm_free(sealer);
	b->gcm_free(opener);
	return ok;
}

static bool
same_blocks(const CipherEngine *a, const CipherEngine *b, const uint8_t *key)
{
	AesKey	   *first = a->aes_new(key);
	AesKey	   *second = b->aes_new(key);
	uint8_t		x[TWO_BLOCKS];
	uint8_t		y[TWO_BLOCKS];
	bool		ok;

	ok = first != NULL && second != NULL &&
		a->aes_encrypt(first, key, TWO_BLOCKS, x) &&
		b->aes_encrypt(second, key, TWO_BLOCKS, y) && memcmp(x, y, TWO_BLOCKS) == 0;
	a->aes_free(first);
	b->aes_free(second);
	return ok;
}

/* Do two engines do the same, with a key that is none, at every length? */
static bool
engines_agree(const CipherEngine *a, const CipherEngine *b)
{
	uint8_t		key[CIPHER_KEY_LEN];
	bool		ok = true;

	for (size_t i = 0; i < sizeof(key); i++)
		key[i] = (uint8_t) (i * 7 + 1);
	ok = same_blocks(a, b, key);
	for (size_t len = 0; ok && len <= CHECK_MAX; len++)
		ok = agree(a, b, key, len) && agree(b, a, key, len);
	return ok;
}

#endif							/* WITH_IPSEC_MB */

bool
cipher_use(const char *name)
{
	if (!cipher_openssl.prepare())
		return finish(false);
#ifdef WITH_IPSEC_MB
	if ((name == NULL || strcmp(name, cipher_ipsec_mb.name) == 0) &&
		cipher_ipsec_mb.prepare() && engines_agree(&cipher_openssl, &cipher_ipsec_mb))
	{
		engine = &cipher_ipsec_mb;
		return true;
	}
#endif
	if (name != NULL && strcmp(name, cipher_openssl.name) != 0)
		return false;
	engine = &cipher_openssl;
	return true;
}

const char *
cipher_library(void)
{
	return engine != NULL ? engine->name : "none";
}

const char *
cipher_library_version(void)
{
	return engine != NULL ? engine->version() : "";
}

static inline bool
have_engine(void)
{
	return engine != NULL || cipher_use(NULL);
}

/* Multiply by x in GF(2^128), as in CMAC's subkey generation. */
static void
double_block(uint8_t block[AES_BLOCK_LEN])
{
	uint8_t		overflow = (uint8_t) (0x87 & -(block[0] >> 7));

	for (int i = 0; i < AES_BLOCK_LEN - 1; i++)
		block[i] = (uint8_t) (block[i] << 1 | block[i + 1] >> 7);
	block[AES_BLOCK_LEN - 1] = (uint8_t) (block[AES_BLOCK_LEN - 1] << 1 ^ overflow);
}

static NOINLINE bool
key_root(CipherRoot *root, const uint8_t key[CIPHER_KEY_LEN])
{
	static const uint8_t zeros[AES_BLOCK_LEN];

	root->aes = engine->aes_new(key);
	if (root->aes == NULL ||
		!engine->aes_encrypt(root->aes, zeros, AES_BLOCK_LEN, root->subkey))
		return false;
	double_block(root->subkey);
	return true;
}

CipherRoot *
cipher_root(const uint8_t key[CIPHER_KEY_LEN])
{
	CipherRoot *root = have_engine() ? OPENSSL_zalloc(sizeof(*root)) : NULL;
	bool		ok = root != NULL && key_root(root, key);

	scrub_shallow();
	if (ok)
		return root;
	cipher_root_free(root);
	return NULL;
}

void
cipher_root_free(CipherRoot *root)
{
	if (root == NULL)
		return;
	engine->aes_free(root->aes);
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
		memcpy(subkey, root->subkey, AES_BLOCK_LEN);
		m[0] ^= subkey[0];
		m[1] ^= subkey[1];
		memcpy(message + half * AES_BLOCK_LEN, m, AES_BLOCK_LEN);
	}
	ok = engine->aes_encrypt(root->aes, message, sizeof(message), derived);
	OPENSSL_cleanse(message, sizeof(message));
	return ok;
}

static NOINLINE bool
key_derived(CipherCtx *ctx, CipherRoot *root, const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	uint8_t		derived[CIPHER_KEY_LEN];
	bool		ok = derive_key(root, prefix, derived) && engine->gcm_key(ctx, derived);

	OPENSSL_cleanse(derived, sizeof(derived));
	return ok;
}

CipherCtx *
cipher_from_gcm_key(const uint8_t key[CIPHER_KEY_LEN])
{
	CipherCtx  *ctx = have_engine() ? engine->gcm_new() : NULL;
	bool		ok = ctx != NULL && engine->gcm_key(ctx, key);

	scrub_shallow();
	if (ok)
		return ctx;
	cipher_free(ctx);
	return NULL;
}

CipherCtx *
cipher_derive(CipherRoot *root, const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	CipherCtx  *ctx = engine->gcm_new();

	if (ctx != NULL && cipher_derive_again(ctx, root, prefix))
		return ctx;
	cipher_free(ctx);
	return NULL;
}

bool
cipher_derive_again(CipherCtx *ctx, CipherRoot *root,
					const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	bool		ok = key_derived(ctx, root, prefix);

	scrub_shallow();
	return ok;
}

void
cipher_free(CipherCtx *ctx)
{
	if (ctx != NULL)
		engine->gcm_free(ctx);
}

bool
cipher_seal(CipherCtx *ctx, const uint8_t nonce_tail[12],
			const uint8_t *aad, size_t aad_len,
			const uint8_t *plain, size_t len, uint8_t *out)
{
	return engine->gcm_seal(ctx, nonce_tail, aad, aad_len, plain, len, out);
}

bool
cipher_open(CipherCtx *ctx, const uint8_t nonce_tail[12],
			const uint8_t *aad, size_t aad_len,
			const uint8_t *in, size_t len, uint8_t *out)
{
	size_t		plain_len;

	if (len < CIPHER_TAG_LEN)
		return false;
	plain_len = len - CIPHER_TAG_LEN;
	if (engine->gcm_open(ctx, nonce_tail, aad, aad_len, in, plain_len, out))
		return true;
	if (plain_len > 0)
		OPENSSL_cleanse(out, plain_len);
	return false;
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
prepare_hash(void)
{
	if (sha256 == NULL)
		sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	if (hash == NULL)
		hash = EVP_MD_CTX_new();
	return sha256 != NULL && hash != NULL;
}

/* SHA-256 over the key, masked and filled up to a block, and the data. */
static bool
hash_keyed(const uint8_t key[CIPHER_KEY_LEN], uint8_t mask,
		   const uint8_t *data, size_t len, uint8_t out[SHA256_LEN])
{
	uint8_t		pad[SHA256_BLOCK];
	unsigned	done = 0;
	bool		ok;

	memset(pad, mask, sizeof(pad));
	for (int i = 0; i < CIPHER_KEY_LEN; i++)
		pad[i] ^= key[i];
	ok = EVP_DigestInit_ex2(hash, sha256, NULL) == 1 &&
		EVP_DigestUpdate(hash, pad, sizeof(pad)) == 1 &&
		EVP_DigestUpdate(hash, data, len) == 1 &&
		EVP_DigestFinal_ex(hash, out, &done) == 1 && done == SHA256_LEN;
	OPENSSL_cleanse(pad, sizeof(pad));
	if (!ok)
		EVP_MD_CTX_reset(hash);
	return ok;
}

/*
 * HMAC by its definition, over OpenSSL's SHA-256: OpenSSL's own HMAC takes
 * three times as long to be given a key as all of this.
 */
static NOINLINE bool
run_hmac(const uint8_t key[CIPHER_KEY_LEN], const uint8_t *data, size_t len,
		 uint8_t out[CIPHER_MAC_LEN])
{
	uint8_t		inner[SHA256_LEN];
	uint8_t		outer[SHA256_LEN];
	bool		ok;

	ok = prepare_hash() && hash_keyed(key, 0x36, data, len, inner) &&
		hash_keyed(key, 0x5c, inner, sizeof(inner), outer);
	if (ok)
		memcpy(out, outer, CIPHER_MAC_LEN);
	OPENSSL_cleanse(inner, sizeof(inner));
	OPENSSL_cleanse(outer, sizeof(outer));
	return ok;
}

bool
cipher_hmac(const uint8_t key[CIPHER_KEY_LEN], const uint8_t *data, size_t len,
			uint8_t out[CIPHER_MAC_LEN])
{
	bool		ok = run_hmac(key, data, len, out);

	scrub_shallow();
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
