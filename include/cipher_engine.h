/*
 * cipher_engine.h
 *		AES-256 (FIPS 197) and AES-256-GCM (NIST SP 800-38D) for cipher.c, from
 *		one library or another: a const table of functions each.
 *
 * An engine has its own structs for keys, on its own heap, and wipes them when
 * they are freed.  Nothing here raises or logs.
 */
#ifndef NOMP_CIPHER_ENGINE_H
#define NOMP_CIPHER_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AES_KEY_LEN		32
#define AES_BLOCK_LEN	16
#define GCM_NONCE_LEN	12
#define GCM_TAG_LEN		16

/* AES-256 keyed to encrypt single blocks. */
typedef struct AesKey AesKey;

/* AES-256-GCM, with a key or waiting for one; cipher.h's, seen from below. */
typedef struct CipherCtx CipherCtx;

typedef struct CipherEngine
{
	const char *name;

	/*
	 * Once, before anything else; what it prepares is inherited across fork.
	 * False if this machine lacks something.
	 */
	bool		(*prepare) (void);
	const char *(*version) (void);	/* of the library, once prepared */

	AesKey	   *(*aes_new) (const uint8_t key[AES_KEY_LEN]);
	bool		(*aes_encrypt) (AesKey *aes, const uint8_t *in, size_t len, uint8_t *out);
	void		(*aes_free) (AesKey *aes);

	/* A context without a key; gcm_key gives it one, again and again. */
	CipherCtx  *(*gcm_new) (void);
	bool		(*gcm_key) (CipherCtx *ctx, const uint8_t key[AES_KEY_LEN]);
	void		(*gcm_free) (CipherCtx *ctx);
	bool		(*gcm_seal) (CipherCtx *ctx, const uint8_t nonce[GCM_NONCE_LEN],
							 const uint8_t *aad, size_t aad_len,
							 const uint8_t *plain, size_t len, uint8_t *out);

	/* len is without the tag, which follows; out may be dirty on failure */
	bool		(*gcm_open) (CipherCtx *ctx, const uint8_t nonce[GCM_NONCE_LEN],
							 const uint8_t *aad, size_t aad_len,
							 const uint8_t *in, size_t len, uint8_t *out);
} CipherEngine;

extern const CipherEngine cipher_openssl;

#ifdef WITH_IPSEC_MB
extern const CipherEngine cipher_ipsec_mb;
#endif

#endif							/* NOMP_CIPHER_ENGINE_H */
