/*
 * aws_credentials.h
 *		Whose name a request is signed with, and until when.
 *
 * An AwsChain holds one role's credentials for all threads, finds them when
 * they are first needed (aws_sources.c) and again before they expire.
 */
#ifndef NOMP_AWS_CREDENTIALS_H
#define NOMP_AWS_CREDENTIALS_H

#include "aws_endpoint.h"
#include "aws_http.h"

#define AWS_MAX_KEY		256		/* characters of an access key, or a secret */
#define AWS_MAX_TOKEN	16384	/* of a session token */

/* Never changed once made; shared, counted. */
typedef struct AwsCredentials
{
	char	   *access_key;
	char	   *secret;
	char	   *token;			/* or NULL */
	int64_t		expires;		/* seconds since 1970, 0: never */
	const char *source;			/* a constant */
	int			users;			/* under the chain's lock */
} AwsCredentials;

/* Where one role's credentials may come from. */
typedef struct AwsSources
{
	AwsHttp    *http;
	AwsEndpoint sts;
	char		profile[128];	/* "" for the default chain */
} AwsSources;

typedef struct AwsChain AwsChain;

extern AwsChain *aws_chain_create(const AwsSources *from);
extern void aws_chain_free(AwsChain *chain);

/* KS_OK, and credentials to give back; or KS_CREDENTIALS, and others. */
extern KsStatus aws_chain_get(AwsChain *chain, int64_t until,
							  AwsCredentials **out, KsFailure *why);
extern void aws_chain_give_back(AwsChain *chain, AwsCredentials *credentials);

/* The service does not take these: find others. */
extern void aws_chain_refuse(AwsChain *chain, const AwsCredentials *credentials);

/* Of the credentials at hand; "" if there are none yet. */
extern const char *aws_chain_source(AwsChain *chain, bool *lasting);

/* Copies; NULL if there is no memory, or a part breaks the rules: then "why". */
extern AwsCredentials *aws_credentials_make(const char *source, const char *access_key,
											const char *secret, const char *token,
											int64_t expires, KsFailure *why);
extern void aws_credentials_free(AwsCredentials *credentials);

/* aws_sources.c: go through the sources until one has credentials. */
extern KsStatus aws_find_credentials(const AwsSources *from, int64_t until,
									 AwsCredentials **out, KsFailure *why);

/* A number that changes when a file does that credentials may come from. */
extern uint64_t aws_files_stamp(const AwsSources *from);

#endif							/* NOMP_AWS_CREDENTIALS_H */
