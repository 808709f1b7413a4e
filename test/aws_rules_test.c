/*
 * aws_rules_test.c
 *		Which hosts may be talked to, what a shared file says, what an error
 *		means: the parts of the AWS client that need no network.
 */
#include "../keystore/aws_config.h"
#include "../keystore/aws_errors.h"
#include "../keystore/aws_sources.h"
#include "../keystore/aws_xml.h"
#include "aws_client.h"

typedef struct Place
{
	const char *service;
	const char *region;
	const char *given;
	const char *flags;			/* f: fips, t: test, c: a ca-file */
	KsStatus	status;
	const char *expected;		/* the URL, or words of the reason */
} Place;

static const Place places[] = {
	{"kms", "eu-north-1", "", "", KS_OK, "https://kms.eu-north-1.amazonaws.com/"},
	{"kms", "eu-north-1", "", "f", KS_OK, "https://kms-fips.eu-north-1.amazonaws.com/"},
	{"sts", "eu-central-2", "", "", KS_OK, "https://sts.eu-central-2.amazonaws.com/"},
	{"kms", "eusc-de-east-1", "", "", KS_OK, "https://kms.eusc-de-east-1.amazonaws.eu/"},
	{"kms", "us-east-1", "", "", KS_OK, "https://kms.us-east-1.amazonaws.com/"},

	{"kms", "cn-north-1", "", "", KS_REGION, "partition aws-cn"},
	{"kms", "us-gov-west-1", "", "", KS_REGION, "partition aws-us-gov"},
	{"kms", "us-iso-east-1", "", "", KS_REGION, "partition aws-iso"},
	{"kms", "us-isob-east-1", "", "", KS_REGION, "partition aws-iso-b"},
	{"kms", "eu-isoe-west-1", "", "", KS_REGION, "partition aws-iso-e"},
	{"kms", "", "", "", KS_REGION, "not the name of one"},
	{"kms", "eu-north", "", "", KS_REGION, "not the name of one"},
	{"kms", "EU-NORTH-1", "", "", KS_REGION, "not the name of one"},
	{"kms", "eu-north-1.evil.com/", "", "", KS_REGION, "not the name of one"},
	{"kms", "eu--1", "", "", KS_REGION, "not the name of one"},
	{"kms", "1", "", "", KS_REGION, "not the name of one"},
	{"kms", "eu-north-123", "", "", KS_REGION, "not the name of one"},
	{"kms", "eu-north-1-2", "", "", KS_REGION, "not the name of one"},

	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com", "", KS_OK,
	"https://kms.eu-north-1.amazonaws.com/"},
	{"kms", "eu-north-1", "https://KMS.eu-north-1.amazonaws.com:443/", "", KS_OK,
	"https://kms.eu-north-1.amazonaws.com/"},
	{"kms", "eu-north-1", "https://kms-fips.eu-north-1.amazonaws.com", "f", KS_OK,
	"https://kms-fips.eu-north-1.amazonaws.com/"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.api.aws", "", KS_OK, "https://kms.eu-north-1.api.aws/"},
	{"kms", "eusc-de-east-1", "https://kms.eusc-de-east-1.api.amazonwebservices.eu", "", KS_OK,
	"https://kms.eusc-de-east-1.api.amazonwebservices.eu/"},
	{"kms", "eu-north-1", "https://vpce-0a1b-c2d3.kms.eu-north-1.vpce.amazonaws.com", "", KS_OK,
	"https://vpce-0a1b-c2d3.kms.eu-north-1.vpce.amazonaws.com/"},
	{"kms", "eu-north-1", "https://vpce-0a-b-eu-north-1a.kms.eu-north-1.vpce.amazonaws.com:8443", "", KS_OK,
	"https://vpce-0a-b-eu-north-1a.kms.eu-north-1.vpce.amazonaws.com:8443/"},
	{"kms", "eu-north-1", "https://vpce-0a.kms-fips.eu-north-1.vpce.amazonaws.com", "f", KS_OK,
	"https://vpce-0a.kms-fips.eu-north-1.vpce.amazonaws.com/"},
	{"sts", "eu-north-1", "https://vpce-0a.sts.eu-north-1.vpce.amazonaws.com", "", KS_OK,
	"https://vpce-0a.sts.eu-north-1.vpce.amazonaws.com/"},

	{"kms", "eu-north-1", "https://kms.us-east-1.amazonaws.com", "", KS_REGION,
	"kms.us-east-1.amazonaws.com is no kms endpoint of region eu-north-1"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com", "f", KS_REGION, "no FIPS kms endpoint"},
	{"kms", "eu-north-1", "https://vpce-0a.kms.us-east-1.vpce.amazonaws.com", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "https://vpce-0a.sts.eu-north-1.vpce.amazonaws.com", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "https://vpce-0a.x.kms.eu-north-1.vpce.amazonaws.com", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "https://x.kms.eu-north-1.vpce.amazonaws.com", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com.evil.com", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com.", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "https://evilkms.eu-north-1.amazonaws.com", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com@evil.com", "", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "https://a:b@kms.eu-north-1.amazonaws.com", "", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com/x", "", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com/?a", "", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com/#a", "", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "http://kms.eu-north-1.amazonaws.com", "", KS_BAD_URI, "must be https"},
	{"kms", "eu-north-1", "http://127.0.0.1:4566", "", KS_BAD_URI, "must be https"},
	{"kms", "eu-north-1", "https://127.0.0.1:4566", "", KS_REGION, "is no kms"},
	{"kms", "eu-north-1", "ftp://127.0.0.1", "t", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "file:///etc/passwd", "t", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "kms.eu-north-1.amazonaws.com", "", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "https://", "", KS_BAD_URI, "a host alone"},
	{"kms", "eu-north-1", "", "c", KS_BAD_URI, "needs test=yes"},

	{"kms", "eu-north-1", "", "t", KS_BAD_URI, "needs an endpoint on loopback"},
	{"kms", "eu-north-1", "http://127.0.0.1:4566/", "t", KS_OK, "http://127.0.0.1:4566/"},
	{"kms", "eu-north-1", "https://127.3.2.1:4566", "tc", KS_OK, "https://127.3.2.1:4566/"},
	{"kms", "eu-north-1", "http://[::1]:4566", "t", KS_OK, "http://[::1]:4566/"},
	{"kms", "eu-north-1", "http://localhost:4566", "t", KS_OK, "http://localhost:4566/"},
	{"kms", "eu-north-1", "http://192.0.2.1:4566", "t", KS_BAD_URI, "192.0.2.1 is not"},
	{"kms", "eu-north-1", "http://127.0.0.1.evil.com", "t", KS_BAD_URI, "is not"},
	{"kms", "eu-north-1", "https://kms.eu-north-1.amazonaws.com", "t", KS_BAD_URI, "is not"},
	{"kms", "cn-north-1", "http://127.0.0.1:4566", "t", KS_REGION, "aws-cn"},
};

static void
test_places(void)
{
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
	{
		const Place *p = &places[i];
		AwsOptions	options = {.fips = strchr(p->flags, 'f') != NULL, .test = strchr(p->flags, 't') != NULL};
		AwsEndpoint at = {0};
		KsFailure	why = {0};
		KsStatus	status;

		snprintf(options.region, sizeof(options.region), "%s", p->region);
		snprintf(options.ca_file, sizeof(options.ca_file), "%s", strchr(p->flags, 'c') != NULL ? "/ca" : "");
		status = aws_endpoint(p->service, &options, p->given, &at, &why);
		if (!tap_ok(status == p->status &&
					(status == KS_OK ? strcmp(at.url, p->expected) == 0 &&
					 at.plain == (strncmp(at.url, "http:", 5) == 0) :
					 strstr(why.reason, p->expected) != NULL),
					"%s in %s%s%s%s%s", p->service, p->region, p->given[0] != '\0' ? ", " : "", p->given,
					p->flags[0] != '\0' ? ", " : "", p->flags))
			printf("# status %d, %s%s\n", status, at.url, why.reason);
	}
}

typedef struct File
{
	const char *text;
	bool		config;
	int			bad_line;
	bool		found;
	const char *key;			/* aws_access_key_id of profile "p" */
} File;

static const File files[] = {
	{"", false, 0, false, NULL},
	{"[p]\naws_access_key_id = K\n", false, 0, true, "K"},
	{"[p]\naws_access_key_id = K", false, 0, true, "K"},
	{"[p]\naws_access_key_id=K # mine\n", false, 0, true, "K"},
	{"[p]\naws_access_key_id=K#mine\n", false, 0, true, "K#mine"},
	{"[p]\naws_access_key_id=K=L\n", false, 0, true, "K=L"},
	{"[p]\naws_access_key_id=\n", false, 0, true, ""},
	{"[ p ] ; here\naws_access_key_id = K\n", false, 0, true, "K"},
	{"[q]\naws_access_key_id = Q\n[p]\naws_access_key_id = K\n", false, 0, true, "K"},
	{"[p]\naws_access_key_id = K\n[q]\naws_access_key_id = Q\n", false, 0, true, "K"},
	{"[p]\naws_access_key_id = J\n[q]\n[p]\naws_access_key_id = K\n", false, 0, true, "K"},
	{"[p]\nx =\n  aws_access_key_id = J\naws_access_key_id = K\n", false, 0, true, "K"},
	{"[profile p]\naws_access_key_id = K\n", false, 0, false, NULL},
	{"[profile p]\naws_access_key_id = K\n", true, 0, true, "K"},
	{"[profile \"p\"]\naws_access_key_id = K\n", true, 0, true, "K"},
	{"[profile\tp]\naws_access_key_id = K\n", true, 0, true, "K"},
	{"[p]\naws_access_key_id = K\n", true, 0, false, NULL},
	{"[profilep]\naws_access_key_id = K\n", true, 0, false, NULL},
	{"[sso-session p]\naws_access_key_id = K\n", true, 0, false, NULL},
	{"aws_access_key_id = K\n[p]\n", false, 0, true, NULL},
	{"[p\n", false, 1, false, NULL},
	{"[p] x\n", false, 1, false, NULL},
	{"[]\n", false, 1, false, NULL},
	{"\n[p]\nwhat\n", false, 3, true, NULL},
	{"= K\n", false, 1, false, NULL},
};

static void
test_files(void)
{
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
	{
		AwsProfile	profile = {0};
		int			line = aws_config_parse(files[i].text, files[i].config, "p", &profile);
		const char *key = profile.field[AWS_ACCESS_KEY];

		tap_ok(line == files[i].bad_line && profile.found == files[i].found &&
			   (files[i].key == NULL ? key == NULL : key != NULL && strcmp(key, files[i].key) == 0),
			   "shared file %zu", i);
		aws_profile_free(&profile);
	}
}

/* Any bytes at all. */
static void
test_noise(void)
{
	static const char likely[] = "[]=#; \t\r\np<>/&\"aws_access_key_id";

	for (int round = 0; round < 20000; round++)
	{
		char		text[64];
		size_t		len = next_byte() % (sizeof(text) - 1);
		AwsProfile	profile = {0};
		AwsElement	wanted[] = {{"a", "p"}, {"p", "a"}};
		AwsAddress	at;
		AwsAnswer	answer = {.status = 400, .body = {.data = text, .len = len}};
		AwsReply	reply;

		for (size_t i = 0; i < len; i++)
			text[i] = likely[next_byte() % (sizeof(likely) - 1)];
		text[len] = '\0';
		(void) aws_config_parse(text, round % 2 == 0, "p", &profile);
		aws_profile_free(&profile);
		(void) aws_xml_read(text, len, wanted, 2);
		aws_xml_free(wanted, 2);
		(void) aws_take_apart(text, &at);
		(void) aws_read_time(text);
		aws_read_error(&answer, &reply);
	}
	tap_ok(true, "noise breaks no parser");
}

static void
test_times(void)
{
	tap_ok(aws_read_time("1970-01-01T00:00:10Z") == 10, "a time");
	tap_ok(aws_read_time("2026-11-27T00:30:00.123Z") == 1795739400, "one with a fraction");
	tap_ok(aws_read_time("2026-11-27T00:30:00+00:00") == 1795739400, "one with an offset of nothing");
	tap_ok(aws_read_time("2026-11-27T00:30:00+01:00") == 0, "another zone is none");
	tap_ok(aws_read_time("2026-11-27") == 0 && aws_read_time("") == 0 && aws_read_time("soon") == 0,
		   "nor is half a time");
}

/* A wiped piece of memory; what was in it cannot be looked at afterwards. */
static void
test_memory(void)
{
	char	   *p = wiping_malloc(3);
	AwsText		text = {0};
	char		out[8];

	memcpy(p, "abc", 3);
	p = wiping_realloc(p, 5000);
	tap_ok(p != NULL && memcmp(p, "abc", 3) == 0, "a piece grows");
	p = wiping_realloc(p, 2);
	tap_ok(p != NULL && memcmp(p, "ab", 2) == 0, "and shrinks");
	wiping_free(p);
	wiping_free(NULL);
	tap_ok(wiping_malloc(SIZE_MAX) == NULL && wiping_calloc(SIZE_MAX, 2) == NULL,
		   "there is not that much memory");
	aws_text_add_encoded(&text, "a b/\xc3\xa5~");
	tap_ok(strcmp(text.data, "a%20b%2F%C3%A5~") == 0, "percent-encoding");
	for (int i = 0; i < 300 && !text.bad; i++)
		aws_text_addf(&text, "%4096d", i);
	tap_ok(text.bad && text.len <= AWS_TEXT_MAX, "a text has an end");
	aws_text_free(&text);
	aws_printable(out, sizeof(out), "a\n\x7f\xc3zzzzzz", 10);
	tap_ok(strcmp(out, "a???zzz") == 0, "what may be logged");
}

int
main(void)
{
	if (!aws_memory_init())
		tap_bail("no memory of our own");
	test_places();
	test_files();
	test_noise();
	test_times();
	test_memory();
	return tap_done();
}
