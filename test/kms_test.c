/*
 * kms_test.c
 *		The keystore helper with AWS KMS, without AWS: a key's life from
 *		creation to deletion.
 *
 * What goes wrong is in kms_faults_test.c.
 */
#include "kms_client.h"

#define LONG_AGO	"2020-01-01T00:00:00Z"

/* ---- setting up ---- */

static void
test_setup(Helper *h)
{
	char		serial[80];
	bool		created;

	tap_ok(ask_strings(h, KS_OP_STATUS, "", NULL, NULL) == KS_OK &&
		   strcmp(next_string(), "AWS KMS eu-north-1") == 0 && strcmp(next_string(), "") == 0 &&
		   strcmp(next_string(), "Amazon") == 0 && strcmp(next_string(), "KMS") == 0,
		   "an account without a key of ours is known by its region only");
	tap_ok(ask_strings(h, KS_OP_STATUS, INST, NULL, NULL) == KS_OK && *next_string() != '\0' &&
		   *next_string() == '\0', "it has no serial for an installation either");
	tap_ok(unwrap_one(h, KEK1, &(DataKey) {.wrapped_len = 61, .wrapped = {2}}) == KS_TOKEN_WRONG,
		   "without a canary it is not believed: %s", reply.reason);
	tap_ok(setup(h, INST, &created) == KS_OK && created, "it is set up");
	tap_ok(setup(h, INST, &created) == KS_OK && !created, "once");
	snprintf(serial, sizeof(serial), "%s", next_string());
	tap_ok(strcmp(serial, SERIAL) == 0, "then its serial is the account's: %s", serial);
	tap_ok(ask_strings(h, KS_OP_STATUS, INST, NULL, NULL) == KS_OK && *next_string() != '\0' &&
		   strcmp(next_string(), SERIAL) == 0, "which its status says too");
	(void) next_string();
	(void) next_string();
	tap_ok(wire_get_uint(&reply.r, 1) == 1 && wire_get_uint(&reply.r, 1) == 1 &&
		   wire_get_uint(&reply.r, 1) == 0 && strcmp(next_string(), "environment") == 0 &&
		   wire_get_uint(&reply.r, 1) == 1 && wire_done(&reply.r),
		   "a stand-in, with a canary, that destroys later, by lasting credentials of the environment");
}

/* ---- a key's life ---- */

static void
test_life_of_a_key(Helper *h, Helper *other, DataKey *good)
{
	DataKey		keys[KS_MAX_KEYS];
	DataKey		second;
	char		label[KS_MAX_LABEL + 1];
	bool		removed;
	bool		well = true;
	int			n;

	tap_ok(unwrap_one(h, KEK1, &(DataKey) {.wrapped_len = 61, .wrapped = {1}}) == KS_KEY_ABSENT,
		   "a key that was never made is absent");
	tap_ok(create_kek(h, INST, SCHOOL, 1, keys, KS_MAX_KEYS) == KS_OK,
		   "a KEK is made, with twelve data keys");
	for (int i = 0; i < KS_MAX_KEYS; i++)
		well = well && keys[i].wrapped[0] == 2 &&
			memcmp(keys[i].wrapped + 3, ARN, strlen(ARN)) == 0 &&
			(i == 0 || memcmp(keys[i].key, keys[i - 1].key, KS_DEK_LEN) != 0);
	tap_ok(well, "they differ, and name their KEK");
	*good = keys[3];
	tap_ok(create_kek(h, INST, SCHOOL, 1, keys, 0) == KS_EXISTS, "it is not made twice");
	tap_ok(create_kek(other, INST, SCHOOL, 1, keys, 0) == KS_EXISTS, "nor by another helper");
	tap_ok(unwrap_one(other, KEK1, good) == KS_OK, "another helper unwraps with it");
	tap_ok(list(h, INST, 0, &n) == 1 && n == 1, "it is provisional");
	snprintf(label, sizeof(label), "%s", next_string());
	tap_ok(strncmp(label, KEK1 ":provisional@2", strlen(KEK1) + 14) == 0, "its label: %s", label);
	tap_ok(remove_key(h, INST, label, 3600, &removed) == KS_REFUSED, "it is too young to be removed");
	tap_ok(create_kek(h, INST, SCHOOL, 2, &second, 1) == KS_OK, "a second generation");
	tap_ok(unwrap(h, INST, LABEL(INST, SCHOOL, "2"), true, &second, 1) == KS_OK &&
		   second.status == KS_OK, "unwrapping confirms it, if asked");
	tap_ok(list(h, INST, 0, &n) == 1, "it is not provisional any more");
	forget_calls();
	tap_ok(unwrap(h, INST, LABEL(INST, SCHOOL, "2"), true, &second, 1) == KS_OK &&
		   second.status == KS_OK && calls("Decrypt") == 1 && calls("UntagResource") == 0 &&
		   calls("DescribeKey") == 0 && calls("ListResourceTags") == 0,
		   "from then on an unwrap is one call");
	tap_ok(ask_strings(other, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_OK,
		   "the other helper confirms the first");
	tap_ok(list(h, INST, 0, &n) == 0 && n == 0, "none is provisional");
	tap_ok(ask_strings(h, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_OK, "it may be confirmed again");
	tap_ok(remove_key(h, INST, label, 0, &removed) == KS_REFUSED &&
		   remove_key(h, INST, KEK1, 0, &removed) == KS_REFUSED,
		   "a confirmed key is not removed, under neither name");
	tap_ok(create_kek(h, INST, SCHOOL2, 1, NULL, 0) == KS_OK, "another school's KEK");
	tap_ok(list(h, INST, 0, &n) == 1 && n == 1, "is provisional");
	snprintf(label, sizeof(label), "%s", next_string());
	tap_ok(remove_key(h, INST, label, 0, &removed) == KS_OK && removed, "%s is removed", label);
	tap_ok(remove_key(h, INST, label, 0, &removed) == KS_OK && !removed, "once");
	tap_ok(list(h, INST, 0, &n) == 0, "and not listed any more");
	tap_ok(see(h, INST, SCHOOL2) == 1, "though it is seen as long as it can be saved");
	tap_ok(create_kek(h, INST, SCHOOL2, 1, NULL, 0) == KS_EXISTS,
		   "so its number is not used again");
}

/* Data keys made and wrapped again under a KEK that is there. */
static void
test_wrap(Helper *h, Helper *other, const DataKey *good)
{
	DataKey		fresh = {.aad = "a place of its own"};
	DataKey		moved = *good;

	tap_ok(wrap(h, LABEL(INST, SCHOOL, "9"), true, &fresh) == KS_KEY_ABSENT,
		   "nothing is wrapped under a KEK that is not there");
	tap_ok(wrap(h, KEK1, true, &fresh) == KS_OK && unwrap_one(other, KEK1, &fresh) == KS_OK,
		   "a fresh data key is wrapped, and opens elsewhere");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL, "2"), &moved) == KS_INTEGRITY,
		   "a key opens under its own KEK's label only: %s", reply.reason);
	tap_ok(wrap(h, LABEL(INST, SCHOOL, "2"), false, &moved) == KS_OK &&
		   unwrap_one(other, LABEL(INST, SCHOOL, "2"), &moved) == KS_OK &&
		   memcmp(moved.key, good->key, KS_DEK_LEN) == 0,
		   "wrapped again it opens under the other, as the same key");
	strcpy(moved.aad, "another place");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL, "2"), &moved) == KS_INTEGRITY, "and at its place only");
}

/* ---- disabled, destroyed ---- */

static void
test_enable(Helper *h, Helper *other, DataKey *good)
{
	DataKey		key = *good;
	int			found;

	tap_ok(enable(h, "99999999-9999-4999-8999-999999999999", false, &found) == 0 && found == 0,
		   "a school without keys has none to disable");
	tap_ok(enable(h, SCHOOL, false, &found) == 2 && found == 2, "two keys are disabled");
	tap_ok(unwrap_one(h, KEK1, good) == KS_KEY_DISABLED &&
		   unwrap_one(other, KEK1, good) == KS_KEY_DISABLED,
		   "for another helper too: %s", reply.reason);
	key.wrapped[100] ^= 1;
	tap_ok(unwrap_one(h, KEK1, &key) == KS_KEY_DISABLED, "whatever is to be opened");
	tap_ok(wrap(h, KEK1, true, &key) == KS_KEY_DISABLED, "nothing is wrapped either");
	tap_ok(ask_see(h, INST, SCHOOL " " SCHOOL2, 0) == KS_UNSUPPORTED &&
		   ask_strings(h, KS_OP_DESTROY, INST, SCHOOL " " SCHOOL2, SERIAL) != KS_OK,
		   "schools are looked for one at a time");
	tap_ok(ask_see(h, INST, SCHOOL, 0) == KS_OK && strcmp(next_string(), SERIAL) == 0 &&
		   wire_get_uint(&reply.r, 2) == 2 && strcmp(next_string(), KEK1) == 0 &&
		   wire_get_uint(&reply.r, 1) == 0 && wire_get_uint(&reply.r, 1) == KS_STATE_DISABLED &&
		   wire_get_uint(&reply.r, 8) == 0 && strncmp(next_string(), ARN, strlen(ARN)) == 0,
		   "they are seen, with their state and name");
	tap_ok(enable(other, SCHOOL, true, &found) == 2 && found == 2, "they are enabled again");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK && unwrap_one(other, KEK1, good) == KS_OK,
		   "and open as before");
}

/* The answer to DESTROY: how many now, how many pending, until about so many days. */
static bool
destroyed(int now, int pending, int days)
{
	const uint64_t today = (uint64_t) time(NULL);
	uint64_t	until;

	if ((int) wire_get_uint(&reply.r, 2) != now)
		return false;
	for (int i = 0; i < now; i++)
		(void) next_string();
	if ((int) wire_get_uint(&reply.r, 2) != pending)
		return false;
	until = wire_get_uint(&reply.r, 8);
	return wire_done(&reply.r) && (pending == 0 ? until == 0 :
								   until > today + (uint64_t) days * DAY - 3600 &&
								   until < today + (uint64_t) days * DAY + 3600);
}

static KsStatus
destroy_kek(Helper *h, const char *label, unsigned days, bool *now, uint64_t *until)
{
	KsStatus	status;

	begin();
	put(INST);
	put(label);
	put(SERIAL);
	put_uint(days, 2);
	status = ask(h, KS_OP_DESTROY_KEK);
	*now = status == KS_OK && wire_get_uint(&reply.r, 1) == 1;
	*until = status == KS_OK ? wire_get_uint(&reply.r, 8) : 0;
	return status;
}

static void
test_destroy_kek(Helper *h, Helper *other, DataKey *good)
{
	DataKey		second = *good;
	bool		now;
	uint64_t	until;

	if (wrap(h, LABEL(INST, SCHOOL, "2"), false, &second) != KS_OK)
		tap_bail("not wrapped: %s", reply.reason);
	tap_ok(destroy_kek(h, LABEL(INST, SCHOOL, "30"), 7, &now, &until) == KS_OK && !now && until == 0,
		   "one that is not there takes none with it");
	tap_ok(destroy_kek(h, LABEL(INST, SCHOOL, "2"), 6, &now, &until) == KS_REFUSED &&
		   destroy_kek(h, LABEL(INST, SCHOOL, "2"), 31, &now, &until) == KS_REFUSED,
		   "keys end in 7 to 30 days: %s", reply.reason);
	tap_ok(destroy_kek(h, LABEL(INST, SCHOOL, "2"), 8, &now, &until) == KS_OK && now &&
		   until > (uint64_t) time(NULL) + 7 * DAY, "one generation is to end");
	tap_ok(destroy_kek(h, LABEL(INST, SCHOOL, "2"), 30, &now, &until) == KS_OK && !now &&
		   until < (uint64_t) time(NULL) + 9 * DAY, "that is not asked for again");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL, "2"), &second) == KS_KEY_DISABLED &&
		   unwrap_one(other, LABEL(INST, SCHOOL, "2"), &second) == KS_KEY_DISABLED &&
		   strstr(reply.reason, "scheduled for deletion on 20") != NULL,
		   "it is not used any more: %s", reply.reason);
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "the other is");
	(void) control("{\"do\": \"advance\", \"seconds\": %d}", 9 * DAY);
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL, "2"), &second) == KS_KEY_ABSENT &&
		   unwrap_one(other, LABEL(INST, SCHOOL, "2"), &second) == KS_KEY_ABSENT,
		   "nine days later it is absent: %s", reply.reason);
	tap_ok(destroy_kek(h, LABEL(INST, SCHOOL, "2"), 7, &now, &until) == KS_OK && !now && until == 0,
		   "and cannot be ended again");
	tap_ok(see(h, INST, SCHOOL) == 1, "one is left");
}

static void
test_destroy(Helper *h, Helper *other, DataKey *good)
{
	DataKey		keep;
	int			found;

	if (create_kek(h, INST, SCHOOL2, 7, &keep, 1) != KS_OK ||
		create_kek(h, INST, SCHOOL, 3, NULL, 0) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	tap_ok(ask_destroy(h, SCHOOL, "", 7) == KS_TOKEN_WRONG &&
		   ask_destroy(h, SCHOOL, "arn:aws:kms:eu-north-1:999999999999", 7) == KS_TOKEN_WRONG,
		   "nothing is destroyed in another account");
	expected_token = "arn:aws:kms:eu-north-1:999999999999";
	tap_ok(unwrap_one(h, KEK1, good) == KS_OTHER_TOKEN &&
		   ask_strings(h, KS_OP_STATUS, INST, NULL, NULL) == KS_OTHER_TOKEN &&
		   ask_destroy(h, SCHOOL, SERIAL, 7) == KS_OTHER_TOKEN,
		   "what is for another account is refused");
	expected_token = SERIAL;
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "what is for this one is done");
	expected_token = "";
	tap_ok(ask_destroy(h, SCHOOL, SERIAL, 3) == KS_REFUSED && unwrap_one(h, KEK1, good) == KS_OK,
		   "nothing is destroyed in three days");
	forget_calls();
	tap_ok(ask_destroy(h, SCHOOL, SERIAL, 7) == KS_OK && destroyed(2, 2, 7),
		   "the school's keys are to end in seven days");
	tap_ok(calls("ScheduleKeyDeletion") == 2, "which the service was asked once for each");
	tap_ok(ask_destroy(h, SCHOOL, SERIAL, 7) == KS_OK && destroyed(0, 2, 7),
		   "again: nothing new, two pending");
	tap_ok(calls("ScheduleKeyDeletion") == 2, "and the service was not asked again");
	tap_ok(enable(h, SCHOOL, true, &found) == 0 && found == 2, "they cannot be enabled");
	tap_ok(ask_see(h, INST, SCHOOL, 0) == KS_OK && *next_string() != '\0' &&
		   wire_get_uint(&reply.r, 2) == 2 && strcmp(next_string(), KEK1) == 0 &&
		   wire_get_uint(&reply.r, 1) == 0 && wire_get_uint(&reply.r, 1) == KS_STATE_PENDING &&
		   wire_get_uint(&reply.r, 8) > (uint64_t) time(NULL) + 6 * DAY,
		   "they are seen, pending, with their end");
	(void) control("{\"do\": \"call\", \"action\": \"CancelKeyDeletion\", \"KeyId\": \"%s\"}",
				   key_id(KEK1));
	tap_ok(ask_see(h, INST, SCHOOL, 0) == KS_OK && *next_string() != '\0' &&
		   wire_get_uint(&reply.r, 2) == 2 && *next_string() != '\0' &&
		   wire_get_uint(&reply.r, 1) == 0 && wire_get_uint(&reply.r, 1) == KS_STATE_DISABLED &&
		   wire_get_uint(&reply.r, 8) == 0, "one that somebody saved is seen to be saved");
	tap_ok(ask_destroy(h, SCHOOL, SERIAL, 30) == KS_OK && destroyed(1, 2, 30),
		   "it is destroyed again, in thirty days");
	(void) control("{\"do\": \"advance\", \"seconds\": %d}", 31 * DAY);
	tap_ok(see(h, INST, SCHOOL) == 0, "then none is seen");
	tap_ok(ask_destroy(h, SCHOOL, SERIAL, 7) == KS_OK && destroyed(0, 0, 0),
		   "and none is pending");
	tap_ok(unwrap_one(h, KEK1, good) == KS_KEY_ABSENT && unwrap_one(other, KEK1, good) == KS_KEY_ABSENT,
		   "they are absent: %s", reply.reason);
	tap_ok(ask_strings(other, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_KEY_ABSENT, "and not confirmed");
	tap_ok(unwrap_one(h, LABEL(INST, SCHOOL2, "7"), &keep) == KS_OK &&
		   unwrap_one(other, LABEL(INST, SCHOOL2, "7"), &keep) == KS_OK,
		   "another school's key is untouched");
}

/* More keys than an answer lists. */
static void
test_pages(Helper *h)
{
	bool		made = true;
	int			n;

	for (uint32_t i = 101; i <= 125; i++)
		made = made && create_kek(h, INST, SCHOOL, i, NULL, 0) == KS_OK;
	tap_ok(made, "25 generations are made");
	(void) control("{\"do\": \"page\", \"most\": 7}");
	tap_ok(list(h, INST, 0, &n) >= 25 && n == KS_LIST_PAGE, "the first page of provisional ones is full");
	tap_ok(list(h, INST, KS_LIST_PAGE, &n) >= 25 && n >= 5, "the second page has the rest");
	tap_ok(see(h, INST, SCHOOL) == KS_LIST_PAGE, "a full page is seen");
	tap_ok(ask_see(h, INST, SCHOOL, KS_LIST_PAGE) == KS_OK && *next_string() != '\0' &&
		   wire_get_uint(&reply.r, 2) == 5, "then the rest");
	tap_ok(ask_destroy(h, SCHOOL, SERIAL, 7) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == KS_LIST_PAGE, "a full page is destroyed");
	tap_ok(ask_destroy(h, SCHOOL, SERIAL, 7) == KS_OK && destroyed(5, 25, 7),
		   "then the rest, and all are pending");
	recover();
}

/* ---- the register ---- */

static KsStatus
register_key(Helper *h, uint32_t generation, bool create, bool *created, char *public_key)
{
	const uint8_t *der;
	size_t		len;
	KsStatus	status;

	begin();
	put(INST);
	put_uint(generation, 4);
	put("");
	put_uint(create ? KS_MAKE : KS_FIND, 1);
	status = ask(h, KS_OP_REGISTER_KEY);
	*created = status == KS_OK && wire_get_uint(&reply.r, 1) == 1;
	if (status != KS_OK)
		return status;
	(void) next_string();
	len = wire_get_str(&reply.r, &der);
	for (size_t i = 0; i < len; i++)
		sprintf(public_key + 2 * i, "%02x", der[i]);
	return wire_done(&reply.r) && len == 91 ? KS_OK : WRONG_KEY;
}

static KsStatus
sign(Helper *h, uint32_t generation, const char *text)
{
	uint8_t		digest[KS_DIGEST_LEN] = {0};
	const uint8_t *signature;
	KsStatus	status;

	memcpy(digest, text, strlen(text));
	begin();
	put(INST);
	put_uint(generation, 4);
	put("");
	wire_put_str(&body, digest, sizeof(digest));
	status = ask(h, KS_OP_SIGN);
	if (status == KS_OK && wire_get_str(&reply.r, &signature) != KS_SIGNATURE_LEN)
		status = WRONG_KEY;
	return status;
}

static void
test_register(Helper *h, Helper *other)
{
	char		first[512];
	char		again[512];
	bool		created;

	tap_ok(register_key(h, 1, false, &created, first) == KS_KEY_ABSENT, "the register has no key");
	tap_ok(register_key(h, 1, true, &created, first) == KS_OK && created, "one is made: %s", reply.reason);
	tap_ok(register_key(other, 1, true, &created, again) == KS_OK && !created &&
		   strcmp(first, again) == 0, "once");
	tap_ok(register_key(h, 2, true, &created, again) == KS_OK && created &&
		   strcmp(first, again) != 0, "a second generation is another");
	tap_ok(sign(h, 1, "a digest") == KS_OK && sign(other, 2, "another") == KS_OK, "they sign");
	tap_ok(sign(h, 3, "a digest") == KS_KEY_ABSENT, "one that is not there does not");
	tap_ok(ask_head(h, false, "") == KS_OK && strcmp(next_string(), "") == 0,
		   "no head is remembered");
	tap_ok(ask_head(h, true, "17:f00d-+=./@_") == KS_OK &&
		   strcmp(next_string(), "17:f00d-+=./@_") == 0, "one is set");
	tap_ok(ask_head(other, false, "") == KS_OK &&
		   strcmp(next_string(), "17:f00d-+=./@_") == 0, "and read elsewhere");
	tap_ok(ask_head(h, true, "{}") == KS_REFUSED, "what no tag can hold is refused");
	tap_ok(see(h, INST, SCHOOL2) > 0 && ask_destroy(h, SCHOOL2, SERIAL, 7) == KS_OK &&
		   sign(h, 1, "a digest") == KS_OK, "no erasure takes the register's key");
	(void) control("{\"do\": \"call\", \"action\": \"DisableKey\", \"KeyId\": \"%s\"}",
				   key_id("nomp_crypt:" INST ":register:1"));
	tap_ok(sign(h, 1, "a digest") == KS_KEY_DISABLED, "one that is disabled is said to be so");
}

/* ---- many at once ---- */

#define SCHOOLS		50
#define PER_SCHOOL	20
#define FLIGHT		32

/* Take one answer of those under way: the number of the key, or -1. */
static int
take_answer(Helper *h, const DataKey *keys, int n)
{
	uint8_t		head[13];
	WireReader	r = {head, sizeof(head), 0, false};
	const uint8_t *data;
	size_t		len;
	uint64_t	id;

	if (receive(h, head, sizeof(head)) <= 0)
		return -1;
	len = (size_t) wire_get_uint(&r, 4);
	id = wire_get_uint(&r, 8);
	if (receive(h, reply.buf, len - 9) <= 0 || id >= (uint64_t) n)
		return -1;
	reply.r = (WireReader) {reply.buf, len - 9, 0, false};
	if (wire_get_uint(&r, 1) != KS_OK || wire_get_uint(&reply.r, 1) != KS_OK ||
		wire_get_str(&reply.r, &data) != KS_DEK_LEN ||
		memcmp(data, keys[id].key, KS_DEK_LEN) != 0)
		return -1;
	return (int) id;
}

static void
test_in_flight(const char *uri)
{
	enum
	{
		N = 1000
	};
	static DataKey keys[N];
	static char labels[N][KS_MAX_LABEL + 1];
	static bool answered[N];
	struct timespec begun;
	struct timespec ended;
	Helper		h = start(uri);
	bool		right = true;
	int			sent = 0;
	int			got = 0;

	/* behind the provider's back: CreateKey has its pace */
	for (int i = 0; i < N; i++)
	{
		const char *id;

		snprintf(labels[i], sizeof(labels[i]), "nomp_crypt:%s:cccccccc-cccc-4ccc-8ccc-%012d:1", INST, i);
		id = strstr(control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Description\": \"%s\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"%s\"}]}", labels[i], labels[i]),
					"\"KeyId\": \"");
		if (id == NULL)
			tap_bail("no key");
		snprintf(keys[i].aad, sizeof(keys[i].aad), "place %d", i);
		(void) id;
	}
	for (int i = 0; i < N; i++)
	{
		if (wrap(&h, labels[i], true, &keys[i]) != KS_OK)
			tap_bail("not wrapped: %s", reply.reason);
	}
	stop(&h);
	h = start(uri);
	(void) control("{\"do\": \"latency\", \"seconds\": 0.01}");
	if (ask_strings(&h, KS_OP_STATUS, INST, NULL, NULL) != KS_OK)
		tap_bail("no status: %s", reply.reason);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	while (got < N && right)
	{
		int			i;

		for (; sent < N && sent - got < FLIGHT; sent++)
		{
			begin();
			put(INST);
			put(labels[sent]);
			put_uint(0, 1);
			put_uint(kek_age, 4);
			put_uint(1, 1);
			put(keys[sent].aad);
			wire_put_str(&body, keys[sent].wrapped, keys[sent].wrapped_len);
			right = right && send_frame(&h, (uint64_t) sent, KS_OP_UNWRAP);
		}
		i = take_answer(&h, keys, N);
		right = right && i >= 0 && !answered[i];
		if (right)
			answered[i] = true;
		got++;
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	tap_ok(right && got == N, "%d keys of as many schools are unwrapped, %d at once", N, FLIGHT);
	printf("# in %.2f s, with 10 ms for each answer\n",
		   (double) (ended.tv_sec - begun.tv_sec) + (double) (ended.tv_nsec - begun.tv_nsec) / 1e9);
	recover();
	tap_ok(exited_with(stop(&h), 0), "the helper ends with its socket");
}

/* Keys are made at the pace that the service allows, however many are wanted. */
static void
test_pace(const char *uri)
{
	enum
	{
		N = 12
	};
	Helper		h = start(uri);
	bool		right = true;

	(void) control("{\"do\": \"quota\", \"action\": \"CreateKey\", \"per_second\": 5}");
	forget_calls();
	for (int i = 0; i < N; i++)
	{
		begin();
		put(INST);
		put("eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee");
		put_uint((uint64_t) i, 4);
		put_uint(0, 1);
		right = right && send_frame(&h, (uint64_t) i, KS_OP_CREATE_KEK);
	}
	for (int i = 0; i < N; i++)
	{
		uint8_t		frame[4];
		WireReader	r = {frame, sizeof(frame), 0, false};

		right = right && receive(&h, frame, sizeof(frame)) == 1 &&
			receive(&h, reply.buf, (size_t) wire_get_uint(&r, 4)) == 1 && reply.buf[8] == KS_OK;
	}
	tap_ok(right && calls("CreateKey") == N, "%d keys that are wanted at once are made", N);
	tap_ok(strstr(control("{\"do\": \"calls\", \"action\": \"CreateKey\"}"), "Throttling") == NULL,
		   "without the service's asking for a pause");
	recover();
	stop(&h);
}

/* What is under way when the socket ends does not hold the helper up. */
static void
test_end_in_flight(const char *uri, const DataKey *key)
{
	Helper		h = start(uri);
	time_t		begun = time(NULL);

	(void) control("{\"do\": \"fault\", \"kind\": \"hang\", \"action\": \"ListKeys\"}");
	begin();
	put(INST);
	put(KEK1);
	put_uint(0, 1);
	put_uint(kek_age, 4);
	put_uint(1, 1);
	put(key->aad);
	wire_put_str(&body, key->wrapped, key->wrapped_len);
	(void) send_frame(&h, 1, KS_OP_UNWRAP);
	usleep(200000);
	tap_ok(exited_with(stop(&h), 0) && time(NULL) - begun < 15,
		   "a call that hangs does not hold up the helper's end");
	recover();
	h = start(uri);
	begin();
	put(INST);
	put_uint(0, 1);
	tap_ok(send_frame(&h, 1, KS_OP_STATUS) && exited_with(stop(&h), 2),
		   "a frame that does not parse ends it with code 2, in a thread too");
}

int
main(int argc, char **argv)
{
	Helper		h;
	Helper		other;
	DataKey		good;
	char		uri[4 * PATH_MAX];

	begin_tests(argc, argv);
	start_double(argv[0]);
	use_everyday_credentials();
	/* days pass for the double, and not for the helpers that make its keys */
	snprintf(uri, sizeof(uri), "%s&settled=yes", kms_uri);
	h = start(uri);
	tap_ok(greeted_with(32, true), "the helper forgets keys, and takes many requests at once");
	test_setup(&h);
	other = start(uri);
	test_life_of_a_key(&h, &other, &good);
	test_wrap(&h, &other, &good);
	test_enable(&h, &other, &good);
	test_destroy_kek(&h, &other, &good);
	test_destroy(&h, &other, &good);
	test_pages(&h);
	test_register(&h, &other);
	tap_ok(exited_with(stop(&h), 0) && exited_with(stop(&other), 0), "the helpers end with their sockets");
	test_in_flight(kms_uri);
	test_pace(kms_uri);
	test_end_in_flight(kms_uri, &good);
	return end_tests();
}
