/*
 * aws_sigv4.c
 *		AWS Signature Version 4: the Authorization header of a request.
 *
 * Digest and HMAC are OpenSSL's.  The keys derived on the way are wiped; the
 * canonical request has the session token in it, and its memory is wiped too.
 */
#include <ctype.h>
#include <string.h>
#include <strings.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "aws_sigv4.h"

#define DIGEST_LEN	32
#define DATE_LEN	8			/* 20150830 */
#define TIME_LEN	16			/* 20150830T123600Z */
#define ALGORITHM	"AWS4-HMAC-SHA256"
#define TERMINATOR	"aws4_request"

static bool
hmac(const uint8_t *key, size_t key_len, const char *data, size_t len, uint8_t out[DIGEST_LEN])
{
	unsigned int out_len = 0;

	return HMAC(EVP_sha256(), key, (int) key_len, (const unsigned char *) data, len,
				out, &out_len) != NULL && out_len == DIGEST_LEN;
}

static void
add_hex(AwsText *text, const uint8_t *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++)
		aws_text_addf(text, "%02x", bytes[i]);
}

static void
add_digest(AwsText *text, const char *data, size_t len)
{
	uint8_t		digest[DIGEST_LEN];

	if (EVP_Digest(data, len, digest, NULL, EVP_sha256(), NULL) != 1)
		text->bad = true;
	add_hex(text, digest, sizeof(digest));
}

/* The headers in order of name; those of one name stay in their order. */
static void
sort_headers(const AwsSignable *request, const AwsHeader *sorted[AWS_MAX_HEADERS])
{
	for (int n = 0; n < request->n_headers; n++)
	{
		int			place = n;

		while (place > 0 &&
			   strcasecmp(sorted[place - 1]->name, request->headers[n].name) > 0)
		{
			sorted[place] = sorted[place - 1];
			place--;
		}
		sorted[place] = &request->headers[n];
	}
}

/* A value without blanks around it, and with one where there are several. */
static void
add_value(AwsText *text, const char *value)
{
	bool		blank = false;
	bool		begun = false;

	for (; *value != '\0'; value++)
	{
		if (*value == ' ' || *value == '\t')
		{
			blank = true;
			continue;
		}
		if (blank && begun)
			aws_text_add(text, " ", 1);
		aws_text_add(text, value, 1);
		blank = false;
		begun = true;
	}
}

static void
add_name(AwsText *text, const char *name)
{
	for (; *name != '\0'; name++)
	{
		char		c = (char) tolower((unsigned char) *name);

		aws_text_add(text, &c, 1);
	}
}

static bool
same_name(const AwsHeader *a, const AwsHeader *b)
{
	return strcasecmp(a->name, b->name) == 0;
}

static void
add_headers(AwsText *text, const AwsHeader *const sorted[], int n)
{
	for (int i = 0; i < n; i++)
	{
		if (i > 0 && same_name(sorted[i], sorted[i - 1]))
			aws_text_add(text, ",", 1);
		else
		{
			add_name(text, sorted[i]->name);
			aws_text_add(text, ":", 1);
		}
		add_value(text, sorted[i]->value);
		if (i + 1 == n || !same_name(sorted[i], sorted[i + 1]))
			aws_text_add(text, "\n", 1);
	}
}

static void
add_signed_names(AwsText *text, const AwsHeader *const sorted[], int n)
{
	for (int i = 0; i < n; i++)
	{
		if (i > 0 && same_name(sorted[i], sorted[i - 1]))
			continue;
		if (i > 0)
			aws_text_add(text, ";", 1);
		add_name(text, sorted[i]->name);
	}
}

bool
aws_canonical_request(const AwsSignable *request, AwsText *out)
{
	const AwsHeader *sorted[AWS_MAX_HEADERS];

	if (request->n_headers < 0 || request->n_headers > AWS_MAX_HEADERS)
		return false;
	sort_headers(request, sorted);
	aws_text_addf(out, "%s\n%s\n%s\n", request->method, request->path, request->query);
	add_headers(out, sorted, request->n_headers);
	aws_text_add(out, "\n", 1);
	add_signed_names(out, sorted, request->n_headers);
	aws_text_add(out, "\n", 1);
	add_digest(out, request->body, request->body_len);
	return !out->bad;
}

static const char *
header_value(const AwsSignable *request, const char *name)
{
	for (int i = 0; i < request->n_headers; i++)
	{
		if (strcasecmp(request->headers[i].name, name) == 0)
			return request->headers[i].value;
	}
	return NULL;
}

/* The key of one day, region and service, made from the secret. */
static bool
signing_key(const AwsSigner *signer, const char *date, uint8_t key[DIGEST_LEN])
{
	AwsText		first = {0};
	uint8_t		step[3][DIGEST_LEN];
	bool		made;

	aws_text_add(&first, "AWS4", 4);
	aws_text_add(&first, signer->secret, strlen(signer->secret));
	made = !first.bad &&
		hmac((const uint8_t *) first.data, first.len, date, DATE_LEN, step[0]) &&
		hmac(step[0], DIGEST_LEN, signer->region, strlen(signer->region), step[1]) &&
		hmac(step[1], DIGEST_LEN, signer->service, strlen(signer->service), step[2]) &&
		hmac(step[2], DIGEST_LEN, TERMINATOR, strlen(TERMINATOR), key);
	aws_text_free(&first);
	explicit_bzero(step, sizeof(step));
	return made;
}

static bool
sign_text(const AwsText *text, const AwsSigner *signer, const char *date, uint8_t out[DIGEST_LEN])
{
	uint8_t		key[DIGEST_LEN];
	bool		made = signing_key(signer, date, key) &&
		hmac(key, sizeof(key), text->data, text->len, out);

	explicit_bzero(key, sizeof(key));
	return made;
}

bool
aws_sign(const AwsSignable *request, const AwsSigner *signer, AwsText *authorization)
{
	const char *time = header_value(request, "x-amz-date");
	const AwsHeader *sorted[AWS_MAX_HEADERS];
	AwsText		canonical = {0};
	AwsText		text = {0};
	uint8_t		signature[DIGEST_LEN];
	bool		made;

	if (time == NULL || strlen(time) != TIME_LEN || header_value(request, "host") == NULL)
		return false;
	made = aws_canonical_request(request, &canonical);
	if (made)
	{
		aws_text_addf(&text, ALGORITHM "\n%s\n%.8s/%s/%s/" TERMINATOR "\n",
					  time, time, signer->region, signer->service);
		add_digest(&text, canonical.data, canonical.len);
		made = !text.bad && sign_text(&text, signer, time, signature);
	}
	if (made)
	{
		sort_headers(request, sorted);
		aws_text_addf(authorization, ALGORITHM " Credential=%s/%.8s/%s/%s/" TERMINATOR
					  ", SignedHeaders=",
					  signer->access_key, time, signer->region, signer->service);
		add_signed_names(authorization, sorted, request->n_headers);
		aws_text_addf(authorization, ", Signature=");
		add_hex(authorization, signature, sizeof(signature));
		made = !authorization->bad;
	}
	aws_text_free(&canonical);
	aws_text_free(&text);
	return made;
}
