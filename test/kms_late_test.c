/*
 * kms_late_test.c
 *		The keystore helper with AWS KMS that shows a new key late, or does not
 *		take the mark off one.
 *
 * Neither may keep a school from reading for longer than it lasts, nor make a
 * key look gone or a wrapped key look bad: both are final.
 */
#include "kms_client.h"

#define FAULT(rest, ...) ((void) control("{\"do\": \"fault\", " rest "}" __VA_OPT__(, ) __VA_ARGS__))
#define SHORT		3000		/* milliseconds: a call that fails is not repeated for long */

static int	generation = 10;
static char label[KS_MAX_LABEL + 1];	/* of the last key that was made */

/* A provisional key, by a helper of its own. */
static void
make_kek(DataKey *key)
{
	Helper		h = start(kms_uri);

	snprintf(label, sizeof(label), "nomp_crypt:" INST ":" SCHOOL ":%d", ++generation);
	if (create_kek(&h, INST, SCHOOL, (uint32_t) generation, key, 1) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	stop(&h);
}

/* ---- marks ---- */

/* Unwrap as a session does whose rows are committed. */
static KsStatus
use(Helper *h, DataKey *key)
{
	KsStatus	status = unwrap(h, INST, label, true, key, 1);

	return status == KS_OK ? key->status : status;
}

static bool
is_marked(void)
{
	const char *key = strstr(control("{\"do\": \"keys\"}"), key_id(label));
	const char *end = key == NULL ? NULL : strstr(key + 1, "{\"id\": ");
	const char *mark = key == NULL ? NULL : strstr(key, "nomp_crypt:provisional");

	return mark != NULL && (end == NULL || mark < end);
}

static void
test_marks(void)
{
	static const char *const errors[] = {
		"ThrottlingException", "KMSInternalException", "KMSInvalidStateException", "NotFoundException",
	};
	DataKey		key = {.aad = "a place"};
	Helper		h;

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
	{
		make_kek(&key);
		h = start(kms_uri);
		FAULT("\"error\": \"%s\", \"action\": \"UntagResource\"", errors[i]);
		tap_ok(use(&h, &key) == KS_OK && is_marked(),
			   "a key opens whose mark cannot be taken off, with %s: %s", errors[i], reply.reason);
		recover();
		stop(&h);
	}
	FAULT("\"kind\": \"hang\", \"action\": \"UntagResource\"");
	h = start(kms_uri);
	asked_patience = SHORT;
	tap_ok(use(&h, &key) == KS_OK, "so it does where that is not answered: %s", reply.reason);
	forget_calls();
	tap_ok(use(&h, &key) == KS_OK && calls("Decrypt") == 1 && calls("UntagResource") == 0,
		   "and the next one does not wait for it again");
	tap_ok(ask_strings(&h, KS_OP_CONFIRM, INST, label, NULL) == KS_NETWORK,
		   "who asks for just that is told: %s", reply.reason);
	asked_patience = 0;
	recover();
	tap_ok(ask_strings(&h, KS_OP_CONFIRM, INST, label, NULL) == KS_OK && !is_marked(),
		   "and can ask again: %s", reply.reason);
	stop(&h);
	make_kek(&key);
	h = start(kms_uri);
	tap_ok(is_marked() && use(&h, &key) == KS_OK && !is_marked(), "where nothing is in the way the mark goes");
	stop(&h);
}

/* A key that is once not known is not gone. */
static void
test_marks_of_keys_that_blink(void)
{
	DataKey		key = {.aad = "a place"};
	Helper		h;

	make_kek(&key);
	h = start(kms_uri);
	/* the label is known; what is read next are the tags for the mark */
	tap_ok(unwrap_one(&h, label, &key) == KS_OK, "a key is known");
	FAULT("\"error\": \"NotFoundException\", \"action\": \"ListResourceTags\", \"key\": \"%s\", \"times\": 1",
		  key_id(label));
	tap_ok(use(&h, &key) == KS_OK, "one whose tags are not found once opens: %s", reply.reason);
	recover();
	make_kek(&key);
	tap_ok(unwrap_one(&h, label, &key) == KS_OK, "another one is known");
	FAULT("\"error\": \"NotFoundException\", \"action\": \"ListResourceTags\", \"key\": \"%s\", \"times\": 1, \"skip\": 1",
		  key_id(label));
	tap_ok(ask_strings(&h, KS_OP_CONFIRM, INST, label, NULL) == KS_OK && !is_marked(),
		   "and its mark is taken off, by who asks for just that: %s", reply.reason);
	recover();
	stop(&h);
}

int
main(int argc, char **argv)
{
	DataKey		good;
	DataKey		others;
	Helper		h;

	begin_tests(argc, argv);
	start_double(argv[0]);
	use_everyday_credentials();
	h = start_with_schools(&good, &others);
	stop(&h);
	test_marks();
	test_marks_of_keys_that_blink();
	return end_tests();
}
