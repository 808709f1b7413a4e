/*
 * aws_metadata.c
 *		Credentials from the machine: a container's endpoint, an instance's.
 *
 * Both answer in JSON, by plain HTTP, on addresses that do not leave the
 * machine.  So the address is checked: only loopback, link-local and the
 * containers' own ones are talked to without TLS, and by number, so that no
 * name server has a say.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "aws_config.h"
#include "aws_sources.h"

#define CONTAINER_HOST	"http://169.254.170.2"
#define INSTANCE_V4		"http://169.254.169.254"
#define INSTANCE_V6		"http://[fd00:ec2::254]"
#define TOKEN_SECONDS	"300"
#define CONNECT_MS		1000
#define INSTANCE_MS		4000
#define STALE_SECONDS	300

/* Does a packet to this address stay on the machine? */
static bool
is_local(const char *host)
{
	static const char *const known[] = {"fd00:ec2::254", "fd00:ec2::23"};
	struct in_addr v4;
	struct in6_addr v6;

	if (strcmp(host, "localhost") == 0)
		return false;			/* a name */
	if (aws_is_loopback(host))
		return true;
	if (inet_pton(AF_INET, host, &v4) == 1)
		return ntohl(v4.s_addr) >> 16 == (169U << 8 | 254U);
	for (int i = 0; i < 2; i++)
	{
		if (strcmp(host, known[i]) == 0)
			return true;
	}
	return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LINKLOCAL(&v6);
}

static const char *
text_of(const json_t *object, const char *name)
{
	const char *value = json_string_value(json_object_get(object, name));

	return value != NULL ? value : "";
}

/*
 * Both endpoints' answer.  If "stale" is set, ones that have expired are taken
 * for a while: the instance's service gives them out when it has no newer
 * ones, and Amazon asks to try them.
 */
static KsStatus
read_credentials(const AwsAnswer *answer, const char *source, bool stale,
				 AwsCredentials **out, KsFailure *why)
{
	json_t	   *body = json_loadb(answer->body.data, answer->body.len, JSON_REJECT_DUPLICATES, NULL);
	const char *code = text_of(body, "Code");
	int64_t		expires = aws_read_time(text_of(body, "Expiration"));
	int64_t		now = (int64_t) time(NULL);

	if (body == NULL || (code[0] != '\0' && strcmp(code, "Success") != 0) || expires == 0)
		(void) ks_fail(why, KS_CREDENTIALS, "the %s's endpoint answered without credentials", source);
	else
	{
		if (stale && expires < now + STALE_SECONDS / 2)
			expires = now + STALE_SECONDS;
		*out = aws_credentials_make(source, text_of(body, "AccessKeyId"),
									text_of(body, "SecretAccessKey"), text_of(body, "Token"),
									expires, why);
	}
	json_decref(body);
	return *out != NULL ? KS_OK : KS_CREDENTIALS;
}

/* The token for the container's endpoint, if there is one. */
static KsStatus
container_token(AwsText *token, KsFailure *why)
{
	const char *file = aws_variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
	const char *text = aws_variable("AWS_CONTAINER_AUTHORIZATION_TOKEN");
	KsStatus	status = KS_OK;

	if (file != NULL)
		status = aws_file_read(file, AWS_FILE_TOKEN, NULL, token, why);
	else if (text != NULL)
		aws_text_add(token, text, strlen(text));
	if (status != KS_OK)
		return status;
	while (token->len > 0 && strchr("\r\n", token->data[token->len - 1]) != NULL)
		token->data[--token->len] = '\0';
	for (size_t i = 0; i < token->len; i++)
	{
		if (token->data[i] < ' ' || token->data[i] > '~')
			token->bad = true;
	}
	if (token->bad)
		return ks_fail(why, KS_CREDENTIALS, "the token for the container's endpoint is malformed");
	return KS_OK;
}

/* Where the container's endpoint is; KS_CREDENTIALS if it must not be there. */
static KsStatus
container_url(char *url, size_t size, bool *plain, KsFailure *why)
{
	const char *relative = aws_variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
	const char *full = aws_variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
	AwsAddress	at;
	int			len;

	if (relative != NULL)
		len = snprintf(url, size, CONTAINER_HOST "%s", relative);
	else
		len = snprintf(url, size, "%s", full);
	if ((relative != NULL && relative[0] != '/') || len >= (int) size || !aws_take_apart(url, &at))
		return ks_fail(why, KS_CREDENTIALS, "the URI of the container's endpoint is malformed");
	*plain = !at.https;
	if (*plain && !is_local(at.host))
		return ks_fail(why, KS_CREDENTIALS, "the container's endpoint is neither https nor on this machine");
	return KS_OK;
}

KsStatus
aws_from_container(const AwsSources *from, int64_t until, AwsCredentials **out, KsFailure *why)
{
	char		url[1024];
	AwsText		token = {0};
	AwsHeader	headers[2] = {{"Accept", "application/json"}};
	AwsRequest	request = {.method = "GET", .url = url, .headers = headers, .n_headers = 1, .until = until};
	AwsAnswer	answer = {0};
	KsFailure	inner = {0};
	KsStatus	status;

	if (aws_variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") == NULL &&
		aws_variable("AWS_CONTAINER_CREDENTIALS_FULL_URI") == NULL)
		return KS_OK;
	status = container_url(url, sizeof(url), &request.plain, why);
	if (status == KS_OK)
		status = container_token(&token, why);
	if (status == KS_OK)
	{
		if (token.len > 0)
			headers[request.n_headers++] = (AwsHeader) {"Authorization", token.data};
		request.secret = token.data;
		status = aws_fetch(from->http, &request, "the container's endpoint", &answer, &inner);
		/* it is on this machine: no network of the keystore's */
		if (status == KS_NETWORK || status == KS_TIMEOUT)
			status = ks_fail(why, KS_CREDENTIALS, "the container's endpoint: %.340s", inner.reason);
		else
			*why = inner;
	}
	if (status == KS_OK)
		status = read_credentials(&answer, "container", false, out, why);
	aws_text_free(&token);
	aws_text_free(&answer.body);
	return status;
}

static KsStatus
instance_url(AwsText *url, KsFailure *why)
{
	const char *given = aws_variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
	const char *mode = aws_variable("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
	AwsAddress	at;

	if (given == NULL)
		given = mode != NULL && strcasecmp(mode, "ipv6") == 0 ? INSTANCE_V6 : INSTANCE_V4;
	if (!aws_take_apart(given, &at) || !at.root || at.https || !is_local(at.host))
		return ks_fail(why, KS_CREDENTIALS, "AWS_EC2_METADATA_SERVICE_ENDPOINT is no http URL of an "
					   "address on this machine");
	aws_text_addf(url, "http://%s", at.authority);
	return KS_OK;
}

/* GET a page of the instance's service, with its token. */
static KsStatus
get_page(const AwsSources *from, const AwsText *base, const char *page, const AwsText *token,
		 int64_t until, AwsAnswer *answer, KsFailure *why)
{
	const AwsHeader headers[] = {{"X-aws-ec2-metadata-token", token->data}};
	AwsText		url = {0};
	AwsRequest	request = {
		.method = "GET", .plain = true, .headers = headers, .n_headers = 1,
		.until = until, .connect_ms = CONNECT_MS, .secret = token->data,
	};
	KsStatus	status;

	aws_text_addf(&url, "%s/latest/meta-data/iam/security-credentials/%s", base->data, page);
	request.url = url.data;
	status = url.bad ? ks_fail(why, KS_CREDENTIALS, "no memory for a URL") :
		aws_fetch(from->http, &request, "the instance's metadata service", answer, why);
	aws_text_free(&url);
	return status;
}

/* The role's name becomes part of a URL. */
static bool
is_role(const AwsText *name)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+=,.@_-";

	return name->len > 0 && name->len <= 128 && strspn(name->data, letters) == name->len &&
		name->data[0] != '.';
}

/* A token first, by PUT: that is what makes it version 2. */
static KsStatus
instance_token(const AwsSources *from, const AwsText *base, int64_t until,
			   AwsAnswer *answer, KsFailure *why)
{
	static const AwsHeader headers[] = {{"X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS}};
	AwsText		url = {0};
	AwsRequest	request = {
		.method = "PUT", .plain = true, .headers = headers, .n_headers = 1,
		.until = until, .connect_ms = CONNECT_MS,
	};
	KsStatus	status;

	aws_text_addf(&url, "%s/latest/api/token", base->data);
	request.url = url.data;
	status = url.bad ? ks_fail(why, KS_CREDENTIALS, "no memory for a URL") :
		aws_fetch(from->http, &request, "the instance's metadata service", answer, why);
	aws_text_free(&url);
	if (status != KS_OK)
		return status;
	for (size_t i = 0; i < answer->body.len; i++)
	{
		if (answer->body.data[i] <= ' ' || answer->body.data[i] > '~')
			answer->body.bad = true;
	}
	if (answer->body.len == 0 || answer->body.len > 4096 || answer->body.bad)
		return ks_fail(why, KS_CREDENTIALS, "the instance's metadata service gave no token");
	return KS_OK;
}

KsStatus
aws_from_instance(const AwsSources *from, int64_t until, AwsCredentials **out, KsFailure *why)
{
	const char *disabled = aws_variable("AWS_EC2_METADATA_DISABLED");
	AwsText		base = {0};
	AwsAnswer	token = {0};
	AwsAnswer	role = {0};
	AwsAnswer	answer = {0};
	KsStatus	status;

	if (disabled != NULL && strcasecmp(disabled, "true") == 0)
		return KS_OK;
	if (until > aws_now() + INSTANCE_MS)
		until = aws_now() + INSTANCE_MS;
	status = instance_url(&base, why);
	if (status == KS_OK)
		status = instance_token(from, &base, until, &token, why);
	if (status == KS_OK)
		status = get_page(from, &base, "", &token.body, until, &role, why);
	if (status == KS_OK)
	{
		/* one name; a second line would be for more roles, which there are not */
		role.body.len = strcspn(role.body.len > 0 ? role.body.data : "", "\r\n");
		if (role.body.len > 0)
			role.body.data[role.body.len] = '\0';
		if (!is_role(&role.body))
			status = ks_fail(why, KS_CREDENTIALS, "the instance has no role");
	}
	if (status == KS_OK)
		status = get_page(from, &base, role.body.data, &token.body, until, &answer, why);
	if (status == KS_OK)
		status = read_credentials(&answer, "instance", true, out, why);
	aws_text_free(&base);
	aws_text_free(&token.body);
	aws_text_free(&role.body);
	aws_text_free(&answer.body);
	return status;
}
