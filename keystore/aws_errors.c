/*
 * aws_errors.c
 *		What a service's error means: its name, its words, and what to do.
 *
 * Names are those of "Common Errors" in the API references of KMS and STS, of
 * the errors of their actions that are called here, and of the lists by which
 * botocore repeats requests.  docs/aws-kms.md has them for whoever is woken.
 * An error that is not in a list here is about the request, and its caller's
 * to interpret; so are those whose status here is KS_REFUSED.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aws_errors.h"
#include "aws_xml.h"

#define SKEW_SECONDS	240		/* the services allow five minutes */
#define ECHO_LEN		16		/* so many characters of a secret are a part of it */

typedef struct KnownError
{
	const char *name;
	AwsVerdict	verdict;
	const char *advice;			/* what to do, for the server log */
} KnownError;

#define THROTTLED                                    \
	{                                                \
		KS_THROTTLED, .again = true, .refused = true \
	}
#define TROUBLE                        \
	{                                  \
		KS_MODULE_ERROR, .again = true \
	}
#define STRANGER                                       \
	{                                                  \
		KS_CREDENTIALS, .refused = true, .renew = true \
	}
#define DENIED                            \
	{                                     \
		KS_ACCESS_DENIED, .refused = true \
	}
#define SIGNATURE                       \
	{                                   \
		KS_CREDENTIALS, .refused = true \
	}
#define CLOCK                          \
	{                                  \
		KS_CLOCK_SKEW, .refused = true \
	}

#define REQUEST                     \
	{                               \
		KS_REFUSED, .refused = true \
	}

/* Short: with the service's words it must fit in a KsFailure. */
#define ALLOW		"allow it in the IAM policy and the key's, or use other credentials"
#define OPT_IN		"enable the service and the region for the account"
#define FRESHEN		"see what should have renewed the credentials, or the token they are got with"
#define REPLACE		"replace the access key or session, or enable the region for the account"
#define PAIR		"give the secret that belongs to the access key"
#define ON_THE_WAY	"look for a proxy that changes requests"
#define SET_CLOCK	"set this machine's clock (NTP)"
#define SPREAD		"spread the load, or ask AWS for a higher quota of requests"
#define HEALTH		"if it lasts, see AWS's Health Dashboard for the region"
#define PROVIDER	"see that the identity provider is up and reachable for AWS"
#define NEW_TOKEN	"see that the token's issuer writes new ones, and that it is not revoked"
#define TRUST		"compare the token's issuer and audience with the identity provider in IAM"
#define STS_REGION	"activate STS for the region in the account's settings (IAM)"
#define FEW_TAGS	"give the session that the role is assumed with fewer tags or policies"
#define KEY_POLICY	"correct the key-policy file, see docs/aws-kms.md"
#define KEY_ACCOUNT	"see that the key is in the account and region of the setting"
#define KEY_STATE	"see the key's state in KMS, and in CloudTrail who changed it"
#define ROW			"restore nomp_crypt.tenant_key with its data"
#define QUOTA		"ask AWS to raise the quota"
#define REPORT		"this should not happen: report it, with the server log"
#define ENDPOINT	"that is no answer of AWS's: see what stands at the endpoint, or before it"

static const KnownError known_errors[] = {
	{"AccessDenied", DENIED, ALLOW},
	{"AccessDeniedException", DENIED, ALLOW},
	{"NotAuthorized", DENIED, ALLOW},
	{"OptInRequired", DENIED, OPT_IN},
	{"UnauthorizedOperation", DENIED, ALLOW},

	{"ExpiredToken", STRANGER, FRESHEN},
	{"ExpiredTokenException", STRANGER, FRESHEN},
	{"InvalidAccessKeyId", STRANGER, REPLACE},
	{"InvalidClientTokenId", STRANGER, REPLACE},
	{"InvalidToken", STRANGER, REPLACE},
	{"MissingAuthenticationToken", STRANGER, ON_THE_WAY},
	{"MissingAuthenticationTokenException", STRANGER, ON_THE_WAY},
	{"TokenRefreshRequired", STRANGER, FRESHEN},
	{"UnrecognizedClientException", STRANGER, REPLACE},

	{"IncompleteSignature", SIGNATURE, ON_THE_WAY},
	{"IncompleteSignatureException", SIGNATURE, ON_THE_WAY},
	{"InvalidSignatureException", SIGNATURE, PAIR},
	{"SignatureDoesNotMatch", SIGNATURE, PAIR},
	{"RequestExpired", CLOCK, SET_CLOCK},
	{"RequestInTheFuture", CLOCK, SET_CLOCK},
	{"RequestTimeTooSkewed", CLOCK, SET_CLOCK},

	{"BandwidthLimitExceeded", THROTTLED, SPREAD},
	{"EC2ThrottledException", THROTTLED, SPREAD},
	{"LimitExceeded", THROTTLED, SPREAD},
	{"PriorRequestNotComplete", THROTTLED, SPREAD},
	{"ProvisionedThroughputExceededException", THROTTLED, SPREAD},
	{"RequestLimitExceeded", THROTTLED, SPREAD},
	{"RequestThrottled", THROTTLED, SPREAD},
	{"RequestThrottledException", THROTTLED, SPREAD},
	{"SlowDown", THROTTLED, SPREAD},
	{"ThrottledException", THROTTLED, SPREAD},
	{"Throttling", THROTTLED, SPREAD},
	{"ThrottlingException", THROTTLED, SPREAD},
	{"TooManyRequestsException", THROTTLED, SPREAD},
	{"TransactionInProgressException", THROTTLED, SPREAD},

	{"DependencyTimeoutException", TROUBLE, HEALTH},
	{"IDPCommunicationError", TROUBLE, PROVIDER},
	{"InternalError", TROUBLE, HEALTH},
	{"InternalFailure", TROUBLE, HEALTH},
	{"InternalServerError", TROUBLE, HEALTH},
	{"KMSInternalException", TROUBLE, HEALTH},
	{"KeyUnavailableException", TROUBLE, HEALTH},
	{"RequestAbortedException", TROUBLE, HEALTH},
	{"RequestTimeout", TROUBLE, HEALTH},
	{"RequestTimeoutException", TROUBLE, HEALTH},
	{"ServiceUnavailable", TROUBLE, HEALTH},
	{"ServiceUnavailableException", TROUBLE, HEALTH},

	{"DisabledException", REQUEST, KEY_STATE},
	{"IDPRejectedClaim", REQUEST, NEW_TOKEN},
	{"IncorrectKeyException", REQUEST, ROW},
	{"InvalidCiphertextException", REQUEST, ROW},
	{"InvalidIdentityToken", REQUEST, TRUST},
	{"KMSInvalidStateException", REQUEST, KEY_STATE},
	{"LimitExceededException", REQUEST, QUOTA},
	{"MalformedPolicyDocumentException", REQUEST, KEY_POLICY},
	{"NotFoundException", REQUEST, KEY_ACCOUNT},
	{"PackedPolicyTooLarge", REQUEST, FEW_TAGS},
	{"RegionDisabledException", REQUEST, STS_REGION},
};

/* The name alone: of "com.amazonaws.kms#NotFoundException:http://..." too. */
static void
take_name(const char *text, char *out, size_t size)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.";
	const char *hash = strchr(text, '#');
	size_t		len;

	if (hash != NULL)
		text = hash + 1;
	len = strspn(text, letters);
	if (text[len] != '\0' && text[len] != ':')
		len = 0;
	aws_printable(out, size, text, len < size ? len : 0);
}

/*
 * Errors whose words repeat the request: its headers, with the session token,
 * or its values, among which may be a data key.
 */
static bool
repeats_request(const char *name)
{
	static const char *const names[] = {
		"IncompleteSignature", "IncompleteSignatureException", "InvalidSignatureException",
		"SerializationException", "SignatureDoesNotMatch", "ValidationError", "ValidationException",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		if (strcmp(name, names[i]) == 0)
			return true;
	}
	return false;
}

static const char *
member(const json_t *object, const char *a, const char *b)
{
	const char *value = json_string_value(json_object_get(object, a));

	return value != NULL ? value : json_string_value(json_object_get(object, b));
}

/* The query protocol's errors; and those of gateways in front of the others. */
static void
read_xml_error(const AwsAnswer *answer, AwsReply *reply)
{
	AwsElement	parts[] = {{"Error", "Code"}, {"Error", "Message"}};

	if (!aws_xml_read(answer->body.data, answer->body.len, parts, 2))
		return;
	if (parts[0].text.len > 0)
		take_name(parts[0].text.data, reply->error, sizeof(reply->error));
	aws_printable(reply->message, sizeof(reply->message), parts[1].text.data, parts[1].text.len);
	aws_xml_free(parts, 2);
}

static void
read_json_error(const AwsAnswer *answer, AwsReply *reply)
{
	json_t	   *body = NULL;
	const char *text;

	if (answer->body.len > 0)
		body = json_loadb(answer->body.data, answer->body.len, JSON_REJECT_DUPLICATES, NULL);
	text = member(body, "__type", "code");
	if (text == NULL && answer->error[0] != '\0')
		text = answer->error;
	if (text != NULL)
		take_name(text, reply->error, sizeof(reply->error));
	text = member(body, "message", "Message");
	if (text != NULL)
		aws_printable(reply->message, sizeof(reply->message), text, strlen(text));
	json_decref(body);
}

void
aws_read_error(const AwsAnswer *answer, AwsReply *reply)
{
	reply->error[0] = reply->message[0] = '\0';
	if (answer->body.len > 0 && answer->body.data[0] == '<')
		read_xml_error(answer, reply);
	else
		read_json_error(answer, reply);
	if (repeats_request(reply->error))
		reply->message[0] = '\0';
}

/* Does a text repeat the secret, or so much of it that it is no accident? */
static bool
repeats(const char *text, const char *secret)
{
	char		part[ECHO_LEN + 1];

	if (strlen(secret) <= ECHO_LEN)
		return strstr(text, secret) != NULL;
	for (; strlen(text) >= ECHO_LEN; text++)
	{
		memcpy(part, text, ECHO_LEN);
		part[ECHO_LEN] = '\0';
		if (strstr(secret, part) != NULL)
			return true;
	}
	return false;
}

void
aws_hide_echo(AwsReply *reply, const char *secret)
{
	if (secret == NULL || secret[0] == '\0')
		return;
	if (repeats(reply->error, secret))
		reply->error[0] = '\0';
	if (repeats(reply->message, secret))
		reply->message[0] = '\0';
}

static const KnownError *
look_up(const char *name)
{
	for (size_t i = 0; i < sizeof(known_errors) / sizeof(known_errors[0]); i++)
	{
		if (strcmp(known_errors[i].name, name) == 0)
			return &known_errors[i];
	}
	return NULL;
}

/* What to do about an error, by its name; one that is not known should not be. */
const char *
aws_advice(const char *name)
{
	const KnownError *known = look_up(name);

	return known != NULL ? known->advice : REPORT;
}

/*
 * An error without a name that we know, by the HTTP status alone.  The
 * services give every error its name: what says "forbidden" without one is
 * something else, such as a proxy that was put in between.
 */
static AwsVerdict
by_status(int http, bool named)
{
	if (http >= 500 || http == 408)
		return (AwsVerdict) TROUBLE;
	if (http == 429)
		return (AwsVerdict) THROTTLED;
	if (named && http >= 400)
		return (AwsVerdict) REQUEST;
	if (http == 401 || http == 403)
		return (AwsVerdict) {KS_NETWORK};
	return (AwsVerdict) {KS_MODULE_ERROR};
}

static const char *
advice_for(const AwsReply *reply, const AwsVerdict *verdict)
{
	if (verdict->status == KS_THROTTLED)
		return SPREAD;
	if (look_up(reply->error) == NULL && verdict->again)
		return HEALTH;
	return reply->error[0] != '\0' ? aws_advice(reply->error) : ENDPOINT;
}

static bool
contains(const AwsText *text, const char *words)
{
	return text->len > 0 && memmem(text->data, text->len, words, strlen(words)) != NULL;
}

/*
 * Is a refusal about this machine's clock?  The answer's date tells, and a
 * signature's refusal has words for it, which are all there is if something in
 * between takes the date away.
 */
static bool
about_clock(const AwsAnswer *answer, const AwsReply *reply, bool sure, int64_t now, KsFailure *why)
{
	int64_t		ahead = answer->date != 0 ? now - answer->date : 0;
	bool		signature = strcmp(reply->error, "InvalidSignatureException") == 0 ||
	strcmp(reply->error, "SignatureDoesNotMatch") == 0;

	if (!sure && !signature)
		return false;
	if (ahead > SKEW_SECONDS || ahead < -SKEW_SECONDS)
		(void) ks_fail(why, KS_CLOCK_SKEW, "%s: this machine's clock is %lld seconds %s the "
					   "service's; " SET_CLOCK, reply->error, (long long) llabs(ahead),
					   ahead > 0 ? "ahead of" : "behind");
	else if (signature && contains(&answer->body, "Signature expired"))
		(void) ks_fail(why, KS_CLOCK_SKEW, "%s: this machine's clock is behind the service's, or "
					   "requests are minutes on their way; " SET_CLOCK, reply->error);
	else if (signature && contains(&answer->body, "Signature not yet current"))
		(void) ks_fail(why, KS_CLOCK_SKEW, "%s: this machine's clock is ahead of the service's; "
					   SET_CLOCK, reply->error);
	else
		return false;
	return true;
}

AwsVerdict
aws_judge(const AwsAnswer *answer, const AwsReply *reply, int64_t now, KsFailure *why)
{
	const KnownError *known = look_up(reply->error);
	AwsVerdict	verdict = known != NULL ? known->verdict :
	by_status(answer->status, reply->error[0] != '\0');

	if (about_clock(answer, reply, verdict.status == KS_CLOCK_SKEW, now, why))
		return (AwsVerdict) CLOCK;
	(void) ks_fail(why, verdict.status, "the service answered with HTTP status %d%s%s%s%.200s; %s",
				   answer->status, reply->error[0] != '\0' ? ", " : "", reply->error,
				   reply->message[0] != '\0' ? ": " : "", reply->message,
				   advice_for(reply, &verdict));
	return verdict;
}
