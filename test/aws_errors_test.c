/*
 * aws_errors_test.c
 *		Each error of AWS that is documented means one thing, is repeated or is
 *		not, and tells whoever reads the log what to do.
 *
 * Names are from the API references: the errors of KMS's actions that the
 * helper calls, of STS's two, and those common to all services.  Each is
 * answered once by the server, test/aws_server.py; a call that is repeated
 * gets a good answer the second time.  CreateKey is only repeated after a
 * refusal.  The page for operators must say the same, in the same words.
 */
#include "../keystore/aws_errors.h"
#include "aws_who.h"

#define PAGE	"docs/aws-kms.md"

typedef enum Sent
{
	ONCE,
	AGAIN,						/* CreateKey too: the service has done nothing */
	AGAIN_UNLESS_CREATE,
	RENEWED						/* again, with credentials that are looked for */
} Sent;

typedef struct Error
{
	const char *name;
	int			http;
	KsStatus	status;
	Sent		sent;
	const char *advice;			/* some of it */
} Error;

static const Error common[] = {
	{"AccessDeniedException", 400, KS_ACCESS_DENIED, ONCE, "IAM policy and the key's"},
	{"AccessDeniedException", 403, KS_ACCESS_DENIED, ONCE, "IAM policy and the key's"},
	{"AccessDenied", 403, KS_ACCESS_DENIED, ONCE, "IAM policy and the key's"},
	{"NotAuthorized", 401, KS_ACCESS_DENIED, ONCE, "IAM policy and the key's"},
	{"UnauthorizedOperation", 403, KS_ACCESS_DENIED, ONCE, "IAM policy and the key's"},
	{"OptInRequired", 403, KS_ACCESS_DENIED, ONCE, "enable the service and the region"},

	{"ExpiredTokenException", 403, KS_CREDENTIALS, RENEWED, "should have renewed the credentials"},
	{"ExpiredToken", 403, KS_CREDENTIALS, RENEWED, "should have renewed the credentials"},
	{"TokenRefreshRequired", 400, KS_CREDENTIALS, RENEWED, "should have renewed the credentials"},
	{"UnrecognizedClientException", 400, KS_CREDENTIALS, RENEWED, "replace the access key"},
	{"InvalidClientTokenId", 403, KS_CREDENTIALS, RENEWED, "replace the access key"},
	{"InvalidAccessKeyId", 403, KS_CREDENTIALS, RENEWED, "replace the access key"},
	{"InvalidToken", 400, KS_CREDENTIALS, RENEWED, "replace the access key"},
	{"MissingAuthenticationToken", 403, KS_CREDENTIALS, RENEWED, "look for a proxy"},
	{"MissingAuthenticationTokenException", 400, KS_CREDENTIALS, RENEWED, "look for a proxy"},

	{"IncompleteSignature", 403, KS_CREDENTIALS, ONCE, "look for a proxy"},
	{"IncompleteSignatureException", 400, KS_CREDENTIALS, ONCE, "look for a proxy"},
	{"InvalidSignatureException", 400, KS_CREDENTIALS, ONCE, "the secret that belongs to"},
	{"SignatureDoesNotMatch", 403, KS_CREDENTIALS, ONCE, "the secret that belongs to"},
	{"RequestExpired", 400, KS_CLOCK_SKEW, ONCE, "set this machine's clock"},
	{"RequestInTheFuture", 400, KS_CLOCK_SKEW, ONCE, "set this machine's clock"},
	{"RequestTimeTooSkewed", 403, KS_CLOCK_SKEW, ONCE, "set this machine's clock"},

	{"ThrottlingException", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"Throttling", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"ThrottledException", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"TooManyRequestsException", 429, KS_THROTTLED, AGAIN, "spread the load"},
	{"RequestLimitExceeded", 503, KS_THROTTLED, AGAIN, "spread the load"},
	{"RequestThrottled", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"RequestThrottledException", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"SlowDown", 503, KS_THROTTLED, AGAIN, "spread the load"},
	{"LimitExceeded", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"PriorRequestNotComplete", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"BandwidthLimitExceeded", 509, KS_THROTTLED, AGAIN, "spread the load"},
	{"EC2ThrottledException", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"ProvisionedThroughputExceededException", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"TransactionInProgressException", 400, KS_THROTTLED, AGAIN, "spread the load"},

	{"InternalFailure", 500, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"InternalError", 500, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"InternalServerError", 500, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"ServiceUnavailable", 503, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"ServiceUnavailableException", 503, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"RequestTimeout", 408, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"RequestTimeoutException", 408, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"RequestAbortedException", 400, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"KMSInternalException", 500, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"DependencyTimeoutException", 503, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"KeyUnavailableException", 500, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
};

/* About the request: its caller says what that means. */
static const Error requests[] = {
	{"NotFoundException", 400, KS_REFUSED, ONCE, "account and region of the setting"},
	{"DisabledException", 409, KS_REFUSED, ONCE, "CloudTrail"},
	{"KMSInvalidStateException", 409, KS_REFUSED, ONCE, "CloudTrail"},
	{"InvalidCiphertextException", 400, KS_REFUSED, ONCE, "restore nomp_crypt.tenant_key"},
	{"IncorrectKeyException", 400, KS_REFUSED, ONCE, "restore nomp_crypt.tenant_key"},
	{"LimitExceededException", 400, KS_REFUSED, ONCE, "raise the quota"},
	{"MalformedPolicyDocumentException", 400, KS_REFUSED, ONCE, "key-policy"},
};

/* Those that no request of ours should meet, and those of kinds of keys that we have not. */
static const Error foreign[] = {
	{"CloudHsmClusterInvalidConfigurationException", 400, KS_REFUSED, ONCE, "report it"},
	{"CustomKeyStoreInvalidStateException", 400, KS_REFUSED, ONCE, "report it"},
	{"CustomKeyStoreNotFoundException", 400, KS_REFUSED, ONCE, "report it"},
	{"DryRunOperationException", 400, KS_REFUSED, ONCE, "report it"},
	{"InvalidAction", 400, KS_REFUSED, ONCE, "report it"},
	{"InvalidArnException", 400, KS_REFUSED, ONCE, "report it"},
	{"InvalidGrantTokenException", 400, KS_REFUSED, ONCE, "report it"},
	{"InvalidKeyUsageException", 400, KS_REFUSED, ONCE, "report it"},
	{"InvalidMarkerException", 400, KS_REFUSED, ONCE, "report it"},
	{"MalformedHttpRequestException", 400, KS_REFUSED, ONCE, "report it"},
	{"RequestEntityTooLargeException", 413, KS_REFUSED, ONCE, "report it"},
	{"SerializationException", 400, KS_REFUSED, ONCE, "report it"},
	{"SomethingNewException", 400, KS_REFUSED, ONCE, "report it"},
	{"TagException", 400, KS_REFUSED, ONCE, "report it"},
	{"UnknownOperationException", 404, KS_REFUSED, ONCE, "report it"},
	{"UnsupportedOperationException", 400, KS_REFUSED, ONCE, "report it"},
	{"ValidationError", 400, KS_REFUSED, ONCE, "report it"},
	{"ValidationException", 400, KS_REFUSED, ONCE, "report it"},
	{"XksKeyNotFoundException", 400, KS_REFUSED, ONCE, "report it"},
	{"SomethingNewFailure", 500, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"SomethingNewFailure", 503, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
};

/* Pages of somebody else's, in HTML: the status is all there is. */
static const Error nameless[] = {
	{"", 401, KS_NETWORK, ONCE, "what stands at the endpoint"},
	{"", 403, KS_NETWORK, ONCE, "what stands at the endpoint"},
	{"", 400, KS_MODULE_ERROR, ONCE, "what stands at the endpoint"},
	{"", 404, KS_MODULE_ERROR, ONCE, "what stands at the endpoint"},
	{"", 407, KS_MODULE_ERROR, ONCE, "what stands at the endpoint"},
	{"", 413, KS_MODULE_ERROR, ONCE, "what stands at the endpoint"},
	{"", 301, KS_MODULE_ERROR, ONCE, "what stands at the endpoint"},
	{"", 408, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"", 429, KS_THROTTLED, AGAIN, "spread the load"},
	{"", 500, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"", 502, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"", 503, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
	{"", 504, KS_MODULE_ERROR, AGAIN_UNLESS_CREATE, "Health Dashboard"},
};

/* Of STS, which gives out credentials: AGAIN, or ONCE. */
static const Error sts[] = {
	{"AccessDenied", 403, KS_ACCESS_DENIED, ONCE, "IAM policy"},
	{"ExpiredTokenException", 400, KS_CREDENTIALS, ONCE, "the token they are got with"},
	{"ExpiredToken", 400, KS_CREDENTIALS, ONCE, "the token they are got with"},
	{"IDPCommunicationError", 400, KS_CREDENTIALS, AGAIN, "up and reachable"},
	{"IDPRejectedClaim", 403, KS_CREDENTIALS, ONCE, "issuer writes new ones"},
	{"InvalidIdentityToken", 400, KS_CREDENTIALS, ONCE, "issuer and audience"},
	{"PackedPolicyTooLarge", 400, KS_CREDENTIALS, ONCE, "fewer tags"},
	{"RegionDisabledException", 403, KS_CREDENTIALS, ONCE, "activate STS for the region"},
	{"InvalidClientTokenId", 403, KS_CREDENTIALS, ONCE, "replace the access key"},
	{"SignatureDoesNotMatch", 403, KS_CREDENTIALS, ONCE, "secret that belongs to"},
	{"RequestExpired", 400, KS_CLOCK_SKEW, ONCE, "set this machine's clock"},
	{"Throttling", 400, KS_THROTTLED, AGAIN, "spread the load"},
	{"InternalFailure", 500, KS_CREDENTIALS, AGAIN, "Health Dashboard"},
	{"ServiceUnavailable", 503, KS_CREDENTIALS, AGAIN, "Health Dashboard"},
	{"ValidationError", 400, KS_CREDENTIALS, ONCE, "report it"},
};

#define EACH(e, list) \
	for (const Error *e = (list); e < (list) + sizeof(list) / sizeof((list)[0]); e++)

static AwsClient *client;

/* Does a reason name the error, and what to do? */
static bool
tells(const char *reason, const Error *e)
{
	char		status[20];

	snprintf(status, sizeof(status), "HTTP status %d", e->http);
	return strstr(reason, status) != NULL && strstr(reason, e->name) != NULL &&
		strstr(reason, e->advice) != NULL;
}

/* One call, answered by the error the first time. */
static void
expect_call(const char *action, const Error *e, bool again)
{
	char		name[120];
	Result		r;

	snprintf(name, sizeof(name), "%s:%d:words", e->name, e->http);
	set_control("reset=1");
	r = call(client, AWS_EVERYDAY, action, name, PATIENT);
	if (!tap_ok(again ? r.status == KS_OK && counted(name) == 2 :
				r.status == e->status && strcmp(r.reply.error, e->name) == 0 &&
				counted(name) == 1 && tells(r.why.reason, e),
				"%s, HTTP status %d, to %s%s", e->name[0] != '\0' ? e->name : "a page", e->http, action,
				again ? ": again" : ""))
		printf("# status %d, %d times: %s\n", r.status, counted(name), r.why.reason);
	aws_reply_free(&r.reply);
}

/* What is said of an error that is repeated in vain. */
static void
expect_words(const Error *e)
{
	AwsAnswer	answer = {.status = e->http};
	AwsReply	reply = {.http = e->http};
	KsFailure	why = {0};
	AwsVerdict	verdict;

	snprintf(reply.error, sizeof(reply.error), "%s", e->name);
	memset(reply.message, 'x', sizeof(reply.message) - 1);
	verdict = aws_judge(&answer, &reply, 0, &why);
	if (!tap_ok(verdict.status == e->status && tells(why.reason, e), "%s, HTTP status %d: what to do",
				e->name[0] != '\0' ? e->name : "a page", e->http))
		printf("# status %d: %s\n", verdict.status, why.reason);
}

static void
expect_error(const Error *e)
{
	expect_call("DescribeKey", e, e->sent != ONCE);
	expect_call("CreateKey", e, e->sent == AGAIN || e->sent == RENEWED);
	expect_words(e);
}

static void
test_calls(void)
{
	EACH(e, common)
		expect_error(e);
	EACH(e, requests)
		expect_error(e);
	EACH(e, foreign)
		expect_error(e);
	EACH(e, nameless)
		expect_error(e);
}

/* A signature's refusal that is about the clock, without a date to tell it by. */
static void
test_clock(void)
{
	static const char *const cases[][2] = {
		{"InvalidSignatureException:400:Signature expired: 20261127T000000Z is now earlier than "
		 "20261127T095500Z (20261127T100000Z - 5 min.)",
		 "clock is behind"},
		{"SignatureDoesNotMatch:403:Signature expired: 20261127T000000Z is now earlier than "
		 "20261127T095500Z (20261127T100000Z - 5 min.)",
		 "clock is behind"},
		{"InvalidSignatureException:400:Signature not yet current: 20261127T110000Z is still later than "
		 "20261127T100500Z (20261127T100000Z + 5 min.)",
		 "clock is ahead"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		Result		r = call(client, AWS_EVERYDAY, "DescribeKey", cases[i][0], PATIENT);

		if (!tap_ok(r.status == KS_CLOCK_SKEW && strstr(r.why.reason, cases[i][1]) != NULL &&
					strstr(r.why.reason, "set this machine's clock") != NULL, "%.60s", cases[i][0]))
			printf("# status %d: %s\n", r.status, r.why.reason);
		aws_reply_free(&r.reply);
	}
}

static void
test_sts(void)
{
	clear_sources();
	write_file(server_path("token"), "web-token", 0600);
	(void) setenv("AWS_WEB_IDENTITY_TOKEN_FILE", server_path("token"), 1);
	(void) setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/w", 1);
	EACH(e, sts)
	{
		AwsClient  *other = client_of("", "");
		char		query[120];
		Result		r;

		set_control("reset=1");
		snprintf(query, sizeof(query), "sts=%s:%d:words", e->name, e->http);
		set_control(query);
		r = call(other, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
		if (!tap_ok(counted("sts:AssumeRoleWithWebIdentity") == (e->sent == ONCE ? 1 : 2) &&
					(e->sent == ONCE ? r.status == e->status && tells(r.why.reason, e) &&
					 strncmp(r.why.reason, "STS: ", 5) == 0 : r.status == KS_OK),
					"STS says %s%s", e->name, e->sent == ONCE ? "" : ": again"))
			printf("# status %d: %s\n", r.status, r.why.reason);
		aws_reply_free(&r.reply);
		aws_client_free(other);
	}
}

/* ---- the page for operators ---- */

static const char *
said_of(KsStatus status)
{
	switch (status)
	{
		case KS_ACCESS_DENIED:
			return "it does not allow this to the credentials in use";
		case KS_CREDENTIALS:
			return "there are no credentials that it accepts";
		case KS_CLOCK_SKEW:
			return "this machine's clock differs too much from its own";
		case KS_THROTTLED:
			return "it asks to come back later";
		case KS_MODULE_ERROR:
			return "the PKCS#11 module or the key service reported an error";
		case KS_NETWORK:
			return "it cannot be reached, or does not prove who it is";
		default:
			return "";			/* its caller's to say */
	}
}

/* The row of a table that has these words; from "from" on. */
static const char *
row_with(const char *from, const char *words, char *row, size_t size)
{
	const char *at = strstr(from, words);
	const char *begin = at;

	while (begin != NULL && begin > from && begin[-1] != '\n')
		begin--;
	snprintf(row, size, "%.*s", begin != NULL ? (int) strcspn(begin, "\n") : 0, begin != NULL ? begin : "");
	return row;
}

/* Is the name there, with what sessions are told, whether it is repeated, and the advice? */
static void
expect_row(const char *section, const Error *e)
{
	static const char *const repeated[] = {"| no |", "| yes |", "| yes, but CreateKey |", "| once |"};
	char		words[100];
	char		row[2000];

	snprintf(words, sizeof(words), "`%s`", e->name);
	row_with(section, words, row, sizeof(row));
	if (!tap_ok(strstr(row, said_of(e->status)) != NULL && strstr(row, repeated[e->sent]) != NULL &&
				strstr(row, aws_advice(e->name)) != NULL, "%s is on the page", e->name))
		printf("# %s\n", row);
}

/* As expect_row, for what has no name; "words" begin its row. */
static void
expect_nameless_row(const char *section, const char *words, const Error *e)
{
	char		row[2000];

	row_with(section, words, row, sizeof(row));
	if (!tap_ok(strstr(row, said_of(e->status)) != NULL && strstr(row, e->advice) != NULL &&
				strstr(row, e->sent == ONCE ? "| no |" : "| yes") != NULL, "%s is on the page", words + 2))
		printf("# %s\n", row);
}

static void
test_page(void)
{
	static char page[200000];
	FILE	   *file = fopen(PAGE, "r");
	size_t		len = file != NULL ? fread(page, 1, sizeof(page) - 1, file) : 0;
	const char *section = strstr(page, "### Errors by name\n");

	if (file == NULL || fclose(file) != 0 || len == 0 || section == NULL)
		tap_bail("%s has no errors by name", PAGE);
	EACH(e, common)
		expect_row(section, e);
	EACH(e, requests)
		expect_row(section, e);
	for (size_t i = 3; i < 8; i++)
		expect_row(section, &sts[i]);
	expect_nameless_row(section, "| any other name", &(const Error) {"", 400, KS_MODULE_ERROR, ONCE, "report it"});
	expect_nameless_row(section, "| no name, HTTP status 401 or 403", &nameless[0]);
	expect_nameless_row(section, "| no name, any other HTTP status", &nameless[3]);
	expect_nameless_row(section, "| no name, HTTP status 408, 500 and above", &nameless[7]);
	expect_nameless_row(section, "| no name, HTTP status 429", &nameless[8]);
}

int
main(void)
{
	start_server();
	clear_sources();
	(void) setenv("AWS_ACCESS_KEY_ID", "AKIDENV", 1);
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env", 1);
	client = client_of("", "");
	test_calls();
	test_clock();
	aws_client_free(client);
	test_sts();
	test_page();
	stop_server();
	return tap_done();
}
