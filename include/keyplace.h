/*
 * keyplace.h
 *		Binds a data key to its place: school, purpose, version.
 *
 * Defines the bytes that a wrap authenticates (aad) and the labels of every
 * HKDF derivation.  With lp(x) = u16 big-endian length of x, then x:
 *
 *		place     = lp(school uuid, 16 bytes) | lp(purpose) | lp(version, u32 BE)
 *		wrap aad  = lp("nomp_crypt wrap v1") | place
 *		key_check = HKDF(data key, lp("nomp_crypt key_check v1") | place)
 *		k_enc     = HKDF(data key, lp("nomp_crypt k_enc v1") | place)
 *		k_idx     = HKDF(data key, lp("nomp_crypt k_idx v1") | place)
 *
 * purpose is "values" or "index".  key_id is the first 8 bytes of key_check.
 */
#ifndef NOMP_KEYPLACE_H
#define NOMP_KEYPLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KEYPLACE_MAX		80
#define KEY_CHECK_LEN		32

typedef struct KeyPlace
{
	uint8_t		tenant[16];
	uint8_t		is_index;		/* purpose: 0 "values", 1 "index" */
	uint32_t	version;
} KeyPlace;

/* The wrap's additional authenticated data; returns its length. */
extern size_t keyplace_aad(const KeyPlace *place, uint8_t out[KEYPLACE_MAX]);

/* Derive key_check from an unwrapped data key. */
extern bool keyplace_check(const KeyPlace *place, const uint8_t dek[32],
						   uint8_t out[KEY_CHECK_LEN]);

/* Derive the working key: k_enc for values, k_idx for an index key. */
extern bool keyplace_working_key(const KeyPlace *place, const uint8_t dek[32],
								 uint8_t out[32]);

#endif							/* NOMP_KEYPLACE_H */
