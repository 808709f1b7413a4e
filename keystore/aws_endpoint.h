/*
 * aws_endpoint.h
 *		Which host answers for a service in a region, and which may.
 *
 * Pure: no network, no environment.
 */
#ifndef NOMP_AWS_ENDPOINT_H
#define NOMP_AWS_ENDPOINT_H

#include "aws.h"

typedef struct AwsEndpoint
{
	char		url[300];
	char		authority[280]; /* the Host header: host, and port if unusual */
	char		region[64];
	bool		plain;			/* HTTP, on loopback, for tests */
} AwsEndpoint;

/* A host of a URL that was taken apart. */
typedef struct AwsAddress
{
	char		host[256];		/* in lower case, IPv6 without brackets */
	char		authority[280];
	bool		https;
	bool		root;			/* no path but "/", nothing else either */
} AwsAddress;

/*
 * The endpoint of "kms" or "sts".  "given" is what somebody wishes, or "":
 * it must be a host of that service in that region; if "test", one on
 * loopback, by plain HTTP if he likes.  KS_REGION or KS_BAD_URI, and why.
 */
extern KsStatus aws_endpoint(const char *service, const AwsOptions *options,
							 const char *given, AwsEndpoint *out, KsFailure *why);

/* The partition of a region, as in "aws-eusc", by how its name begins. */
extern const char *aws_partition_of(const char *region);

/* False if it is no URL of http or https, or has a user in it. */
extern bool aws_take_apart(const char *url, AwsAddress *out);

/* "localhost" counts, 127.0.0.0/8 and ::1. */
extern bool aws_is_loopback(const char *host);

#endif							/* NOMP_AWS_ENDPOINT_H */
