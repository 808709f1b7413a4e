/*
 * aws.h
 *		Calls of AWS services: signed, over TLS, in time, retried.
 *
 * Layers, from the bottom: aws_sigv4.c (signatures; pure), aws_http.c
 * (libcurl), aws_config.c (files and environment), aws_credentials.c (where
 * credentials come from, and their renewal), aws_call.c (one call, retried);
 * above them the KMS provider, kms*.c.
 *
 * An AwsClient is shared by threads.  Secrets: credentials stay in its memory;
 * bodies may hold data keys.  libcurl, jansson and expat get their memory from
 * an allocator that wipes what it frees.
 */
#ifndef NOMP_AWS_H
#define NOMP_AWS_H

#include <jansson.h>

#include "keystore.h"

typedef struct AwsClient AwsClient;

/* Whose credentials sign a call. */
typedef enum AwsRole
{
	AWS_EVERYDAY,
	AWS_DESTROYER				/* the everyday ones if none are set apart */
} AwsRole;

/* Where to call, from the keystore's URI; checked by aws_client_create. */
typedef struct AwsOptions
{
	char		region[64];
	char		endpoint[256];	/* "" for the region's own */
	char		profile[128];	/* "" for the default */
	char		destroy_profile[128];
	bool		fips;
	bool		test;			/* an endpoint on loopback, plain HTTP allowed */
	char		ca_file[512];	/* with "test" only */
} AwsOptions;

typedef struct AwsReply
{
	int			http;			/* 0: none came */
	char		error[80];		/* the service's name for what is wrong, "" if none */
	char		message[256];	/* its words, without control characters */
	json_t	   *body;			/* the answer, an object; free with aws_reply_free */
} AwsReply;

extern AwsClient *aws_client_create(const AwsOptions *options, KsFailure *why,
									KsStatus *status);
extern void aws_client_free(AwsClient *client);

/*
 * How long the calls of this thread may take in all, from now on, in
 * milliseconds; 0: ten seconds.
 */
extern void aws_set_patience(uint32_t milliseconds);

/*
 * Call an action of KMS ("Decrypt").  Takes "body" over.  KS_OK: an answer
 * came, and reply->body holds it.  KS_REFUSED: the service answered with
 * reply->error, which is the caller's to interpret.  KS_NETWORK,
 * KS_CREDENTIALS, KS_CLOCK_SKEW, KS_ACCESS_DENIED, KS_THROTTLED, KS_TIMEOUT,
 * KS_MODULE_ERROR (not the service's protocol): "why" says what.  Transient failures have been retried with
 * backoff as long as the thread's patience lasts; an action that must not be
 * repeated when it may have succeeded (CreateKey) is retried only if it was
 * refused.
 */
extern KsStatus aws_call(AwsClient *client, AwsRole role, const char *action,
						 json_t *body, AwsReply *reply, KsFailure *why);
extern void aws_reply_free(AwsReply *reply);

/* What to do about an error that the service named so: for the server log. */
extern const char *aws_advice(const char *name);

/* "environment", "shared file", "web identity", "container", "instance",
 * "assumed role"; do they expire by themselves? */
extern const char *aws_credentials_source(AwsClient *client, bool *lasting);

/* An allocator that wipes what it frees. */
extern void *wiping_malloc(size_t size);
extern void *wiping_calloc(size_t n, size_t size);
extern void *wiping_realloc(void *p, size_t size);
extern char *wiping_strdup(const char *s);
extern void wiping_free(void *p);

#endif							/* NOMP_AWS_H */
