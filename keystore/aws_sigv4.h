/*
 * aws_sigv4.h
 *		AWS Signature Version 4: the Authorization header of a request.
 *
 * Pure: no clock, no environment, no network.  After Amazon's description,
 * "AWS Signature Version 4 for API requests" (IAM User Guide).
 */
#ifndef NOMP_AWS_SIGV4_H
#define NOMP_AWS_SIGV4_H

#include "aws_memory.h"

#define AWS_MAX_HEADERS		16

typedef struct AwsHeader
{
	const char *name;
	const char *value;
} AwsHeader;

/*
 * What is signed.  Path and query are percent-encoded, and the query is in
 * order, as they will be sent.  All headers given are signed; "host" and
 * "x-amz-date" are among them.
 */
typedef struct AwsSignable
{
	const char *method;
	const char *path;
	const char *query;
	const AwsHeader *headers;
	int			n_headers;
	const char *body;
	size_t		body_len;
} AwsSignable;

/* By whom, and for what. */
typedef struct AwsSigner
{
	const char *access_key;
	const char *secret;
	const char *region;
	const char *service;
} AwsSigner;

/* Appends the header's value; false, and nothing of use, if that fails. */
extern bool aws_sign(const AwsSignable *request, const AwsSigner *signer,
					 AwsText *authorization);

/* A step of it, for tests. */
extern bool aws_canonical_request(const AwsSignable *request, AwsText *out);

#endif							/* NOMP_AWS_SIGV4_H */
