/*
 * keystore_test.c
 *		The keystore helper does what protocol.h promises, on two tokens that
 *		know nothing of each other: SoftHSM and NSS.
 *
 * What must not work comes first: other people's labels, changed bytes, keys
 * that are gone, tokens that are not ours.  Tokens that misbehave are in
 * keystore_faults_test.c; frames, settings and PINs in keystore_input_test.c.
 */
#include "keystore_client.h"

#define MANY	(KS_LIST_PAGE + 5)				/* more keys than one answer lists */

static char pin_file[PATH_MAX + 64];

/* Names that are no key of the installation's. */
static void
test_foreign_labels(Helper *h)
{
	static const char *const labels[] = {
		"", "nomp_crypt:", "key",
		LABEL(INST2, SCHOOL, "1"),
		"nomp_crypt:" INST ":canary",
		KEK1 ":provisional@2026-11-23T20:07:26Z",
		KEK1 ":provisional@2026-11-23T20:07:2",
		KEK1 ":provisional@2026-02-30T20:07:26Z",
		KEK1 ":", KEK1 " ", LABEL(INST, SCHOOL, "01"), LABEL(INST, SCHOOL, "4294967296"),
		LABEL(INST, "AAAAAAAA-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "1"),
		LABEL(INST, "aaaaaaaaa-aaa-4aaa-8aaa-aaaaaaaaaaaa", "1"),
	};
	DataKey		key = {.wrapped_len = WRAPPED_LEN};
	bool		removed;

	for (size_t i = 0; i < sizeof(labels) / sizeof(labels[0]); i++)
		tap_ok(unwrap(h, INST, labels[i], false, &key, 1) == KS_REFUSED,
			   "the label \"%s\" is refused", labels[i]);
	tap_ok(unwrap(h, "not a uuid", KEK1, false, &key, 1) == KS_REFUSED,
		   "an installation that is no uuid is refused");
	tap_ok(remove_key(h, INST, "nomp_crypt:" INST ":canary", 0, &removed) == KS_REFUSED &&
		   remove_key(h, INST, LABEL(INST2, SCHOOL, "1"), 0, &removed) == KS_REFUSED,
		   "neither the canary nor another installation's key is removed");
	tap_ok(create_kek(h, INST, "school", 1, NULL, 0) == KS_REFUSED &&
		   see(h, INST, "") == -1,
		   "a school that is no uuid is refused");
}

/* Nothing but the intact wrapped key, at its place, opens. */
static void
test_changed_bytes(Helper *h, DataKey *good)
{
	DataKey		key = *good;
	int			refused = 0;

	for (int i = 0; i < WRAPPED_LEN; i++)
	{
		key = *good;
		key.wrapped[i] ^= (uint8_t) (1 << i % 8);
		refused += unwrap_one(h, KEK1, &key) == KS_INTEGRITY;
	}
	tap_ok(refused == WRAPPED_LEN, "a flipped bit in any byte is an integrity failure (%d)",
		   refused);
	refused = 0;
	for (size_t len = 0; len <= WRAPPED_LEN + 1; len++)
	{
		key = *good;
		key.wrapped_len = len;
		refused += unwrap_one(h, KEK1, &key) == KS_INTEGRITY;
	}
	tap_ok(refused == WRAPPED_LEN + 1, "so is any other length (%d)", refused);
	key = *good;
	strcpy(key.aad, "another place");
	tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "so is another place");
	key = *good;
	key.aad[0] = '\0';
	tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "so is no place");
	key = *good;
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL2, "1"), &key) == KS_INTEGRITY,
		   "so is another school's KEK");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "the intact one still opens");
}

/* Good and bad keys in one request do not disturb each other. */
static void
test_mixed(Helper *h, const DataKey *good)
{
	DataKey		keys[KS_MAX_KEYS];
	bool		right = true;

	for (int i = 0; i < KS_MAX_KEYS; i++)
	{
		keys[i] = *good;
		if (i % 3 == 1)
			keys[i].wrapped[40] ^= 1;
	}
	right = unwrap(h, INST, KEK1, false, keys, KS_MAX_KEYS) == KS_OK;
	for (int i = 0; i < KS_MAX_KEYS; i++)
		right = right && keys[i].status == (i % 3 == 1 ? KS_INTEGRITY : KS_OK);
	tap_ok(right, "twelve keys in one request each have a status of their own");
}

/* A token without our canary is not asked to believe anything of. */
static void
test_without_canary(Helper *h, const char *token)
{
	DataKey		key = {.wrapped_len = WRAPPED_LEN, .wrapped = {1}};
	bool		removed;
	int			n;
	char		serial[64];
	uint8_t		canary;

	tap_ok(ask_strings(h, KS_OP_STATUS, "", NULL, NULL) == KS_OK, "%s: status", token);
	tap_ok(ask_strings(h, KS_OP_STATUS, INST, NULL, NULL) == KS_OK, "%s: status again", token);
	(void) next_string();
	snprintf(serial, sizeof(serial), "%s", next_string());
	(void) next_string();
	(void) next_string();
	(void) wire_get_uint(&reply.r, 1);
	canary = (uint8_t) wire_get_uint(&reply.r, 1);
	tap_ok(ends_as_token() && canary == 0, "%s: no canary is found", token);
	tap_ok(unwrap_one(h, KEK1, &key) == KS_TOKEN_WRONG,
		   "%s: a key that is not there is not called absent", token);
	tap_ok(ask_strings(h, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_TOKEN_WRONG,
		   "%s: nor when confirmed", token);
	tap_ok(create_kek(h, INST, SCHOOL, 1, NULL, 0) == KS_TOKEN_WRONG,
		   "%s: no key is made", token);
	tap_ok(see(h, INST, SCHOOL) == -1 && list(h, INST, 0, &n) == -1,
		   "%s: nothing is listed", token);
	tap_ok(remove_key(h, INST, KEK1, 0, &removed) == KS_TOKEN_WRONG &&
		   ask_strings(h, KS_OP_DESTROY, INST, SCHOOL, serial) == KS_TOKEN_WRONG,
		   "%s: nothing is destroyed", token);
}

static void
test_setup(Helper *h)
{
	bool		created;
	char		serial[64];
	char		maker[64];

	tap_ok(setup(h, INST, &created) == KS_OK && created, "setup makes the canary");
	tap_ok(setup(h, INST, &created) == KS_OK && !created, "and only once");
	tap_ok(ask_strings(h, KS_OP_STATUS, INST, NULL, NULL) == KS_OK, "status");
	(void) next_string();
	snprintf(serial, sizeof(serial), "%s", next_string());
	tap_ok(strlen(serial) > 3, "status names a serial number");
	snprintf(maker, sizeof(maker), "%s", next_string());
	(void) next_string();
	tap_ok(wire_get_uint(&reply.r, 1) == 1, "%s is a software token", maker);
	tap_ok(wire_get_uint(&reply.r, 1) == 1 && ends_as_token(), "the canary is found");
	tap_ok(ask_strings(h, KS_OP_PROBE, INST, NULL, NULL) == KS_OK &&
		   strcmp(next_string(), serial) == 0 && *next_string() == '\0' && wire_done(&reply.r),
		   "who only asks which token it is gets that number");
}

/* Born provisional, confirmed, and never removed after that. */
static void
test_life_of_a_key(Helper *h, Helper *other, DataKey *good)
{
	DataKey		keys[KS_MAX_KEYS];
	DataKey		second;
	bool		removed;
	bool		distinct = true;
	int			n;
	char		label[KS_MAX_LABEL + 1];
	uint64_t	created;

	tap_ok(unwrap_one(h, KEK1, &(DataKey) {.wrapped_len = WRAPPED_LEN, .wrapped = {1}}) ==
		   KS_KEY_ABSENT, "a key that was never made is absent");
	tap_ok(create_kek(h, INST, SCHOOL, 1, keys, KS_MAX_KEYS) == KS_OK,
		   "a KEK is made, with twelve data keys");
	for (int i = 0; i < KS_MAX_KEYS; i++)
		distinct = distinct && keys[i].wrapped_len == WRAPPED_LEN && keys[i].wrapped[0] == 1 &&
			(i == 0 || (memcmp(keys[i].key, keys[i - 1].key, KS_DEK_LEN) != 0 &&
						memcmp(keys[i].wrapped + 1, keys[i - 1].wrapped + 1, 12) != 0));
	tap_ok(distinct, "they differ, and so do their IVs");
	*good = keys[3];
	tap_ok(create_kek(h, INST, SCHOOL, 1, keys, 0) == KS_EXISTS, "it is not made twice");
	tap_ok(create_kek(other, INST, SCHOOL, 1, keys, 0) == KS_EXISTS,
		   "nor by another helper");
	tap_ok(unwrap_one(other, KEK1, good) == KS_OK, "another helper unwraps with it");
	tap_ok(list(h, INST, 0, &n) == 1 && n == 1, "it is provisional");
	snprintf(label, sizeof(label), "%s", next_string());
	created = wire_get_uint(&reply.r, 8);
	tap_ok(strncmp(label, KEK1 ":provisional@2", strlen(KEK1) + 14) == 0, "its label: %s", label);
	tap_ok(created <= (uint64_t) time(NULL) && created + 60 > (uint64_t) time(NULL),
		   "its mark has the time");
	tap_ok(remove_key(h, INST, label, 3600, &removed) == KS_REFUSED,
		   "it is too young to be removed");

	tap_ok(create_kek(h, INST, SCHOOL, 2, &second, 1) == KS_OK, "a second generation");
	tap_ok(unwrap(h, INST, LABEL(INST, SCHOOL, "2"), true, &second, 1) == KS_OK &&
		   second.status == KS_OK, "unwrapping confirms it, if asked");
	tap_ok(list(h, INST, 0, &n) == 1, "it is not provisional any more");
	tap_ok(unwrap_one(other, LABEL(INST, SCHOOL, "2"), &second) == KS_OK,
		   "another helper sees that");

	tap_ok(ask_strings(other, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_OK,
		   "the other helper confirms the first");
	tap_ok(list(h, INST, 0, &n) == 0 && n == 0, "none is provisional");
	tap_ok(ask_strings(h, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_OK, "it may be confirmed again");
	tap_ok(remove_key(h, INST, label, 0, &removed) == KS_REFUSED &&
		   remove_key(h, INST, KEK1, 0, &removed) == KS_REFUSED,
		   "a confirmed key is not removed, under neither name");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "it is still there");

	tap_ok(create_kek(h, INST, SCHOOL2, 1, NULL, 0) == KS_OK &&
		   create_kek(h, INST, SCHOOL2, 4294967295U, NULL, 0) == KS_OK,
		   "another school's KEKs, the last possible generation among them");
	tap_ok(list(h, INST, 1, &n) == 2 && n == 1, "the second of two provisional keys");
	snprintf(label, sizeof(label), "%s", next_string());
	tap_ok(remove_key(h, INST, label, 0, &removed) == KS_OK && removed, "%s is removed", label);
	tap_ok(remove_key(h, INST, label, 0, &removed) == KS_OK && !removed, "and then is not there");
	tap_ok(ask_strings(h, KS_OP_CONFIRM, INST, LABEL(INST, SCHOOL2, "1"), NULL) == KS_OK,
		   "the other is confirmed");
}

/* Data keys made and wrapped again under a KEK that is there. */
static void
test_wrap(Helper *h, Helper *other, const DataKey *good)
{
	DataKey		fresh = {.aad = "a place of its own"};
	DataKey		again;
	DataKey		moved = *good;

	tap_ok(wrap(h, LABEL(INST, SCHOOL, "9"), true, &fresh) == KS_KEY_ABSENT,
		   "nothing is wrapped under a KEK that is not there");
	tap_ok(wrap(h, KEK1, true, &fresh) == KS_OK && unwrap_one(other, KEK1, &fresh) == KS_OK,
		   "a fresh data key is wrapped, and opens elsewhere");
	again = fresh;
	tap_ok(wrap(h, KEK1, true, &again) == KS_OK && memcmp(again.key, fresh.key, KS_DEK_LEN) != 0,
		   "the next one is another");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL, "2"), &moved) == KS_INTEGRITY,
		   "a key opens under its own KEK only");
	tap_ok(wrap(h, LABEL(INST, SCHOOL, "2"), false, &moved) == KS_OK &&
		   unwrap_one(other, LABEL(INST, SCHOOL, "2"), &moved) == KS_OK &&
		   memcmp(moved.key, good->key, KS_DEK_LEN) == 0,
		   "wrapped again it opens under the other, as the same key");
	strcpy(moved.aad, "another place");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL, "2"), &moved) == KS_INTEGRITY, "and at its place only");
	tap_ok(create_kek(h, INST, SCHOOL, 3, NULL, 0) == KS_OK &&
		   wrap(h, LABEL(INST, SCHOOL, "3"), false, &moved) == KS_OK &&
		   see(h, INST, SCHOOL) == 3 && list(h, INST, 0, &(int) {0}) == 1,
		   "under a provisional KEK too, which stays provisional");
	tap_ok(unwrap(h, INST, LABEL(INST, SCHOOL, "3"), false, &moved, 1) == KS_OK &&
		   moved.status == KS_OK, "and opens there");
}

/* Keys that must not be used for a while. */
static void
test_enable(Helper *h, Helper *other, DataKey *good)
{
	DataKey		key = *good;
	int			found;

	tap_ok(enable(h, "no uuid", false, &found) == -1, "no uuid");
	tap_ok(enable(h, "99999999-9999-4999-8999-999999999999", false, &found) == 0 && found == 0,
		   "a school without keys has none to disable");
	tap_ok(enable(h, SCHOOL, false, &found) == 3 && found == 3, "three keys are disabled");
	tap_ok(unwrap_one(h, KEK1, good) == KS_KEY_DISABLED &&
		   unwrap_one(other, KEK1, good) == KS_KEY_DISABLED,
		   "they are disabled, for another helper too");
	key.wrapped[40] ^= 1;
	tap_ok(unwrap_one(h, KEK1, &key) == KS_KEY_DISABLED, "whatever is to be opened");
	tap_ok(wrap(h, KEK1, true, &key) == KS_KEY_DISABLED, "nothing is wrapped either");
	tap_ok(see(h, INST, SCHOOL) == 3, "they are seen");
	tap_ok(enable(other, SCHOOL, true, &found) == 3 && found == 3, "they are enabled again");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK && unwrap_one(other, KEK1, good) == KS_OK,
		   "and open as before");
}

/* One generation is destroyed, and no other. */
static void
test_destroy_kek(Helper *h, Helper *other, DataKey *good)
{
	char		serial[64];
	DataKey		third = *good;
	int			found;

	if (wrap(h, LABEL(INST, SCHOOL, "3"), false, &third) != KS_OK ||
		ask_see(h, INST, SCHOOL, 0) != KS_OK)
		tap_bail("no sight: %s", reply.reason);
	snprintf(serial, sizeof(serial), "%s", next_string());
	tap_ok(ask_strings(h, KS_OP_DESTROY_KEK, INST, LABEL(INST, SCHOOL, "3"), "") == KS_TOKEN_WRONG,
		   "no generation is destroyed on a token of another serial number");
	tap_ok(ask_strings(h, KS_OP_DESTROY_KEK, INST, LABEL(INST2, SCHOOL, "3"), serial) == KS_REFUSED &&
		   ask_strings(h, KS_OP_DESTROY_KEK, INST, "nomp_crypt:" INST ":canary", serial) == KS_REFUSED &&
		   ask_strings(h, KS_OP_DESTROY_KEK, INST, "nomp_crypt:" INST ":" SCHOOL ":", serial) == KS_REFUSED &&
		   ask_strings(h, KS_OP_DESTROY_KEK, INST, "", serial) == KS_REFUSED,
		   "nor what is no generation of this installation's");
	tap_ok(ask_strings(h, KS_OP_DESTROY_KEK, INST, LABEL(INST, SCHOOL, "30"), serial) == KS_OK &&
		   wire_get_uint(&reply.r, 1) == 0 && see(h, INST, SCHOOL) == 3,
		   "one that is not there takes none with it");
	tap_ok(enable(h, SCHOOL, false, &found) == 3, "a key that is disabled");
	tap_ok(ask_strings(h, KS_OP_DESTROY_KEK, INST, LABEL(INST, SCHOOL, "3"), serial) == KS_OK &&
		   wire_get_uint(&reply.r, 1) == 1, "is destroyed like any other");
	tap_ok(enable(h, SCHOOL, true, &found) == 2 && found == 2, "and only that one");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL, "3"), &third) == KS_KEY_ABSENT &&
		   unwrap_one(other, LABEL(INST, SCHOOL, "3"), &third) == KS_KEY_ABSENT, "it is absent");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK && unwrap_one(other, KEK1, good) == KS_OK,
		   "the other generations open");
	tap_ok(ask_strings(h, KS_OP_DESTROY_KEK, INST, LABEL(INST, SCHOOL, "3"), serial) == KS_OK &&
		   wire_get_uint(&reply.r, 1) == 0, "to destroy it again destroys nothing");
}

/* A school's keys are destroyed, and no one else's. */
static void
test_destroy(Helper *h, Helper *other, DataKey *good)
{
	char		serial[64];
	DataKey		keep;

	if (create_kek(h, INST, SCHOOL2, 7, &keep, 1) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	tap_ok(see(h, INST, SCHOOL) == 2, "two generations are seen");
	tap_ok(strcmp(next_string(), KEK1) == 0 && is_plain_key() &&
		   strcmp(next_string(), LABEL(INST, SCHOOL, "2")) == 0 &&
		   is_plain_key() && wire_done(&reply.r), "they are the right ones");
	tap_ok(see(h, INST2, SCHOOL) == -1, "another installation's are not");
	if (ask_see(h, INST, SCHOOL, 0) != KS_OK)
		tap_bail("no sight: %s", reply.reason);
	snprintf(serial, sizeof(serial), "%s", next_string());
	tap_ok(ask_strings(h, KS_OP_DESTROY, INST, SCHOOL, "") == KS_TOKEN_WRONG &&
		   ask_strings(h, KS_OP_DESTROY, INST, SCHOOL, "0123456789abcdef") == KS_TOKEN_WRONG,
		   "nothing is destroyed on a token of another serial number");
	expected_token = "0123456789abcdef";
	tap_ok(unwrap_one(h, KEK1, good) == KS_OTHER_TOKEN &&
		   ask_strings(h, KS_OP_STATUS, INST, NULL, NULL) == KS_OTHER_TOKEN &&
		   ask_strings(h, KS_OP_DESTROY, INST, SCHOOL, serial) == KS_OTHER_TOKEN,
		   "what is for another token is refused");
	expected_token = serial;
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "what is for this one is done");
	expected_token = "";
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "so the key still works");
	tap_ok(ask_strings(h, KS_OP_DESTROY, INST, SCHOOL, serial) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == 2 && strcmp(next_string(), KEK1) == 0,
		   "the school's keys are destroyed");
	tap_ok(see(h, INST, SCHOOL) == 0, "and not seen any more");
	tap_ok(unwrap_one(h, KEK1, good) == KS_KEY_ABSENT, "they are absent");
	tap_ok(unwrap_one(other, KEK1, good) == KS_KEY_ABSENT,
		   "also for a helper that had used them and did not destroy them");
	tap_ok(ask_strings(other, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_KEY_ABSENT,
		   "and are not confirmed");
	tap_ok(ask_strings(h, KS_OP_DESTROY, INST, SCHOOL, serial) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == 0, "to destroy again destroys nothing");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL2, "7"), &keep) == KS_OK &&
		   unwrap_one(other, LABEL(INST, SCHOOL2, "7"), &keep) == KS_OK,
		   "another school's key is untouched");
}

/* Everything, on one kind of token. */
static void
test_token(const char *name, const char *uri)
{
	Helper		h = start(uri);
	Helper		other;
	DataKey		good;
	DataKey		after_restart;

	printf("# %s\n", name);
	tap_ok(greeted_with(1, false), "a module may remember keys, and takes one request at a time");
	test_without_canary(&h, name);
	test_setup(&h);
	other = start(uri);
	test_life_of_a_key(&h, &other, &good);
	test_foreign_labels(&h);
	test_changed_bytes(&h, &good);
	test_mixed(&h, &good);
	test_wrap(&h, &other, &good);
	test_enable(&h, &other, &good);
	test_destroy_kek(&h, &other, &good);
	tap_ok(exited_with(stop(&h), 0), "the helper ends with its socket");
	h = start(uri);
	after_restart = good;
	tap_ok(unwrap_one(&h, KEK1, &after_restart) == KS_OK, "a new helper unwraps the same key");
	test_destroy(&h, &other, &good);
	stop(&h);
	stop(&other);
}

/* Pages: more keys than one answer lists. */
static void
test_many_keys(const char *uri)
{
	Helper		h = start(uri);
	char		serial[64];
	bool		made = true;
	int			n;

	for (uint32_t i = 1; i <= MANY; i++)
		made = made && create_kek(&h, INST, SCHOOL, i, NULL, 0) == KS_OK;
	tap_ok(made, "%d generations are made", MANY);
	tap_ok(list(&h, INST, 0, &n) >= MANY && n == KS_LIST_PAGE, "the first page is full");
	tap_ok(list(&h, INST2, 0, &n) == -1, "another installation has no canary here");
	tap_ok(list(&h, INST, KS_LIST_PAGE, &n) >= MANY && n > 0 && n < KS_LIST_PAGE,
		   "the second page has the rest");
	tap_ok(list(&h, INST, UINT32_MAX, &n) >= MANY && n == 0, "a page far behind is empty");
	tap_ok(see(&h, INST, SCHOOL) == KS_LIST_PAGE, "a full page is seen");
	tap_ok(ask_see(&h, INST, SCHOOL, KS_LIST_PAGE) == KS_OK && *next_string() != '\0' &&
		   wire_get_uint(&reply.r, 2) == MANY - KS_LIST_PAGE, "then the rest");
	(void) ask_see(&h, INST, SCHOOL, 0);
	snprintf(serial, sizeof(serial), "%s", next_string());
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, SCHOOL, serial) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == KS_LIST_PAGE, "a full page is destroyed");
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, SCHOOL, serial) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == MANY - KS_LIST_PAGE, "then the rest");
	tap_ok(see(&h, INST, SCHOOL) == 0, "then none is seen");
	stop(&h);
}

/* Several schools in one request: theirs and nobody else's. */
static void
test_several_schools(const char *uri)
{
	static const char *const no_lists[] = {
		SCHOOL3 " ", " " SCHOOL3, SCHOOL3 "  " SCHOOL4, SCHOOL3 "," SCHOOL4, SCHOOL3 " school", SCHOOL3 SCHOOL4,
	};
	const char *const both = SCHOOL3 " " SCHOOL4;
	Helper		h = start(uri);
	char		fifty[KS_MAX_TENANTS * 37] = SCHOOL3;
	char		serial[64];
	int			found;

	for (int i = 1; i < KS_MAX_TENANTS; i++)
		strcat(fifty, " " SCHOOL4);
	if (create_kek(&h, INST, SCHOOL3, 1, NULL, 0) != KS_OK ||
		create_kek(&h, INST, SCHOOL4, 1, NULL, 0) != KS_OK ||
		create_kek(&h, INST, SCHOOL4, 2, NULL, 0) != KS_OK ||
		create_kek(&h, INST, SCHOOL, 1, NULL, 0) != KS_OK)
		tap_bail("no keys: %s", reply.reason);
	for (size_t i = 0; i < sizeof(no_lists) / sizeof(no_lists[0]); i++)
		tap_ok(see(&h, INST, no_lists[i]) == -1 && enable(&h, no_lists[i], false, &found) == -1 &&
			   ask_strings(&h, KS_OP_DESTROY, INST, no_lists[i], "") == KS_REFUSED,
			   "no list of schools: \"%s\"", no_lists[i]);
	tap_ok(see(&h, INST, both) == 3, "the keys of both are seen");
	tap_ok(see(&h, INST, fifty) == 3, "as many as one request takes can be named");
	tap_ok(see(&h, INST, SCHOOL3 " " SCHOOL) == 2, "but no other's");
	tap_ok(enable(&h, both, false, &found) == 3 && found == 3, "both are disabled");
	tap_ok(enable(&h, SCHOOL, true, &found) == 1, "the other can still be used");
	(void) ask_see(&h, INST, both, 0);
	snprintf(serial, sizeof(serial), "%s", next_string());
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, both, serial) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == 3, "the keys of both are destroyed");
	tap_ok(see(&h, INST, both) == 0 && see(&h, INST, SCHOOL) == 1, "the other's is not");
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, SCHOOL, serial) == KS_OK, "until that is asked for");
	stop(&h);
}

/* What other programs do to the token while a helper has it open. */
static void
test_other_programs(const char *uri)
{
	Helper		h = start(uri);
	Helper		again;
	DataKey		key;
	char	   *module = (char *) softhsm_module();

#define PKCS11_TOOL(...) RUN("pkcs11-tool", "--module", module, "--token-label", "nomp", \
							 "--login", "--pin", PIN, __VA_ARGS__)

	if (create_kek(&h, INST, SCHOOL, 1, &key, 1) != KS_OK ||
		ask_strings(&h, KS_OP_CONFIRM, INST, KEK1, NULL) != KS_OK ||
		unwrap_one(&h, KEK1, &key) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	if (PKCS11_TOOL("--delete-object", "--type", "secrkey", "--label", KEK1) != 0)
		tap_bail("pkcs11-tool failed, see programs.log");
	tap_ok(unwrap_one(&h, KEK1, &key) == KS_KEY_ABSENT,
		   "a key that another program deleted is absent");

	if (create_kek(&h, INST, SCHOOL, 1, &key, 1) != KS_OK ||
		ask_strings(&h, KS_OP_CONFIRM, INST, KEK1, NULL) != KS_OK ||
		PKCS11_TOOL("--keygen", "--key-type", "AES:32", "--label", KEK1) != 0)
		tap_bail("no second key of that label: %s", reply.reason);
	again = start(uri);
	tap_ok(unwrap_one(&again, KEK1, &key) == KS_REFUSED,
		   "of two keys with one label none is used: %s", reply.reason);
	tap_ok(ask_strings(&again, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_REFUSED,
		   "and none confirmed");
	key.wrapped[50] ^= 1;
	tap_ok(unwrap_one(&h, KEK1, &key) == KS_REFUSED,
		   "a helper that knew only one finds out when something does not open");
	(void) ask_see(&h, INST, SCHOOL, 0);
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, SCHOOL, next_string()) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == 2, "both are destroyed");
	stop(&again);

	if (PKCS11_TOOL("--delete-object", "--type", "secrkey", "--label",
					"nomp_crypt:" INST ":canary") != 0)
		tap_bail("pkcs11-tool failed, see programs.log");
	tap_ok(unwrap_one(&h, KEK1, &key) == KS_TOKEN_WRONG,
		   "without its canary the token is not believed");
	stop(&h);
}

int
main(int argc, char **argv)
{
	char		uri[4 * PATH_MAX];

	begin_tests(argc, argv);
	snprintf(pin_file, sizeof(pin_file), "%s/pin", scratch);
	write_file(pin_file, PIN "\n", 0600);
	use_softhsm("tokens");
	make_softhsm_token("nomp");
	snprintf(uri, sizeof(uri), "%s", softhsm_uri("nomp", pin_file, false));

	test_token("SoftHSM", uri);
	test_many_keys(uri);
	test_several_schools(uri);
	test_other_programs(uri);
	test_token("NSS", make_nss_token("nss", pin_file));
	return end_tests();
}
