/*
 * kms_rules_test.c
 *		What is sent to AWS KMS, how much of it at once, and what is concluded
 *		from what comes back.
 *
 * Against test/kms_double.py, which writes down what it is sent.
 */
#include <openssl/evp.h>

#include "kms_client.h"

#define FAULT(rest) ((void) control("{\"do\": \"fault\", " rest "}"))
#define EXTRA		"dddddddd-dddd-4ddd-8ddd-dddddddddddd"
#define NOBODY		ARN "00000000-0000-4000-8000-000000000000"
#define SHORT		3000		/* milliseconds */
#define FLIGHT		32			/* requests that the provider works on at once */

/* ---- what is sent ---- */

/* Was a call of that action sent with that text?  "sent" is in the order of the request. */
static bool
was_sent(const char *action, const char *text)
{
	const char *answer = control("{\"do\": \"calls\", \"action\": \"%s\"}", action);

	if (strstr(answer, text) != NULL)
		return true;
	printf("# %s\n", strstr(answer, "{\"answer\"") != NULL ? strstr(answer, "{\"answer\"") : answer);
	return false;
}

static void
test_sent(Helper *h)
{
	char		context[512];
	DataKey		key = {.aad = "a place"};
	char		wanted[1024];

	forget_calls();
	if (create_kek(h, INST, EXTRA, 1, NULL, 0) != KS_OK || wrap(h, LABEL(INST, EXTRA, "1"), true, &key) != KS_OK ||
		wrap(h, LABEL(INST, EXTRA, "1"), false, &key) != KS_OK ||
		unwrap_one(h, LABEL(INST, EXTRA, "1"), &key) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	snprintf(wanted, sizeof(wanted), "\"Description\": \"%s\", \"KeySpec\": \"SYMMETRIC_DEFAULT\", "
			 "\"KeyUsage\": \"ENCRYPT_DECRYPT\", \"Origin\": \"AWS_KMS\", \"MultiRegion\": false, \"Tags\": ["
			 "{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"%s\"}, "
			 "{\"TagKey\": \"nomp_crypt:installation\", \"TagValue\": \"%s\"}, "
			 "{\"TagKey\": \"nomp_crypt:school\", \"TagValue\": \"%s\"}, "
			 "{\"TagKey\": \"nomp_crypt:provisional\", \"TagValue\": \"",
			 LABEL(INST, EXTRA, "1"), LABEL(INST, EXTRA, "1"), INST, EXTRA);
	tap_ok(was_sent("CreateKey", wanted), "a KEK: made by the service, in one region, with its four tags");
	/* base64 of "a place" */
	snprintf(context, sizeof(context), "\"EncryptionContext\": {\"nomp_crypt:installation\": \"%s\", "
			 "\"nomp_crypt:school\": \"%s\", \"nomp_crypt:key\": \"YSBwbGFjZQ==\"}}", INST, EXTRA);
	snprintf(wanted, sizeof(wanted), "\"sent\": {\"KeyId\": \"" ARN "%s\", \"KeySpec\": \"AES_256\", %s",
			 key_id(LABEL(INST, EXTRA, "1")), context);
	tap_ok(was_sent("GenerateDataKey", wanted), "a fresh data key: by the key's ARN, for its place");
	snprintf(wanted, sizeof(wanted), "\"sent\": {\"KeyId\": \"" ARN "%s\", \"EncryptionAlgorithm\": \"SYMMETRIC_DEFAULT\", %s",
			 key_id(LABEL(INST, EXTRA, "1")), context);
	tap_ok(was_sent("Encrypt", wanted), "one that is given");
	tap_ok(was_sent("Decrypt", wanted), "and one that is opened");

	forget_calls();
	begin();
	put(INST);
	put_uint(7, 4);
	put("");
	put_uint(KS_MAKE, 1);
	if (ask(h, KS_OP_REGISTER_KEY) != KS_OK)
		tap_bail("no key for the register: %s", reply.reason);
	tap_ok(was_sent("CreateKey", "\"KeySpec\": \"ECC_NIST_P256\", \"KeyUsage\": \"SIGN_VERIFY\", \"Origin\": \"AWS_KMS\", \"MultiRegion\": false") &&
		   was_sent("CreateKey", "{\"TagKey\": \"nomp_crypt:installation\", \"TagValue\": \"" INST "\"}"),
		   "the register's key");
	forget_calls();
	tap_ok(ask_destroy(h, EXTRA, SERIAL, 11) == KS_OK &&
		   was_sent("ScheduleKeyDeletion", "\"PendingWindowInDays\": 11}"), "the days of a deletion");
}

static size_t
unbase64(const char *text, uint8_t *out, size_t room)
{
	uint8_t		bytes[1024];
	const int	n = EVP_DecodeBlock(bytes, (const unsigned char *) text, (int) strlen(text));
	const size_t padding = strlen(text) - strcspn(text, "=");

	if (n < 0 || (size_t) n - padding > room)
		tap_bail("no base64: %s", text);
	memcpy(out, bytes, (size_t) n - padding);
	return (size_t) n - padding;
}

/* A ciphertext that another client made for another school's place, under the right key. */
static void
test_swapped_context(Helper *h, const DataKey *good)
{
	static const char *const contexts[] = {
		"\"nomp_crypt:installation\": \"" INST "\", \"nomp_crypt:school\": \"" SCHOOL "\", \"nomp_crypt:key\": \"%s\"",
		"\"nomp_crypt:installation\": \"" INST "\", \"nomp_crypt:school\": \"" SCHOOL2 "\", \"nomp_crypt:key\": \"%s\"",
		"\"nomp_crypt:installation\": \"" EXTRA "\", \"nomp_crypt:school\": \"" SCHOOL "\", \"nomp_crypt:key\": \"%s\"",
		"\"nomp_crypt:installation\": \"" INST "\", \"nomp_crypt:key\": \"%s\"",
	};

	for (size_t i = 0; i < sizeof(contexts) / sizeof(contexts[0]); i++)
	{
		DataKey		key = *good;
		char		context[512];
		char		blob[1024];
		const char *at;
		WireWriter	w = {key.wrapped, sizeof(key.wrapped), 0, false};
		char		arn[128];

		/* base64 of "place 1 0", where the good one is */
		snprintf(context, sizeof(context), contexts[i], "cGxhY2UgMSAw");
		at = strstr(control("{\"do\": \"call\", \"action\": \"Encrypt\", \"KeyId\": \"%s\", \"EncryptionContext\": {%s}, "
							"\"Plaintext\": \"QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=\"}", key_id(KEK1), context),
					"\"CiphertextBlob\": \"");
		if (at == NULL)
			tap_bail("no ciphertext: %s", said);
		snprintf(blob, sizeof(blob), "%.*s", (int) strcspn(at + 19, "\""), at + 19);
		snprintf(arn, sizeof(arn), ARN "%s", key_id(KEK1));
		wire_put_uint(&w, 2, 1);
		wire_put_str(&w, arn, strlen(arn));
		key.wrapped_len = w.len + unbase64(blob, key.wrapped + w.len, sizeof(key.wrapped) - w.len);
		memset(key.key, 'A', sizeof(key.key));
		tap_ok(unwrap_one(h, KEK1, &key) == (i == 0 ? KS_OK : KS_INTEGRITY),
			   i == 0 ? "what another client wrapped for this place opens" : "what it wrapped for another does not, %zu", i);
	}
}

/* ---- how much at once ---- */

static void
send_unwrap(Helper *h, uint64_t id, const char *label, const DataKey *key)
{
	begin();
	put(INST);
	put(label);
	put_uint(0, 1);
	put_uint(kek_age, 4);
	put_uint(1, 1);
	put(key->aad);
	wire_put_str(&body, key->wrapped, key->wrapped_len);
	if (!send_frame(h, id, KS_OP_UNWRAP))
		tap_bail("not sent");
}

static void
test_in_flight(const DataKey *good, const DataKey *others)
{
	Helper		h = start(kms_uri);
	char		fault[256];
	int			answered = 0;

	if (unwrap_one(&h, KEK1, &(DataKey) {0}) == KS_OK || unwrap_one(&h, KEK2, &(DataKey) {0}) == KS_OK)
		tap_bail("an empty key opens");
	snprintf(fault, sizeof(fault), "{\"do\": \"fault\", \"kind\": \"hang\", \"action\": \"Decrypt\", \"key\": \"%s\"}", key_id(KEK1));
	(void) control("%s", fault);
	forget_calls();
	for (int i = 1; i < FLIGHT; i++)
		send_unwrap(&h, (uint64_t) i, KEK1, good);
	for (int i = 0; i < 600 && calls("Decrypt") < FLIGHT - 1; i++)
		usleep(50000);
	tap_ok(calls("Decrypt") == FLIGHT - 1, "%d calls are under way at once", FLIGHT - 1);
	send_unwrap(&h, 100, KEK2, others);
	tap_ok(get_reply(&h, 100) == KS_OK, "and another school's key is opened beside them");
	recover();
	for (int i = 1; i < FLIGHT; i++)
	{
		uint8_t		frame[4];
		WireReader	r = {frame, sizeof(frame), 0, false};

		answered += receive(&h, frame, sizeof(frame)) == 1 &&
			receive(&h, reply.buf, (size_t) wire_get_uint(&r, 4)) == 1 && reply.buf[8] == KS_OK;
	}
	tap_ok(answered == FLIGHT - 1, "then they are answered");
	stop(&h);
}

/* ---- keys by their ARNs ---- */

/* Ask for keys; their states, a letter each, or "" and the status. */
static const char *
look(Helper *h, const char *const *arns, int n, KsStatus *status)
{
	static char letters[KS_MAX_REFERENCES + 2];

	begin();
	put(INST);
	put_uint((uint64_t) n, 1);
	for (int i = 0; i < n; i++)
		put(arns[i]);
	memset(letters, 0, sizeof(letters));
	*status = ask(h, KS_OP_LOOK);
	if (*status != KS_OK)
		return "";
	if (wire_get_uint(&reply.r, 1) != (uint64_t) n)
		tap_bail("another number of keys");
	for (int i = 0; i < n; i++)
	{
		const bool	found = wire_get_uint(&reply.r, 1) == 1;
		const uint64_t state = wire_get_uint(&reply.r, 1);
		const uint64_t until = wire_get_uint(&reply.r, 8);

		letters[i] = !found ? '-' : state == KS_STATE_PENDING && until > (uint64_t) time(NULL) ? 'p' :
			state == KS_STATE_DISABLED ? 'd' : state == KS_STATE_USABLE ? 'u' : '?';
	}
	if (!wire_done(&reply.r))
		tap_bail("a malformed reply to LOOK");
	return letters;
}

static void
test_look(Helper *h)
{
	char		first[128];
	char		second[128];
	char		gone[128];
	const char *arns[KS_MAX_REFERENCES + 1] = {first, NOBODY, second, gone};
	const char *wrong[] = {
		"arn:aws:kms:us-east-1:" ACCOUNT ":key/00000000-0000-4000-8000-000000000000",
		"arn:aws:kms:eu-north-1:999999999999:key/00000000-0000-4000-8000-000000000000",
		"alias/nomp_crypt", "",
	};
	const KsStatus refused[] = {KS_REGION, KS_MODULE_ERROR, KS_REFUSED, KS_REFUSED};
	KsStatus	status;

	for (int i = 2; i < 5; i++)
	{
		char		label[KS_MAX_LABEL + 1];

		snprintf(label, sizeof(label), "nomp_crypt:" INST ":" EXTRA ":%d", i);
		if (create_kek(h, INST, EXTRA, (uint32_t) i, NULL, 0) != KS_OK)
			tap_bail("no key: %s", reply.reason);
		snprintf(i == 2 ? first : i == 3 ? second : gone, sizeof(first), ARN "%s", key_id(label));
	}
	(void) control("{\"do\": \"delete\", \"key\": \"%s\"}", gone);
	(void) control("{\"do\": \"call\", \"action\": \"DisableKey\", \"KeyId\": \"%s\"}", second);
	(void) control("{\"do\": \"call\", \"action\": \"UntagResource\", \"KeyId\": \"%s\", \"TagKeys\": [\"nomp_crypt:label\"]}", second);
	forget_calls();
	tap_ok(strcmp(look(h, arns, 4, &status), "u-d-") == 0, "keys by their ARNs, whatever their tags: %s", reply.reason);
	/* twice for the canary at each look, and once for each that is not known yet */
	tap_ok(calls("DescribeKey") == 6 + 4 + 2 + 2, "those that are not there are looked for three times");
	(void) control("{\"do\": \"call\", \"action\": \"ScheduleKeyDeletion\", \"KeyId\": \"%s\", \"PendingWindowInDays\": 7}", first);
	(void) control("{\"do\": \"fault\", \"action\": \"DescribeKey\", \"key\": \"%s\", \"error\": \"NotFoundException\", \"times\": 2}",
				   first + strlen(ARN));
	tap_ok(strcmp(look(h, arns, 1, &status), "p") == 0, "one that is not found twice, and then is, is there");
	recover();
	FAULT("\"error\": \"NotFoundException\", \"action\": \"DescribeKey\"");
	tap_ok(look(h, arns, 1, &status)[0] == '\0' && status == KS_TOKEN_WRONG,
		   "nothing is said where the canary is not found either: %s", reply.reason);
	recover();
	FAULT("\"error\": \"AccessDeniedException\", \"action\": \"DescribeKey\"");
	tap_ok(look(h, arns, 1, &status)[0] == '\0' && status == KS_ACCESS_DENIED, "nor without the right: %s", reply.reason);
	recover();
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		tap_ok(look(h, wrong + i, 1, &status)[0] == '\0' && status == refused[i], "not \"%s\": %s", wrong[i], reply.reason);
	for (int i = 0; i <= KS_MAX_REFERENCES; i++)
		arns[i] = NOBODY;
	tap_ok(strcmp(look(h, arns, KS_MAX_REFERENCES, &status), "------------") == 0, "as many as fit");
	tap_ok(ask_destroy(h, EXTRA, SERIAL, 7) == KS_OK && ask_see(h, INST, EXTRA, 0) == KS_OK, "tidy: %s", reply.reason);
}

/* ---- what is concluded ---- */

static void
test_conclusions(Helper *h, const DataKey *good, const DataKey *others)
{
	DataKey		key = *good;
	DataKey		foreign = *others;
	const char *kek = key_id(KEK1);
	const char *canary = key_id(CANARY);

	/* the key shows late, twice, after one that says that it is not there */
	FAULT("\"error\": \"NotFoundException\", \"action\": \"Decrypt\", \"times\": 1");
	(void) control("{\"do\": \"fault\", \"action\": \"DescribeKey\", \"key\": \"%s\", \"error\": \"NotFoundException\", \"times\": 2}", kek);
	tap_ok(unwrap_one(h, KEK1, &key) == KS_OK, "a key that is not described twice is not absent: %s", reply.reason);
	recover();
	/* the canary is seen before, and not after */
	FAULT("\"error\": \"NotFoundException\", \"action\": \"Decrypt\"");
	(void) control("{\"do\": \"fault\", \"action\": \"DescribeKey\", \"key\": \"%s\", \"error\": \"NotFoundException\"}", kek);
	(void) control("{\"do\": \"fault\", \"action\": \"DescribeKey\", \"key\": \"%s\", \"error\": \"NotFoundException\", \"skip\": 1}", canary);
	tap_ok(unwrap_one(h, KEK1, &key) == KS_TOKEN_WRONG, "absence takes a canary that stays: %s", reply.reason);
	recover();
	asked_patience = SHORT;
	FAULT("\"error\": \"KMSInternalException\", \"status\": 500, \"action\": \"Decrypt\"");
	tap_ok(unwrap_one(h, KEK1, &foreign) == KS_MODULE_ERROR,
		   "another school's wrapped key is not called bad where nothing opens: %s", reply.reason);
	recover();
	asked_patience = 0;
	tap_ok(unwrap_one(h, KEK1, &foreign) == KS_INTEGRITY, "where all is well, it is");

	for (int i = 0; i < 3; i++)
	{
		static const char *const dates[] = {"null", "0", "\"x\""};

		(void) control("{\"do\": \"fault\", \"kind\": \"patch\", \"action\": \"DescribeKey\", \"key\": \"%s\", \"values\": "
					   "{\"KeyMetadata.KeyState\": \"PendingDeletion\", \"KeyMetadata.DeletionDate\": %s}}", kek, dates[i]);
		tap_ok(see(h, INST, SCHOOL) == -1 && strstr(reply.reason, "without a date") != NULL,
			   "pending until %s is not understood: %s", dates[i], reply.reason);
		recover();
	}
	FAULT("\"kind\": \"patch\", \"action\": \"ListKeys\", \"values\": {\"Truncated\": true, \"NextMarker\": null}");
	tap_ok(see(h, INST, SCHOOL) == -1, "a list that goes on, nowhere: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"ListResourceTags\", \"values\": {\"Truncated\": true, \"NextMarker\": null}");
	tap_ok(see(h, INST, SCHOOL) == -1, "tags that go on, nowhere: %s", reply.reason);
	recover();
}

/* Answers that say yes, where nothing was done. */
static void
test_pretence(Helper *h)
{
	static const char *const acts[] = {"ScheduleKeyDeletion", "DisableKey", "UntagResource", "TagResource"};
	int			found;

	if (create_kek(h, INST, EXTRA, 9, NULL, 0) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	for (int i = 0; i < 4; i++)
	{
		KsStatus	status;

		asked_patience = SHORT;
		(void) control("{\"do\": \"fault\", \"kind\": \"pretend\", \"action\": \"%s\"}", acts[i]);
		if (i == 0)
			status = ask_destroy(h, EXTRA, SERIAL, 7);
		else if (i == 1)
			status = enable(h, EXTRA, false, &found) < 0 ? KS_NETWORK : KS_OK;
		else if (i == 2)
			status = ask_strings(h, KS_OP_CONFIRM, INST, LABEL(INST, EXTRA, "9"), NULL);
		else
			status = ask_head(h, true, "3:abc");
		tap_ok(status == KS_NETWORK, "%s, and nothing was done: %s", acts[i], reply.reason);
		recover();
		asked_patience = 0;
	}
}

/* A key that is made while the others are asked to be destroyed. */
static void
test_late_key(Helper *h)
{
	FAULT("\"kind\": \"hang\", \"action\": \"ScheduleKeyDeletion\"");
	forget_calls();
	begin();
	put(INST);
	put(EXTRA);
	put(SERIAL);
	put_uint(7, 2);
	if (!send_frame(h, 1, KS_OP_DESTROY))
		tap_bail("not sent");
	for (int i = 0; i < 600 && calls("ScheduleKeyDeletion") == 0; i++)
		usleep(50000);
	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Description\": \"" LABEL(INST, EXTRA, "10") "\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"" LABEL(INST, EXTRA, "10") "\"}]}");
	recover();
	tap_ok(get_reply(h, 1) == KS_MODULE_ERROR, "one that is made meanwhile is not passed over");
	tap_ok(ask_destroy(h, EXTRA, SERIAL, 7) == KS_OK && wire_get_uint(&reply.r, 2) == 1, "and is destroyed the next time: %s",
		   reply.reason);
}

int
main(int argc, char **argv)
{
	Helper		h;
	DataKey		good;
	DataKey		others;

	begin_tests(argc, argv);
	start_double(argv[0]);
	use_everyday_credentials();
	h = start_with_schools(&good, &others);
	test_sent(&h);
	test_swapped_context(&h, &good);
	test_in_flight(&good, &others);
	test_look(&h);
	test_conclusions(&h, &good, &others);
	test_pretence(&h);
	test_late_key(&h);
	stop(&h);
	return end_tests();
}
