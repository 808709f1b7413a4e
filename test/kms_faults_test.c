/*
 * kms_faults_test.c
 *		The keystore helper with AWS KMS that answers what it should not.
 *
 * A key that is there must not look absent, another key's answer must not be
 * taken, and no key of another account, region or kind be used.
 */
#include <sys/types.h>

#include "kms_client.h"

#define FAULT(rest) ((void) control("{\"do\": \"fault\", " rest "}"))
#define OTHER_KEY	ARN "00000000-0000-4000-8000-000000000000"
#define SHORT		3000		/* milliseconds: a call that fails is not repeated for long */
#define KEK_EXTRA	LABEL(INST, "dddddddd-dddd-4ddd-8ddd-dddddddddddd", "1")
#define EXTRA		"dddddddd-dddd-4ddd-8ddd-dddddddddddd"

static KsStatus
status_of(const char *uri)
{
	Helper		h = start(uri);
	KsStatus	status = ask_strings(&h, KS_OP_STATUS, INST, NULL, NULL);

	stop(&h);
	return status;
}

/* ---- the setting ---- */

static void
test_uris(void)
{
	static const char *const bad[] = {
		"aws-kms:", "aws-kms:eu-north-1", "aws-kms://", "aws-kms:///eu-north-1",
		"aws-kms://eu-north-1/", "aws-kms://EU-NORTH-1", "aws-kms://key@eu-north-1",
		"aws-kms://eu-north-1#x", "aws-kms://eu-north-1?regoin=x", "aws-kms://eu-north-1?profile",
		"aws-kms://eu-north-1?profile=", "aws-kms://eu-north-1?profile=a&", "aws-kms://eu-north-1?&profile=a",
		"aws-kms://eu-north-1?profile=a&profile=b", "aws-kms://eu-north-1?profile=%4",
		"aws-kms://eu-north-1?profile=%zz", "aws-kms://eu-north-1?profile=a%00b",
		"aws-kms://eu-north-1?profile=a%0ab", "aws-kms://eu-north-1?fips=maybe",
		"aws-kms://eu-north-1?account=12345678901", "aws-kms://eu-north-1?account=1234567890123",
		"aws-kms://eu-north-1?account=12345678901x", "aws-kms://eu-north-1?endpoint=http://kms.example.com",
		"aws-kms://eu-north-1?endpoint=ftp://kms.example.com", "aws-kms://eu-north-1?endpoint=https://h&fips=yes",
		"aws-kms://eu-north-1?key-policy=policy.json", "aws-kms://eu-north-1?ca-file=/etc/ca.pem",
		"aws-kms://eu-north-1?settled=yes",
	};
	char		uri[4 * PATH_MAX];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		tap_ok(status_of(bad[i]) == KS_BAD_URI && reply.reason[0] != '\0', "%s: %s", bad[i], reply.reason);
	tap_ok(status_of("aws-kms://us-east-1") == KS_REGION && strstr(reply.reason, "us-east-1") != NULL,
		   "a region that is not allowed: %s", reply.reason);
	tap_ok(status_of("aws-kms://eu-north-11") == KS_REGION && status_of("aws-kms://eu-north") == KS_REGION,
		   "nor one that begins or ends as one that is");
	snprintf(uri, sizeof(uri), "%s&test=no", kms_uri);
	tap_ok(status_of(uri) == KS_BAD_URI, "an option twice, the second time with another value");
	snprintf(uri, sizeof(uri), "%s&account=%%31%s", kms_uri, ACCOUNT + 1);
	tap_ok(status_of(uri) == KS_OK, "values may be percent-encoded: %s", reply.reason);
	snprintf(uri, sizeof(uri), "%s&account=999999999999", kms_uri);
	tap_ok(status_of(uri) == KS_BAD_URI && strstr(reply.reason, "account") != NULL,
		   "another account than the one that is named: %s", reply.reason);
}

/* ---- answers about something else ---- */

static void
test_wrong_key(Helper *h, DataKey *good)
{
	DataKey		key = *good;
	bool		now;

	FAULT("\"kind\": \"patch\", \"action\": \"Decrypt\", \"values\": {\"KeyId\": \"" OTHER_KEY "\"}");
	tap_ok(unwrap_one(h, KEK1, good) == KS_MODULE_ERROR, "a decryption with another key: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"Decrypt\", \"values\": {\"KeyId\": null}");
	tap_ok(unwrap_one(h, KEK1, good) == KS_MODULE_ERROR, "with a key that is not named");
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"Decrypt\", \"values\": {\"Plaintext\": \"AAAA\"}");
	tap_ok(unwrap_one(h, KEK1, good) == KS_MODULE_ERROR, "a data key that is too short: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"GenerateDataKey\", \"values\": {\"KeyId\": \"" OTHER_KEY "\"}");
	tap_ok(wrap(h, KEK1, true, &key) == KS_MODULE_ERROR, "a fresh key under another key");
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"Encrypt\", \"values\": {\"KeyId\": \"" OTHER_KEY "\"}");
	tap_ok(wrap(h, KEK1, false, &key) == KS_MODULE_ERROR, "a given key under another key");
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"DescribeKey\", \"values\": {\"KeyMetadata.Arn\": \"" OTHER_KEY "\"}");
	tap_ok(see(h, INST, SCHOOL) == -1, "a description of another key: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"DescribeKey\", \"values\": {\"KeyMetadata.AWSAccountId\": \"999999999999\"}");
	tap_ok(see(h, INST, SCHOOL) == -1, "of another account");
	recover();
	FAULT("\"kind\": \"replace\", \"values\": {\"" ACCOUNT "\": \"999999999999\"}");
	tap_ok(see(h, INST, SCHOOL) == -1 && unwrap_one(h, KEK1, good) != KS_OK,
		   "every answer from another account: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"replace\", \"values\": {\"eu-north-1\": \"us-east-1\"}");
	tap_ok(see(h, INST, SCHOOL) == -1 && strstr(reply.reason, "us-east-1") != NULL,
		   "every answer from another region: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"replace\", \"values\": {\"arn:aws:\": \"arn:aws-cn:\"}");
	tap_ok(see(h, INST, SCHOOL) == -1, "from another partition: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"ScheduleKeyDeletion\", \"values\": {\"KeyId\": \"" OTHER_KEY "\"}");
	tap_ok(create_kek(h, INST, EXTRA, 9, NULL, 0) == KS_OK &&
		   ask_destroy(h, EXTRA, SERIAL, 7) == KS_MODULE_ERROR, "a deletion of another key: %s", reply.reason);
	recover();
	(void) remove_key(h, INST, LABEL(INST, EXTRA, "9"), 0, &now);
}

/* Statuses other than success, and the helper alive. */
static void
test_bodies(Helper *h, DataKey *good)
{
	static const char *const kinds[] = {
		"not_json", "empty", "garbage", "cut", "array", "twice", "deep", "nul", "wrong_types",
		"huge", "endless_head", "truncated",
	};
	static const char *const actions[] = {"ListKeys", "ListResourceTags", "DescribeKey"};

	asked_patience = SHORT;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
	{
		KsStatus	status;

		(void) control("{\"do\": \"fault\", \"kind\": \"%s\", \"action\": \"Decrypt\"}", kinds[i]);
		status = unwrap_one(h, KEK1, good);
		tap_ok(status == KS_MODULE_ERROR || status == KS_NETWORK, "a decryption that is %s: %s", kinds[i],
			   reply.reason);
		recover();
		for (size_t j = 0; j < 3; j++)
		{
			/* no name is in tags */
			if (j == 1 && strcmp(kinds[i], "nul") == 0)
				continue;
			(void) control("{\"do\": \"fault\", \"kind\": \"%s\", \"action\": \"%s\"}", kinds[i], actions[j]);
			tap_ok(see(h, INST, SCHOOL) == -1, "a %s that is %s", actions[j], kinds[i]);
			recover();
		}
	}
	FAULT("\"kind\": \"patch\", \"action\": \"ListKeys\", \"values\": {\"Truncated\": true, \"NextMarker\": \"cGFnZTow\"}");
	tap_ok(see(h, INST, SCHOOL) == -1, "a list without an end: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"ListResourceTags\", \"values\": {\"Truncated\": true, \"NextMarker\": \"cGFnZTow\"}");
	tap_ok(see(h, INST, SCHOOL) == -1, "tags without an end: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"ListKeys\", \"values\": {\"Keys.*.KeyArn\": \"alias/nomp_crypt\"}");
	tap_ok(see(h, INST, SCHOOL) == -1, "a list of aliases");
	recover();
	asked_patience = 0;
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "then all is well");
}

/* ---- wrapped keys ---- */

static void
test_wrapped(Helper *h, const DataKey *good, const DataKey *others)
{
	static const char *const names[] = {
		"alias/nomp_crypt", "arn:aws:kms:eu-north-1:" ACCOUNT ":alias/x", "%s", "",
		"arn:aws:kms:eu-north-1:" ACCOUNT ":key/%s:x", "arn:aws:s3:eu-north-1:" ACCOUNT ":key/%s",
		"arn:aws:kms:eu-north-1:999999999999:key/%s", "arn:aws:kms:us-east-1:" ACCOUNT ":key/%s",
		"arn:aws:kms:eu-west-1:" ACCOUNT ":key/%s", "arn:aws-cn:kms:eu-north-1:" ACCOUNT ":key/%s",
		ARN "mrk-0123456789abcdef0123456789abcdef",
	};
	DataKey		key;
	char		arn[256];
	bool		all = true;

	for (size_t i = 0; i < good->wrapped_len && all; i += i < 4 || i > good->wrapped_len - 3 ? 1 : 23)
	{
		KsStatus	status;

		key = *good;
		key.wrapped[i] ^= 1;
		status = unwrap_one(h, KEK1, &key);
		all = status == KS_INTEGRITY;
		if (!all)
			printf("# byte %zu: %d %s\n", i, status, reply.reason);
	}
	tap_ok(all, "a changed byte is noticed, wherever it is");
	key = *good;
	key.wrapped_len -= 1;
	tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "one too few");
	key = *good;
	key.wrapped[key.wrapped_len++] = 0;
	tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "one too many");
	forget_calls();
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		key = *good;
		snprintf(arn, sizeof(arn), names[i], key_id(KEK1));
		rename_wrapped(&key, arn);
		tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "a wrapped key that names \"%s\"", arn);
	}
	tap_ok(strstr(control("{\"do\": \"calls\", \"action\": \"Decrypt\"}"), "NotFound") == NULL,
		   "none of them is asked for");
	tap_ok(unwrap_one(h, KEK1, &(DataKey) {.aad = "place 1 0", .wrapped_len = 61, .wrapped = {1}}) == KS_INTEGRITY,
		   "one of another kind of keystore");
	key = *others;
	tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "another school's");
	snprintf(arn, sizeof(arn), ARN "%s", key_id(KEK1));
	rename_wrapped(&key, arn);
	tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "with this school's name on it");
	key = *good;
	snprintf(arn, sizeof(arn), ARN "%s", key_id(KEK2));
	rename_wrapped(&key, arn);
	tap_ok(unwrap_one(h, KEK1, &key) == KS_INTEGRITY, "this school's with another's name on it");
	tap_ok(unwrap_one(h, KEK2, &key) == KS_INTEGRITY, "which the other school does not open either");
}

/* ---- never absent, never bad, unless it is ---- */

/* What the last call on the control port made. */
static const char *
made_id(void)
{
	static char id[64];
	const char *at = strstr(said, "\"KeyId\": \"");

	snprintf(id, sizeof(id), "%.*s", at == NULL ? 0 : (int) strcspn(at + 10, "\""), at == NULL ? "" : at + 10);
	return id;
}

/* Take a key that the test made behind the helper's back away. */
static void
end_key(const char *id)
{
	(void) control("{\"do\": \"delete\", \"key\": \"%s\"}", id);
}

static void
test_verdicts(Helper *h, DataKey *good)
{
	DataKey		changed = *good;
	char		twin[64];
	const char *canary = key_id(CANARY);

	changed.wrapped[changed.wrapped_len - 1] ^= 1;
	FAULT("\"error\": \"NotFoundException\", \"action\": \"Decrypt\", \"times\": 2");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "a key that is not found, and then is");
	FAULT("\"error\": \"NotFoundException\", \"action\": \"Decrypt\"");
	tap_ok(unwrap_one(h, KEK1, good) == KS_MODULE_ERROR,
		   "a key that is described and never found is not absent: %s", reply.reason);
	recover();
	FAULT("\"error\": \"NotFoundException\"");
	tap_ok(unwrap_one(h, KEK1, good) == KS_MODULE_ERROR || unwrap_one(h, KEK1, good) == KS_TOKEN_WRONG,
		   "nor where nothing is found, the canary included: %s", reply.reason);
	recover();
	FAULT("\"error\": \"DisabledException\", \"action\": \"Decrypt\", \"times\": 2");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "a key that is disabled, and then is not");
	FAULT("\"error\": \"InvalidCiphertextException\", \"action\": \"Decrypt\"");
	tap_ok(unwrap_one(h, KEK1, good) == KS_MODULE_ERROR,
		   "what does not open is not called bad where nothing opens: %s", reply.reason);
	recover();
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"Disabled\"}", canary);
	tap_ok(unwrap_one(h, KEK1, &changed) == KS_MODULE_ERROR,
		   "nor where the canary cannot be used: %s", reply.reason);
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "though good keys open");
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"Enabled\"}", canary);
	tap_ok(unwrap_one(h, KEK1, &changed) == KS_INTEGRITY, "with it, it is");
	FAULT("\"error\": \"IncorrectKeyException\", \"action\": \"Decrypt\", \"times\": 1");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "and not at the first word");
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"PendingDeletion\", \"deletion\": 4102444800.5}", canary);
	tap_ok(see(h, INST, SCHOOL) == -1 && strstr(reply.reason, "scheduled for deletion on 2100-01-01") != NULL,
		   "a canary that will be deleted: %s", reply.reason);
	tap_ok(unwrap_one(h, KEK1, &changed) == KS_TOKEN_WRONG, "vouches for nothing");
	tap_ok(ask_strings(h, KS_OP_SETUP, INST, NULL, NULL) == KS_TOKEN_WRONG, "and is not replaced unasked");
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"Enabled\", \"deletion\": null}", canary);
	tap_ok(see(h, INST, SCHOOL) == 1, "saved, it does again");
	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Description\": \"" CANARY "\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"" CANARY "\"}]}");
	snprintf(twin, sizeof(twin), "%s", made_id());
	tap_ok(see(h, INST, SCHOOL) == -1 && strstr(reply.reason, "two keys") != NULL &&
		   strstr(reply.reason, "take the tag off") != NULL,
		   "of two canaries none is believed, and both are named: %s", reply.reason);
	tap_ok(status_of(kms_uri) != KS_OK, "by a new helper neither");
	(void) control("{\"do\": \"call\", \"action\": \"UntagResource\", \"KeyId\": \"%s\", \"TagKeys\": [\"nomp_crypt:label\"]}", twin);
	tap_ok(see(h, INST, SCHOOL) == 1, "the tag off one, the other is: %s", reply.reason);
	end_key(twin);
}

/* ---- keys that are not what they should be ---- */

static void
test_kinds(void)
{
	static const struct
	{
		const char *change;
		KsStatus	status;
		const char *says;
	}			kinds[] = {
		{"\"origin\": \"EXTERNAL\"", KS_REGION, "Origin \"EXTERNAL\""},
		{"\"origin\": \"AWS_CLOUDHSM\"", KS_REGION, "AWS_CLOUDHSM"},
		{"\"multi_region\": true", KS_REGION, "several regions"},
		{"\"spec\": \"RSA_2048\"", KS_MODULE_ERROR, "RSA_2048"},
		{"\"usage\": \"GENERATE_VERIFY_MAC\"", KS_MODULE_ERROR, "GENERATE_VERIFY_MAC"},
		{"\"state\": \"PendingImport\"", KS_MODULE_ERROR, "PendingImport"},
	};
	DataKey		key;
	char		made[64];
	Helper		h = start(kms_uri);

	if (create_kek(&h, INST, EXTRA, 1, &key, 1) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	stop(&h);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
	{
		h = start(kms_uri);
		(void) control("{\"do\": \"change\", \"key\": \"%s\", %s}", key_id(KEK_EXTRA), kinds[i].change);
		tap_ok(unwrap_one(&h, KEK_EXTRA, &key) == kinds[i].status &&
			   strstr(reply.reason, kinds[i].says) != NULL, "not used: %s", reply.reason);
		tap_ok(see(&h, INST, EXTRA) == -1 && ask_destroy(&h, EXTRA, SERIAL, 7) == kinds[i].status &&
			   strstr(reply.reason, kinds[i].says) != NULL, "nor erased without a word: %s", reply.reason);
		(void) control("{\"do\": \"change\", \"key\": \"%s\", \"origin\": \"AWS_KMS\", \"multi_region\": false, \"spec\": \"SYMMETRIC_DEFAULT\", \"usage\": \"ENCRYPT_DECRYPT\", \"state\": \"Enabled\"}", key_id(KEK_EXTRA));
		stop(&h);
	}
	h = start(kms_uri);
	FAULT("\"kind\": \"patch\", \"action\": \"DescribeKey\", \"values\": {\"KeyMetadata.KeyManager\": \"AWS\"}");
	tap_ok(unwrap_one(&h, KEK_EXTRA, &key) == KS_MODULE_ERROR, "a key that AWS manages: %s", reply.reason);
	recover();
	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"MultiRegion\": true, \"Description\": \"" KEK_EXTRA "\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"" KEK_EXTRA "\"}]}");
	snprintf(made, sizeof(made), "%s", made_id());
	tap_ok(see(&h, INST, EXTRA) == -1 && strstr(reply.reason, "mrk-") != NULL,
		   "a key of several regions with our label: %s", reply.reason);
	end_key(made);
	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"MultiRegion\": true}");
	tap_ok(see(&h, INST, EXTRA) == 2, "one of several regions without a label does no harm: %s", reply.reason);
	end_key(key_id(KEK_EXTRA));
	stop(&h);
}

static void
test_twins(Helper *h)
{
	DataKey		key = {.aad = "a place"};
	char		first[64];

	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Description\": \"" LABEL(INST, EXTRA, "5") "\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"" LABEL(INST, EXTRA, "5") "\"}]}");
	snprintf(first, sizeof(first), "%s", made_id());
	tap_ok(wrap(h, LABEL(INST, EXTRA, "5"), true, &key) == KS_OK, "a key that another helper made");
	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Description\": \"" LABEL(INST, EXTRA, "5") "\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"" LABEL(INST, EXTRA, "5") "\"}, {\"TagKey\": \"nomp_crypt:provisional\", \"TagValue\": \"yesterday\"}]}");
	tap_ok(create_kek(h, INST, EXTRA, 5, NULL, 0) == KS_EXISTS &&
		   wrap(h, LABEL(INST, EXTRA, "5"), true, &key) == KS_REFUSED &&
		   ask_strings(h, KS_OP_CONFIRM, INST, LABEL(INST, EXTRA, "5"), NULL) == KS_REFUSED,
		   "of two with one label none wraps: %s", reply.reason);
	tap_ok(remove_key(h, INST, LABEL(INST, EXTRA, "5"), 0, &(bool) {false}) == KS_REFUSED,
		   "a mark that is no time makes no key removable");
	tap_ok(ask_destroy(h, EXTRA, SERIAL, 7) == KS_OK && wire_get_uint(&reply.r, 2) == 2, "both are destroyed");
	(void) control("{\"do\": \"advance\", \"seconds\": %d}", 8 * DAY);
}

/* ---- not allowed, too much, too late ---- */

static void
test_rights(DataKey *good)
{
	char		uri[4 * PATH_MAX];
	char		file[PATH_MAX + 128];
	DataKey		fresh;
	bool		removed = false;
	Helper		h = start(kms_uri);

	(void) control("{\"do\": \"identity\", \"name\": \"default\", \"deny\": [\"kms:Decrypt\"]}");
	tap_ok(unwrap_one(&h, KEK1, good) == KS_ACCESS_DENIED, "no right to decrypt: %s", reply.reason);
	stop(&h);
	h = start(kms_uri);
	(void) control("{\"do\": \"identity\", \"name\": \"default\", \"deny\": [\"kms:ListResourceTags\"]}");
	tap_ok(see(&h, INST, SCHOOL) == -1 && ask_destroy(&h, SCHOOL, SERIAL, 7) == KS_ACCESS_DENIED &&
		   strstr(reply.reason, "whose key") != NULL, "no right to read tags: %s", reply.reason);
	stop(&h);
	h = start(kms_uri);
	(void) control("{\"do\": \"identity\", \"name\": \"default\", \"deny\": [\"kms:ScheduleKeyDeletion\"]}");
	if (create_kek(&h, INST, EXTRA, 1, NULL, 0) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	tap_ok(ask_destroy(&h, EXTRA, SERIAL, 7) == KS_ACCESS_DENIED, "no right to delete: %s", reply.reason);
	stop(&h);
	snprintf(file, sizeof(file), "%s/credentials", double_folder);
	setenv("AWS_SHARED_CREDENTIALS_FILE", file, 1);
	snprintf(uri, sizeof(uri), "%s&destroy-profile=destroyer", kms_uri);
	h = start(uri);
	tap_ok(ask_destroy(&h, EXTRA, SERIAL, 7) == KS_OK && wire_get_uint(&reply.r, 2) == 1,
		   "but for the profile that is set apart: %s", reply.reason);
	tap_ok(unwrap_one(&h, KEK1, good) == KS_OK, "the everyday ones do everything else");
	(void) control("{\"do\": \"identity\", \"name\": \"default\", \"deny\": []}");
	if (create_kek(&h, INST, EXTRA, 2, &fresh, 1) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	stop(&h);
	snprintf(uri, sizeof(uri), "%s&profile=reader", kms_uri);
	h = start(uri);
	tap_ok(unwrap(&h, INST, LABEL(INST, EXTRA, "2"), true, &fresh, 1) == KS_OK && fresh.status == KS_OK,
		   "those who may only read can unwrap what is not confirmed: %s", reply.reason);
	tap_ok(ask_strings(&h, KS_OP_CONFIRM, INST, LABEL(INST, EXTRA, "2"), NULL) == KS_ACCESS_DENIED &&
		   remove_key(&h, INST, LABEL(INST, EXTRA, "2"), 0, &(bool) {false}) == KS_ACCESS_DENIED,
		   "and cannot confirm it, nor remove it");
	stop(&h);
	h = start(kms_uri);
	tap_ok(remove_key(&h, INST, LABEL(INST, EXTRA, "2"), 0, &removed) == KS_OK && removed,
		   "so it is still provisional");
	stop(&h);
}

static void
test_throttling(Helper *h, DataKey *good)
{
	FAULT("\"error\": \"ThrottlingException\", \"action\": \"Decrypt\", \"times\": 2");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "what is throttled is asked again");
	FAULT("\"error\": \"KMSInternalException\", \"status\": 500, \"times\": 2");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "so is what the service failed to do");
	FAULT("\"kind\": \"lost\", \"action\": \"Decrypt\", \"times\": 1");
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "and an answer that was lost");
	asked_patience = SHORT;
	FAULT("\"error\": \"ThrottlingException\", \"action\": \"Decrypt\"");
	tap_ok(unwrap_one(h, KEK1, good) == KS_THROTTLED, "as long as there is time: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"hang\", \"action\": \"Decrypt\"");
	tap_ok(unwrap_one(h, KEK1, good) == KS_NETWORK, "silence: %s", reply.reason);
	asked_patience = 0;
	recover();
	(void) control("{\"do\": \"down\"}");
	asked_patience = SHORT;
	tap_ok(unwrap_one(h, KEK1, good) == KS_NETWORK, "nobody there: %s", reply.reason);
	asked_patience = 0;
	recover();
	tap_ok(unwrap_one(h, KEK1, good) == KS_OK, "then all is well");
}

/* A key whose making was not answered is found by its tags. */
static void
test_lost_creation(Helper *h)
{
	bool		removed = false;
	int			n;

	asked_patience = SHORT;
	FAULT("\"kind\": \"lost\", \"action\": \"CreateKey\"");
	tap_ok(create_kek(h, INST, EXTRA, 20, NULL, 0) != KS_OK, "a key that was made without a word: %s", reply.reason);
	asked_patience = 0;
	recover();
	tap_ok(list(h, INST, 0, &n) == 1 && n == 1, "is one, and provisional");
	tap_ok(remove_key(h, INST, LABEL(INST, EXTRA, "20"), 0, &removed) == KS_OK && removed, "and removable");
	(void) control("{\"do\": \"max_keys\", \"most\": 1}");
	tap_ok(create_kek(h, INST, EXTRA, 21, NULL, 0) == KS_REFUSED &&
		   strstr(reply.reason, "quota of keys") != NULL, "no more keys than the quota: %s", reply.reason);
	recover();
	FAULT("\"error\": \"MalformedPolicyDocumentException\", \"action\": \"CreateKey\"");
	tap_ok(create_kek(h, INST, EXTRA, 22, NULL, 0) == KS_REFUSED &&
		   strstr(reply.reason, "correct the key-policy file") != NULL, "a key policy that is refused: %s", reply.reason);
	recover();
}

/* ---- what shows late ---- */

static void
test_lag(Helper *h)
{
	DataKey		key;
	Helper		other = start(kms_uri);
	int			found;

	(void) control("{\"do\": \"lag\", \"seconds\": 0.7}");
	tap_ok(create_kek(h, INST, EXTRA, 30, &key, 1) == KS_OK, "a key that shows late is made: %s", reply.reason);
	tap_ok(unwrap_one(&other, LABEL(INST, EXTRA, "30"), &key) == KS_OK, "and used elsewhere");
	tap_ok(create_kek(&other, INST, EXTRA, 30, NULL, 0) == KS_EXISTS, "not twice");
	tap_ok(ask_strings(h, KS_OP_CONFIRM, INST, LABEL(INST, EXTRA, "30"), NULL) == KS_OK, "it is confirmed");
	tap_ok(list(&other, INST, 0, &found) == 0, "and the other helper sees that");
	tap_ok(enable(h, EXTRA, false, &found) == found && unwrap_one(&other, LABEL(INST, EXTRA, "30"), &key) == KS_KEY_DISABLED,
		   "disabled when it says so: %s", reply.reason);
	tap_ok(enable(h, EXTRA, true, &found) > 0 && unwrap_one(&other, LABEL(INST, EXTRA, "30"), &key) == KS_OK,
		   "enabled when it says so");
	tap_ok(ask_destroy(h, EXTRA, SERIAL, 7) == KS_OK && wire_get_uint(&reply.r, 2) == 1 &&
		   unwrap_one(&other, LABEL(INST, EXTRA, "30"), &key) == KS_KEY_DISABLED,
		   "and pending when it says so");
	begin();
	put(INST);
	put_uint(1, 1);
	put("5:abc");
	tap_ok(ask(h, KS_OP_HEAD) == KS_OK && strcmp(next_string(), "5:abc") == 0, "a head is there when it says so");
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"CreateKey\", \"values\": {\"KeyMetadata.KeyState\": \"Creating\"}");
	FAULT("\"kind\": \"patch\", \"action\": \"DescribeKey\", \"values\": {\"KeyMetadata.KeyState\": \"Creating\"}, "
		  "\"times\": 2, \"skip\": 2");
	tap_ok(create_kek(h, INST, EXTRA, 31, &key, 1) == KS_OK, "one that is still being created is waited for: %s",
		   reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"DescribeKey\", \"values\": {\"KeyMetadata.KeyState\": \"Creating\"}, \"skip\": 1");
	tap_ok(see(h, INST, EXTRA) == -1 && strstr(reply.reason, "still being created") != NULL,
		   "others are told, and that it is absent is not said: %s", reply.reason);
	recover();
	stop(&other);
}

/* ---- the register ---- */

static KsStatus
ask_sign(Helper *h)
{
	uint8_t		digest[KS_DIGEST_LEN] = {7};

	begin();
	put(INST);
	put_uint(1, 4);
	put("");
	wire_put_str(&body, digest, sizeof(digest));
	return ask(h, KS_OP_SIGN);
}

static void
test_register(Helper *h)
{
	begin();
	put(INST);
	put_uint(1, 4);
	put("");
	put_uint(KS_MAKE, 1);
	if (ask(h, KS_OP_REGISTER_KEY) != KS_OK || ask_sign(h) != KS_OK)
		tap_bail("no signature: %s", reply.reason);
	FAULT("\"kind\": \"patch\", \"action\": \"Sign\", \"values\": {\"KeyId\": \"" OTHER_KEY "\"}");
	tap_ok(ask_sign(h) == KS_MODULE_ERROR, "a signature by another key: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"Sign\", \"values\": {\"Signature\": \"MAYCAQECAQE=\"}");
	tap_ok(ask_sign(h) == KS_MODULE_ERROR, "one that does not hold: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"GetPublicKey\", \"values\": {\"PublicKey\": \"MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\"}");
	tap_ok(ask_sign(h) == KS_MODULE_ERROR, "a public key of another kind: %s", reply.reason);
	recover();
	FAULT("\"kind\": \"patch\", \"action\": \"GetPublicKey\", \"values\": {\"SigningAlgorithms\": []}");
	tap_ok(ask_sign(h) == KS_MODULE_ERROR, "one that is not for these signatures");
	recover();
}

/* The helper speaks TLS to whom it should. */
static void
test_tls(DataKey *good)
{
	char		uri[4 * PATH_MAX];
	Helper		h;

	snprintf(uri, sizeof(uri), "aws-kms://eu-north-1?test=yes&endpoint=https://localhost:%d&ca-file=%s/ca.pem",
			 tls_port, double_folder);
	h = start(uri);
	tap_ok(unwrap_one(&h, KEK1, good) == KS_OK, "over TLS: %s", reply.reason);
	(void) control("{\"do\": \"present\", \"certificate\": \"other-host\"}");
	asked_patience = SHORT;
	tap_ok(unwrap_one(&h, KEK1, good) == KS_NETWORK, "not to another host: %s", reply.reason);
	asked_patience = 0;
	recover();
	stop(&h);
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
	test_uris();
	test_wrong_key(&h, &good);
	test_bodies(&h, &good);
	test_wrapped(&h, &good, &others);
	test_kinds();
	test_twins(&h);
	test_rights(&good);
	test_throttling(&h, &good);
	test_lost_creation(&h);
	test_lag(&h);
	test_register(&h);
	test_tls(&good);
	test_verdicts(&h, &good);
	stop(&h);
	return end_tests();
}
