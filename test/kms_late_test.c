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
#define KMS_LAG		300			/* seconds, as in kms.h */
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

/* ---- keys that show late ---- */

/* Nobody sees what was done in that time.  The canary is older. */
static void
lag(const char *seconds)
{
	(void) control("{\"do\": \"lag\", \"seconds\": %s}", seconds);
}

/* By a helper that has seen the canary and no school's key. */
static Helper
start_elsewhere(void)
{
	Helper		h = start(kms_uri);

	if (ask_strings(&h, KS_OP_STATUS, INST, NULL, NULL) != KS_OK)
		tap_bail("no canary: %s", reply.reason);
	return h;
}

/* The service does not find a key where one action is asked for it, so often. */
static void
test_not_found_once(void)
{
	static const char *const actions[] = {"DescribeKey", "ListResourceTags", "Decrypt"};
	DataKey		key = {.aad = "a place"};
	Helper		h;

	make_kek(&key);
	for (kek_age = 0; kek_age <= 3600; kek_age += 3600)
	{
		for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++)
		{
			for (int times = 1; times <= 3; times++)
			{
				h = start(kms_uri);
				FAULT("\"error\": \"NotFoundException\", \"action\": \"%s\", \"key\": \"%s\", \"times\": %d",
					  actions[i], key_id(label), times);
				tap_ok(unwrap_one(&h, label, &key) == KS_OK,
					   "a key of %u seconds that %s does not find, %d times, opens: %d, %s", kek_age,
					   actions[i], times, (int) key.status, reply.reason);
				recover();
				stop(&h);
			}
		}
	}
	kek_age = 0;
	h = start_elsewhere();
	asked_patience = SHORT;
	FAULT("\"error\": \"NotFoundException\", \"action\": \"Decrypt\", \"key\": \"%s\"", key_id(label));
	FAULT("\"error\": \"NotFoundException\", \"action\": \"DescribeKey\", \"key\": \"%s\"", key_id(label));
	tap_ok(unwrap_one(&h, label, &key) == KS_NOT_YET, "one that stays away is not there yet: %s", reply.reason);
	asked_patience = 0;
	kek_age = KMS_LAG - 1;
	tap_ok(unwrap_one(&h, label, &key) == KS_NOT_YET, "for five minutes: %s", reply.reason);
	kek_age = KMS_LAG;
	tap_ok(unwrap_one(&h, label, &key) == KS_KEY_ABSENT, "then it is gone: %s", reply.reason);
	kek_age = UINT32_MAX;
	recover();
	stop(&h);
}

/* One node makes a key, another reads. */
static void
test_lag(void)
{
	static const char *const lags[] = {"0.1", "0.3", "0.6", "2"};
	DataKey		key = {.aad = "a place"};
	DataKey		damaged;
	Helper		h;
	Helper		settled;
	char		uri[4 * PATH_MAX];

	for (size_t i = 0; i < sizeof(lags) / sizeof(lags[0]); i++)
	{
		h = start_elsewhere();
		make_kek(&key);
		kek_age = 0;
		lag(lags[i]);
		tap_ok(unwrap_one(&h, label, &key) == KS_OK, "a key that shows after %s seconds opens: %d, %s", lags[i],
			   (int) key.status, reply.reason);
		recover();
		stop(&h);
	}
	h = start_elsewhere();
	snprintf(uri, sizeof(uri), "%s&settled=yes", kms_uri);
	settled = start(uri);
	(void) ask_strings(&settled, KS_OP_STATUS, INST, NULL, NULL);
	make_kek(&key);
	FAULT("\"error\": \"NotFoundException\", \"key\": \"%s\"", key_id(label));
	tap_ok(unwrap_one(&h, label, &key) == KS_NOT_YET, "one that does not show at all is not there yet: %s", reply.reason);
	tap_ok(unwrap(&h, INST, label, false, NULL, 0) == KS_NOT_YET, "nor is it if only it is asked for");
	tap_ok(unwrap_one(&settled, label, &key) == KS_KEY_ABSENT,
		   "where keys are settled it is gone: %s", reply.reason);
	recover();
	damaged = key;
	damaged.wrapped[damaged.wrapped_len - 1] ^= 1;
	tap_ok(unwrap_one(&h, label, &damaged) == KS_INTEGRITY, "a wrapped key may be bad however young");
	rename_wrapped(&damaged, ARN "00000000-0000-4000-8000-000000000000");
	tap_ok(unwrap_one(&h, label, &damaged) == KS_INTEGRITY,
		   "one that names a key that nobody has is bad, too: %d, %s", (int) damaged.status, reply.reason);
	kek_age = UINT32_MAX;
	stop(&h);
	stop(&settled);
}

/* A helper knows what it made, whatever it is told of the age. */
static void
test_own_key(void)
{
	DataKey		key = {.aad = "a place"};
	Helper		h = start(kms_uri);
	Helper		other = start_elsewhere();

	snprintf(label, sizeof(label), "nomp_crypt:" INST ":" SCHOOL ":%d", ++generation);
	if (create_kek(&h, INST, SCHOOL, (uint32_t) generation, &key, 1) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	FAULT("\"error\": \"NotFoundException\", \"key\": \"%s\"", key_id(label));
	tap_ok(wrap(&h, label, true, &key) == KS_NOT_YET, "who made a key wraps with it later: %s", reply.reason);
	recover();
	if (wrap(&h, label, true, &key) != KS_OK)
		tap_bail("no wrapped key: %s", reply.reason);
	FAULT("\"error\": \"NotFoundException\", \"key\": \"%s\"", key_id(label));
	tap_ok(unwrap_one(&h, label, &key) == KS_NOT_YET, "and opens with it later");
	tap_ok(unwrap_one(&other, label, &key) == KS_KEY_ABSENT, "for another helper it is gone");
	recover();
	stop(&h);
	stop(&other);
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
	test_not_found_once();
	test_lag();
	test_own_key();
	return end_tests();
}
