/*
 * aws_sources.c
 *		Where credentials are looked for, and in which order.
 */
#include <stdlib.h>
#include <string.h>

#include "aws_credentials.h"

/* A variable that is set and not empty, or NULL. */
static const char *
variable(const char *name)
{
	const char *value = getenv(name);

	return value != NULL && value[0] != '\0' ? value : NULL;
}

/* KS_OK without credentials: this source has none, ask the next. */
static KsStatus
from_environment(AwsCredentials **out, KsFailure *why)
{
	const char *access_key = variable("AWS_ACCESS_KEY_ID");
	const char *secret = variable("AWS_SECRET_ACCESS_KEY");

	if (access_key == NULL && secret == NULL)
		return KS_OK;
	if (access_key == NULL || secret == NULL)
		return ks_fail(why, KS_CREDENTIALS, "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
					   "only one is set");
	*out = aws_credentials_make("environment", access_key, secret,
								variable("AWS_SESSION_TOKEN"), 0, why);
	return *out != NULL ? KS_OK : KS_CREDENTIALS;
}

KsStatus
aws_find_credentials(const AwsSources *from, int64_t until, AwsCredentials **out, KsFailure *why)
{
	KsStatus	status = from_environment(out, why);

	if (status != KS_OK || *out != NULL)
		return status;
	return ks_fail(why, KS_CREDENTIALS, "no AWS credentials were found");
}

uint64_t
aws_files_stamp(const AwsSources *from)
{
	return 0;
}
