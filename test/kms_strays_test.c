/*
 * kms_strays_test.c
 *		Keys whose tag says another label than they were made with.
 *
 * Whoever may tag keys can change a tag; what a key was made with is its
 * description.  A school is read by the names of its keys, and no operation
 * on another school touches them, whatever they are tagged as.
 */
#include "kms_client.h"

#define OURS		"dddddddd-dddd-4ddd-8ddd-dddddddddddd"
#define THEIRS		"eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee"
#define OUR_KEY		LABEL(INST, OURS, "1")
#define THEIR_KEY	LABEL(INST, THEIRS, "1")

static char our_id[64];
static char their_id[64];

static void
tag(const char *id, const char *label)
{
	(void) control("{\"do\": \"call\", \"action\": \"TagResource\", \"KeyId\": \"%s\", "
				   "\"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"%s\"}]}", id, label);
}

/* Does the last refusal name the key of theirs, and what it was made as? */
static bool
names_it(void)
{
	return strstr(reply.reason, their_id) != NULL && strstr(reply.reason, "was made as \"" THEIR_KEY "\"") != NULL;
}

static KsStatus
destroy_kek(Helper *h, const char *label)
{
	begin();
	put(INST);
	put(label);
	put(SERIAL);
	put_uint(7, 2);
	return ask(h, KS_OP_DESTROY_KEK);
}

/* Was anything done to a key, of all that can be? */
static bool
nothing_was_done(void)
{
	return calls("ScheduleKeyDeletion") + calls("DisableKey") + calls("EnableKey") + calls("UntagResource") +
		calls("CreateKey") == 0;
}

static bool
is_under(const DataKey *key, const char *id)
{
	return memmem(key->wrapped, key->wrapped_len, id, strlen(id)) != NULL;
}

/* Their key is tagged as ours, which is there too. */
static void
test_two_of_one_label(const DataKey *our, const DataKey *their)
{
	DataKey		key = *our;
	DataKey		opened = *their;
	Helper		h = start(kms_uri);
	bool		now;
	int			n;

	tag(their_id, OUR_KEY);
	tap_ok(wrap(&h, OUR_KEY, true, &key) == KS_OK && is_under(&key, our_id),
		   "of two keys with one tag the one that was made so wraps: %s", reply.reason);
	tap_ok(unwrap_one(&h, THEIR_KEY, &opened) == KS_OK, "the other opens what it wrapped: %s", reply.reason);
	key = *our;
	tap_ok(unwrap_one(&h, OUR_KEY, &key) == KS_OK, "as does ours");
	key = *their;
	tap_ok(unwrap_one(&h, OUR_KEY, &key) == KS_INTEGRITY, "but nothing under it is ours: %s", reply.reason);
	stop(&h);

	h = start(kms_uri);
	forget_calls();
	tap_ok(see(&h, INST, OURS) == -1 && names_it(), "our keys are not counted with it: %s", reply.reason);
	tap_ok(ask_destroy(&h, OURS, SERIAL, 7) == KS_REFUSED && names_it(), "nor destroyed: %s", reply.reason);
	tap_ok(destroy_kek(&h, OUR_KEY) == KS_REFUSED && names_it(), "nor one of them");
	tap_ok(remove_key(&h, INST, OUR_KEY, 0, &now) == KS_REFUSED && names_it(), "nor removed");
	tap_ok(enable(&h, OURS, false, &n) == -1 && names_it(), "nor disabled");
	tap_ok(enable(&h, OURS, true, &n) == -1 && names_it(), "nor enabled");
	tap_ok(list(&h, INST, 0, &n) == -1 && names_it(), "nor listed to be removed");
	tap_ok(nothing_was_done(), "and nothing was done to either");
	stop(&h);
}

/* It is tagged as one of ours that is not there. */
static void
test_in_place_of_another(const DataKey *their)
{
	DataKey		key = {.aad = "a place"};
	Helper		h = start(kms_uri);
	int			n;

	tag(their_id, LABEL(INST, OURS, "2"));
	forget_calls();
	tap_ok(wrap(&h, LABEL(INST, OURS, "2"), true, &key) == KS_REFUSED && names_it(),
		   "it wraps nothing of ours: %s", reply.reason);
	tap_ok(create_kek(&h, INST, OURS, 2, NULL, 0) == KS_REFUSED && names_it(), "nor is a key made beside it");
	tap_ok(ask_destroy(&h, OURS, SERIAL, 7) == KS_REFUSED && names_it(), "nor are ours destroyed with it");
	tap_ok(nothing_was_done(), "and nothing was done");
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"PendingDeletion\", \"deletion\": 4102444800.5}", their_id);
	tap_ok(see(&h, INST, OURS) == 1, "when it waits for its end, it is in nobody's way: %s", reply.reason);
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"Enabled\", \"deletion\": null}", their_id);
	tap_ok(see(&h, INST, OURS) == -1 && names_it(), "and it is again if that is cancelled");
	stop(&h);

	h = start(kms_uri);
	tap_ok(see(&h, INST, THEIRS) == 0, "by its tag nobody finds it");
	tap_ok(wrap(&h, THEIR_KEY, true, &key) == KS_REFUSED && names_it(),
		   "but it is not called absent: %s", reply.reason);
	key = *their;
	tap_ok(unwrap_one(&h, THEIR_KEY, &key) == KS_OK, "and opens what it wrapped");
	tap_ok(wrap(&h, LABEL(INST, THEIRS, "7"), true, &key) == KS_KEY_ABSENT, "where one that was never made is absent");
	forget_calls();
	tap_ok(ask_destroy(&h, THEIRS, SERIAL, 7) == KS_OK && wire_get_uint(&reply.r, 2) == 0 && nothing_was_done() &&
		   enable(&h, THEIRS, false, &n) == 0 && n == 0, "destroying and disabling do not take it for granted");
	stop(&h);
}

/* It is tagged as what proves that the account is ours. */
static void
test_as_canary(const DataKey *our)
{
	DataKey		key = *our;
	Helper		h;

	tag(their_id, CANARY);
	h = start(kms_uri);
	tap_ok(see(&h, INST, OURS) == 1 && unwrap_one(&h, OUR_KEY, &key) == KS_OK,
		   "a second canary that was not made as one disturbs nobody: %s", reply.reason);
	stop(&h);
}

/* The description was changed, by somebody who may do everything. */
static void
test_described_anew(const DataKey *their)
{
	DataKey		key = *their;
	Helper		h;

	tag(their_id, THEIR_KEY);
	(void) control("{\"do\": \"call\", \"action\": \"UpdateKeyDescription\", \"KeyId\": \"%s\", \"Description\": \"the old one\\u0007\"}", their_id);
	h = start(kms_uri);
	tap_ok(unwrap_one(&h, THEIR_KEY, &key) == KS_REFUSED && strstr(reply.reason, "made as \"the old one?\"") != NULL,
		   "a key with another description is not used: %s", reply.reason);
	tap_ok(ask_destroy(&h, THEIRS, SERIAL, 7) == KS_REFUSED && strstr(reply.reason, their_id) != NULL, "nor destroyed");
	(void) control("{\"do\": \"call\", \"action\": \"UpdateKeyDescription\", \"KeyId\": \"%s\", \"Description\": \"" THEIR_KEY "\"}", their_id);
	tap_ok(unwrap_one(&h, THEIR_KEY, &key) == KS_OK, "corrected, it is used at once: %s", reply.reason);
	stop(&h);
}

/* All is as it was, and each school's keys are its own. */
static void
test_right_again(const DataKey *their)
{
	DataKey		key = *their;
	Helper		h = start(kms_uri);

	forget_calls();
	tap_ok(ask_destroy(&h, OURS, SERIAL, 7) == KS_OK && wire_get_uint(&reply.r, 2) == 1 &&
		   calls("ScheduleKeyDeletion") == 1, "tagged as it was, it does not hinder that ours is destroyed");
	tap_ok(see(&h, INST, THEIRS) == 1 && unwrap_one(&h, THEIR_KEY, &key) == KS_OK, "and stays");
	stop(&h);
}

int
main(int argc, char **argv)
{
	DataKey		our;
	DataKey		their;
	Helper		h;

	begin_tests(argc, argv);
	start_double(argv[0]);
	use_everyday_credentials();
	h = start(kms_uri);
	if (ask_strings(&h, KS_OP_SETUP, INST, NULL, NULL) != KS_OK || create_kek(&h, INST, OURS, 1, &our, 1) != KS_OK ||
		create_kek(&h, INST, THEIRS, 1, &their, 1) != KS_OK)
		tap_bail("no keys: %s", reply.reason);
	stop(&h);
	snprintf(our_id, sizeof(our_id), "%s", key_id(OUR_KEY));
	snprintf(their_id, sizeof(their_id), "%s", key_id(THEIR_KEY));
	test_two_of_one_label(&our, &their);
	test_in_place_of_another(&their);
	test_as_canary(&our);
	test_described_anew(&their);
	test_right_again(&their);
	return end_tests();
}
