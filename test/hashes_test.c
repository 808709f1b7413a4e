/*
 * hashes_test.c
 *		HKDF-SHA-256 and HMAC-SHA-256 compute what the RFCs say.
 */
#include "ciphers.h"
#include "tap.h"

/* ------------------------------------------------------------------------
 * HKDF
 * ------------------------------------------------------------------------ */

static void
test_hkdf(void)
{
	uint8_t		ikm[255],
				info[255],
				out[32];

	memset(ikm, 0x0b, 22);
	tap_ok(cipher_hkdf(ikm, 22, NULL, 0, out) &&
		   equals_hex(out, 32, "8da4e775a563c18f715f802a063c5a31"
					  "b8a11f5c5ee1879ec3454e5f3c738d2d"),
		   "HKDF: RFC 5869 test case 3, first 32 bytes");

	/* The next two were computed with Python's hmac module. */
	for (int i = 0; i < 255; i++)
		ikm[i] = info[i] = (uint8_t) i;
	tap_ok(cipher_hkdf(ikm, 32, info, 57, out) &&
		   equals_hex(out, 32, "31c2b274fb1e5216d3f5125f761dea27"
					  "d9b141deaccb8ee759565e34a287cf29"),
		   "HKDF: 32-byte key, 57-byte info");
	tap_ok(cipher_hkdf(ikm, 32, info, 255, out) &&
		   equals_hex(out, 32, "5abe47813de41880f3386b18135546bb"
					  "98311c379f5b0cb2bf34033ae3b5fa7f"),
		   "HKDF: info longer than a block of the hash");
	tap_ok(!cipher_hkdf(ikm, 0, info, 57, out), "HKDF refuses an empty key");
}

/* ------------------------------------------------------------------------
 * HMAC: RFC 4231's test cases 1 to 5.  Their keys are shorter than ours,
 * which changes nothing: HMAC pads a key with zeros.  The fifth is RFC 4231's
 * own truncation.
 * ------------------------------------------------------------------------ */

typedef struct HmacVector
{
	const char *key;			/* in hex */
	const char *data;
	size_t		repeat;			/* data is one byte, that often; 0: a string */
	const char *mac;
} HmacVector;

static const HmacVector hmac_vectors[] = {
	{"0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "Hi There", 0,
	"b0344c61d8db38535ca8afceaf0bf12b"},
	{"4a656665", "what do ya want for nothing?", 0,
	"5bdcc146bf60754e6a042426089575c7"},
	{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\xdd", 50,
	"773ea91e36800e46854db8ebd09181a7"},
	{"0102030405060708090a0b0c0d0e0f10111213141516171819", "\xcd", 50,
	"82558a389a443c0ea4cc819899f2083a"},
	{"0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c", "Test With Truncation", 0,
	"a3b6167473100ee06e0c796c2955552b"},
};

static void
test_hmac(void)
{
	uint8_t		key[32],
				data[64],
				mac[CIPHER_MAC_LEN];

	for (int i = 0; i < 5; i++)
	{
		const HmacVector *v = &hmac_vectors[i];
		size_t		len = v->repeat > 0 ? v->repeat : strlen(v->data);

		memset(key, 0, sizeof(key));
		from_hex(v->key, key, sizeof(key));
		if (v->repeat > 0)
			memset(data, v->data[0], len);
		else
			memcpy(data, v->data, len);
		tap_ok(cipher_hmac(key, data, len, mac) &&
			   equals_hex(mac, sizeof(mac), v->mac),
			   "HMAC-SHA-256: RFC 4231, test case %d", i + 1);
	}
	/* Computed with Python's hmac module. */
	memset(key, 0x42, sizeof(key));
	tap_ok(cipher_hmac(key, NULL, 0, mac) &&
		   equals_hex(mac, sizeof(mac), "58f0742d53a418d2df62182814f13760"),
		   "HMAC-SHA-256: 32-byte key, no data");
}

int
main(void)
{
	test_hkdf();
	test_hmac();
	return tap_done();
}
