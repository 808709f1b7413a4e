/*
 * aws_credentials_test.c
 *		Credentials come from where AWS's tools look, in their order, and a
 *		source that fails is not passed over.
 *
 * Who a call was signed by is told by the server, test/aws_server.py.
 */
#include "aws_who.h"

/* A new client's first call. */
static void
expect_first(const char *profile, const char *key, const char *source, bool lasting,
			 const char *name)
{
	AwsClient  *client = client_of(profile, "");

	expect_key(client, AWS_EVERYDAY, key, source, lasting, name);
	aws_client_free(client);
}

/* A new client finds none, and says why. */
static void
expect_none(const char *profile, const char *reason, const char *name)
{
	AwsClient  *client = client_of(profile, "");
	Result		r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);

	if (!tap_ok(r.status == KS_CREDENTIALS && strstr(r.why.reason, reason) != NULL &&
				strstr(r.why.reason, "secret-") == NULL, "%s", name))
		printf("# status %d: %s\n", r.status, r.why.reason);
	aws_reply_free(&r.reply);
	aws_client_free(client);
}

static void
test_environment(void)
{
	clear_sources();
	expect_none("", "no AWS credentials were found", "no source: none");
	(void) setenv("AWS_ACCESS_KEY_ID", "AKIDENV", 1);
	expect_none("", "only one is set", "half of the variables is an error");
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env", 1);
	expect_first("", "AKIDENV", "environment", true, "from the environment");
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env\nX-Evil: 1", 1);
	expect_none("", "malformed", "a line break in a variable is an error");
	(void) setenv("AWS_SECRET_ACCESS_KEY", "wrong", 1);
	expect_none("", "InvalidSignatureException", "a wrong secret is the service's to refuse");
}

static void
test_files(void)
{
	clear_sources();
	write_file(server_path("credentials"),
			   "# ours\n[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key=secret-file ; it\n"
			   "[other]\r\nAWS_ACCESS_KEY_ID=AKIDOTHER\r\naws_secret_access_key = secret-other\r\n"
			   "[half]\naws_access_key_id = x\n[bare]\nregion = x\n", 0600);
	expect_first("", "AKIDFILE", "shared file", true, "from the shared file");
	expect_first("other", "AKIDOTHER", "shared file", true, "from a profile that the keystore names");
	expect_none("half", "only one of", "half a profile is an error");
	expect_none("bare", "has no credentials", "so is one without credentials");
	expect_none("nobody", "there is no profile \"nobody\"", "and one that is not there");
	(void) setenv("AWS_PROFILE", "other", 1);
	expect_first("", "AKIDOTHER", "shared file", true, "from the profile of AWS_PROFILE");
	(void) setenv("AWS_PROFILE", "nobody", 1);
	expect_none("", "there is no profile", "which must be there");
	(void) setenv("AWS_ACCESS_KEY_ID", "AKIDENV", 1);
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env", 1);
	expect_first("", "AKIDENV", "environment", true, "the environment goes before AWS_PROFILE");
	expect_first("other", "AKIDOTHER", "shared file", true, "the keystore's profile before both");
}

/* Where they are if no variable says otherwise. */
static void
test_home(void)
{
	const char *home = getenv("HOME");
	char	   *before = strdup(home != NULL ? home : "/");

	clear_sources();
	(void) unsetenv("AWS_SHARED_CREDENTIALS_FILE");
	(void) unsetenv("AWS_CONFIG_FILE");
	(void) setenv("HOME", server_folder, 1);
	expect_none("", "no AWS credentials were found", "a home without a folder .aws");
	(void) mkdir(server_path(".aws"), 0700);
	write_file(server_path(".aws/credentials"),
			   "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n", 0600);
	write_file(server_path(".aws/config"),
			   "[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = default\n", 0644);
	expect_first("", "AKIDFILE", "shared file", true, "one with files in it");
	expect_first("role", "ASIAROLE", "assumed role", false, "a role of the one by the keys of the other");
	(void) unlink(server_path(".aws/credentials"));
	(void) unlink(server_path(".aws/config"));
	(void) rmdir(server_path(".aws"));
	(void) setenv("HOME", before, 1);
	free(before);
}

static void
test_file_rules(void)
{
	clear_sources();
	write_file(server_path("credentials"),
			   "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n", 0640);
	expect_none("", "can be read by others", "a file that its group can read is refused");
	(void) chmod(server_path("credentials"), 0604);
	expect_none("", "can be read by others", "one that others can read, too");
	write_file(server_path("credentials"), "[default]\naws_access_key_id AKIDFILE\n", 0600);
	expect_none("", "line 2 is not understood", "a line that is no setting is an error");
	write_file(server_path("credentials"), "[default\n", 0600);
	expect_none("", "line 1 is not understood", "and half a section");
	(void) unlink(server_path("credentials"));
	write_file(server_path("config"), "[default]\nregion = eu-north-1\n", 0644);
	expect_none("", "no AWS credentials were found", "a config file may be readable");
	(void) chmod(server_path("config"), 0664);
	expect_none("", "can be written by others", "but not writable");
	write_file(server_path("config"),
			   "[default]\naws_access_key_id=AKIDFILE\naws_secret_access_key=secret-file\n", 0644);
	expect_none("", "can be read by others", "nor readable with a secret in it");
	(void) chmod(server_path("config"), 0600);
	expect_first("", "AKIDFILE", "shared file", true, "a secret in a closed config file");
}

/* A client that is at work follows the file. */
static void
test_file_changes(void)
{
	AwsClient  *client;

	clear_sources();
	write_file(server_path("credentials"),
			   "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n", 0600);
	client = client_of("", "");
	expect_key(client, AWS_EVERYDAY, "AKIDFILE", "shared file", true, "a file is read");
	write_file(server_path("credentials"),
			   "[default]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = secret-other\n", 0600);
	(void) sleep(2);
	expect_key(client, AWS_EVERYDAY, "AKIDOTHER", "shared file", true, "and again when it has changed");
	aws_client_free(client);
}

static void
test_two_roles(void)
{
	AwsClient  *client;

	clear_sources();
	write_file(server_path("credentials"),
			   "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n"
			   "[destroyer]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = secret-other\n", 0600);
	client = client_of("", "destroyer");
	expect_key(client, AWS_EVERYDAY, "AKIDFILE", "shared file", true, "every day's credentials");
	expect_key(client, AWS_DESTROYER, "AKIDOTHER", "", true, "those for destroying");
	aws_client_free(client);
	client = client_of("", "");
	expect_key(client, AWS_DESTROYER, "AKIDFILE", "", true, "if none are set apart, every day's");
	aws_client_free(client);
}

static void
test_assumed_roles(void)
{
	AwsClient  *client;
	Result		r;

	clear_sources();
	write_file(server_path("credentials"),
			   "[base]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n"
			   "[self]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = secret-other\n", 0600);
	write_file(server_path("config"),
			   "[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n"
			   "external_id = a b&c\nduration_seconds = 900\nrole_session_name = me\n"
			   "s3 =\n  max_queue_size = 10\n"
			   "[profile chain]\nrole_arn = arn:aws:iam::1:role/c\nsource_profile = role\n"
			   "[profile self]\nrole_arn = arn:aws:iam::1:role/s\nsource_profile = self\n"
			   "[profile env]\nrole_arn = arn:aws:iam::1:role/e\ncredential_source = Environment\n"
			   "[profile odd]\nrole_arn = arn:aws:iam::1:role/e\ncredential_source = Nothing\n"
			   "[profile both]\nrole_arn = a\ncredential_source = Environment\nsource_profile = base\n"
			   "[profile a]\nrole_arn = a\nsource_profile = b\n[profile b]\nrole_arn = b\nsource_profile = a\n"
			   "[profile mfa]\nrole_arn = a\nsource_profile = base\nmfa_serial = x\n"
			   "[profile program]\ncredential_process = /bin/echo\n"
			   "[profile person]\nsso_session = x\n", 0644);
	client = client_of("role", "");
	r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
	tap_ok(r.status == KS_OK && sees(&r, "key", "ASIAROLE") && sees(&r, "by", "AKIDFILE") &&
		   sees(&r, "role", "arn:aws:iam::1:role/r") && sees(&r, "external", "a b&c") &&
		   sees(&r, "duration", "900") && sees(&r, "session", "me"), "a role with all that belongs to it");
	aws_reply_free(&r.reply);
	aws_client_free(client);

	client = client_of("chain", "");
	r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
	tap_ok(r.status == KS_OK && sees(&r, "by", "ASIAROLE") && sees(&r, "role", "arn:aws:iam::1:role/c") &&
		   sees(&r, "session", "nomp_crypt") && sees(&r, "external", NULL), "a role by another role");
	aws_reply_free(&r.reply);
	aws_client_free(client);

	expect_first("self", "ASIAROLE", "assumed role", false, "a role by its own profile's keys");
	expect_none("env", "has none", "a role by an environment without credentials");
	(void) setenv("AWS_ACCESS_KEY_ID", "AKIDENV", 1);
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env", 1);
	expect_first("env", "ASIAROLE", "assumed role", false, "a role by the environment");
	expect_none("odd", "unknown credential_source", "an unknown credential_source");
	expect_none("both", "needs one of", "two sources for one role");
	expect_none("a", "circle", "profiles in a circle");
	expect_none("mfa", "second factor", "a second factor");
	expect_none("program", "not supported", "a program");
	expect_none("person", "not supported", "a sign-in");
}

static void
test_sts_answers(void)
{
	static const char *const modes[][2] = {
		{"denied", "AccessDenied: not you"},
		{"broken", "500"},
		{"garbage", "without credentials"},
		{"no-time", "without credentials"},
		{"twice", "without credentials"},
		{"laughs", "without credentials"},
		{"deep", "without credentials"},
	};
	AwsClient  *client;
	Result		r;

	clear_sources();
	write_file(server_path("credentials"),
			   "[base]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n"
			   "[bad]\naws_access_key_id = AKIDFILE\naws_secret_access_key = wrong\n", 0600);
	write_file(server_path("config"),
			   "[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n"
			   "[profile bad-role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = bad\n", 0644);
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
	{
		char		query[40];

		snprintf(query, sizeof(query), "sts=%s", modes[i][0]);
		set_control(query);
		client = client_of("role", "");
		r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
		if (!tap_ok(r.status == (i == 0 ? KS_ACCESS_DENIED : KS_CREDENTIALS) &&
					strstr(r.why.reason, modes[i][1]) != NULL, "STS answers: %s", modes[i][0]))
			printf("# status %d: %s\n", r.status, r.why.reason);
		aws_client_free(client);
	}
	set_control("sts=ok");
	expect_none("bad-role", "SignatureDoesNotMatch", "STS does not know the signature");
}

static void
test_web_identity(void)
{
	AwsClient  *client;
	Result		r;

	clear_sources();
	write_file(server_path("token"), "ey.J+/=\n", 0644);
	(void) setenv("AWS_WEB_IDENTITY_TOKEN_FILE", server_path("token"), 1);
	expect_none("", "AWS_ROLE_ARN is not", "a web identity without a role");
	(void) setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/w", 1);
	(void) setenv("AWS_ROLE_SESSION_NAME", "pod", 1);
	client = client_of("", "");
	r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
	tap_ok(r.status == KS_OK && sees(&r, "key", "ASIAWEB") && sees(&r, "token", "ey.J+/=") &&
		   sees(&r, "role", "arn:aws:iam::1:role/w") && sees(&r, "session", "pod"), "a web identity");
	aws_reply_free(&r.reply);
	aws_client_free(client);
	expect_first("", "ASIAWEB", "web identity", false, "is named as one");
	(void) chmod(server_path("token"), 0666);
	expect_none("", "can be written by others", "a token that anybody can write");
	(void) unlink(server_path("token"));
	expect_none("", "No such file", "a token that is not there");

	clear_sources();
	write_file(server_path("token"), "t", 0600);
	{
		char		text[400];

		snprintf(text, sizeof(text), "[profile w]\nrole_arn = arn:aws:iam::1:role/p\n"
				 "web_identity_token_file = %s\n", server_path("token"));
		write_file(server_path("config"), text, 0644);
	}
	expect_first("w", "ASIAWEB", "web identity", false, "a web identity of a profile");
}

static void
test_container(void)
{
	clear_sources();
	(void) setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", local_url("/container"), 1);
	expect_none("", "401", "a container's endpoint, without its token");
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token-c", 1);
	expect_first("", "ASIACONTAINER", "container", false, "with it");
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token-c\r\nX-Evil: 1", 1);
	expect_none("", "malformed", "a token with a line break");
	write_file(server_path("token"), "token-c\n", 0600);
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", server_path("token"), 1);
	expect_first("", "ASIACONTAINER", "container", false, "the token's file goes before its variable");
	(void) setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/container", 1);
	expect_none("", "the container's endpoint: no connection to 127.0.0.1:1", "no endpoint there");
	(void) setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/container", 1);
	expect_none("", "neither https nor on this machine", "an endpoint elsewhere without TLS");
	(void) setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/container", 1);
	expect_none("", "neither https nor on this machine", "one by name");
	(void) setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "file:///etc/passwd", 1);
	expect_none("", "malformed", "one that is no URL of http");
	(void) setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "@192.0.2.1/x", 1);
	expect_none("", "malformed", "a relative URI that would change the host");
}

static void
test_instance(void)
{
	static const char *const modes[][2] = {
		{"absent", "404"},
		{"no-role", "404"},
		{"bad-role", "has no role"},
		{"bad-token", "gave no token"},
		{"failed", "without credentials"},
	};

	clear_sources();
	(void) unsetenv("AWS_EC2_METADATA_DISABLED");
	(void) setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", local_url("/"), 1);
	expect_first("", "ASIAINSTANCE", "instance", false, "an instance's metadata service");
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
	{
		char		query[40];

		snprintf(query, sizeof(query), "instance=%s", modes[i][0]);
		set_control(query);
		expect_none("", modes[i][1], modes[i][0]);
	}
	set_control("instance=role&lifetime=-60");
	expect_first("", "ASIAINSTANCE", "instance", false, "credentials that it gives out expired are tried");
	(void) setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://192.0.2.1/", 1);
	expect_none("", "no http URL", "an endpoint elsewhere");
	(void) setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1/", 1);
	expect_none("", "no connection to 127.0.0.1:1", "no endpoint");
	(void) setenv("AWS_EC2_METADATA_DISABLED", "TRUE", 1);
	expect_none("", "no AWS credentials were found", "switched off");
}

/* A new client fails, with the words of an endpoint, unless they repeat "token". */
static void
expect_silence(const char *profile, const char *http, const char *token, const char *name)
{
	AwsClient  *client = client_of(profile, "");
	Result		r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);

	if (!tap_ok(r.status != KS_OK && strstr(r.why.reason, http) != NULL &&
				strstr(r.why.reason, "not with") == NULL && strstr(r.why.reason, token) == NULL, "%s", name))
		printf("# status %d: %s\n", r.status, r.why.reason);
	aws_reply_free(&r.reply);
	aws_client_free(client);
}

/* Who gives credentials out may repeat what it was asked with. */
static void
test_echo(void)
{
	clear_sources();
	(void) setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", local_url("/container"), 1);
	expect_none("", "not with None", "a container's endpoint is quoted");
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "start=0123456789abcdef0123456789", 1);
	expect_silence("", "401", "0123456789abcdef", "not if it repeats the token");
	clear_sources();
	(void) unsetenv("AWS_EC2_METADATA_DISABLED");
	(void) setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", local_url("/"), 1);
	set_control("instance=echo");
	expect_silence("", "403", "instance-token", "nor an instance's");

	clear_sources();
	write_file(server_path("token"), "eyJhbGciOiJub25lIn0.e30.the-rest-of-it", 0600);
	(void) setenv("AWS_WEB_IDENTITY_TOKEN_FILE", server_path("token"), 1);
	(void) setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/w", 1);
	set_control("sts=echo");
	expect_silence("", "403", "eyJ", "nor STS a web identity's");

	clear_sources();
	write_file(server_path("config"), "[profile e]\nrole_arn = arn:aws:iam::1:role/r\n"
			   "credential_source = Environment\n", 0600);
	(void) setenv("AWS_ACCESS_KEY_ID", "AKIDENV", 1);
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env", 1);
	(void) setenv("AWS_SESSION_TOKEN", "a-session-token-that-nobody-may-see", 1);
	set_control("sts=echo");
	expect_silence("e", "403", "a-session", "nor a session's");
}

int
main(void)
{
	(void) umask(022);
	start_server();
	test_environment();
	test_files();
	test_home();
	test_file_rules();
	test_file_changes();
	test_two_roles();
	test_assumed_roles();
	test_sts_answers();
	test_web_identity();
	test_container();
	test_instance();
	test_echo();
	stop_server();
	return tap_done();
}
