/*
 * aws_call.c
 *		One call of KMS, repeated while that may help and there is time.
 *
 * The protocol is AWS JSON 1.1: a POST of a JSON object to "/", the action in
 * a header, an object back.
 *
 * Pauses between attempts are random, from nothing to a bound that doubles
 * ("full jitter"), so that helpers on many servers do not come back at once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "aws_credentials.h"
#include "aws_errors.h"

#define DEFAULT_PATIENCE	10000
#define FIRST_PAUSE_MS		50
#define THROTTLED_PAUSE_MS	250
#define LONGEST_PAUSE_MS	4000
#define SHORTEST_TRY_MS		3000
#define MAX_TRIES			20

struct AwsClient
{
	AwsEndpoint kms;
	AwsHttp    *http;
	AwsChain   *everyday;
	AwsChain   *destroyer;		/* NULL: the everyday ones */
};

/* One call, while it is made. */
typedef struct Call
{
	AwsClient  *client;
	AwsChain   *chain;
	const char *action;
	bool		once;			/* must not happen twice */
	const char *payload;
	int64_t		until;
	AwsReply   *reply;
	KsFailure  *why;
	bool		renewed;		/* credentials, for this call */
	AwsVerdict	verdict;		/* of the last attempt, if it failed */
} Call;

static _Thread_local int64_t patience_end;

void
aws_set_patience(uint32_t milliseconds)
{
	/* leave some for the way back */
	int64_t		margin = milliseconds / 10 < 250 ? milliseconds / 10 : 250;

	patience_end = aws_now() + (milliseconds == 0 ? DEFAULT_PATIENCE :
								(int64_t) milliseconds - margin);
}

static AwsChain *
make_chain(AwsClient *client, const AwsOptions *options, const AwsEndpoint *sts,
		   const char *profile)
{
	AwsSources	from = {.http = client->http, .sts = *sts};

	snprintf(from.profile, sizeof(from.profile), "%s", profile);
	return aws_chain_create(&from);
}

/* In tests STS is where KMS is, unless its own variable says otherwise. */
static KsStatus
find_endpoints(AwsClient *client, const AwsOptions *options, AwsEndpoint *sts, KsFailure *why)
{
	KsStatus	status = aws_endpoint("kms", options, options->endpoint, &client->kms, why);
	const char *given = getenv("AWS_ENDPOINT_URL_STS");
	AwsOptions	for_sts = *options;

	if (status != KS_OK)
		return status;
	/* STS has FIPS hosts in North America only */
	for_sts.fips = false;
	if (given == NULL || given[0] == '\0')
		given = options->test ? options->endpoint : "";
	return aws_endpoint("sts", &for_sts, given, sts, why);
}

AwsClient *
aws_client_create(const AwsOptions *options, KsFailure *why, KsStatus *status)
{
	AwsClient  *client;
	AwsEndpoint sts;

	*status = KS_MODULE_ERROR;
	if (!aws_memory_init())
	{
		(void) ks_fail(why, *status, "libcurl, or OpenSSL, cannot be started");
		return NULL;
	}
	client = calloc(1, sizeof(*client));
	if (client == NULL)
	{
		(void) ks_fail(why, *status, "no memory for the client");
		return NULL;
	}
	*status = find_endpoints(client, options, &sts, why);
	if (*status == KS_OK)
	{
		client->http = aws_http_create(options->ca_file);
		client->everyday = make_chain(client, options, &sts, options->profile);
		if (options->destroy_profile[0] != '\0')
			client->destroyer = make_chain(client, options, &sts, options->destroy_profile);
		if (client->http != NULL && client->everyday != NULL &&
			(client->destroyer != NULL || options->destroy_profile[0] == '\0'))
			return client;
		*status = ks_fail(why, KS_MODULE_ERROR, "no memory for the client");
	}
	aws_client_free(client);
	return NULL;
}

void
aws_client_free(AwsClient *client)
{
	if (client == NULL)
		return;
	aws_chain_free(client->everyday);
	aws_chain_free(client->destroyer);
	aws_http_free(client->http);
	free(client);
}

const char *
aws_credentials_source(AwsClient *client, bool *lasting)
{
	return aws_chain_source(client->everyday, lasting);
}

void
aws_reply_free(AwsReply *reply)
{
	json_decref(reply->body);
	reply->body = NULL;
}

/*
 * How long one attempt may take: if there may be another, not all the time
 * there is, since a new connection may fare better.
 */
static int64_t
end_of_try(const Call *call)
{
	int64_t		left = call->until - aws_now();
	int64_t		part = left / 2 > SHORTEST_TRY_MS ? left / 2 : SHORTEST_TRY_MS;

	return call->once || part > left ? call->until : aws_now() + part;
}

/* Sign with these credentials and send. */
static KsStatus
send_signed(Call *call, const AwsCredentials *credentials, AwsAnswer *answer)
{
	const AwsEndpoint *kms = &call->client->kms;
	const AwsSigner signer = {credentials->access_key, credentials->secret, kms->region, "kms"};
	AwsText		authorization = {0};
	char		date[32];
	char		target[100];
	struct tm	tm;
	time_t		now = time(NULL);
	AwsHeader	headers[6] = {
		{"Host", kms->authority},
		{"Content-Type", "application/x-amz-json-1.1"},
		{"X-Amz-Date", date},
		{"X-Amz-Target", target},
	};
	int			n = 4;
	AwsSignable signable = {"POST", "/", "", headers, 0, call->payload, strlen(call->payload)};
	AwsRequest	request = {
		.method = "POST", .url = kms->url, .plain = kms->plain, .headers = headers,
		.body = call->payload, .body_len = strlen(call->payload),
		.until = end_of_try(call), .once = call->once,
	};
	KsStatus	status;

	(void) gmtime_r(&now, &tm);
	(void) strftime(date, sizeof(date), "%Y%m%dT%H%M%SZ", &tm);
	snprintf(target, sizeof(target), "TrentService.%s", call->action);
	if (credentials->token != NULL)
		headers[n++] = (AwsHeader) {"X-Amz-Security-Token", credentials->token};
	signable.n_headers = n;
	if (!aws_sign(&signable, &signer, &authorization))
		status = ks_fail(call->why, KS_MODULE_ERROR, "a request could not be signed");
	else
	{
		headers[n++] = (AwsHeader) {"Authorization", authorization.data};
		request.n_headers = n;
		status = aws_http_call(call->client->http, &request, answer, call->why);
	}
	aws_text_free(&authorization);
	return status;
}

/* The object in a successful answer; an empty answer is an empty object. */
static KsStatus
read_body(Call *call, const AwsAnswer *answer)
{
	call->reply->body = answer->body.len == 0 ? json_object() :
		json_loadb(answer->body.data, answer->body.len, JSON_REJECT_DUPLICATES, NULL);
	if (json_is_object(call->reply->body))
		return KS_OK;
	aws_reply_free(call->reply);
	return ks_fail(call->why, KS_MODULE_ERROR, "an answer is no JSON object");
}

/* One attempt.  Unless KS_OK, call->verdict says what next. */
static KsStatus
attempt(Call *call, AwsCredentials *credentials)
{
	AwsAnswer	answer = {0};
	KsStatus	status = send_signed(call, credentials, &answer);

	call->verdict = (AwsVerdict) {status, .again = answer.again, .refused = !answer.arrived};
	if (status == KS_OK)
	{
		call->reply->http = answer.status;
		if (answer.status == 200)
			status = read_body(call, &answer);
		else
		{
			aws_read_error(&answer, call->reply);
			aws_hide_echo(call->reply, credentials->secret);
			aws_hide_echo(call->reply, credentials->token);
			call->verdict = aws_judge(&answer, call->reply, (int64_t) time(NULL), call->why);
			status = call->verdict.status;
		}
	}
	aws_text_free(&answer.body);
	return status;
}

/* Wait before the next attempt; false if there is no time for one. */
static bool
pause_before(const Call *call, int tries)
{
	int64_t		bound = call->verdict.status == KS_THROTTLED ? THROTTLED_PAUSE_MS : FIRST_PAUSE_MS;
	uint32_t	chance;
	struct timespec pause;

	for (int i = 1; i < tries && bound < LONGEST_PAUSE_MS; i++)
		bound *= 2;
	if (getrandom(&chance, sizeof(chance), 0) != sizeof(chance))
		chance = (uint32_t) aws_now();
	bound = chance % bound;
	if (aws_now() + bound >= call->until)
		return false;
	pause.tv_sec = bound / 1000;
	pause.tv_nsec = bound % 1000 * 1000000;
	(void) nanosleep(&pause, NULL);
	return true;
}

/* Is another attempt worth while, and allowed? */
static bool
try_again(Call *call, AwsCredentials *used, int tries)
{
	if (call->verdict.renew && !call->renewed)
	{
		call->renewed = true;
		aws_chain_refuse(call->chain, used);
		return true;
	}
	if (!call->verdict.again || tries >= MAX_TRIES || (call->once && !call->verdict.refused))
		return false;
	return pause_before(call, tries);
}

/* How an attempt ended. */
typedef struct Outcome
{
	KsStatus	status;
	AwsReply	reply;
	KsFailure	why;
} Outcome;

/*
 * When the time is over in the middle of an attempt, what the one before it
 * was told says more.
 */
static KsStatus
make_call(Call *call)
{
	AwsCredentials *credentials;
	Outcome		before = {KS_TIMEOUT};
	KsStatus	status;
	bool		again;

	for (int tries = 1;; tries++)
	{
		*call->reply = (AwsReply) {0};
		status = aws_chain_get(call->chain, call->until, &credentials, call->why);
		if (status != KS_OK)
			return status;
		status = attempt(call, credentials);
		again = status != KS_OK && try_again(call, credentials, tries);
		aws_chain_give_back(call->chain, credentials);
		if (status == KS_TIMEOUT && before.status != KS_TIMEOUT)
		{
			*call->reply = before.reply;
			*call->why = before.why;
			status = before.status;
		}
		if (!again)
			return status;
		before = (Outcome) {status, *call->reply, *call->why};
	}
}

KsStatus
aws_call(AwsClient *client, AwsRole role, const char *action, json_t *body,
		 AwsReply *reply, KsFailure *why)
{
	Call		call = {
		.client = client,
		.chain = role == AWS_DESTROYER && client->destroyer != NULL ?
			client->destroyer : client->everyday,
		.action = action,
		.once = strcmp(action, "CreateKey") == 0,
		.until = patience_end != 0 ? patience_end : aws_now() + DEFAULT_PATIENCE,
		.reply = reply,
		.why = why,
	};
	char	   *payload = json_dumps(body, JSON_COMPACT);
	KsStatus	status;

	*reply = (AwsReply) {0};
	json_decref(body);
	if (payload == NULL)
		return ks_fail(why, KS_MODULE_ERROR, "no memory for a request, or it is no JSON");
	call.payload = payload;
	status = make_call(&call);
	if (status == KS_OK)
		why->reason[0] = '\0';
	wiping_free(payload);
	return status;
}
