/*
 * kms_canary_test.c
 *		What one helper with AWS KMS is told of another: where the canary is.
 */
#include "kms_client.h"

#define KEYS 10

/* What PROBE says: the canary's name. */
static bool
probe(Helper *h, char canary[KS_MAX_REFERENCE + 1])
{
	if (ask_strings(h, KS_OP_PROBE, INST, NULL, NULL) != KS_OK ||
		strcmp(next_string(), SERIAL) != 0)
		return false;
	snprintf(canary, KS_MAX_REFERENCE + 1, "%s", next_string());
	return wire_done(&reply.r);
}

/*
 * A helper that is told what the last one knew the canary by looks there first,
 * and believes it only if it is so.
 */
static void
test_told_of_canary(void)
{
	static const char *const lies[] = {
		"", "nonsense", "arn:aws:kms:eu-north-1:444455556666:key/12345678-1234-4123-8123-123456789012",
		ARN "12345678-1234-4123-8123-123456789012",
	};
	char		canary[KS_MAX_REFERENCE + 1] = "";
	char		again[KS_MAX_REFERENCE + 1];
	char		school[KS_MAX_REFERENCE + 1];
	Helper		h = start(kms_uri);
	bool		found = true;
	int			all;

	forget_calls();
	tap_ok(probe(&h, canary) && strncmp(canary, ARN, strlen(ARN)) == 0,
		   "a helper says by which key it knows the account: %s", canary);
	all = calls("ListResourceTags");
	stop(&h);
	h = start_told(kms_uri, "", canary);
	forget_calls();
	tap_ok(all > KEYS && probe(&h, again) && strcmp(canary, again) == 0 &&
		   calls("ListResourceTags") == 1 && calls("ListKeys") == 0,
		   "one that is told reads that key's tags, where the other read those of %d", all);
	stop(&h);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
	{
		h = start_told(kms_uri, "", lies[i]);
		found = found && probe(&h, again) && strcmp(canary, again) == 0;
		stop(&h);
	}
	tap_ok(found, "one that is told what is no key of the account finds the canary all the same");
	(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Description\": \"%s\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"%s\"}]}",
				   LABEL(INST, SCHOOL, "77"), LABEL(INST, SCHOOL, "77"));
	snprintf(school, sizeof(school), ARN "%s", key_id(LABEL(INST, SCHOOL, "77")));
	h = start_told(kms_uri, "", school);
	tap_ok(probe(&h, again) && strcmp(canary, again) == 0, "so does one that is told of a school's key");
	stop(&h);
	h = start_told(kms_uri, "", canary);
	forget_calls();
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"PendingDeletion\", \"deletion\": 99999999999}",
				   canary + strlen(ARN));
	tap_ok(ask_strings(&h, KS_OP_PROBE, INST, NULL, NULL) == KS_TOKEN_WRONG,
		   "a canary that will be destroyed proves nothing, told or not: %s", reply.reason);
	(void) control("{\"do\": \"change\", \"key\": \"%s\", \"state\": \"Enabled\", \"deletion\": null}",
				   canary + strlen(ARN));
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
	h = start(kms_uri);
	tap_ok(setup(&h, INST, &created) == KS_OK && created, "an account is set up");
	stop(&h);
	for (int i = 0; i < KEYS; i++)
		(void) control("{\"do\": \"call\", \"action\": \"CreateKey\", \"Description\": \"nomp_crypt:%s:cccccccc-cccc-4ccc-8ccc-%012d:1\", \"Tags\": [{\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"nomp_crypt:%s:cccccccc-cccc-4ccc-8ccc-%012d:1\"}]}",
					   INST, i, INST, i);
	test_told_of_canary();
	return end_tests();
}
