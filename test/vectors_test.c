/*
 * vectors_test.c
 *		The ciphers compute what the standards say, and refuse every change.
 *
 * Run it from the source folder, or name the folder of vector files.
 *
 * --quick leaves out a million iterations.
 */
#include <openssl/evp.h>

#include "ciphers.h"
#include "tap.h"

#define MAX_TEXT		128
#define SPEC_PLAIN		"XAES-256-GCM"

static bool quick;

/* ------------------------------------------------------------------------
 * C2SP's vectors
 * ------------------------------------------------------------------------ */

static void
test_xaes_vectors(void)
{
	const uint8_t *nonce = (const uint8_t *) SPEC_NONCE;
	size_t		len = strlen(SPEC_PLAIN);

	for (int i = 0; i < 2; i++)
	{
		const XaesVector *v = &xaes_vectors[i];
		const uint8_t *aad = (const uint8_t *) v->aad;
		uint8_t		key[32],
					derived[32],
					sealed[64],
					opened[64];
		CipherCtx  *ctx;
		CipherCtx  *gcm;

		memset(key, v->key_byte, sizeof(key));
		ctx = derive_or_bail(key, nonce);
		tap_ok(cipher_seal(ctx, nonce + 12, aad, strlen(v->aad),
						   (const uint8_t *) SPEC_PLAIN, len, sealed) &&
			   equals_hex(sealed, len + 16, v->sealed),
			   "C2SP vector %d seals", i + 1);
		tap_ok(cipher_open(ctx, nonce + 12, aad, strlen(v->aad),
						   sealed, len + 16, opened) &&
			   memcmp(opened, SPEC_PLAIN, len) == 0,
			   "C2SP vector %d opens", i + 1);

		from_hex(v->derived, derived, sizeof(derived));
		gcm = cipher_from_gcm_key(derived);
		tap_ok(gcm != NULL &&
			   cipher_open(gcm, nonce + 12, aad, strlen(v->aad),
						   sealed, len + 16, opened),
			   "C2SP vector %d has the derived key of the specification", i + 1);
		cipher_free(gcm);
		cipher_free(ctx);
	}
}

/*
 * One iteration of the accumulated test: the inputs are read from stream,
 * the sealed text goes into the hash.  Returns how much was read, 0 on error.
 */
static size_t
accumulate(const uint8_t *stream, EVP_MD_CTX *hash)
{
	const uint8_t *key = stream;
	const uint8_t *nonce = key + 32;
	size_t		plain_len = nonce[24];
	const uint8_t *plain = nonce + 25;
	size_t		aad_len = plain[plain_len];
	const uint8_t *aad = plain + plain_len + 1;
	uint8_t		sealed[255 + 16],
				opened[255];
	CipherCtx  *ctx = derive(key, nonce);
	bool		ok;

	ok = ctx != NULL &&
		cipher_seal(ctx, nonce + 12, aad, aad_len, plain, plain_len, sealed) &&
		cipher_open(ctx, nonce + 12, aad, aad_len, sealed, plain_len + 16, opened) &&
		memcmp(opened, plain, plain_len) == 0 &&
		EVP_DigestUpdate(hash, sealed, plain_len + 16) == 1;
	cipher_free(ctx);
	return ok ? (size_t) (aad + aad_len - stream) : 0;
}

static void
test_accumulated(int iterations, const char *expected)
{
	/* 313 bytes an iteration on average; the stream is always the same. */
	size_t		size = (size_t) iterations * 320 + 568;
	uint8_t    *stream = malloc(size);
	EVP_MD_CTX *source = EVP_MD_CTX_new();
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	uint8_t		digest[32] = {0};
	size_t		pos = 0;
	int			done = 0;

	if (stream == NULL ||
		EVP_DigestInit_ex(source, EVP_shake128(), NULL) != 1 ||
		EVP_DigestInit_ex(hash, EVP_shake128(), NULL) != 1 ||
		EVP_DigestFinalXOF(source, stream, size) != 1)
		tap_bail("no stream for the accumulated test");
	while (done < iterations && size - pos >= 568)
	{
		size_t		used = accumulate(stream + pos, hash);

		if (used == 0)
			break;
		pos += used;
		done++;
	}
	tap_ok(done == iterations &&
		   EVP_DigestFinalXOF(hash, digest, sizeof(digest)) == 1 &&
		   equals_hex(digest, sizeof(digest), expected),
		   "C2SP accumulated test, %d iterations", iterations);
	EVP_MD_CTX_free(source);
	EVP_MD_CTX_free(hash);
	free(stream);
}

/* ------------------------------------------------------------------------
 * NIST's AES-GCM vectors
 * ------------------------------------------------------------------------ */

/* "-" is none. */
static size_t
vector_field(const char *field, uint8_t out[MAX_TEXT])
{
	return strcmp(field, "-") == 0 ? 0 : from_hex(field, out, MAX_TEXT);
}

/* One line of a vector file: both directions, or a refusal. */
static bool
run_gcm_vector(char fields[6][2 * MAX_TEXT + 1])
{
	uint8_t		key[MAX_TEXT],
				iv[MAX_TEXT],
				aad[MAX_TEXT],
				plain[MAX_TEXT],
				sealed[MAX_TEXT + 16],
				out[MAX_TEXT + 16];
	bool		must_fail = strcmp(fields[3], "FAIL") == 0;
	size_t		aad_len = vector_field(fields[2], aad);
	size_t		len = vector_field(fields[4], sealed);
	CipherCtx  *ctx;
	bool		ok;

	if (vector_field(fields[0], key) != 32 || vector_field(fields[1], iv) != 12 ||
		from_hex(fields[5], sealed + len, 16) != 16)
		tap_bail("a vector of another shape");
	memset(out, 0xee, sizeof(out));
	ctx = cipher_from_gcm_key(key);
	if (must_fail)
		ok = !cipher_open(ctx, iv, aad, aad_len, sealed, len + 16, out) &&
			all_zero(out, len);
	else
		ok = vector_field(fields[3], plain) == len &&
			cipher_open(ctx, iv, aad, aad_len, sealed, len + 16, out) &&
			memcmp(out, plain, len) == 0 &&
			cipher_seal(ctx, iv, aad, aad_len, plain, len, out) &&
			memcmp(out, sealed, len + 16) == 0;
	cipher_free(ctx);
	return ok;
}

static void
test_gcm_file(const char *folder, const char *name, int expected)
{
	char		path[1024];
	char		line[2048];
	char		fields[6][2 * MAX_TEXT + 1];
	int			seen = 0;
	int			passed = 0;
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "r");
	if (file == NULL)
		tap_bail("could not open %s", path);
	while (fgets(line, sizeof(line), file) != NULL)
	{
		if (line[0] == '#')
			continue;
		if (sscanf(line, "%256s %256s %256s %256s %256s %256s", fields[0],
				   fields[1], fields[2], fields[3], fields[4], fields[5]) != 6)
			tap_bail("%s: not a vector: %s", path, line);
		seen++;
		passed += run_gcm_vector(fields);
	}
	fclose(file);
	tap_ok(seen == expected && passed == seen, "%s: %d of %d", name, passed, seen);
}

/* ------------------------------------------------------------------------
 * Tampering
 * ------------------------------------------------------------------------ */

#define PLAIN_LEN		32

typedef struct Message
{
	uint8_t		key[32];
	uint8_t		nonce[24];
	uint8_t		aad[26];
	uint8_t		sealed[PLAIN_LEN + 16];
} Message;

static const uint8_t message_plain[PLAIN_LEN + 1] = "thirty-two bytes of private data";

static void
make_message(Message *m)
{
	CipherCtx  *ctx;

	fill((uint8_t *) m, sizeof(*m));
	ctx = derive_or_bail(m->key, m->nonce);
	if (!cipher_seal(ctx, m->nonce + 12, m->aad, sizeof(m->aad),
					 message_plain, PLAIN_LEN, m->sealed))
		tap_bail("no message to tamper with");
	cipher_free(ctx);
}

/* Whether it opens to the plaintext; if it does not, nothing may come out. */
static bool
opens(const Message *m, size_t aad_len, size_t sealed_len)
{
	uint8_t		out[48];
	CipherCtx  *ctx = derive_or_bail(m->key, m->nonce);
	bool		ok;

	memset(out, 0xee, sizeof(out));
	ok = cipher_open(ctx, m->nonce + 12, m->aad, aad_len,
					 m->sealed, sealed_len, out);
	cipher_free(ctx);
	if (!ok && sealed_len >= 16 && !all_zero(out, sealed_len - 16))
		tap_bail("a refused message left bytes in the output");
	return ok && memcmp(out, message_plain, PLAIN_LEN) == 0;
}

/* Flip each bit of one field in turn; returns how many still opened. */
static int
flips_accepted(Message *m, uint8_t *field, size_t len)
{
	int			accepted = 0;

	for (size_t bit = 0; bit < 8 * len; bit++)
	{
		field[bit / 8] ^= (uint8_t) (1 << bit % 8);
		accepted += opens(m, sizeof(m->aad), sizeof(m->sealed));
		field[bit / 8] ^= (uint8_t) (1 << bit % 8);
	}
	return accepted;
}

static void
test_tampering(void)
{
	Message		m;
	int			accepted = 0;

	make_message(&m);
	tap_ok(opens(&m, sizeof(m.aad), sizeof(m.sealed)), "the untouched message opens");
	tap_ok(flips_accepted(&m, m.sealed, 32) == 0, "every flipped bit of the ciphertext is refused");
	tap_ok(flips_accepted(&m, m.sealed + 32, 16) == 0, "every flipped bit of the tag is refused");
	tap_ok(flips_accepted(&m, m.aad, sizeof(m.aad)) == 0,
		   "every flipped bit of the additional data is refused");
	tap_ok(flips_accepted(&m, m.nonce, sizeof(m.nonce)) == 0,
		   "every flipped bit of the nonce is refused");
	tap_ok(flips_accepted(&m, m.key, sizeof(m.key)) == 0, "every flipped bit of the key is refused");

	for (size_t len = 0; len < sizeof(m.sealed); len++)
		accepted += opens(&m, sizeof(m.aad), len);
	tap_ok(accepted == 0, "every truncation of ciphertext and tag is refused");
	accepted = 0;
	for (size_t len = 0; len < sizeof(m.aad); len++)
		accepted += opens(&m, len, sizeof(m.sealed));
	tap_ok(accepted == 0, "every truncation of the additional data is refused");
	tap_ok(opens(&m, sizeof(m.aad), sizeof(m.sealed)), "and the message still opens");
}

/*
 * The same with one context throughout, as a scan uses it: what it was last
 * told, nonce, tag or data, must not help the next value.
 */
static void
test_tampering_kept(void)
{
	Message		m;
	uint8_t		out[48];
	uint8_t    *fields[] = {m.sealed, m.aad, m.nonce + 12};
	const size_t sizes[] = {sizeof(m.sealed), sizeof(m.aad), 12};
	CipherCtx  *ctx;
	int			accepted = 0;
	int			opened = 0;

	make_message(&m);
	ctx = derive_or_bail(m.key, m.nonce);
	for (int f = 0; f < 3; f++)
	{
		for (size_t bit = 0; bit < 8 * sizes[f]; bit++)
		{
			fields[f][bit / 8] ^= (uint8_t) (1 << bit % 8);
			accepted += cipher_open(ctx, m.nonce + 12, m.aad, sizeof(m.aad), m.sealed, 48, out);
			accepted += !all_zero(out, PLAIN_LEN);
			fields[f][bit / 8] ^= (uint8_t) (1 << bit % 8);
			opened += cipher_open(ctx, m.nonce + 12, m.aad, sizeof(m.aad), m.sealed, 48, out);
		}
	}
	tap_ok(accepted == 0, "a kept context refuses every flipped bit, and gives nothing out");
	tap_ok(opened == 8 * (48 + 26 + 12), "and opens the untouched message in between");
	cipher_free(ctx);
}

/* A context that is derived again is as good as a new one, in both directions. */
static void
test_derived_again(void)
{
	Message		first,
				second;
	uint8_t		sealed[48],
				out[48];
	CipherRoot *root;
	CipherCtx  *ctx;
	bool		ok = true;

	make_message(&first);
	make_message(&second);
	ctx = derive_or_bail(first.key, first.nonce);
	for (int i = 0; i < 20; i++)
	{
		const Message *m = i % 2 == 0 ? &second : &first;
		const Message *other = i % 2 == 0 ? &first : &second;

		root = cipher_root(m->key);
		ok &= root != NULL && cipher_derive_again(ctx, root, m->nonce);
		cipher_root_free(root);
		ok &= cipher_open(ctx, m->nonce + 12, m->aad, sizeof(m->aad), m->sealed, 48, out);
		ok &= memcmp(out, message_plain, PLAIN_LEN) == 0;
		ok &= !cipher_open(ctx, other->nonce + 12, other->aad, sizeof(other->aad),
						   other->sealed, 48, out);
		ok &= cipher_seal(ctx, m->nonce + 12, m->aad, sizeof(m->aad), message_plain, 32, sealed);
		ok &= memcmp(sealed, m->sealed, 48) == 0;
	}
	tap_ok(ok, "a context derived again has the new key alone");
	cipher_free(ctx);
}

/* A context is used for many values: none may disturb the next. */
static void
test_reuse(void)
{
	Message		m;
	uint8_t		sealed[48],
				out[32];
	CipherCtx  *ctx;
	bool		ok = true;

	make_message(&m);
	ctx = derive_or_bail(m.key, m.nonce);
	for (int i = 0; i < 100; i++)
	{
		const uint8_t *tail = m.nonce + 12;

		m.sealed[47] ^= 1;
		ok &= !cipher_open(ctx, tail, m.aad, sizeof(m.aad), m.sealed, 48, out);
		m.sealed[47] ^= 1;
		ok &= cipher_open(ctx, tail, m.aad, sizeof(m.aad), m.sealed, 48, out);
		ok &= memcmp(out, message_plain, 32) == 0;
		ok &= cipher_seal(ctx, tail, m.aad, sizeof(m.aad), message_plain, 32, sealed);
		ok &= memcmp(sealed, m.sealed, 48) == 0;
		ok &= !cipher_open(ctx, tail, m.aad, sizeof(m.aad), m.sealed, 15, out);
	}
	tap_ok(ok, "a kept context serves both directions, also after refusals");

	ok = cipher_seal(ctx, m.nonce + 12, NULL, 0, NULL, 0, sealed) &&
		cipher_open(ctx, m.nonce + 12, NULL, 0, sealed, 16, NULL);
	sealed[0] ^= 1;
	ok &= !cipher_open(ctx, m.nonce + 12, NULL, 0, sealed, 16, NULL);
	tap_ok(ok, "an empty message seals, opens and is protected");
	cipher_free(ctx);
	cipher_free(NULL);
}

static void
test_helpers(void)
{
	static uint8_t big[1 << 20];
	uint8_t		a[24] = {0},
				b[24] = {0};

	tap_ok(cipher_equal(a, b, 24) && cipher_equal(a, b, 0), "equal bytes are equal");
	b[23] = 1;
	tap_ok(!cipher_equal(a, b, 24) && cipher_equal(a, b, 23), "a last byte that differs is seen");
	tap_ok(cipher_random(a, 24) && cipher_random(b, 24) && memcmp(a, b, 24) != 0 &&
		   cipher_random(big, sizeof(big)) && !all_zero(big + sizeof(big) - 64, 64),
		   "random bytes differ, and a large request is filled to its end");
	cipher_wipe(a, sizeof(a));
	tap_ok(all_zero(a, sizeof(a)), "wiped is zero");
}

static const char *folder = "test/vectors";

static void
test_engine(const char *engine)
{
	printf("# %s %s\n", engine, cipher_library_version());
	tap_ok(strcmp(engine, cipher_library()) == 0, "%s is in use", engine);
	test_xaes_vectors();
	test_accumulated(10000, "e6b9edf2df6cec60c8cbd864e2211b59"
					 "7fb69a529160cd040d56c0c210081939");
	if (quick)
		tap_skip("C2SP accumulated test, 1000000 iterations", "--quick");
	else
		test_accumulated(1000000, "2163ae1445985a30b60585ee67daa556"
						 "74df06901b890593e824b8a7c885ab15");
	test_gcm_file(folder, "nist_gcm_encrypt256.txt", 125);
	test_gcm_file(folder, "nist_gcm_decrypt256.txt", 125);
	test_tampering();
	test_tampering_kept();
	test_derived_again();
	test_reuse();
}

int
main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "--quick") == 0)
			quick = true;
		else
			folder = argv[i];
	}

	tap_ok(!cipher_use("none"), "an engine that there is not is refused");
	with_each_engine(test_engine);
	test_helpers();
	return tap_done();
}
