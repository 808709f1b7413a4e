/*
 * aws_sigv4_test.c
 *		Signatures are those of AWS's own test suite.
 *
 * Values: "Signature Version 4 Test Suite" of the AWS General Reference (the
 * files named as here; the suite is in the tests of many SDKs).  Left out are
 * those that make a path or a query canonical: ours are constants.
 *
 * And those of botocore, for every kind of request that the helper makes
 * (test/aws_signatures.py).
 */
#include "aws_client.h"

#define HOST                            \
	{                                   \
		"Host", "example.amazonaws.com" \
	}
#define DATE                             \
	{                                    \
		"X-Amz-Date", "20150830T123600Z" \
	}
#define TOKEN	"AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWL" \
	"WsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeeh" \
	"M4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE" \
	"8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8" \
	"fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="

typedef struct Vector
{
	const char *name;
	const char *method;
	const char *path;
	const char *query;
	AwsHeader	headers[6];
	const char *body;
	const char *signed_headers;
	const char *signature;
} Vector;

static const Vector vectors[] = {
	{"get-vanilla", "GET", "/", "", {HOST, DATE}, "", "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"get-vanilla-query-order-key-case", "GET", "/", "Param1=value1&Param2=value2", {HOST, DATE}, "", "host;x-amz-date", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
	{"get-vanilla-query-unreserved", "GET", "/", "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz="
		"-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
	 {HOST, DATE},
	 "",
	 "host;x-amz-date",
	"9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"},
	{"get-unreserved", "GET", "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "", {HOST, DATE}, "", "host;x-amz-date", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
	{"get-utf8", "GET", "/%E1%88%B4", "", {HOST, DATE}, "", "host;x-amz-date", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
	{"get-header-key-duplicate", "GET", "/", "", {HOST, {"My-Header1", "value2"}, {"My-Header1", "value2"}, {"My-Header1", "value1"}, DATE}, "", "host;my-header1;x-amz-date", "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
	{"get-header-value-order", "GET", "/", "", {HOST, {"My-Header1", "value4"}, {"My-Header1", "value1"}, {"My-Header1", "value3"}, {"My-Header1", "value2"}, DATE}, "", "host;my-header1;x-amz-date", "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
	{"get-header-value-trim", "GET", "/", "", {HOST, {"My-Header1", " value1"}, {"My-Header2", " \"a   b   c\""}, DATE}, "", "host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
	{"post-vanilla", "POST", "/", "", {HOST, DATE}, "", "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	{"post-header-key-sort", "POST", "/", "", {{"My-Header1", "value1"}, DATE, HOST}, "", "host;my-header1;x-amz-date", "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
	{"post-sts-header-before", "POST", "/", "", {HOST, DATE, {"X-Amz-Security-Token", TOKEN}}, "", "host;x-amz-date;x-amz-security-token", "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"},
	{"post-x-www-form-urlencoded", "POST", "/", "", {{"Content-Type", "application/x-www-form-urlencoded"}, HOST, DATE}, "Param1=value1", "content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
};

static const AwsSigner suite = {ACCESS_KEY, SECRET, "us-east-1", "service"};

static AwsSignable
signable(const Vector *v)
{
	AwsSignable request = {v->method, v->path, v->query, v->headers, 0, v->body, strlen(v->body)};

	while (request.n_headers < 6 && v->headers[request.n_headers].name != NULL)
		request.n_headers++;
	return request;
}

static void
test_vectors(void)
{
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
	{
		AwsSignable request = signable(&vectors[i]);
		AwsText		got = {0};
		AwsText		expected = {0};

		aws_text_addf(&expected, "AWS4-HMAC-SHA256 Credential=" ACCESS_KEY
					  "/20150830/us-east-1/service/aws4_request, SignedHeaders=%s, Signature=%s",
					  vectors[i].signed_headers, vectors[i].signature);
		tap_ok(aws_sign(&request, &suite, &got) && strcmp(got.data, expected.data) == 0,
			   "%s", vectors[i].name);
		aws_text_free(&got);
		aws_text_free(&expected);
	}
}

/* The steps of get-vanilla, as published. */
static void
test_canonical(void)
{
	AwsSignable request = signable(&vectors[0]);
	AwsText		got = {0};

	tap_ok(aws_canonical_request(&request, &got) &&
		   strcmp(got.data, "GET\n/\n\nhost:example.amazonaws.com\n"
				  "x-amz-date:20150830T123600Z\n\nhost;x-amz-date\n"
				  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == 0,
		   "get-vanilla's canonical request");
	aws_text_free(&got);
}

static void
test_refusals(void)
{
	AwsHeader	no_date[] = {HOST};
	AwsHeader	no_host[] = {DATE};
	AwsHeader	bad_date[] = {HOST, {"X-Amz-Date", "20150830"}};
	AwsHeader	many[AWS_MAX_HEADERS + 1];
	AwsSignable request = {"GET", "/", "", no_date, 1, "", 0};
	AwsText		got = {0};

	tap_ok(!aws_sign(&request, &suite, &got), "a request without a date is not signed");
	request.headers = no_host;
	tap_ok(!aws_sign(&request, &suite, &got), "nor one without a host");
	request.headers = bad_date;
	request.n_headers = 2;
	tap_ok(!aws_sign(&request, &suite, &got), "nor one with half a date");
	for (int i = 0; i <= AWS_MAX_HEADERS; i++)
		many[i] = i == 0 ? (AwsHeader) HOST : (AwsHeader) DATE;
	request.headers = many;
	request.n_headers = AWS_MAX_HEADERS + 1;
	tap_ok(!aws_sign(&request, &suite, &got), "nor one with too many headers");
	tap_ok(got.len == 0, "and nothing was written");
	aws_text_free(&got);
}

/* The headers that aws_call.c and aws_sts.c sign. */
static bool
are_ours(const char *service, const char *names)
{
	static const char *const ours[][2] = {
		{"kms", "content-type;host;x-amz-date;x-amz-target"},
		{"kms", "content-type;host;x-amz-date;x-amz-security-token;x-amz-target"},
		{"sts", "content-type;host;x-amz-date"},
		{"sts", "content-type;host;x-amz-date;x-amz-security-token"},
	};

	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
	{
		const char *found = strstr(names, ours[i][1]);

		if (strcmp(service, ours[i][0]) == 0 && found != NULL && found[strlen(ours[i][1])] == '\n')
			return true;
	}
	return false;
}

/* One request that botocore has signed; the headers come in another order. */
static void
compare(json_t *request)
{
	const char *name = json_string_value(json_object_get(request, "name"));
	const char *service = json_string_value(json_object_get(request, "service"));
	const char *body = json_string_value(json_object_get(request, "body"));
	const char *canonical = json_string_value(json_object_get(request, "canonical"));
	const char *authorization = json_string_value(json_object_get(request, "authorization"));
	json_t	   *headers = json_object_get(request, "headers");
	AwsHeader	list[AWS_MAX_HEADERS];
	AwsSignable signable = {"POST", "/", "", list, (int) json_array_size(headers), body, 0};
	const AwsSigner signer = {ACCESS_KEY, SECRET, "eu-north-1", service};
	AwsText		ours = {0};
	AwsText		signature = {0};

	if (body == NULL || canonical == NULL || authorization == NULL || signable.n_headers > AWS_MAX_HEADERS)
		tap_bail("test/aws_signatures.py says something odd");
	for (int i = 0; i < signable.n_headers; i++)
	{
		json_t	   *header = json_array_get(headers, i);

		list[i].name = json_string_value(json_array_get(header, 0));
		list[i].value = json_string_value(json_array_get(header, 1));
	}
	signable.body_len = strlen(body);
	tap_ok(aws_canonical_request(&signable, &ours) && strcmp(ours.data, canonical) == 0 &&
		   aws_sign(&signable, &signer, &signature) && strcmp(signature.data, authorization) == 0 &&
		   are_ours(service, canonical), "botocore signs as we do: %s", name);
	aws_text_free(&ours);
	aws_text_free(&signature);
}

static void
test_botocore(void)
{
	static char line[65536];
	FILE	   *requests = popen("/usr/bin/python3 test/aws_signatures.py", "r");
	int			n = 0;

	if (requests == NULL)
		tap_bail("no botocore");
	for (; fgets(line, sizeof(line), requests) != NULL; n++)
	{
		json_t	   *request = json_loads(line, 0, NULL);

		compare(request);
		json_decref(request);
	}
	tap_ok(pclose(requests) == 0 && n == 148, "botocore signed %d requests", n);
}

int
main(void)
{
	if (!aws_memory_init())
		tap_bail("no memory of our own");
	test_vectors();
	test_canonical();
	test_refusals();
	test_botocore();
	return tap_done();
}
