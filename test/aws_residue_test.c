/*
 * aws_residue_test.c
 *		Neither credentials nor what a key service opened stay in memory once
 *		they were given back.
 *
 * The texts that are looked for are said by the server, test/aws_server.py;
 * here they are masked, so that the search does not find itself.
 */
#include "aws_server.h"
#include "residue.h"

#ifndef UNDER_ASAN

#define M(c)	(uint8_t) ((c) ^ MASK)

/* "Residue-of-a-key-that-was-opened" */
static const uint8_t opened[32] = {
	M('R'), M('e'), M('s'), M('i'), M('d'), M('u'), M('e'), M('-'),
	M('o'), M('f'), M('-'), M('a'), M('-'), M('k'), M('e'), M('y'),
	M('-'), M('t'), M('h'), M('a'), M('t'), M('-'), M('w'), M('a'),
	M('s'), M('-'), M('o'), M('p'), M('e'), M('n'), M('e'), M('d'),
};

/* "Secret-of-credentials-no-longer-" */
static const uint8_t secret[32] = {
	M('S'), M('e'), M('c'), M('r'), M('e'), M('t'), M('-'), M('o'),
	M('f'), M('-'), M('c'), M('r'), M('e'), M('d'), M('e'), M('n'),
	M('t'), M('i'), M('a'), M('l'), M('s'), M('-'), M('n'), M('o'),
	M('-'), M('l'), M('o'), M('n'), M('g'), M('e'), M('r'), M('-'),
};

/* Calls over TLS, by a role whose secret comes in XML; the replies are kept. */
__attribute__((noinline))
static AwsClient *
use_secrets(Result results[3])
{
	AwsOptions	options = server_options("https", "good");
	AwsClient  *client;

	snprintf(options.profile, sizeof(options.profile), "role");
	client = make_client(&options);
	for (int i = 0; i < 3; i++)
		results[i] = call(client, AWS_EVERYDAY, "Decrypt", "secret", 30000);
	return client;
}

static void
test_nothing_stays(void)
{
	Result		results[3];
	AwsClient  *client;
	int			pieces;

	(void) setenv("AWS_SHARED_CREDENTIALS_FILE", server_path("credentials"), 1);
	(void) setenv("AWS_CONFIG_FILE", server_path("config"), 1);
	write_file(server_path("credentials"),
			   "[base]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n", 0600);
	write_file(server_path("config"),
			   "[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n", 0644);
	set_control("residue=1");
	memcpy(needles[0], opened, sizeof(opened));
	memcpy(needles[1], secret, sizeof(secret));
	needle_count = 2;

	client = use_secrets(results);
	tap_ok(results[2].status == KS_OK, "a key was opened: %s", results[2].why.reason);
	pieces = find_everywhere();
	tap_ok(pieces >= 8, "both are in memory as long as they are in use (%d pieces found)", pieces);
	for (int i = 0; i < 3; i++)
		aws_reply_free(&results[i].reply);
	needle_count = 1;
	pieces = find_everywhere();
	tap_ok(pieces == 0, "of the key nothing stays beside the open connection (%d pieces found)", pieces);
	needle_count = 2;
	aws_client_free(client);
	pieces = find_everywhere();
	tap_ok(pieces == 0, "and nowhere once they were given back (%d pieces found)", pieces);
}

#endif							/* UNDER_ASAN */

int
main(void)
{
#ifdef UNDER_ASAN
	tap_skip("nothing stays in memory", "not with the sanitizer's memory");
#else
	start_server();
	test_nothing_stays();
	stop_server();
#endif
	return tap_done();
}
