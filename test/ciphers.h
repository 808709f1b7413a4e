/*
 * ciphers.h
 *		For the test programs: one value, one key.
 */
#ifndef NOMP_TEST_CIPHERS_H
#define NOMP_TEST_CIPHERS_H

#include <string.h>

#include "cipher.h"

static inline CipherCtx *
derive(const uint8_t key[CIPHER_KEY_LEN], const uint8_t prefix[CIPHER_PREFIX_LEN])
{
	CipherRoot *root = cipher_root(key);
	CipherCtx  *ctx = root != NULL ? cipher_derive(root, prefix) : NULL;

	cipher_root_free(root);
	return ctx;
}

/* Twice, because a kept key must give the same again. */
static inline bool
hmac(const uint8_t key[CIPHER_KEY_LEN], const uint8_t *data, size_t len,
	 uint8_t out[CIPHER_MAC_LEN])
{
	CipherMac  *mac = cipher_mac(key);
	uint8_t		first[CIPHER_MAC_LEN];
	bool		ok;

	ok = mac != NULL && cipher_mac_take(mac, data, len, first) &&
		cipher_mac_take(mac, data, len, out) && memcmp(first, out, CIPHER_MAC_LEN) == 0;
	cipher_mac_free(mac);
	return ok;
}

#endif							/* NOMP_TEST_CIPHERS_H */
