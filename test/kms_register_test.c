/*
 * kms_register_test.c
 *		The register's key in AWS KMS, when there is more than one.
 *
 * A service can show a key so late that it is made again, and whoever has the
 * everyday credentials can make one with the same label.  The key that signed
 * before stays the register's; two nodes that begin a register choose the same.
 */
#include "kms_client.h"

#define SHORT		3000		/* milliseconds: less than a key takes to show */
#define REGISTER(n)	"nomp_crypt:" INST ":register:" n

typedef struct PublicKey
{
	uint8_t		der[KS_MAX_PUBLIC_KEY];
	size_t		len;
	bool		created;
} PublicKey;

static const PublicKey unknown;

static KsStatus
register_key(Helper *h, uint32_t generation, const PublicKey *known, KsMake make, PublicKey *out)
{
	const uint8_t *der;
	KsStatus	status;

	begin();
	put(INST);
	put_uint(generation, 4);
	wire_put_str(&body, known->der, known->len);
	put_uint(make, 1);
	status = ask(h, KS_OP_REGISTER_KEY);
	memset(out, 0, sizeof(*out));
	if (status != KS_OK)
		return status;
	out->created = wire_get_uint(&reply.r, 1) == 1;
	(void) next_string();
	out->len = wire_get_str(&reply.r, &der);
	if (!wire_done(&reply.r) || out->len > sizeof(out->der))
		tap_bail("a malformed reply to REGISTER_KEY");
	memcpy(out->der, der, out->len);
	return status;
}

static KsStatus
sign(Helper *h, uint32_t generation, const PublicKey *known)
{
	const uint8_t digest[KS_DIGEST_LEN] = {7};

	begin();
	put(INST);
	put_uint(generation, 4);
	wire_put_str(&body, known->der, known->len);
	wire_put_str(&body, digest, sizeof(digest));
	return ask(h, KS_OP_SIGN);
}

static bool
same(const PublicKey *a, const PublicKey *b)
{
	return a->len > 0 && a->len == b->len && memcmp(a->der, b->der, a->len) == 0;
}

/* Behind the helpers' back: another key with the label of a generation; its id. */
static const char *
make_twin(const char *generation)
{
	static char id[64];
	const char *at = strstr(control("{\"do\": \"call\", \"action\": \"CreateKey\", \"KeySpec\": \"ECC_NIST_P256\", "
									"\"KeyUsage\": \"SIGN_VERIFY\", \"Description\": \"" REGISTER("%s") "\", \"Tags\": ["
									"{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"" REGISTER("%s") "\"}]}",
									generation, generation), "\"KeyId\": \"");

	if (at == NULL)
		tap_bail("no twin");
	snprintf(id, sizeof(id), "%.*s", (int) strcspn(at + 10, "\""), at + 10);
	return id;
}

static void
change(const char *id, const char *fields)
{
	(void) control("{\"do\": \"change\", \"key\": \"%s\", %s}", id, fields);
}

/* ---- one that shows late is not made twice ---- */

static void
test_late_key(void)
{
	Helper		h = start(kms_uri);
	PublicKey	key;
	KsStatus	status = KS_NETWORK;
	int			asked = 0;

	(void) control("{\"do\": \"lag\", \"seconds\": 6}");
	forget_calls();
	asked_patience = SHORT;
	tap_ok(register_key(&h, 1, &unknown, KS_MAKE, &key) == KS_NETWORK, "a key that does not show in time: %s",
		   reply.reason);
	while (status != KS_OK && asked++ < 10)
		status = register_key(&h, 1, &unknown, KS_MAKE, &key);
	asked_patience = 0;
	tap_ok(status == KS_OK && calls("CreateKey") == 1, "asked for at once, again and again, is made once: %s",
		   reply.reason);
	recover();
	tap_ok(register_key(&h, 1, &unknown, KS_FIND, &key) == KS_OK && sign(&h, 1, &key) == KS_OK, "and is the only one");
	stop(&h);
}

static void
test_late_canary(void)
{
	Helper		h = start(kms_uri);
	KsStatus	status = KS_NETWORK;
	bool		created;
	int			asked = 0;

	(void) control("{\"do\": \"lag\", \"seconds\": 6}");
	forget_calls();
	asked_patience = SHORT;
	while (status != KS_OK && asked++ < 10)
		status = setup(&h, INST, &created);
	asked_patience = 0;
	tap_ok(asked > 1 && status == KS_OK && calls("CreateKey") == 1, "nor is a canary made twice: %s", reply.reason);
	recover();
	stop(&h);
}

/* ---- several ---- */

static void
test_twins(void)
{
	Helper		h = start(kms_uri);
	Helper		other = start(kms_uri);
	PublicKey	first;
	PublicKey	key;
	PublicKey	again;
	char		id[64];
	char		twin[64];

	if (register_key(&h, 2, &unknown, KS_MAKE, &first) != KS_OK || !first.created)
		tap_bail("no key: %s", reply.reason);
	snprintf(id, sizeof(id), "%s", key_id(REGISTER("2")));
	snprintf(twin, sizeof(twin), "%s", make_twin("2"));
	tap_ok(register_key(&h, 2, &unknown, KS_FIND, &key) == KS_REFUSED && strstr(reply.reason, id) != NULL &&
		   strstr(reply.reason, twin) != NULL, "of two neither is used by who knows none: %s", reply.reason);
	tap_ok(sign(&h, 2, &unknown) == KS_REFUSED, "nor do they sign");
	tap_ok(register_key(&h, 2, &first, KS_FIND, &key) == KS_OK && same(&key, &first) &&
		   sign(&other, 2, &first) == KS_OK, "one that is known is used: %s", reply.reason);
	tap_ok(register_key(&h, 2, &unknown, KS_CHOOSE, &key) == KS_OK && same(&key, &first) && !key.created &&
		   register_key(&other, 2, &unknown, KS_MAKE, &again) == KS_OK && same(&again, &first) && !again.created,
		   "who would make one takes the older: %s", reply.reason);
	change(twin, "\"created\": 1000000000");
	tap_ok(register_key(&h, 2, &unknown, KS_CHOOSE, &key) == KS_OK && !same(&key, &first) &&
		   register_key(&other, 2, &unknown, KS_MAKE, &again) == KS_OK && same(&again, &key),
		   "whichever that is, everywhere the same");
	tap_ok(register_key(&h, 2, &first, KS_FIND, &again) == KS_OK && same(&again, &first) &&
		   register_key(&h, 2, &first, KS_MAKE, &again) == KS_OK && same(&again, &first) &&
		   sign(&h, 2, &first) == KS_OK, "an older one does not take the place of one that is known");
	change(twin, "\"state\": \"Disabled\"");
	tap_ok(register_key(&h, 2, &unknown, KS_CHOOSE, &again) == KS_OK && same(&again, &first),
		   "one that must not be used is not chosen");
	change(twin, "\"state\": \"Enabled\"");
	change(id, "\"state\": \"Disabled\"");
	tap_ok(register_key(&h, 2, &first, KS_MAKE, &again) == KS_KEY_DISABLED && strstr(reply.reason, id) != NULL &&
		   sign(&h, 2, &first) == KS_KEY_DISABLED, "where the one that is known is disabled no other stands in: %s",
		   reply.reason);
	(void) control("{\"do\": \"delete\", \"key\": \"%s\"}", id);
	snprintf(id, sizeof(id), "%s", make_twin("2"));
	tap_ok(register_key(&h, 2, &first, KS_MAKE, &again) == KS_REFUSED && sign(&h, 2, &first) == KS_REFUSED &&
		   strstr(reply.reason, id) != NULL, "nor where it is gone: %s", reply.reason);
	stop(&h);
	stop(&other);
}

/* Two nodes begin a register, and the one does not see the other's key until it has made its own. */
static void
test_two_at_once(void)
{
	Helper		h = start(kms_uri);
	Helper		other = start(kms_uri);
	PublicKey	key;
	PublicKey	again;

	if (ask_strings(&h, KS_OP_STATUS, INST, NULL, NULL) != KS_OK)
		tap_bail("no canary: %s", reply.reason);
	(void) make_twin("3");
	(void) control("{\"do\": \"fault\", \"kind\": \"patch\", \"action\": \"ListKeys\", \"values\": {\"Keys\": []}, \"times\": 3}");
	forget_calls();
	tap_ok(register_key(&h, 3, &unknown, KS_MAKE, &key) == KS_OK && calls("CreateKey") == 1 && !key.created,
		   "one that has made a second key takes the first: %s", reply.reason);
	tap_ok(register_key(&other, 3, &unknown, KS_CHOOSE, &again) == KS_OK && same(&again, &key) &&
		   sign(&other, 3, &key) == KS_OK, "as the other one does");
	stop(&h);
	stop(&other);
}

/* Its tag was changed, and the helper knows what it was made as. */
static void
test_tagged_wrongly(void)
{
	Helper		h = start(kms_uri);
	PublicKey	key;
	char		id[64];

	if (register_key(&h, 4, &unknown, KS_MAKE, &key) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	snprintf(id, sizeof(id), "%s", key_id(REGISTER("4")));
	(void) control("{\"do\": \"call\", \"action\": \"TagResource\", \"KeyId\": \"%s\", "
				   "\"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"a cost centre\"}]}", id);
	tap_ok(sign(&h, 4, &key) == KS_REFUSED && strstr(reply.reason, id) != NULL &&
		   strstr(reply.reason, "was made as") != NULL, "a key that is tagged wrongly is named: %s", reply.reason);
	stop(&h);
}

int
main(int argc, char **argv)
{
	Helper		h;
	bool		created;

	begin_tests(argc, argv);
	start_double(argv[0]);
	use_everyday_credentials();
	test_late_canary();
	h = start(kms_uri);
	if (setup(&h, INST, &created) != KS_OK)
		tap_bail("no canary: %s", reply.reason);
	stop(&h);
	sleep(6);					/* it is older than what is made late */
	test_late_key();
	test_twins();
	test_two_at_once();
	test_tagged_wrongly();
	return end_tests();
}
