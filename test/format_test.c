/*
 * format_test.c
 *		The value format and the places of keys: exact bytes, every refusal,
 *		and agreement with the reader in decrypt.py and the example in
 *		docs/format.md.
 *
 * Run it from the source folder.  format_test --emit prints values for
 * decrypt.py --check, format_test --example the example of docs/format.md.
 */
#include <sys/wait.h>

#include <openssl/evp.h>

#include "ciphers.h"
#include "keyplace.h"
#include "value.h"
#include "tap.h"

#define EMITTED		200
#define MAX_PLAIN	300
#define MAX_VALUE	(VALUE_MIN_LEN + VALUE_FINGERPRINT_LEN + MAX_PLAIN)

/* value.h and cipher.h do not know each other, but must agree. */
_Static_assert(VALUE_NONCE_LEN == CIPHER_NONCE_LEN, "one nonce");
_Static_assert(VALUE_TAG_LEN == CIPHER_TAG_LEN, "one tag");
_Static_assert(VALUE_KEY_ID_LEN <= KEY_CHECK_LEN, "key_id is the start of key_check");

/* Everything that makes a value. */
typedef struct Sample
{
	KeyPlace	place;
	uint8_t		dek[32];
	uint8_t		nonce[VALUE_NONCE_LEN];
	uint8_t		fingerprint[VALUE_FINGERPRINT_LEN];
	bool		searchable;
	uint8_t		plain[MAX_PLAIN];
	size_t		plain_len;
} Sample;

/* What the server does for one value; returns the value's size. */
static size_t
seal_sample(const Sample *s, uint8_t value[MAX_VALUE])
{
	uint8_t		key_check[KEY_CHECK_LEN],
				key[32],
				aad[VALUE_MAX_AAD];
	size_t		size = value_size(s->plain_len, s->searchable);
	uint8_t    *body;
	ValueView	view;
	CipherCtx  *ctx = NULL;
	bool		ok;

	ok = keyplace_check(&s->place, s->dek, key_check) &&
		keyplace_working_key(&s->place, s->dek, key);
	if (ok)
		ctx = derive(key, s->nonce);
	body = value_write_header(value, VALUE_TYPE_TEXT, key_check, s->nonce,
							  s->searchable ? s->fingerprint : NULL);
	ok = ok && ctx != NULL && value_parse(value, size, &view) &&
		view.body == body && view.body_len == s->plain_len + VALUE_TAG_LEN &&
		cipher_seal(ctx, view.nonce + CIPHER_PREFIX_LEN, aad,
					copy_aad(&view, aad), s->plain, s->plain_len, body);
	cipher_free(ctx);
	if (!ok)
		tap_bail("could not make a value");
	return size;
}

/* Whether those bytes are a value that opens with that working key. */
static bool
opens(const uint8_t *value, size_t size, const uint8_t key[32])
{
	uint8_t		aad[VALUE_MAX_AAD],
				out[MAX_VALUE];
	ValueView	view;
	CipherCtx  *ctx;
	bool		ok;

	if (!value_parse(value, size, &view))
		return false;
	ctx = derive(key, view.nonce);
	ok = ctx != NULL &&
		cipher_open(ctx, view.nonce + CIPHER_PREFIX_LEN, aad,
					copy_aad(&view, aad), view.body, view.body_len, out);
	cipher_free(ctx);
	return ok;
}

static void
random_sample(Sample *s, size_t plain_len, bool searchable)
{
	fill((uint8_t *) s, sizeof(*s));
	s->place.is_index = 0;
	s->place.version = (uint32_t) next_byte() << 24 | next_byte();
	s->searchable = searchable;
	s->plain_len = plain_len;
}

/* ------------------------------------------------------------------------
 * Printing
 * ------------------------------------------------------------------------ */

static void
print_hex(FILE *out, const void *bytes, size_t len)
{
	if (len == 0)
		fputs("-", out);
	for (size_t i = 0; i < len; i++)
		fprintf(out, "%02x", ((const uint8_t *) bytes)[i]);
}

static void
print_uuid(FILE *out, const uint8_t uuid[16])
{
	for (int i = 0; i < 16; i++)
		fprintf(out, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
				uuid[i]);
}

static void
print_text_form(FILE *out, const uint8_t *value, size_t size)
{
	uint8_t		text[(MAX_VALUE + 2) / 3 * 4 + 1];

	EVP_EncodeBlock(text, value, (int) size);
	fprintf(out, "nc1:%s\n", (char *) text);
}

/* One line for decrypt.py --check; flip is a bit to change, or -1. */
static void
emit_sample(FILE *out, const Sample *s, int flip)
{
	uint8_t		value[MAX_VALUE];
	size_t		size = seal_sample(s, value);

	if (flip >= 0)
		value[flip / 8] ^= (uint8_t) (1 << flip % 8);
	print_hex(out, s->dek, sizeof(s->dek));
	fputc(' ', out);
	print_uuid(out, s->place.tenant);
	fprintf(out, " %u ", s->place.version);
	print_hex(out, s->plain, s->plain_len);
	fputc(' ', out);
	print_text_form(out, value, size);
}

static void
emit(FILE *out)
{
	for (size_t i = 0; i < EMITTED; i++)
	{
		Sample		s;

		random_sample(&s, i % 100 == 99 ? MAX_PLAIN : i / 2, i % 2 == 1);
		emit_sample(out, &s, -1);
	}
}

/* ------------------------------------------------------------------------
 * The example of docs/format.md
 * ------------------------------------------------------------------------ */

static void
print_field(FILE *out, const char *name, const void *bytes, size_t len)
{
	fprintf(out, "%-13s", name);
	print_hex(out, bytes, len);
	fputc('\n', out);
}

/* The value's own lines. */
static void
print_example_value(FILE *out, const Sample *s)
{
	uint8_t		value[MAX_VALUE],
				aad[VALUE_MAX_AAD];
	size_t		size = seal_sample(s, value);
	ValueView	view;

	if (!value_parse(value, size, &view))
		tap_bail("the example is no value");
	print_field(out, "nonce", s->nonce, sizeof(s->nonce));
	if (s->searchable)
		print_field(out, "fingerprint", s->fingerprint, sizeof(s->fingerprint));
	print_field(out, "aad", aad, copy_aad(&view, aad));
	print_field(out, "value", value, size);
	fprintf(out, "%-13s", "text form");
	print_text_form(out, value, size);
}

/* A wrap as the token makes it, with a key that is in the open here. */
static void
print_example_wrap(FILE *out, const Sample *s)
{
	uint8_t		kek[32],
				wrapped[1 + 12 + 32 + 16] = {0x01},
				aad[KEYPLACE_MAX];
	size_t		aad_len = keyplace_aad(&s->place, aad);
	CipherCtx  *ctx;

	for (int i = 0; i < 32; i++)
		kek[i] = (uint8_t) (0x80 + i);
	for (int i = 0; i < 12; i++)
		wrapped[1 + i] = (uint8_t) (0xc0 + i);
	ctx = cipher_from_gcm_key(kek);
	if (ctx == NULL ||
		!cipher_seal(ctx, wrapped + 1, aad, aad_len, s->dek, 32, wrapped + 13))
		tap_bail("could not make a wrap");
	cipher_free(ctx);
	print_field(out, "KEK", kek, sizeof(kek));
	print_field(out, "wrap aad", aad, aad_len);
	print_field(out, "wrapped", wrapped, sizeof(wrapped));
}

/* The index key's lines; takes the fingerprint of the plaintext. */
static void
print_example_index(FILE *out, Sample *s)
{
	KeyPlace	place = s->place;
	uint8_t		index_key[32],
				k_idx[32];

	place.is_index = 1;
	for (int i = 0; i < 32; i++)
		index_key[i] = (uint8_t) (0x20 + i);
	if (!keyplace_working_key(&place, index_key, k_idx) ||
		!cipher_hmac(k_idx, s->plain, s->plain_len, s->fingerprint))
		tap_bail("no fingerprint for the example");
	print_field(out, "index key", index_key, sizeof(index_key));
	print_field(out, "k_idx", k_idx, sizeof(k_idx));
}

static void
print_example(FILE *out)
{
	static const char name[] = "Anna \xc3\x96" "berg";
	uint8_t		installation[16],
				key_check[KEY_CHECK_LEN],
				key[32];
	Sample		s = {.place = {.version = 1}, .plain_len = sizeof(name) - 1};

	for (int i = 0; i < 32; i++)
		s.dek[i] = (uint8_t) i;
	for (int i = 0; i < 24; i++)
		s.nonce[i] = (uint8_t) (0x40 + i);
	for (int i = 0; i < 16; i++)
	{
		installation[i] = (uint8_t) (0x11 * i);
		s.place.tenant[i] = (uint8_t) (0xff - 0x11 * i);
	}
	memcpy(s.plain, name, s.plain_len);
	if (!keyplace_check(&s.place, s.dek, key_check) ||
		!keyplace_working_key(&s.place, s.dek, key))
		tap_bail("no keys for the example");

	fprintf(out, "%-13s", "tenant");
	print_uuid(out, s.place.tenant);
	fprintf(out, "\n%-13snomp_crypt:", "KEK label");
	print_uuid(out, installation);
	fputc(':', out);
	print_uuid(out, s.place.tenant);
	fprintf(out, ":1\n%-13s%s\n%-13s%u\n", "purpose", "values", "version", s.place.version);
	print_example_wrap(out, &s);
	print_field(out, "data key", s.dek, sizeof(s.dek));
	print_field(out, "key_check", key_check, sizeof(key_check));
	print_field(out, "key_id", key_check, VALUE_KEY_ID_LEN);
	print_field(out, "k_enc", key, sizeof(key));
	print_field(out, "plaintext", s.plain, s.plain_len);
	print_example_value(out, &s);
	print_example_index(out, &s);
	s.searchable = true;
	s.nonce[23]++;
	print_example_value(out, &s);
}

/* The page shows exactly what the code computes. */
static void
test_example(const char *page)
{
	static char text[65536];
	char	   *example = NULL;
	size_t		len;
	FILE	   *memory = open_memstream(&example, &len);
	FILE	   *file = fopen(page, "r");

	if (memory == NULL || file == NULL)
		tap_bail("could not open %s", page);
	text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
	fclose(file);
	print_example(memory);
	fclose(memory);
	tap_ok(strstr(text, example) != NULL, "the example of %s is what the code computes", page);
	free(example);
}

/* ------------------------------------------------------------------------
 * The other reader
 * ------------------------------------------------------------------------ */

static FILE *
start_reader(const char *arguments)
{
	const char *python = getenv("PYTHON");
	char		command[512];
	FILE	   *reader;

	snprintf(command, sizeof(command), "%s test/decrypt.py %s",
			 python != NULL ? python : "/usr/bin/python3", arguments);
	reader = popen(command, "w");
	if (reader == NULL)
		tap_bail("could not start %s", command);
	return reader;
}

static int
reader_status(FILE *reader)
{
	int			status = pclose(reader);

	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* decrypt.py: 0 is "all as given", 1 "some value does not decrypt". */
static void
test_other_reader(void)
{
	FILE	   *reader = start_reader("--check");
	Sample		s;

	emit(reader);
	tap_ok(reader_status(reader) == 0, "decrypt.py decrypts %d values", EMITTED);

	random_sample(&s, 20, true);
	for (int byte = 0; byte < 5; byte++)
	{
		/* type, key_id, nonce, fingerprint, tag */
		static const int offsets[] = {1, 5, 20, 40, VALUE_MIN_LEN + 16 + 19};

		reader = start_reader("--check 2>&1 | grep -q 'line 1: refused'");
		emit_sample(reader, &s, 8 * offsets[byte]);
		tap_ok(reader_status(reader) == 0, "decrypt.py refuses a change in byte %d", offsets[byte]);
	}
	tap_ok(reader_status(start_reader("--example docs/format.md")) == 0,
		   "decrypt.py decrypts the example of docs/format.md from its KEK");
}

/* ------------------------------------------------------------------------
 * Places of keys
 * ------------------------------------------------------------------------ */

static void
test_keyplace(void)
{
	KeyPlace	place = {.version = 0x01020304};
	KeyPlace	index;
	uint8_t		dek[32],
				out[KEYPLACE_MAX],
				other[KEYPLACE_MAX];
	size_t		len;
	bool		distinct = true;

	for (int i = 0; i < 32; i++)
		dek[i] = (uint8_t) i;
	for (int i = 0; i < 16; i++)
		place.tenant[i] = (uint8_t) (0xa0 + i);
	index = place;
	index.is_index = 1;

	len = keyplace_aad(&place, out);
	tap_ok(equals_hex(out, len, "00126e6f6d705f6372797074207772617020763100"
					  "10a0a1a2a3a4a5a6a7a8a9aaabacadaeaf000676616c756573000401020304"),
		   "the wrap's additional data of a data key");
	len = keyplace_aad(&index, out);
	tap_ok(equals_hex(out, len, "00126e6f6d705f6372797074207772617020763100"
					  "10a0a1a2a3a4a5a6a7a8a9aaabacadaeaf0005696e646578000401020304"),
		   "the wrap's additional data of an index key");

	/* Computed with Python's hmac module. */
	tap_ok(keyplace_check(&place, dek, out) &&
		   equals_hex(out, 32, "aa8bc4d077caacf867e071e34db28d43"
					  "8743e7a7bc7264b2ec77b23d564ac90e"),
		   "key_check of a data key");
	tap_ok(keyplace_check(&index, dek, out) &&
		   equals_hex(out, 32, "32362b5fe5b0d21f1acf0aa15ae2c457"
					  "0f0c988a0fab49ea45b66a6384e00f59"),
		   "key_check of an index key");
	tap_ok(keyplace_working_key(&index, dek, out) &&
		   equals_hex(out, 32, "416874747e53f01376f46ca9278aad57"
					  "b21ff8e16c739a3da11426b008a999d1"),
		   "k_idx");
	tap_ok(keyplace_working_key(&place, dek, out) &&
		   equals_hex(out, 32, "74f693b53cd414efcbd4eed3a84217bc"
					  "428d132532e237ca8a276ebd9a871746"),
		   "k_enc");

	for (int bit = 0; bit < 160; bit++)
	{
		KeyPlace	p = place;

		if (bit < 128)
			p.tenant[bit / 8] ^= (uint8_t) (1 << bit % 8);
		else
			p.version ^= (uint32_t) 1 << (bit - 128);
		distinct &= keyplace_working_key(&p, dek, other) && memcmp(out, other, 32) != 0;
	}
	tap_ok(distinct, "every bit of tenant and version changes the key");
}

/* ------------------------------------------------------------------------
 * The value's layout
 * ------------------------------------------------------------------------ */

static void
test_layout(void)
{
	static const uint8_t key_id[] = {1, 2, 3, 4, 5, 6, 7, 8};
	uint8_t		nonce[VALUE_NONCE_LEN],
				fingerprint[VALUE_FINGERPRINT_LEN],
				value[80] = {0},
				aad[VALUE_MAX_AAD];
	ValueView	view;

	memset(nonce, 0xaa, sizeof(nonce));
	memset(fingerprint, 0xbb, sizeof(fingerprint));

	tap_ok(value_write_header(value, VALUE_TYPE_TEXT, key_id, nonce, NULL) == value + 34 &&
		   equals_hex(value, 34, "10010102030405060708"
					  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa") &&
		   value_parse(value, 53, &view) && view.type_code == VALUE_TYPE_TEXT &&
		   view.key_id == value + 2 && view.nonce == value + 10 &&
		   view.fingerprint == NULL && view.body == value + 34 && view.body_len == 19 &&
		   copy_aad(&view, aad) == 10 && memcmp(aad, value, 10) == 0,
		   "a value without fingerprint");
	tap_ok(value_write_header(value, VALUE_TYPE_TEXT, key_id, nonce, fingerprint) == value + 50 &&
		   equals_hex(value, 50, "11010102030405060708"
					  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
					  "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb") &&
		   value_parse(value, 69, &view) && view.fingerprint == value + 34 &&
		   view.body == value + 50 && view.body_len == 19 &&
		   copy_aad(&view, aad) == 26 &&
		   equals_hex(aad, 26, "11010102030405060708bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"),
		   "a value with fingerprint");
	value[1] = 0x7f;
	tap_ok(copy_aad(&view, aad) == 26 && aad[1] == 0x7f, "the type code is authenticated");
	tap_ok(value_size(0, false) == 50 && value_size(0, true) == 66 &&
		   value_size(1000, true) == 1066 &&
		   value_size(SIZE_MAX - 50, false) == SIZE_MAX &&
		   value_size(SIZE_MAX - 49, false) == SIZE_MAX &&
		   value_size(SIZE_MAX - 65, true) == SIZE_MAX &&
		   value_size(SIZE_MAX, true) == SIZE_MAX,
		   "sizes, and none that wraps round");
}

/* In a block of its own size, so that ASan sees a byte read too many. */
static bool
parses(const uint8_t *bytes, size_t len)
{
	uint8_t    *copy = malloc(len > 0 ? len : 1);
	ValueView	view;
	bool		ok;

	if (copy == NULL)
		tap_bail("out of memory");
	memcpy(copy, bytes, len);
	ok = value_parse(copy, len, &view);
	if (ok && (view.body + view.body_len != copy + len ||
			   view.body_len < VALUE_TAG_LEN ||
			   (view.fingerprint != NULL) != (copy[0] & 1)))
		tap_bail("a parsed value points elsewhere");
	free(copy);
	return ok;
}

static void
test_parse(void)
{
	uint8_t		value[128];
	int			wrong = 0;

	fill(value, sizeof(value));
	for (int head = 0; head < 65536; head++)
	{
		int			type = head & 0x7f; /* 1 to 28, and the array bit */
		bool		valid = (head >> 9 == 0x10 >> 1 && type >= 1 && type <= 28);

		value[0] = (uint8_t) (head >> 8);
		value[1] = (uint8_t) head;
		wrong += value_parse(value, sizeof(value), &(ValueView) {0}) != valid;
	}
	tap_ok(wrong == 0, "of all first two bytes only 10 or 11 with the 28 types and their arrays are taken");

	wrong = 0;
	value[1] = VALUE_TYPE_TEXT;
	for (size_t len = 0; len <= sizeof(value); len++)
	{
		value[0] = 0x10;
		wrong += parses(value, len) != (len >= 50);
		value[0] = 0x11;
		wrong += parses(value, len) != (len >= 66);
	}
	tap_ok(wrong == 0, "a value shorter than its fixed part is refused");

	for (int i = 0; i < 200000; i++)
	{
		size_t		len = next_byte() % sizeof(value);

		fill(value, len);
		if (next_byte() & 1)
			value[0] = 0x10 | (next_byte() & 1);
		if (next_byte() & 1)
			value[1] = VALUE_TYPE_TEXT;
		parses(value, len);
	}
	tap_ok(true, "200000 random inputs are parsed without a wrong step");
}

static void
test_tampering(void)
{
	for (int searchable = 0; searchable < 2; searchable++)
	{
		const char *kind = searchable ? "with" : "without";
		Sample		s;
		uint8_t		value[MAX_VALUE],
					key[32];
		size_t		size;
		int			accepted = 0;

		random_sample(&s, 33, searchable);
		size = seal_sample(&s, value);
		if (!keyplace_working_key(&s.place, s.dek, key))
			tap_bail("no key");
		tap_ok(opens(value, size, key), "a value %s fingerprint opens", kind);

		for (size_t bit = 0; bit < 8 * size; bit++)
		{
			value[bit / 8] ^= (uint8_t) (1 << bit % 8);
			accepted += opens(value, size, key);
			value[bit / 8] ^= (uint8_t) (1 << bit % 8);
		}
		tap_ok(accepted == 0, "%s fingerprint: every flipped bit is refused", kind);

		for (size_t len = 0; len < size; len++)
			accepted += opens(value, len, key);
		tap_ok(accepted == 0, "%s fingerprint: every truncation is refused", kind);

		value[size] = 0;
		tap_ok(!opens(value, size + 1, key), "%s fingerprint: a byte more is refused", kind);
	}
}

/* A fingerprint can be neither taken off nor put on. */
static void
test_fingerprint_is_bound(void)
{
	Sample		s;
	uint8_t		value[MAX_VALUE],
				changed[MAX_VALUE],
				key[32];
	size_t		size;

	random_sample(&s, 40, true);
	size = seal_sample(&s, value);
	keyplace_working_key(&s.place, s.dek, key);
	memcpy(changed, value, 34);
	memcpy(changed + 34, value + 50, size - 50);
	changed[0] = 0x10;
	tap_ok(!opens(changed, size - 16, key), "a value whose fingerprint was taken off is refused");

	s.searchable = false;
	size = seal_sample(&s, value);
	memcpy(changed, value, 34);
	memcpy(changed + 34, s.fingerprint, 16);
	memcpy(changed + 50, value + 34, size - 34);
	changed[0] = 0x11;
	tap_ok(!opens(changed, size + 16, key), "a value given a fingerprint is refused");
}

static void
test_engine(const char *engine)
{
	test_layout();
	test_parse();
	test_tampering();
	test_fingerprint_is_bound();
	test_keyplace();
	test_example("docs/format.md");
	test_other_reader();
}

int
main(int argc, char **argv)
{
	if (argc > 1)
		(strcmp(argv[1], "--emit") == 0 ? emit : print_example) (stdout);
	else
		with_each_engine(test_engine);
	return argc > 1 ? 0 : tap_done();
}
