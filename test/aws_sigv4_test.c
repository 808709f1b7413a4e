/*
 * aws_sigv4_test.c
 *		Signatures are those of AWS's own test suite.
 *
 * Values: "Signature Version 4 Test Suite" of the AWS General Reference (the
 * files named as here; the suite is in the tests of many SDKs).  Left out are
 * those that make a path or a query canonical: ours are constants.
 *
 * With the argument --sign, signs what it reads, for the comparison with
 * botocore in test/aws_signatures.py: lines "name value" of what a request has,
 * an empty one, and the body.
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

/*
 * "method", "path", "query", "region", "service", "key", "secret", then
 * headers, each in a line with a blank after the name.
 */
static int
sign_input(void)
{
	static char input[65536];
	size_t		len = fread(input, 1, sizeof(input) - 1, stdin);
	char	   *end = strstr(input, "\n\n");
	const char *fixed[7] = {0};
	AwsHeader	headers[AWS_MAX_HEADERS];
	AwsSignable request = {.headers = headers};
	AwsText		canonical = {0};
	AwsText		authorization = {0};
	int			n = 0;

	if (end == NULL)
		return 2;
	*end = '\0';
	request.body = end + 2;
	request.body_len = len - (size_t) (request.body - input);
	for (char *line = strtok(input, "\n"); line != NULL; line = strtok(NULL, "\n"), n++)
	{
		char	   *value = strchr(line, ' ');

		if (value == NULL || n >= 7 + AWS_MAX_HEADERS)
			return 2;
		*value++ = '\0';
		if (n < 7)
			fixed[n] = value;
		else
			headers[request.n_headers++] = (AwsHeader) {line, value};
	}
	if (n < 7)
		return 2;
	request.method = fixed[0];
	request.path = fixed[1];
	request.query = fixed[2];
	if (!aws_canonical_request(&request, &canonical) ||
		!aws_sign(&request, &(AwsSigner) {fixed[5], fixed[6], fixed[3], fixed[4]},
				  &authorization))
		return 1;
	printf("%s\n%s\n", authorization.data, canonical.data);
	aws_text_free(&canonical);
	aws_text_free(&authorization);
	return 0;
}

int
main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--sign") == 0)
		return sign_input();
	test_vectors();
	test_canonical();
	test_refusals();
	return tap_done();
}
