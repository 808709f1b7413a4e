/*
 * aws_answers_test.c
 *		Whatever a server answers, or does not, a call ends in time with the
 *		right status.
 *
 * The server is test/aws_server.py; it checks each signature with botocore.
 * Clocks are not measured here: an answer that did not come in time is told
 * by its status.
 */
#include <pthread.h>

#include "aws_server.h"

#define PATIENT		30000		/* for what must succeed, on a busy machine */
#define HURRIED		1500		/* for what will not */

static AwsClient *client;

typedef struct Expected
{
	const char *name;			/* the server's case */
	uint32_t	patience;
	KsStatus	status;
	const char *error;			/* NULL: does not matter */
	const char *reason;			/* a part of why */
} Expected;

static const Expected answers[] = {
	/* name of the case, patience, status, the service's error, words of the reason */
	{"ok", PATIENT, KS_OK, "", NULL},
	{"empty", PATIENT, KS_OK, "", NULL},
	{"large", PATIENT, KS_OK, "", NULL},
	{"wrong-type", PATIENT, KS_OK, "", NULL},
	{"continue", PATIENT, KS_OK, "", NULL},

	{"throttled-twice", PATIENT, KS_OK, NULL, NULL},
	{"broken-twice", PATIENT, KS_OK, NULL, NULL},
	{"reset-twice", PATIENT, KS_OK, NULL, NULL},
	{"hang-once", 8000, KS_OK, NULL, NULL},

	{"throttled", HURRIED, KS_THROTTLED, "ThrottlingException", "Rate exceeded"},
	{"too-many", HURRIED, KS_THROTTLED, "", "429"},
	{"broken", HURRIED, KS_MODULE_ERROR, "", "500"},
	{"unavailable", HURRIED, KS_MODULE_ERROR, "KeyUnavailableException", "KeyUnavailableException"},
	{"dependency", HURRIED, KS_MODULE_ERROR, "DependencyTimeoutException", "503"},
	{"reset", HURRIED, KS_NETWORK, "", "broke off"},
	{"cut", HURRIED, KS_NETWORK, "", "broke off"},
	{"hang", HURRIED, KS_TIMEOUT, "", "has not answered in time"},
	{"drip", HURRIED, KS_TIMEOUT, "", "has not answered in time"},
	{"drip-headers", HURRIED, KS_TIMEOUT, "", "has not answered in time"},

	{"missing", PATIENT, KS_REFUSED, "NotFoundException", "does not exist"},
	{"header-error", PATIENT, KS_REFUSED, "DisabledException", NULL},
	{"quota", PATIENT, KS_REFUSED, "LimitExceededException", NULL},
	{"denied", PATIENT, KS_ACCESS_DENIED, "AccessDeniedException", "not authorized"},
	{"denied-xml", PATIENT, KS_ACCESS_DENIED, "AccessDenied", "No <way>"},
	{"denied-html", PATIENT, KS_NETWORK, "", "403; that is no answer of AWS's"},
	{"entities", PATIENT, KS_NETWORK, "", "403; that is no answer of AWS's"},
	{"nameless", PATIENT, KS_MODULE_ERROR, "", "400"},
	{"unrecognized", PATIENT, KS_CREDENTIALS, "UnrecognizedClientException", NULL},

	{"clock-behind", PATIENT, KS_CLOCK_SKEW, NULL, "seconds behind the service"},
	{"clock-ahead", PATIENT, KS_CLOCK_SKEW, NULL, "seconds ahead of the service"},
	{"bad-secret", PATIENT, KS_CREDENTIALS, "InvalidSignatureException", NULL},
	{"odd-date", PATIENT, KS_CREDENTIALS, "InvalidSignatureException", NULL},

	{"echo", PATIENT, KS_REFUSED, "NotFoundException", NULL},
	{"echo-signature", PATIENT, KS_CREDENTIALS, "SignatureDoesNotMatch", NULL},
	{"echo-value", PATIENT, KS_REFUSED, "ValidationException", NULL},

	{"rude", PATIENT, KS_REFUSED, "NotFoundException", "a?b??[31mxxx"},
	{"rude-name", PATIENT, KS_MODULE_ERROR, "", NULL},
	{"endless-name", PATIENT, KS_MODULE_ERROR, "", NULL},

	{"no-json", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"array", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"string", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"twice", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"deep", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"zero", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"not-utf8", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"rest", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},
	{"cut-json", PATIENT, KS_MODULE_ERROR, "", "no JSON object"},

	{"huge", PATIENT, KS_MODULE_ERROR, "", "too long"},
	{"huge-error", PATIENT, KS_MODULE_ERROR, "", "too long"},
	{"endless", PATIENT, KS_MODULE_ERROR, "", "too long"},
	{"many-headers", PATIENT, KS_MODULE_ERROR, "", "too long"},
	{"long-header", PATIENT, KS_MODULE_ERROR, "", "too long"},
	{"no-content", PATIENT, KS_MODULE_ERROR, "", "204"},
	{"redirect", PATIENT, KS_MODULE_ERROR, "", "302"},
	{"redirect-get", PATIENT, KS_MODULE_ERROR, "", "303"},
	{"not-http", PATIENT, KS_MODULE_ERROR, "", "with HTTP as it should"},
	{"status-zero", PATIENT, KS_MODULE_ERROR, "", NULL},
	{"bad-chunk", HURRIED, KS_NETWORK, "", "broke off"},
};

static bool
is_printable(const char *s)
{
	for (; *s != '\0'; s++)
	{
		if (*s < ' ' || *s > '~')
			return false;
	}
	return true;
}

static void
test_answers(void)
{
	for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++)
	{
		const Expected *e = &answers[i];
		Result		r = call(client, AWS_EVERYDAY, "DescribeKey", e->name, e->patience);
		bool		right = r.status == e->status &&
		(e->error == NULL || strcmp(r.reply.error, e->error) == 0) &&
		(e->reason == NULL || strstr(r.why.reason, e->reason) != NULL) &&
		(r.status == KS_OK) == (r.why.reason[0] == '\0') &&
		(r.status == KS_OK) == json_is_object(r.reply.body) &&
		strstr(r.why.reason, "secret-e") == NULL && strstr(r.reply.message, "secret-e") == NULL &&
		is_printable(r.why.reason) && is_printable(r.reply.message);

		if (!tap_ok(right, "%s", e->name))
			printf("# status %d, error %s: %s\n", r.status, r.reply.error, r.why.reason);
		aws_reply_free(&r.reply);
	}
	tap_ok(counted("elsewhere") == 0, "no redirect was followed");
}

/* One that must not happen twice, and how often it was sent. */
static void
expect_once(const char *name, uint32_t patience, KsStatus status, int times)
{
	Result		r;

	set_control("reset=1");
	r = call(client, AWS_EVERYDAY, "CreateKey", name, patience);
	if (!tap_ok(r.status == status && counted(name) == times,
				"CreateKey, %s: status %d, sent %d times", name, status, times))
		printf("# status %d, %d times: %s\n", r.status, counted(name), r.why.reason);
	aws_reply_free(&r.reply);
}

/* A key that nobody knows of costs money for ever. */
static void
test_once(void)
{
	expect_once("reset", PATIENT, KS_NETWORK, 1);
	expect_once("cut", PATIENT, KS_NETWORK, 1);
	expect_once("broken", PATIENT, KS_MODULE_ERROR, 1);
	expect_once("hang", HURRIED, KS_TIMEOUT, 1);
	expect_once("throttled-twice", PATIENT, KS_OK, 3);
}

/* Making a connection takes longer than most calls. */
static void
test_kept_connection(void)
{
	Result		r;

	set_control("reset=1");
	for (int i = 0; i < 3; i++)
	{
		r = call(client, AWS_EVERYDAY, "DescribeKey", "ok", PATIENT);
		aws_reply_free(&r.reply);
	}
	tap_ok(counted("ok") == 3 && counted("connections") <= 1, "a connection is kept for the next call");
}

/* Connect to a port with some certificate; was a request let through? */
static void
expect_tls(const char *port, bool trusted, KsStatus status, const char *reason, const char *name)
{
	AwsOptions	options = server_options("https", port);
	AwsClient  *other;
	Result		r;

	if (!trusted)
		options.ca_file[0] = '\0';
	other = make_client(&options);
	set_control("reset=1");
	r = call(other, AWS_EVERYDAY, "DescribeKey", "ok", PATIENT);
	if (!tap_ok(r.status == status && counted("ok") == (status == KS_OK) &&
				(reason == NULL || strstr(r.why.reason, reason) != NULL), "%s", name))
		printf("# status %d: %s\n", r.status, r.why.reason);
	aws_reply_free(&r.reply);
	aws_client_free(other);
}

static void
test_tls(void)
{
	AwsOptions	options;
	AwsClient  *other;
	Result		r;

	expect_tls("good", true, KS_OK, NULL, "a certificate that is right");
	expect_tls("good", false, KS_NETWORK, "certificate", "one that the system does not trust");
	expect_tls("other", true, KS_NETWORK, "127.0.0.1", "one for another host");
	expect_tls("old", true, KS_NETWORK, "expired", "an expired one");
	expect_tls("self", true, KS_NETWORK, "certificate", "a self-signed one");

	options = server_options("https", "http");
	other = make_client(&options);
	r = call(other, AWS_EVERYDAY, "DescribeKey", "ok", HURRIED);
	tap_ok(r.status == KS_NETWORK, "a server without TLS");
	aws_client_free(other);

	options = server_options("http", "good");
	other = make_client(&options);
	r = call(other, AWS_EVERYDAY, "DescribeKey", "ok", HURRIED);
	tap_ok(r.status != KS_OK && r.status != KS_REFUSED, "a server with TLS, asked without");
	aws_client_free(other);

	options = server_options("http", "http");
	snprintf(options.endpoint, sizeof(options.endpoint), "http://127.0.0.1:1");
	other = make_client(&options);
	r = call(other, AWS_EVERYDAY, "DescribeKey", "ok", HURRIED);
	tap_ok(r.status == KS_NETWORK && strstr(r.why.reason, "no connection to 127.0.0.1:1") != NULL,
		   "no server");
	aws_client_free(other);
}

/* Nothing that the environment says about networks counts. */
static void
test_environment(void)
{
	static const char *const proxies[] = {
		"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY",
	};
	AwsOptions	options = server_options("https", "good");
	AwsClient  *other;
	Result		r;

	for (size_t i = 0; i < sizeof(proxies) / sizeof(proxies[0]); i++)
		(void) setenv(proxies[i], "http://127.0.0.1:1", 1);
	other = make_client(&options);
	r = call(other, AWS_EVERYDAY, "DescribeKey", "ok", PATIENT);
	tap_ok(r.status == KS_OK, "proxies of the environment are passed by");
	aws_reply_free(&r.reply);
	aws_client_free(other);
	for (size_t i = 0; i < sizeof(proxies) / sizeof(proxies[0]); i++)
		(void) unsetenv(proxies[i]);
	tap_ok(access(server_path("keys"), F_OK) != 0, "SSLKEYLOGFILE makes no file");
}

#define THREADS	16
#define CALLS	20

static void *
call_often(void *arg)
{
	intptr_t	good = 0;

	for (int i = 0; i < CALLS; i++)
	{
		Result		r = call(arg, AWS_EVERYDAY, "DescribeKey", i % 4 == 3 ? "missing" : "ok", 60000);

		good += r.status == (i % 4 == 3 ? KS_REFUSED : KS_OK);
		aws_reply_free(&r.reply);
	}
	return (void *) good;
}

static void
test_threads(void)
{
	AwsOptions	options = server_options("https", "good");
	AwsClient  *shared = make_client(&options);
	pthread_t	threads[THREADS];
	intptr_t	good = 0;

	set_control("reset=1");
	for (int i = 0; i < THREADS; i++)
	{
		if (pthread_create(&threads[i], NULL, call_often, shared) != 0)
			tap_bail("no thread");
	}
	for (int i = 0; i < THREADS; i++)
	{
		void	   *result;

		(void) pthread_join(threads[i], &result);
		good += (intptr_t) result;
	}
	tap_ok(good == THREADS * CALLS, "%d threads share a client", THREADS);
	tap_ok(counted("connections") <= THREADS, "and keep their connections");
	aws_client_free(shared);
}

int
main(void)
{
	AwsOptions	options;

	(void) setenv("SSLKEYLOGFILE", "/nonexistent", 1);
	start_server();
	(void) setenv("SSLKEYLOGFILE", server_path("keys"), 1);
	(void) setenv("AWS_ACCESS_KEY_ID", "AKIDENV", 1);
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env", 1);
	options = server_options("http", "http");
	client = make_client(&options);

	test_answers();
	test_once();
	test_kept_connection();
	test_tls();
	test_environment();
	test_threads();

	aws_client_free(client);
	stop_server();
	return tap_done();
}
