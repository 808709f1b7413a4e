/*
 * residue_test.c
 *		The ciphers leave no key behind in memory.
 *
 * --quick leaves out the search through memory, which valgrind makes slow.
 */
#include "ciphers.h"
#include "residue.h"

#ifndef UNDER_ASAN

/* Fill key with a secret that is needle n, byte by byte. */
static void
reveal(int n, uint8_t key[32])
{
	for (int i = 0; i < 32; i++)
		key[i] = needles[n][i] ^ MASK;
}

/* HKDF and the ciphers with needle 0, whose results become needles. */
__attribute__((noinline))
static void
learn_needles(void)
{
	uint8_t		key[32],
				out[32];

	cipher_random(out, 32);
	add_needle(out);
	reveal(0, key);
	cipher_hkdf(key, 32, (const uint8_t *) "x", 1, out);
	add_needle(out);

	/* What HMAC hashes first, and second: the key, masked with constants. */
	for (int pass = 0; pass < 2; pass++)
	{
		for (int i = 0; i < 32; i++)
			out[i] = key[i] ^ (pass == 0 ? 0x36 : 0x5c);
		add_needle(out);
	}
	cipher_wipe(out, sizeof(out));
	cipher_wipe(key, sizeof(key));

	/* C2SP's derived keys, known without computing them here. */
	for (int i = 0; i < 2; i++)
	{
		from_hex(xaes_vectors[i].derived, out, sizeof(out));
		add_needle(out);
	}
	cipher_wipe(out, sizeof(out));
}

/*
 * Derive, seal and open with the second C2SP key, HKDF and HMAC with
 * needle 0.
 */
__attribute__((noinline))
static CipherCtx *
use_keys(void)
{
	const uint8_t *nonce = (const uint8_t *) SPEC_NONCE;
	uint8_t		key[32],
				message[32] = {0},
				out[32],
				sealed[48];
	CipherCtx  *ctx;

	reveal(0, key);
	cipher_hkdf(key, 32, (const uint8_t *) "x", 1, out);
	cipher_free(derive_or_bail(key, nonce));
	cipher_free(derive_or_bail(out, nonce));
	cipher_hmac(key, (const uint8_t *) "x", 1, out);
	cipher_wipe(key, sizeof(key));
	cipher_wipe(out, sizeof(out));

	memset(key, xaes_vectors[1].key_byte, sizeof(key));
	ctx = derive_or_bail(key, nonce);
	for (int i = 0; i < 2; i++)
	{
		CipherRoot *root = cipher_root(key);

		cipher_seal(ctx, nonce + 12, NULL, 0, message, 32, sealed);
		cipher_open(ctx, nonce + 12, NULL, 0, sealed, 48, out);
		if (root == NULL || !cipher_derive_again(ctx, root, nonce))
			tap_bail("no key derived again");
		cipher_root_free(root);
	}
	cipher_open(ctx, nonce + 12, NULL, 0, sealed, 48, out);
	return ctx;
}

static void
test_nothing_stays(const char *engine)
{
	CipherCtx  *ctx;
	int			pieces;

	if (needle_count == 0)
		learn_needles();
	/* The first time the libraries also load and bind things. */
	cipher_free(use_keys());
	ctx = use_keys();
	pieces = find_everywhere();
	tap_ok(pieces >= 4, "%s: a context in use has its key in memory (%d pieces found)", engine, pieces);
	cipher_free(ctx);
	pieces = find_everywhere();
	tap_ok(pieces == 0, "%s: once freed, no key is anywhere in memory (%d pieces found)", engine, pieces);
}

#endif							/* UNDER_ASAN */

int
main(int argc, char **argv)
{
#ifdef UNDER_ASAN
	tap_skip("no key stays in memory", "not with the sanitizer's memory");
#else
	if (argc > 1 && strcmp(argv[1], "--quick") == 0)
		tap_skip("no key stays in memory", "--quick");
	else
		with_each_engine(test_nothing_stays);
#endif
	return tap_done();
}
