/*
 * aws_errors.c
 *		What a service's error means: its name, its words, and what to do.
 *
 * Names are those of "Common Errors" in the API references of KMS and STS,
 * of the errors of KMS's actions, and of the lists by which botocore repeats
 * requests.  An error that is not in a list here is about the request, and
 * its caller's to interpret.
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

static const KnownError known_errors[] = {
	{"AccessDenied", DENIED},
	{"AccessDeniedException", DENIED},
	{"NotAuthorized", DENIED},
	{"OptInRequired", DENIED},
	{"UnauthorizedOperation", DENIED},

	{"ExpiredToken", STRANGER},
	{"ExpiredTokenException", STRANGER},
	{"InvalidAccessKeyId", STRANGER},
	{"InvalidClientTokenId", STRANGER},
	{"InvalidToken", STRANGER},
	{"MissingAuthenticationToken", STRANGER},
	{"MissingAuthenticationTokenException", STRANGER},
	{"TokenRefreshRequired", STRANGER},
	{"UnrecognizedClientException", STRANGER},

	{"InvalidSignatureException", SIGNATURE},
	{"SignatureDoesNotMatch", SIGNATURE},
	{"RequestExpired", CLOCK},
	{"RequestInTheFuture", CLOCK},
	{"RequestTimeTooSkewed", CLOCK},

	{"LimitExceeded", THROTTLED},
	{"PriorRequestNotComplete", THROTTLED},
	{"RequestLimitExceeded", THROTTLED},
	{"RequestThrottled", THROTTLED},
	{"RequestThrottledException", THROTTLED},
	{"SlowDown", THROTTLED},
	{"ThrottledException", THROTTLED},
	{"Throttling", THROTTLED},
	{"ThrottlingException", THROTTLED},
	{"TooManyRequestsException", THROTTLED},

	{"DependencyTimeoutException", TROUBLE},
	{"IDPCommunicationError", TROUBLE},
	{"InternalError", TROUBLE},
	{"InternalFailure", TROUBLE},
	{"InternalServerError", TROUBLE},
	{"KMSInternalException", TROUBLE},
	{"KeyUnavailableException", TROUBLE},
	{"RequestTimeout", TROUBLE},
	{"RequestTimeoutException", TROUBLE},
	{"ServiceUnavailable", TROUBLE},
	{"ServiceUnavailableException", TROUBLE},
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

/* An error without a name that we know, by the HTTP status alone. */
static AwsVerdict
by_status(int http, bool named)
{
	if (http >= 500)
		return (AwsVerdict) TROUBLE;
	if (http == 429)
		return (AwsVerdict) THROTTLED;
	if (named && http >= 400)
		return (AwsVerdict) {KS_REFUSED, .refused = true};
	if (http == 401 || http == 403)
		return (AwsVerdict) DENIED;
	return (AwsVerdict) {KS_MODULE_ERROR};
}

AwsVerdict
aws_judge(const AwsAnswer *answer, const AwsReply *reply, int64_t now, KsFailure *why)
{
	const KnownError *known = look_up(reply->error);
	AwsVerdict	verdict = known != NULL ? known->verdict :
	by_status(answer->status, reply->error[0] != '\0');
	int64_t		ahead = answer->date != 0 ? now - answer->date : 0;
	bool		about_time = verdict.status == KS_CLOCK_SKEW ||
	strcmp(reply->error, "InvalidSignatureException") == 0 ||
	strcmp(reply->error, "SignatureDoesNotMatch") == 0;

	if (about_time && (ahead > SKEW_SECONDS || ahead < -SKEW_SECONDS))
	{
		verdict = (AwsVerdict) CLOCK;
		(void) ks_fail(why, verdict.status, "%s: this machine's clock is %lld seconds %s the "
					   "service's", reply->error, (long long) llabs(ahead),
					   ahead > 0 ? "ahead of" : "behind");
		return verdict;
	}
	(void) ks_fail(why, verdict.status, "the service answered with HTTP status %d%s%s%s%.200s",
				   answer->status, reply->error[0] != '\0' ? ", " : "", reply->error,
				   reply->message[0] != '\0' ? ": " : "", reply->message);
	return verdict;
}
