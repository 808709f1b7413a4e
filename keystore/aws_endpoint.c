/*
 * aws_endpoint.c
 *		Which host answers for a service in a region, and which may.
 *
 * Partitions, their regions and domains are those of botocore's
 * partitions.json and endpoints.json.  Two of them have regions in the EU.
 * The others are refused by name, so that nobody wonders.  TLS then proves
 * that the host is the one of that name.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include <curl/curl.h>

#include "aws_endpoint.h"

typedef struct Partition
{
	const char *prefix;			/* of its regions' names */
	const char *name;
	const char *domain;			/* NULL: not served */
	const char *dual;			/* domain of hosts with IPv6 too */
} Partition;

static const Partition partitions[] = {
	{"cn-", "aws-cn", NULL, NULL},
	{"us-gov-", "aws-us-gov", NULL, NULL},
	{"us-iso-", "aws-iso", NULL, NULL},
	{"us-isob-", "aws-iso-b", NULL, NULL},
	{"us-isof-", "aws-iso-f", NULL, NULL},
	{"eu-isoe-", "aws-iso-e", NULL, NULL},
	{"eusc-", "aws-eusc", "amazonaws.eu", "api.amazonwebservices.eu"},
	{"", "aws", "amazonaws.com", "api.aws"},
};

/* Words of small letters with dashes between them, the last a number. */
static bool
is_region(const char *s)
{
	int			words = 0;

	while (islower((unsigned char) *s))
	{
		s += strspn(s, "abcdefghijklmnopqrstuvwxyz");
		if (*s++ != '-')
			return false;
		words++;
	}
	return words >= 2 && strspn(s, "0123456789") == strlen(s) &&
		strlen(s) >= 1 && strlen(s) <= 2;
}

static const Partition *
partition_of(const char *region)
{
	const Partition *p = partitions;

	while (strncmp(region, p->prefix, strlen(p->prefix)) != 0)
		p++;
	return p;
}

const char *
aws_partition_of(const char *region)
{
	return partition_of(region)->name;
}

bool
aws_is_loopback(const char *host)
{
	struct in_addr v4;
	struct in6_addr v6;

	if (strcmp(host, "localhost") == 0)
		return true;
	if (inet_pton(AF_INET, host, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == 127;
	return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* One part of a URL, "" if it has none; false if it does not fit. */
static bool
get_part(CURLU *url, CURLUPart part, char *out, size_t size)
{
	char	   *value = NULL;
	bool		fits;

	out[0] = '\0';
	if (curl_url_get(url, part, &value, 0) != CURLUE_OK)
		return true;
	fits = strlen(value) < size;
	if (fits)
		strcpy(out, value);
	curl_free(value);
	return fits;
}

static bool
read_parts(CURLU *url, AwsAddress *out)
{
	char		scheme[16];
	char		host[260];
	char		port[8];
	char		path[8];
	char		rest[4];
	size_t		len;

	if (!get_part(url, CURLUPART_SCHEME, scheme, sizeof(scheme)) ||
		!get_part(url, CURLUPART_HOST, host, sizeof(host)) ||
		!get_part(url, CURLUPART_PORT, port, sizeof(port)) ||
		!get_part(url, CURLUPART_USER, rest, sizeof(rest)) || rest[0] != '\0' ||
		!get_part(url, CURLUPART_PASSWORD, rest, sizeof(rest)) || rest[0] != '\0')
		return false;
	out->https = strcmp(scheme, "https") == 0;
	if (!out->https && strcmp(scheme, "http") != 0)
		return false;
	for (char *c = host; *c != '\0'; c++)
		*c = (char) tolower((unsigned char) *c);
	if (strcmp(port, out->https ? "443" : "80") == 0)
		port[0] = '\0';
	snprintf(out->authority, sizeof(out->authority), "%s%s%s", host,
			 port[0] == '\0' ? "" : ":", port);

	/* IPv6 comes with its brackets */
	len = strlen(host);
	if (len > 2 && host[0] == '[' && host[len - 1] == ']')
	{
		host[len - 1] = '\0';
		memmove(host, host + 1, len - 1);
	}
	if (host[0] == '\0' || strlen(host) >= sizeof(out->host))
		return false;
	strcpy(out->host, host);
	out->root = get_part(url, CURLUPART_PATH, path, sizeof(path)) &&
		(path[0] == '\0' || strcmp(path, "/") == 0) &&
		get_part(url, CURLUPART_QUERY, rest, sizeof(rest)) && rest[0] == '\0' &&
		get_part(url, CURLUPART_FRAGMENT, rest, sizeof(rest)) && rest[0] == '\0';
	return true;
}

bool
aws_take_apart(const char *text, AwsAddress *out)
{
	CURLU	   *url = curl_url();
	bool		done = url != NULL &&
	curl_url_set(url, CURLUPART_URL, text, 0) == CURLUE_OK &&
	read_parts(url, out);

	curl_url_cleanup(url);
	return done;
}

/* Is it SERVICE[-fips].REGION.DOMAIN, or a VPC endpoint's name for that? */
static bool
is_host_of(const char *host, const char *service, bool fips, const char *region,
		   const Partition *p)
{
	const char *suffix = fips ? "-fips" : "";
	char		name[256];
	size_t		label;

	snprintf(name, sizeof(name), "%s%s.%s.%s", service, suffix, region, p->domain);
	if (strcmp(host, name) == 0)
		return true;
	snprintf(name, sizeof(name), "%s%s.%s.%s", service, suffix, region, p->dual);
	if (strcmp(host, name) == 0)
		return true;
	snprintf(name, sizeof(name), ".%s%s.%s.vpce.%s", service, suffix, region, p->domain);
	label = strspn(host, "abcdefghijklmnopqrstuvwxyz0123456789-");
	return strncmp(host, "vpce-", 5) == 0 && strcmp(host + label, name) == 0;
}

static KsStatus
check_given(const char *service, const AwsOptions *options, const char *given,
			const Partition *p, AwsAddress *at, KsFailure *why)
{
	if (!aws_take_apart(given, at) || !at->root)
		return ks_fail(why, KS_BAD_URI, "the endpoint for %s is no URL of a host alone", service);
	if (options->test)
	{
		if (!aws_is_loopback(at->host))
			return ks_fail(why, KS_BAD_URI, "with test=yes the endpoint for %s must be on loopback, "
						   "and %.100s is not", service, at->host);
		return KS_OK;
	}
	if (!at->https)
		return ks_fail(why, KS_BAD_URI, "the endpoint for %s must be https", service);
	if (is_host_of(at->host, service, true, options->region, p) ||
		(!options->fips && is_host_of(at->host, service, false, options->region, p)))
		return KS_OK;
	return ks_fail(why, KS_REGION, "%.100s is no %s%s endpoint of region %s", at->host,
				   options->fips ? "FIPS " : "", service, options->region);
}

KsStatus
aws_endpoint(const char *service, const AwsOptions *options, const char *given,
			 AwsEndpoint *out, KsFailure *why)
{
	const Partition *p;
	AwsAddress	at = {.https = true};
	KsStatus	status;

	if (!is_region(options->region))
		return ks_fail(why, KS_REGION, "the keystore's region is not the name of one");
	p = partition_of(options->region);
	if (p->domain == NULL)
		return ks_fail(why, KS_REGION, "region %s belongs to partition %s, which is not in the EU "
					   "and not supported", options->region, p->name);
	if (options->test && given[0] == '\0')
		return ks_fail(why, KS_BAD_URI, "test=yes needs an endpoint on loopback");
	if (options->ca_file[0] != '\0' && !options->test)
		return ks_fail(why, KS_BAD_URI, "ca-file is for tests: it needs test=yes");
	if (given[0] == '\0')
		snprintf(at.authority, sizeof(at.authority), "%s%s.%s.%s", service,
				 options->fips ? "-fips" : "", options->region, p->domain);
	else
	{
		status = check_given(service, options, given, p, &at, why);
		if (status != KS_OK)
			return status;
	}
	out->plain = !at.https;
	snprintf(out->authority, sizeof(out->authority), "%s", at.authority);
	snprintf(out->url, sizeof(out->url), "%s://%s/", at.https ? "https" : "http", at.authority);
	snprintf(out->region, sizeof(out->region), "%s", options->region);
	return KS_OK;
}
