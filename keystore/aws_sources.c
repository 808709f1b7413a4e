/*
 * aws_sources.c
 *		Where credentials are looked for, and in which order.
 *
 * The order, and what the variables and the fields of a profile are called,
 * are those of the AWS SDKs and Tools Reference Guide.  A source that is set
 * up and fails is an error; only one that is not set up leads to the next.
 * So nobody gets other rights than he was to have because something broke.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "aws_config.h"
#include "aws_errors.h"
#include "aws_sources.h"

#define TRIES		3
#define PAUSE_MS	100
#define MAX_PROFILES 5			/* that refer to one another */

const char *
aws_variable(const char *name)
{
	const char *value = getenv(name);

	return value != NULL && value[0] != '\0' ? value : NULL;
}

int64_t
aws_read_time(const char *text)
{
	struct tm	tm = {0};
	const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);

	if (end != NULL && *end == '.')
		end += 1 + strspn(end + 1, "0123456789");
	if (end == NULL || (strcmp(end, "Z") != 0 && strcmp(end, "+00:00") != 0))
		return 0;
	return (int64_t) timegm(&tm);
}

static bool
pause_before(int tries, int64_t until)
{
	int64_t		ms = (int64_t) PAUSE_MS * tries;
	struct timespec pause = {0, ms * 1000000};

	if (aws_now() + ms >= until)
		return false;
	(void) nanosleep(&pause, NULL);
	return true;
}

/* What an answer that is no success means for the search of credentials. */
static KsStatus
judge(const AwsAnswer *answer, const AwsRequest *request, const char *who, bool *again, KsFailure *why)
{
	AwsReply	reply = {0};
	KsFailure	inner = {0};
	AwsVerdict	verdict;

	aws_read_error(answer, &reply);
	aws_hide_echo(&reply, request->secret);
	verdict = aws_judge(answer, &reply, (int64_t) time(NULL), &inner);
	*again = verdict.again;
	/* whoever else answers so, it is nobody who gives out credentials */
	if (reply.error[0] == '\0' && (verdict.status == KS_NETWORK || !verdict.again))
		return ks_fail(why, KS_CREDENTIALS, "%s answered with HTTP status %d; see whether it is "
					   "the right one, and has a role for this machine", who, answer->status);
	switch (verdict.status)
	{
		case KS_CLOCK_SKEW:
		case KS_ACCESS_DENIED:
		case KS_THROTTLED:
		case KS_CREDENTIALS:
			break;
		default:
			verdict.status = KS_CREDENTIALS;
	}
	return ks_fail(why, verdict.status, "%s: %.360s", who, inner.reason);
}

KsStatus
aws_fetch(AwsHttp *http, const AwsRequest *request, const char *who, AwsAnswer *answer,
		  KsFailure *why)
{
	KsStatus	status;
	bool		again;

	for (int tries = 1;; tries++)
	{
		status = aws_http_call(http, request, answer, why);
		again = answer->again;
		if (status == KS_OK)
		{
			if (answer->status == 200)
				return KS_OK;
			status = judge(answer, request, who, &again, why);
			aws_text_free(&answer->body);
		}
		if (!again || tries >= TRIES || !pause_before(tries, request->until))
			return status;
	}
}

/* KS_OK without credentials: this source has none, ask the next. */
static KsStatus
from_environment(AwsCredentials **out, KsFailure *why)
{
	const char *access_key = aws_variable("AWS_ACCESS_KEY_ID");
	const char *secret = aws_variable("AWS_SECRET_ACCESS_KEY");

	if (access_key == NULL && secret == NULL)
		return KS_OK;
	if (access_key == NULL || secret == NULL)
		return ks_fail(why, KS_CREDENTIALS, "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
					   "only one is set");
	*out = aws_credentials_make("environment", access_key, secret,
								aws_variable("AWS_SESSION_TOKEN"), 0, why);
	return *out != NULL ? KS_OK : KS_CREDENTIALS;
}

static KsStatus from_profile(const AwsSources *from, const char *name, bool required, int depth,
							 int64_t until, AwsCredentials **out, KsFailure *why);

static KsStatus
from_keys(const char *name, const AwsProfile *profile, AwsCredentials **out, KsFailure *why)
{
	const char *access_key = profile->field[AWS_ACCESS_KEY];
	const char *secret = profile->field[AWS_SECRET];

	if (access_key == NULL || secret == NULL)
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\" has only one of aws_access_key_id and "
					   "aws_secret_access_key", name);
	*out = aws_credentials_make("shared file", access_key, secret, profile->field[AWS_TOKEN], 0, why);
	return *out != NULL ? KS_OK : KS_CREDENTIALS;
}

/* The credentials that a role is assumed with. */
static KsStatus
role_source(const AwsSources *from, const char *name, const AwsProfile *profile, int depth,
			int64_t until, AwsCredentials **out, KsFailure *why)
{
	const char *source = profile->field[AWS_SOURCE_PROFILE];
	const char *kind = profile->field[AWS_CREDENTIAL_SOURCE];
	KsStatus	status;

	if ((source == NULL) == (kind == NULL))
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\" has a role_arn, and needs one of "
					   "source_profile and credential_source", name);
	if (source != NULL && strcmp(source, name) == 0)
		return from_keys(name, profile, out, why);
	if (source != NULL)
		return from_profile(from, source, true, depth + 1, until, out, why);
	if (strcmp(kind, "Environment") == 0)
		status = from_environment(out, why);
	else if (strcmp(kind, "EcsContainer") == 0)
		status = aws_from_container(from, until, out, why);
	else if (strcmp(kind, "Ec2InstanceMetadata") == 0)
		status = aws_from_instance(from, until, out, why);
	else
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\" has an unknown credential_source", name);
	if (status == KS_OK && *out == NULL)
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\": its credential_source has none", name);
	return status;
}

static KsStatus
from_role(const AwsSources *from, const char *name, const AwsProfile *profile, int depth,
		  int64_t until, AwsCredentials **out, KsFailure *why)
{
	const AwsAssumption role = {
		profile->field[AWS_ROLE_ARN], profile->field[AWS_SESSION_NAME],
		profile->field[AWS_EXTERNAL_ID], profile->field[AWS_DURATION],
	};
	AwsCredentials *by = NULL;
	KsStatus	status;

	if (profile->field[AWS_MFA] != NULL)
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\" asks for a person's second factor", name);
	if (profile->field[AWS_WEB_IDENTITY_FILE] != NULL)
		return aws_assume_with_token(from, &role, profile->field[AWS_WEB_IDENTITY_FILE], until, out, why);
	status = role_source(from, name, profile, depth, until, &by, why);
	if (status == KS_OK)
		status = aws_assume_role(from, &role, by, until, out, why);
	aws_credentials_free(by);
	return status;
}

/* With what a profile says, whatever kind it is. */
static KsStatus
use_profile(const AwsSources *from, const char *name, const AwsProfile *profile, bool required,
			int depth, int64_t until, AwsCredentials **out, KsFailure *why)
{
	if (profile->field[AWS_ROLE_ARN] != NULL)
		return from_role(from, name, profile, depth, until, out, why);
	if (profile->field[AWS_ACCESS_KEY] != NULL || profile->field[AWS_SECRET] != NULL)
		return from_keys(name, profile, out, why);
	if (profile->field[AWS_PROCESS] != NULL || profile->field[AWS_SSO_SESSION] != NULL ||
		profile->field[AWS_SSO_URL] != NULL || profile->field[AWS_LOGIN_SESSION] != NULL)
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\" gets its credentials by a program or a "
					   "person's sign-in, which is not supported", name);
	if (required)
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\" has no credentials", name);
	return KS_OK;
}

static KsStatus
from_profile(const AwsSources *from, const char *name, bool required, int depth, int64_t until,
			 AwsCredentials **out, KsFailure *why)
{
	AwsProfile	profile;
	KsStatus	status;

	if (depth >= MAX_PROFILES)
		return ks_fail(why, KS_CREDENTIALS, "profile \"%s\" is at the end of too many, or of a circle",
					   name);
	status = aws_profile_read(name, &profile, why);
	if (status != KS_OK)
		return status;
	if (!profile.found && required)
		status = ks_fail(why, KS_CREDENTIALS, "there is no profile \"%s\"", name);
	else
		status = use_profile(from, name, &profile, required, depth, until, out, why);
	aws_profile_free(&profile);
	return status;
}

/* AWS_WEB_IDENTITY_TOKEN_FILE, as Kubernetes sets it. */
static KsStatus
from_web_identity(const AwsSources *from, int64_t until, AwsCredentials **out, KsFailure *why)
{
	const char *file = aws_variable("AWS_WEB_IDENTITY_TOKEN_FILE");
	const AwsAssumption role = {
		.arn = aws_variable("AWS_ROLE_ARN"), .session = aws_variable("AWS_ROLE_SESSION_NAME"),
	};

	if (file == NULL)
		return KS_OK;
	if (role.arn == NULL)
		return ks_fail(why, KS_CREDENTIALS, "AWS_WEB_IDENTITY_TOKEN_FILE is set, AWS_ROLE_ARN is not");
	return aws_assume_with_token(from, &role, file, until, out, why);
}

KsStatus
aws_find_credentials(const AwsSources *from, int64_t until, AwsCredentials **out, KsFailure *why)
{
	const char *profile = aws_variable("AWS_PROFILE");
	KsStatus	status;

	*out = NULL;
	if (from->profile[0] != '\0')
		return from_profile(from, from->profile, true, 0, until, out, why);
	status = from_environment(out, why);
	if (status == KS_OK && *out == NULL)
		status = from_profile(from, profile != NULL ? profile : "default", profile != NULL, 0,
							  until, out, why);
	if (status == KS_OK && *out == NULL)
		status = from_web_identity(from, until, out, why);
	if (status == KS_OK && *out == NULL)
		status = aws_from_container(from, until, out, why);
	if (status == KS_OK && *out == NULL)
	{
		KsFailure	inner = {0};

		status = aws_from_instance(from, until, out, &inner);
		if (status != KS_OK)
			status = ks_fail(why, status == KS_TIMEOUT || status == KS_NETWORK ? KS_CREDENTIALS : status,
							 "no AWS credentials in environment and files; %.340s", inner.reason);
	}
	if (status == KS_OK && *out == NULL)
		return ks_fail(why, KS_CREDENTIALS, "no AWS credentials were found");
	return status;
}

uint64_t
aws_files_stamp(const AwsSources *from)
{
	return aws_config_stamp();
}
