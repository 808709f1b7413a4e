/*
 * aws_sts.c
 *		Credentials of a role, from the region's token service.
 *
 * AssumeRole is signed with other credentials; AssumeRoleWithWebIdentity
 * proves itself with a token from a file, read anew each time, because
 * whoever issues it writes new ones.  The query protocol: a form goes, XML
 * comes back.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "aws_config.h"
#include "aws_sources.h"
#include "aws_xml.h"

#define VERSION			"2011-06-15"
#define SESSION			"nomp_crypt"
#define FORM			"application/x-www-form-urlencoded; charset=utf-8"
#define MAX_WEB_TOKEN	20000

static void
add_field(AwsText *form, const char *name, const char *value)
{
	if (value == NULL)
		return;
	aws_text_addf(form, "&%s=", name);
	aws_text_add_encoded(form, value);
}

static void
begin_form(AwsText *form, const char *action, const AwsAssumption *role)
{
	aws_text_addf(form, "Action=%s&Version=" VERSION, action);
	add_field(form, "RoleArn", role->arn);
	add_field(form, "RoleSessionName", role->session != NULL ? role->session : SESSION);
	add_field(form, "DurationSeconds", role->duration);
}

/* The credentials in a successful answer. */
static AwsCredentials *
read_credentials(const AwsAnswer *answer, const char *source, KsFailure *why)
{
	AwsElement	parts[] = {
		{"Credentials", "AccessKeyId"},
		{"Credentials", "SecretAccessKey"},
		{"Credentials", "SessionToken"},
		{"Credentials", "Expiration"},
	};
	const int	n = sizeof(parts) / sizeof(parts[0]);
	AwsCredentials *made = NULL;
	int64_t		expires;
	bool		complete = aws_xml_read(answer->body.data, answer->body.len, parts, n);

	for (int i = 0; i < n; i++)
		complete = complete && parts[i].text.len > 0;
	expires = complete ? aws_read_time(parts[3].text.data) : 0;
	if (expires == 0)
		(void) ks_fail(why, KS_CREDENTIALS, "STS answered without credentials");
	else
		made = aws_credentials_make(source, parts[0].text.data, parts[1].text.data,
									parts[2].text.data, expires, why);
	aws_xml_free(parts, n);
	return made;
}

static KsStatus
send_form(const AwsSources *from, const AwsText *form, AwsHeader *headers, int n,
		  const char *secret, int64_t until, const char *source, AwsCredentials **out, KsFailure *why)
{
	AwsRequest	request = {
		.method = "POST", .url = from->sts.url, .plain = from->sts.plain,
		.headers = headers, .n_headers = n,
		.body = form->data, .body_len = form->len, .until = until, .secret = secret,
	};
	AwsAnswer	answer = {0};
	KsStatus	status = aws_fetch(from->http, &request, "STS", &answer, why);

	if (status == KS_OK)
	{
		*out = read_credentials(&answer, source, why);
		status = *out != NULL ? KS_OK : KS_CREDENTIALS;
	}
	aws_text_free(&answer.body);
	return status;
}

KsStatus
aws_assume_role(const AwsSources *from, const AwsAssumption *role, const AwsCredentials *by,
				int64_t until, AwsCredentials **out, KsFailure *why)
{
	const AwsSigner signer = {by->access_key, by->secret, from->sts.region, "sts"};
	AwsText		form = {0};
	AwsText		authorization = {0};
	char		date[32];
	struct tm	tm;
	time_t		now = time(NULL);
	AwsHeader	headers[5] = {
		{"Host", from->sts.authority},
		{"Content-Type", FORM},
		{"X-Amz-Date", date},
	};
	int			n = 3;
	AwsSignable signable;
	KsStatus	status;

	begin_form(&form, "AssumeRole", role);
	add_field(&form, "ExternalId", role->external_id);
	(void) gmtime_r(&now, &tm);
	(void) strftime(date, sizeof(date), "%Y%m%dT%H%M%SZ", &tm);
	if (by->token != NULL)
		headers[n++] = (AwsHeader) {"X-Amz-Security-Token", by->token};
	signable = (AwsSignable) {"POST", "/", "", headers, n, form.data, form.len};
	if (form.bad || !aws_sign(&signable, &signer, &authorization))
		status = ks_fail(why, KS_CREDENTIALS, "a request to STS could not be signed");
	else
	{
		headers[n++] = (AwsHeader) {"Authorization", authorization.data};
		status = send_form(from, &form, headers, n, by->token != NULL ? by->token : by->secret,
						   until, "assumed role", out, why);
	}
	aws_text_free(&authorization);
	aws_text_free(&form);
	return status;
}

/* A token without the end of its line. */
static void
cut_line_end(AwsText *token)
{
	while (token->len > 0 && strchr("\r\n", token->data[token->len - 1]) != NULL)
		token->data[--token->len] = '\0';
}

KsStatus
aws_assume_with_token(const AwsSources *from, const AwsAssumption *role, const char *token_file,
					  int64_t until, AwsCredentials **out, KsFailure *why)
{
	AwsText		token = {0};
	AwsText		form = {0};
	AwsHeader	headers[] = {{"Content-Type", FORM}};
	KsStatus	status = aws_file_read(token_file, AWS_FILE_TOKEN, NULL, &token, why);

	if (status != KS_OK)
		return status;
	cut_line_end(&token);
	begin_form(&form, "AssumeRoleWithWebIdentity", role);
	add_field(&form, "WebIdentityToken", token.data);
	if (token.len == 0 || token.len > MAX_WEB_TOKEN || form.bad)
		status = ks_fail(why, KS_CREDENTIALS, "%.200s holds no token", token_file);
	else
		status = send_form(from, &form, headers, 1, token.data, until, "web identity", out, why);
	aws_text_free(&token);
	aws_text_free(&form);
	return status;
}
