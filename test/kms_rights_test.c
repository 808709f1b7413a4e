/*
 * kms_rights_test.c
 *		The keystore helper with AWS KMS that does not allow everything, or
 *		not yet.
 *
 * The rights are those of docs/aws-kms.md, read from there: they must suffice
 * for what the helper does, and for no more.  Policies know tags late, as
 * AWS's documentation says; and access that is denied says little of a key.
 */
#include "kms_client.h"

#define FAULT(rest) ((void) control("{\"do\": \"fault\", " rest "}"))
#define SHORT		3000		/* milliseconds: a call that fails is not repeated for long */
#define FOREIGN		"ffffffff-ffff-4fff-8fff-ffffffffffff"

static char page[PATH_MAX + 64];

/* ---- helpers ---- */

static void
give_rights(const char *name, const char *heading)
{
	(void) control("{\"do\": \"policy\", \"name\": \"%s\", \"page\": \"%s\", \"heading\": \"%s\", "
				   "\"words\": {\"INSTALLATION\": \"" INST "\", \"123456789012\": \"" ACCOUNT "\"}}",
				   name, page, heading);
}

/* By their names again, not by a policy: all, or all but one action. */
static void
lift_rights(const char *name)
{
	(void) control("{\"do\": \"identity\", \"name\": \"%s\", \"policy\": null}", name);
}

/* Would these values of an action be allowed to one of the identities? */
#define MAY(name, action, rest, ...) \
	(strstr(control("{\"do\": \"may\", \"name\": \"" name "\", \"action\": \"" action "\", " rest "}" __VA_OPT__(, ) __VA_ARGS__), "\"answer\": true") != NULL)

static void
refuse_for(const char *seconds, const char *actions)
{
	(void) control("{\"do\": \"tag_lag\", \"seconds\": %s, \"actions\": [%s]}", seconds, actions);
}

static Helper
start_as(const char *profile, const char *more)
{
	char		uri[4 * PATH_MAX];

	snprintf(uri, sizeof(uri), "%s&profile=%s%s", kms_uri, profile, more);
	return start(uri);
}

static KsStatus
register_key(Helper *h, uint32_t generation, bool create)
{
	begin();
	put(INST);
	put_uint(generation, 4);
	put("");
	put_uint(create ? KS_MAKE : KS_FIND, 1);
	return ask(h, KS_OP_REGISTER_KEY);
}

static KsStatus
sign(Helper *h, uint32_t generation)
{
	uint8_t		digest[KS_DIGEST_LEN] = {7};

	begin();
	put(INST);
	put_uint(generation, 4);
	put("");
	wire_put_str(&body, digest, sizeof(digest));
	return ask(h, KS_OP_SIGN);
}

/* ---- policies that do not know a key's tags yet ---- */

static void
test_setup_refused(void)
{
	Helper		h = start(kms_uri);

	refuse_for("100", "\"Encrypt\"");
	asked_patience = SHORT;
	tap_ok(ask_strings(&h, KS_OP_SETUP, INST, NULL, NULL) == KS_ACCESS_DENIED &&
		   strstr(reply.reason, "AccessDeniedException") != NULL,
		   "a canary that stays refused is no trouble of the network: %s", reply.reason);
	asked_patience = 0;
	recover();
	tap_ok(ask_strings(&h, KS_OP_SETUP, INST, NULL, NULL) == KS_OK, "later it is there");
	(void) control("{\"do\": \"delete\", \"key\": \"%s\"}", key_id(CANARY));
	stop(&h);
	h = start(kms_uri);
	refuse_for("1.5", "\"Encrypt\", \"Decrypt\"");
	tap_ok(ask_strings(&h, KS_OP_SETUP, INST, NULL, NULL) == KS_OK,
		   "a canary that is refused at first is waited for: %s", reply.reason);
	recover();
	stop(&h);
}

static void
test_new_keys_refused(void)
{
	bool		removed = false;
	DataKey		key;
	Helper		h = start(kms_uri);

	refuse_for("1.5", "\"GenerateDataKey\"");
	tap_ok(create_kek(&h, INST, SCHOOL, 1, &key, 1) == KS_OK && unwrap_one(&h, KEK1, &key) == KS_OK,
		   "so is a KEK: %s", reply.reason);
	refuse_for("1.5", "\"GetPublicKey\", \"Sign\"");
	tap_ok(register_key(&h, 1, true) == KS_OK, "and the register's key: %s", reply.reason);
	refuse_for("3", "\"GetPublicKey\", \"Sign\"");
	tap_ok(sign(&h, 1) == KS_OK, "which signs then, by a request of its own: %s", reply.reason);
	refuse_for("100", "\"GenerateDataKey\", \"GetPublicKey\", \"UntagResource\", \"Sign\"");
	asked_patience = SHORT;
	tap_ok(create_kek(&h, INST, SCHOOL2, 7, &key, 1) == KS_ACCESS_DENIED,
		   "what stays refused is not allowed: %s", reply.reason);
	tap_ok(register_key(&h, 2, true) == KS_ACCESS_DENIED, "the register's key too: %s", reply.reason);
	tap_ok(sign(&h, 1) == KS_ACCESS_DENIED, "and signing: %s", reply.reason);
	tap_ok(ask_strings(&h, KS_OP_CONFIRM, INST, KEK1, NULL) == KS_ACCESS_DENIED, "and taking its mark off a key");
	asked_patience = 0;
	recover();
	tap_ok(remove_key(&h, INST, LABEL(INST, SCHOOL2, "7"), 0, &removed) == KS_OK && removed,
		   "the key that could not be used is left to be removed");
	stop(&h);
	h = start(kms_uri);
	FAULT("\"error\": \"AccessDeniedException\", \"action\": \"Sign\", \"times\": 1");
	tap_ok(sign(&h, 1) == KS_ACCESS_DENIED, "a helper that did not make the key does not wait: %s", reply.reason);
	recover();
	stop(&h);
}

/* ---- the page's policies ---- */

/* Everything that a database does in a day, with tags that count late. */
static void
test_everyday(DataKey *good)
{
	Helper		h = start_as("default", "&destroy-profile=destroyer");
	DataKey		key = {.aad = "a place"};
	bool		now;
	int			n;

	(void) control("{\"do\": \"tag_lag\", \"seconds\": 1.5}");
	tap_ok(create_kek(&h, INST, SCHOOL, 2, good, 1) == KS_OK, "the everyday rights make a KEK: %s", reply.reason);
	tap_ok(wrap(&h, LABEL(INST, SCHOOL, "2"), true, &key) == KS_OK &&
		   wrap(&h, LABEL(INST, SCHOOL, "2"), false, &key) == KS_OK &&
		   unwrap_one(&h, LABEL(INST, SCHOOL, "2"), &key) == KS_OK, "wrap and unwrap at once: %s", reply.reason);
	tap_ok(ask_strings(&h, KS_OP_CONFIRM, INST, LABEL(INST, SCHOOL, "2"), NULL) == KS_OK &&
		   list(&h, INST, 0, &n) >= 0, "make it lasting: %s", reply.reason);
	tap_ok(register_key(&h, 3, true) == KS_OK && sign(&h, 3) == KS_OK, "make the register's key, and sign: %s",
		   reply.reason);
	tap_ok(ask_head(&h, true, "1 abc") == KS_OK && ask_head(&h, false, "") == KS_OK &&
		   strcmp(next_string(), "1 abc") == 0, "remember its head: %s", reply.reason);
	usleep(1600000);
	tap_ok(enable(&h, SCHOOL, false, &n) > 0 && enable(&h, SCHOOL, true, &n) > 0, "disable and enable: %s",
		   reply.reason);
	good->wrapped[good->wrapped_len - 1] ^= 1;
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) == KS_INTEGRITY, "and tell that a wrapped key is bad: %s",
		   reply.reason);
	good->wrapped[good->wrapped_len - 1] ^= 1;
	if (create_kek(&h, INST, SCHOOL2, 1, &key, 1) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	usleep(1600000);
	tap_ok(ask_destroy(&h, SCHOOL2, SERIAL, 7) == KS_OK && wire_get_uint(&reply.r, 2) > 0,
		   "the second set destroys: %s", reply.reason);
	recover();
	stop(&h);
	h = start_as("default", "");
	tap_ok(remove_key(&h, INST, LABEL(INST, SCHOOL, "1"), 0, &now) == KS_ACCESS_DENIED,
		   "the everyday set alone does not: %s", reply.reason);
	stop(&h);
}

/* What they do not allow, whoever calls. */
static void
test_no_more(void)
{
	const char *kek = key_id(LABEL(INST, SCHOOL, "2"));
	const char *canary = key_id(CANARY);
	char		foreign[64];

	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Tags\": [{\"TagKey\": \"owner\", \"TagValue\": \"x\"}]}");
	snprintf(foreign, sizeof(foreign), "%.36s", strstr(said, "\"KeyId\": \"") + 10);
#define TAG(name, value) "{\"TagKey\": \"" name "\", \"TagValue\": \"" value "\"}"
#define CONTEXT(inst, school) \
	"\"EncryptionContext\": {\"nomp_crypt:installation\": \"" inst "\", \"nomp_crypt:school\": \"" school "\"}"
	tap_ok(MAY("default", "CreateKey", "\"Tags\": [" TAG("nomp_crypt:installation", INST) ", "
			   TAG("nomp_crypt:label", "x") "]"), "a key with our tags may be made");
	tap_ok(!MAY("default", "CreateKey", "\"Tags\": [" TAG("nomp_crypt:installation", INST) ", " TAG("team", "x") "]"),
		   "not with another tag");
	tap_ok(!MAY("default", "CreateKey", "\"Tags\": [" TAG("nomp_crypt:installation", FOREIGN) "]") &&
		   !MAY("default", "CreateKey", "\"Description\": \"x\""), "nor of another installation, or without tags");
	tap_ok(!MAY("default", "CreateKey", "\"MultiRegion\": true, \"Tags\": [" TAG("nomp_crypt:installation", INST) "]") &&
		   !MAY("default", "CreateKey", "\"Origin\": \"EXTERNAL\", \"Tags\": [" TAG("nomp_crypt:installation", INST) "]"),
		   "nor of several regions, or with material from elsewhere");
	tap_ok(MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:head", "1 a") "]", canary),
		   "the canary may be tagged with the head");
	tap_ok(!MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:head", "1 a") "]", kek) &&
		   !MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:head", "1 a") "]", foreign),
		   "no other key may");
	tap_ok(!MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:label", "x") "]", kek) &&
			   !MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:head", "1") ", " TAG("nomp_crypt:label", "x") "]", canary),
		   "and with nothing else");
	tap_ok(!MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:installation", INST) ", " TAG("nomp_crypt:label", "x") "]", kek) &&
			   !MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:installation", INST) ", " TAG("nomp_crypt:school", "canary") "]", kek) &&
		   !MAY("default", "TagResource", "\"KeyId\": \"%s\", \"Tags\": [" TAG("nomp_crypt:installation", INST) "]", canary),
		   "a key of ours gets no other label, with the tags of a new one neither");
	tap_ok(!MAY("default", "UpdateKeyDescription", "\"KeyId\": \"%s\", \"Description\": \"x\"", kek) &&
		   !MAY("destroyer", "UpdateKeyDescription", "\"KeyId\": \"%s\", \"Description\": \"x\"", kek) &&
		   !MAY("reader", "UpdateKeyDescription", "\"KeyId\": \"%s\", \"Description\": \"x\"", kek),
		   "and none of the sets changes what it was made as");
	tap_ok(MAY("default", "UntagResource", "\"KeyId\": \"%s\", \"TagKeys\": [\"nomp_crypt:provisional\"]", kek) &&
		   !MAY("default", "UntagResource", "\"KeyId\": \"%s\", \"TagKeys\": [\"nomp_crypt:label\"]", kek) &&
		   !MAY("default", "UntagResource", "\"KeyId\": \"%s\", \"TagKeys\": [\"nomp_crypt:provisional\", "
				"\"nomp_crypt:label\"]", kek), "the mark may be taken off, and no other tag");
	tap_ok(!MAY("default", "UntagResource", "\"KeyId\": \"%s\", \"TagKeys\": [\"nomp_crypt:provisional\"]", foreign) &&
		   !MAY("default", "DisableKey", "\"KeyId\": \"%s\"", foreign) &&
		   MAY("default", "DisableKey", "\"KeyId\": \"%s\"", kek), "somebody else's key may not be switched");
	tap_ok(!MAY("default", "GenerateDataKey", "\"KeyId\": \"%s\", \"KeySpec\": \"AES_256\"", kek) &&
		   !MAY("default", "Encrypt", "\"KeyId\": \"%s\", \"Plaintext\": \"AAAA\", " CONTEXT(FOREIGN, SCHOOL), kek),
		   "nothing is wrapped without our context");
	tap_ok(!MAY("default", "ScheduleKeyDeletion", "\"KeyId\": \"%s\"", kek) &&
		   MAY("destroyer", "ScheduleKeyDeletion", "\"KeyId\": \"%s\"", kek) &&
		   !MAY("destroyer", "ScheduleKeyDeletion", "\"KeyId\": \"%s\"", foreign) &&
		   !MAY("destroyer", "CancelKeyDeletion", "\"KeyId\": \"%s\"", kek), "deletion is for the second set, of our keys");
	tap_ok(!MAY("destroyer", "DescribeKey", "\"KeyId\": \"%s\"", kek) && !MAY("destroyer", "ListKeys", "\"Limit\": 9") &&
		   !MAY("destroyer", "ListResourceTags", "\"KeyId\": \"%s\"", kek), "which can do nothing else");
	tap_ok(!MAY("reader", "Encrypt", "\"KeyId\": \"%s\", \"Plaintext\": \"AAAA\", " CONTEXT(INST, SCHOOL), kek) &&
		   MAY("reader", "Encrypt", "\"KeyId\": \"%s\", \"Plaintext\": \"AAAA\", " CONTEXT(INST, "canary"), canary) &&
		   !MAY("reader", "GenerateDataKey", "\"KeyId\": \"%s\", \"KeySpec\": \"AES_256\", " CONTEXT(INST, "canary"), kek),
		   "the third wraps as the canary, for no school");
	(void) control("{\"do\": \"delete\", \"key\": \"%s\"}", foreign);
}

/* Who may only read tells a bad wrapped key from one that he may not open. */
static void
test_reader(DataKey *good)
{
	DataKey		changed = *good;
	Helper		h = start_as("reader", "");

	changed.wrapped[changed.wrapped_len - 1] ^= 1;
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) == KS_OK, "a restore test reads: %s", reply.reason);
	tap_ok(register_key(&h, 3, false) == KS_OK && ask_head(&h, false, "") == KS_OK,
		   "and sees the register's key and head: %s", reply.reason);
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), &changed) == KS_INTEGRITY,
		   "a changed wrapped key is bad: %s", reply.reason);
	tap_ok(wrap(&h, LABEL(INST, SCHOOL, "2"), true, &changed) == KS_ACCESS_DENIED, "it wraps nothing");
	stop(&h);
	lift_rights("reader");
	h = start_as("reader", "");
	changed = *good;
	changed.wrapped[changed.wrapped_len - 1] ^= 1;
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), &changed) == KS_ACCESS_DENIED &&
		   strstr(reply.reason, "kms:Encrypt") != NULL && strstr(reply.reason, "canary") != NULL,
		   "without the right to ask the canary, that is what is said: %s", reply.reason);
	stop(&h);
}

/* ---- access that is denied, to keys that are gone ---- */

static void
test_denied(DataKey *good)
{
	const char *kek = key_id(LABEL(INST, SCHOOL, "2"));
	DataKey		key = {.aad = "a place"};
	Helper		h = start(kms_uri);

	if (unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) != KS_OK)
		tap_bail("not unwrapped: %s", reply.reason);
	(void) control("{\"do\": \"fault\", \"error\": \"AccessDeniedException\", \"key\": \"%s\", \"action\": \"Decrypt\"}", kek);
	(void) control("{\"do\": \"fault\", \"error\": \"AccessDeniedException\", \"key\": \"%s\", \"action\": \"GenerateDataKey\"}", kek);
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) == KS_ACCESS_DENIED &&
		   strstr(reply.reason, "a test wants it so") != NULL && calls("DescribeKey") > 0,
		   "a key that is there, and not allowed: %s", reply.reason);
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"Disabled\"}", kek);
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) == KS_KEY_DISABLED,
		   "one that is disabled is that, whatever is said of access: %s", reply.reason);
	tap_ok(wrap(&h, LABEL(INST, SCHOOL, "2"), true, &key) == KS_KEY_DISABLED, "for wrapping too: %s", reply.reason);
	FAULT("\"error\": \"AccessDeniedException\", \"action\": \"DescribeKey\"");
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) == KS_ACCESS_DENIED,
		   "where nothing can be asked, no verdict: %s", reply.reason);
	recover();
	(void) control("{\"do\": \"fault\", \"error\": \"AccessDeniedException\", \"key\": \"%s\", \"action\": \"Decrypt\"}", kek);
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"PendingDeletion\", \"deletion\": 4102444800.5}", kek);
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) == KS_KEY_DISABLED &&
		   strstr(reply.reason, "2100-01-01") != NULL, "so is one that will be deleted: %s", reply.reason);
	(void) control("{\"do\": \"delete\", \"key\": \"%s\"}", kek);
	tap_ok(unwrap_one(&h, LABEL(INST, SCHOOL, "2"), good) == KS_KEY_ABSENT, "one that is gone is absent: %s",
		   reply.reason);
	recover();
	stop(&h);
}

/* ---- keys of the account that are none of ours ---- */

static void
test_aws_keys(void)
{
	Helper		h = start(kms_uri);
	char		theirs[64];

	(void) control("{\"do\": \"managed\"}");
	tap_ok(see(&h, INST, SCHOOL) >= 0, "a key that AWS manages does no harm: %s", reply.reason);
	(void) control("{\"do\": \"managed\", \"service\": \"backup\", \"lets\": [\"DescribeKey\"]}");
	tap_ok(see(&h, INST, SCHOOL) >= 0, "nor one that does not show its tags: %s", reply.reason);
	(void) control("{\"do\": \"managed\", \"service\": \"rds\", \"lets\": [\"DescribeKey\"]}");
	forget_calls();
	tap_ok(see(&h, INST, SCHOOL) >= 0 &&
		   strstr(control("{\"do\": \"calls\", \"action\": \"ListResourceTags\"}"), "AccessDenied") != NULL,
		   "another one does not either");
	forget_calls();
	tap_ok(see(&h, INST, SCHOOL) >= 0 &&
		   strstr(control("{\"do\": \"calls\", \"action\": \"ListResourceTags\"}"), "AccessDenied") == NULL,
		   "and neither is asked again");
	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\"}");
	snprintf(theirs, sizeof(theirs), "%.36s", strstr(said, "\"KeyId\": \"") + 10);
	(void) control("{\"do\": \"fault\", \"error\": \"AccessDeniedException\", \"key\": \"%s\", \"action\": \"ListResourceTags\"}", theirs);
	tap_ok(see(&h, INST, SCHOOL) == -1 && strstr(reply.reason, theirs) != NULL &&
		   strstr(reply.reason, "kms:ListResourceTags") != NULL, "somebody's key that hides its tags might be ours: %s",
		   reply.reason);
	recover();
	(void) control("{\"do\": \"delete\", \"key\": \"%s\"}", theirs);
	(void) control("{\"do\": \"delete\", \"key\": \"alias/aws/backup\"}");
	(void) control("{\"do\": \"delete\", \"key\": \"alias/aws/rds\"}");
	stop(&h);
}

/* ---- the policy of keys ---- */

static void
test_policy(void)
{
	char		path[PATH_MAX + 64];
	char		uri[4 * PATH_MAX];
	Helper		h;

	snprintf(path, sizeof(path), "%s/policy.json", scratch);
	snprintf(uri, sizeof(uri), "%s&key-policy=%s", kms_uri, path);
	h = start(uri);
	tap_ok(create_kek(&h, INST, SCHOOL3, 40, NULL, 0) == KS_REFUSED, "a policy that is not there: %s", reply.reason);
	write_file(path, "{\"Statement\": [\"${acount}\"]}", 0600);
	tap_ok(create_kek(&h, INST, SCHOOL3, 40, NULL, 0) == KS_REFUSED, "a word that is not known: %s", reply.reason);
	write_file(path, "{\"Statement\": [\"${account}\"]", 0600);
	tap_ok(create_kek(&h, INST, SCHOOL3, 40, NULL, 0) == KS_REFUSED, "what is no JSON: %s", reply.reason);
	write_file(path, "{\"Statement\": [\"${partition} ${account} ${region} ${installation} ${school} ${aws:PrincipalAccount} ${*}\"]}", 0600);
	tap_ok(create_kek(&h, INST, SCHOOL3, 40, NULL, 0) == KS_OK, "a policy with everything");
	(void) control("{\"do\": \"keys\"}");
	tap_ok(strstr(said, "aws " ACCOUNT " eu-north-1 " INST " " SCHOOL3 " ${aws:PrincipalAccount} ${*}") != NULL,
		   "is the key's, with what is known put in");
	stop(&h);
}

/* ---- the head, in order ---- */

static void
send_head(Helper *h, uint64_t id, const char *head)
{
	begin();
	put(INST);
	put_uint(1, 1);
	put(head);
	(void) send_frame(h, id, KS_OP_HEAD);
}

/* Take an answer, of whichever request; is it a success? */
static bool
take_success(Helper *h)
{
	uint8_t		frame[4];
	WireReader	r = {frame, sizeof(frame), 0, false};

	return receive(h, frame, sizeof(frame)) == 1 &&
		receive(h, reply.buf, (size_t) wire_get_uint(&r, 4)) == 1 && reply.buf[8] == KS_OK;
}

static bool
head_is(Helper *h, const char *head)
{
	return ask_head(h, false, "") == KS_OK && strcmp(next_string(), head) == 0;
}

static void
test_head(void)
{
	Helper		h = start(kms_uri);

	if (ask_head(&h, true, "20 aa") != KS_OK)
		tap_bail("no head: %s", reply.reason);
	FAULT("\"kind\": \"hang\", \"action\": \"TagResource\", \"seconds\": 1, \"times\": 1");
	send_head(&h, 1, "21 bb");
	usleep(100000);
	send_head(&h, 2, "22 cc");
	tap_ok(take_success(&h) && take_success(&h), "two heads, of which the first takes its time");
	recover();
	tap_ok(head_is(&h, "22 cc"), "the later one stays: %s", reply.reason);
	stop(&h);
	h = start(kms_uri);
	forget_calls();
	tap_ok(ask_head(&h, true, "21 bb") == KS_OK && strcmp(next_string(), "22 cc") == 0 && calls("TagResource") == 0,
		   "one that comes again, to a new helper, changes nothing, and is answered with what is there");
	tap_ok(ask_head(&h, true, "22 cc") == KS_OK && calls("TagResource") == 0, "nor does the same");
	tap_ok(head_is(&h, "22 cc") && ask_head(&h, true, "22 dd") == KS_OK && head_is(&h, "22 dd"),
		   "after a loss that was seen, another record of that number counts");
	tap_ok(ask_head(&h, true, "7 ee") == KS_OK && head_is(&h, "7 ee"), "and one of a smaller number");
	tap_ok(ask_head(&h, true, "9 ff") == KS_OK && ask_head(&h, true, "8 00") == KS_OK && head_is(&h, "9 ff"),
		   "but not one smaller than what nobody has read");
	stop(&h);
}

/* ---- threads ---- */

/* A number of the helper's status: kilobytes, or threads. */
static long
status_of(pid_t pid, const char *name)
{
	char		path[64];
	char		line[512];
	long		value = -1;
	FILE	   *status;

	snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
	status = fopen(path, "r");
	while (status != NULL && fgets(line, sizeof(line), status) != NULL)
	{
		if (strncmp(line, name, strlen(name)) == 0)
			value = atol(line + strlen(name));
	}
	if (status == NULL || value < 0)
		tap_bail("no %s in %s", name, path);
	fclose(status);
	return value;
}

static void
test_stacks(void)
{
	Helper		h;
	long		data;
	long		threads;

	for (int i = 0; i < 20; i++)
		(void) control("{\"do\": \"call\", \"action\": \"CreateKey\"}");
	h = start(kms_uri);
	if (ask_strings(&h, KS_OP_STATUS, "", NULL, NULL) != KS_OK)
		tap_bail("no answer: %s", reply.reason);
	data = status_of(h.pid, "VmData:");
	threads = status_of(h.pid, "Threads:");
	(void) control("{\"do\": \"latency\", \"seconds\": 0.5, \"action\": \"ListResourceTags\"}");
	forget_calls();
	begin();
	put(INST);
	put(SCHOOL);
	put_uint(0, 4);
	(void) send_frame(&h, 1, KS_OP_SEE);
	while (calls("ListResourceTags") < 10)
		usleep(20000);
	threads = status_of(h.pid, "Threads:") - threads;
	data = status_of(h.pid, "VmData:") - data;
	tap_ok(threads >= 9 && data / threads < 4096, "threads that call at once have small stacks: %ld of them, %ld kB",
		   threads, data);
	tap_ok(take_success(&h), "which is enough");
	recover();
	stop(&h);
}

int
main(int argc, char **argv)
{
	DataKey		good;
	char		file[PATH_MAX + 128];
	const char *slash = strrchr(argv[0], '/');

	begin_tests(argc, argv);
	start_double(argv[0]);
	snprintf(page, sizeof(page), "%.*s/../docs/aws-kms.md", slash != NULL ? (int) (slash - argv[0]) : 1,
			 slash != NULL ? argv[0] : ".");
	snprintf(file, sizeof(file), "%s/credentials", double_folder);
	setenv("AWS_SHARED_CREDENTIALS_FILE", file, 1);
	use_everyday_credentials();
	test_setup_refused();
	test_new_keys_refused();
	give_rights("default", "Every day");
	give_rights("destroyer", "Destroying");
	give_rights("reader", "Restore tests");
	test_everyday(&good);
	test_no_more();
	test_reader(&good);
	lift_rights("default");
	test_denied(&good);
	test_aws_keys();
	test_policy();
	test_head();
	test_stacks();
	return end_tests();
}
