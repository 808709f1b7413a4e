/*
 * aws_who.h
 *		Whose credentials a call is signed with: shared by tests of these.
 *
 * Who a call was signed by is told by the server, test/aws_server.py.
 */
#ifndef NOMP_TEST_AWS_WHO_H
#define NOMP_TEST_AWS_WHO_H

#include "aws_server.h"

#define PATIENT		30000

static const char *const variables[] = {
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
	"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME",
	"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	"AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
};

/* No source at all; the files' places are the server's folder. */
static inline void
clear_sources(void)
{
	for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
		(void) unsetenv(variables[i]);
	(void) setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
	(void) setenv("AWS_SHARED_CREDENTIALS_FILE", server_path("credentials"), 1);
	(void) setenv("AWS_CONFIG_FILE", server_path("config"), 1);
	(void) unlink(server_path("credentials"));
	(void) unlink(server_path("config"));
	set_control("reset=1");
}

static inline const char *
local_url(const char *path)
{
	static char url[200];

	snprintf(url, sizeof(url), "http://127.0.0.1:%d%s", server_port("http"), path);
	return url;
}

static inline AwsClient *
client_of(const char *profile, const char *destroy_profile)
{
	AwsOptions	options = server_options("http", "http");

	snprintf(options.profile, sizeof(options.profile), "%s", profile);
	snprintf(options.destroy_profile, sizeof(options.destroy_profile), "%s", destroy_profile);
	return make_client(&options);
}

/* Does the server see what "fact" should be?  NULL: no fact of that name. */
static inline bool
sees(const Result *r, const char *fact, const char *expected)
{
	const char *value = json_string_value(json_object_get(r->reply.body, fact));

	if (expected == NULL || value == NULL)
		return expected == value;
	return strncmp(value, expected, strlen(expected)) == 0;
}

/* A call with these credentials, by their access key (or its beginning). */
static inline void
expect_key(AwsClient *client, AwsRole role, const char *key, const char *source,
		   bool lasting, const char *name)
{
	Result		r = call(client, role, "DescribeKey", "who", PATIENT);
	bool		lasts = !lasting;
	const char *from = aws_credentials_source(client, &lasts);

	if (!tap_ok(r.status == KS_OK && sees(&r, "key", key) &&
				(role != AWS_EVERYDAY || (strcmp(from, source) == 0 && lasts == lasting)), "%s", name))
		printf("# status %d, from %s: %s\n", r.status, from, r.why.reason);
	aws_reply_free(&r.reply);
}

#endif							/* NOMP_TEST_AWS_WHO_H */
