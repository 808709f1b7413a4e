/*
 * cipher.h
 *		The only door to ciphers, MAC and key derivation.
 *
 * XAES-256-GCM (C2SP XAES-256-GCM), HKDF-SHA-256 (RFC 5869), HMAC-SHA-256
 * (RFC 2104).  No PostgreSQL header: the vector tests link the cipher files
 * alone.  Functions return false when a library fails or, on opening, when the
 * tag does not match; they never log and never raise.
 */
#ifndef NOMP_CIPHER_H
#define NOMP_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CIPHER_KEY_LEN		32
#define CIPHER_NONCE_LEN	24
#define CIPHER_PREFIX_LEN	12	/* nonce bytes that select the derived key */
#define CIPHER_TAG_LEN		16
#define CIPHER_MAC_LEN		16	/* HMAC-SHA-256, truncated */

/*
 * Choose what does AES and AES-GCM, "openssl" or "ipsec-mb", or the best that
 * there is (NULL), before the first key: nothing made by one is for the other.
 * False if it is not in this build or cannot be used on this machine.
 */
extern bool cipher_use(const char *name);

/* What is in use, and the library's own name for its version. */
extern const char *cipher_library(void);
extern const char *cipher_library_version(void);

/*
 * A key that others are derived from, as its key schedule on the heap until
 * cipher_root_free, which wipes it.  NULL when a library fails.
 */
typedef struct CipherRoot CipherRoot;

extern CipherRoot *cipher_root(const uint8_t key[CIPHER_KEY_LEN]);
extern void cipher_root_free(CipherRoot *root);

/*
 * A derived key: AES-256-GCM keyed for one (key, first 12 nonce bytes).  Its
 * key schedule lives on the heap until cipher_free, which wipes it.
 */
typedef struct CipherCtx CipherCtx;

/* Derive for a prefix; NULL when a library fails.  Serves both directions. */
extern CipherCtx *cipher_derive(CipherRoot *root,
								const uint8_t prefix[CIPHER_PREFIX_LEN]);

/* Derive in the place of another: cheaper.  False: free it. */
extern bool cipher_derive_again(CipherCtx *ctx, CipherRoot *root,
								const uint8_t prefix[CIPHER_PREFIX_LEN]);

/*
 * Plain AES-256-GCM under a key: the second half of cipher_derive, declared
 * only so that tests can run published AES-GCM vectors through this file.
 */
extern CipherCtx *cipher_from_gcm_key(const uint8_t key[CIPHER_KEY_LEN]);

/* Wipe and free; NULL is ignored. */
extern void cipher_free(CipherCtx *ctx);

/*
 * Encrypt plain[len] under the last 12 nonce bytes with aad; writes len
 * bytes of ciphertext and then the tag to out (out must not overlap plain).
 */
extern bool cipher_seal(CipherCtx *ctx, const uint8_t nonce_tail[12],
						const uint8_t *aad, size_t aad_len,
						const uint8_t *plain, size_t len, uint8_t *out);

/*
 * The reverse: in[len] is ciphertext and tag, len >= CIPHER_TAG_LEN.  On
 * failure out (len - CIPHER_TAG_LEN bytes) is wiped and nothing is released.
 */
extern bool cipher_open(CipherCtx *ctx, const uint8_t nonce_tail[12],
						const uint8_t *aad, size_t aad_len,
						const uint8_t *in, size_t len, uint8_t *out);

/* HKDF-SHA-256 with an empty salt, 32 bytes out; ikm must not be empty. */
extern bool cipher_hkdf(const uint8_t *ikm, size_t ikm_len,
						const uint8_t *info, size_t info_len,
						uint8_t out[32]);

/* HMAC-SHA-256, cut to CIPHER_MAC_LEN bytes; keeps no key. */
extern bool cipher_hmac(const uint8_t key[CIPHER_KEY_LEN], const uint8_t *data,
						size_t len, uint8_t out[CIPHER_MAC_LEN]);

/* Cryptographically secure random bytes; false when the kernel has none. */
extern bool cipher_random(void *out, size_t len);

/* Compare in constant time. */
extern bool cipher_equal(const void *a, const void *b, size_t len);

/* Overwrite a secret; not optimised away. */
extern void cipher_wipe(void *secret, size_t len);

#endif							/* NOMP_CIPHER_H */
