/*
 * kms_uri.c
 *		The setting: aws-kms://REGION?option=value&...
 *
 *		account=123456789012    the account of the keys
 *		profile=NAME            of the shared credentials and config files
 *		destroy-profile=NAME    the profile that may schedule deletions
 *		endpoint=https://HOST   a VPC endpoint, for instance
 *		fips=yes                the region's FIPS endpoint
 *		key-policy=/PATH        the policy of new keys; see kms_create.c
 *		test=yes                a stand-in on this machine, plain HTTP allowed
 *		ca-file=/PATH           whose certificates count, with test=yes only
 *		settled=yes             keys show everywhere at once, and may be gone as
 *								soon, with test=yes only
 *
 * Values may be percent-encoded.  What is not in this list is refused: a
 * misspelt option must not silently mean nothing.  No secrets in it.
 */
#include <stdio.h>
#include <string.h>

#include "aws_endpoint.h"
#include "kms.h"

#define SCHEME "aws-kms://"

/* Where an option goes; a flag if size is 0. */
typedef struct Option
{
	const char *name;
	char	   *text;
	size_t		size;
	bool	   *flag;
	bool		given;
} Option;

static int
hex_value(char c)
{
	const char *digits = "0123456789abcdef0123456789ABCDEF";
	const char *p = c == '\0' ? NULL : strchr(digits, c);

	return p == NULL ? -1 : (int) (p - digits) % 16;
}

/* Decode up to the next '&' or the end; false if it does not fit or is malformed. */
static bool
decode(const char **p, char *out, size_t size)
{
	size_t		n = 0;

	for (; **p != '\0' && **p != '&'; (*p)++)
	{
		int			c = (unsigned char) **p;

		if (c == '%')
		{
			const int	high = hex_value((*p)[1]);
			const int	low = high < 0 ? -1 : hex_value((*p)[2]);

			if (low < 0)
				return false;
			c = high * 16 + low;
			*p += 2;
		}
		if (c < ' ' || c > '~' || n + 1 >= size)
			return false;
		out[n++] = (char) c;
	}
	out[n] = '\0';
	return n > 0;
}

static KsStatus
set_option(Option *option, const char **p, KsFailure *why)
{
	char		value[16];

	if (option->given)
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has the option \"%s\" twice", option->name);
	option->given = true;
	if (option->flag == NULL)
		return decode(p, option->text, option->size) ? KS_OK :
			ks_fail(why, KS_BAD_URI, "the keystore's URI has a bad value of the option \"%s\"",
					option->name);
	if (!decode(p, value, sizeof(value)) || (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0))
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has an option \"%s\" that is neither yes nor no",
					   option->name);
	*option->flag = strcmp(value, "yes") == 0;
	return KS_OK;
}

static KsStatus
parse_options(const char *p, Option *options, size_t n, KsFailure *why)
{
	while (*p != '\0')
	{
		const size_t len = strcspn(p, "=&");
		Option	   *option = NULL;
		KsStatus	status;

		for (size_t i = 0; i < n; i++)
		{
			if (strlen(options[i].name) == len && strncmp(p, options[i].name, len) == 0)
				option = &options[i];
		}
		if (option == NULL)
			return ks_fail(why, KS_BAD_URI, "the keystore's URI has an option that is not known: \"%.*s\"",
						   (int) (len < 40 ? len : 40), p);
		p += len;
		if (*p++ != '=')
			return ks_fail(why, KS_BAD_URI, "the keystore's URI has the option \"%s\" without a value",
						   option->name);
		status = set_option(option, &p, why);
		if (status != KS_OK)
			return status;
		if (*p == '&' && *++p == '\0')
			return ks_fail(why, KS_BAD_URI, "the keystore's URI ends with \"&\"");
	}
	return KS_OK;
}

/* What options must be, and must not be together. */
static KsStatus
check_options(const Keystore *ks, KsFailure *why)
{
	const AwsOptions *o = &ks->options;

	if (ks->account[0] != '\0' && (strlen(ks->account) != ACCOUNT_LEN ||
								   ks->account[strspn(ks->account, "0123456789")] != '\0'))
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has an account that is not 12 digits");
	if (o->endpoint[0] != '\0' && strncmp(o->endpoint, "https://", 8) != 0 &&
		!(o->test && strncmp(o->endpoint, "http://", 7) == 0))
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has an endpoint that does not begin with https://");
	if (o->endpoint[0] != '\0' && o->fips)
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has both an endpoint and fips=yes");
	if (ks->key_policy[0] != '\0' && ks->key_policy[0] != '/')
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has a key-policy that is no absolute path");
	if (o->ca_file[0] != '\0' && (!o->test || o->ca_file[0] != '/'))
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has a ca-file without test=yes, or one that is no absolute path");
	if (ks->settled && !o->test)
		return ks_fail(why, KS_BAD_URI, "the keystore's URI has settled=yes without test=yes");
	return KS_OK;
}

/* Take the URI apart. */
KsStatus
kms_configure(Keystore *ks, const char *text, KsFailure *why)
{
	AwsOptions *o = &ks->options;
	Option		options[] = {
		{"account", ks->account, sizeof(ks->account), NULL, false},
		{"profile", o->profile, sizeof(o->profile), NULL, false},
		{"destroy-profile", o->destroy_profile, sizeof(o->destroy_profile), NULL, false},
		{"endpoint", o->endpoint, sizeof(o->endpoint), NULL, false},
		{"fips", NULL, 0, &o->fips, false},
		{"key-policy", ks->key_policy, sizeof(ks->key_policy), NULL, false},
		{"test", NULL, 0, &o->test, false},
		{"ca-file", o->ca_file, sizeof(o->ca_file), NULL, false},
		{"settled", NULL, 0, &ks->settled, false},
	};
	const char *p = text + strlen(SCHEME);
	size_t		len;
	KsStatus	status = KS_OK;

	if (strncmp(text, SCHEME, strlen(SCHEME)) != 0)
		return ks_fail(why, KS_BAD_URI, "the keystore's URI does not begin with " SCHEME);
	len = strcspn(p, "?");
	if (len == 0 || len >= sizeof(o->region) ||
		strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789-") != len)
		return ks_fail(why, KS_BAD_URI, "the keystore's URI names no region, as in " SCHEME "eu-north-1");
	memcpy(o->region, p, len);
	o->region[len] = '\0';
	if (p[len] == '?')
		status = parse_options(p + len + 1, options, sizeof(options) / sizeof(options[0]), why);
	if (status == KS_OK)
		status = check_options(ks, why);
	if (status != KS_OK)
		return status;
	ks->account_given = ks->account[0] != '\0';
	strcpy(ks->partition, aws_partition_of(o->region));
	if (!kms_region_allowed(ks, o->region))
		return ks_fail(why, KS_REGION, "the keystore is in region %s, which is not one of: %s",
					   o->region, ks->regions);
	return KS_OK;
}
