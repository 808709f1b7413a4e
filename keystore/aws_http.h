/*
 * aws_http.h
 *		One HTTP request and its answer, by libcurl, in time.
 *
 * TLS is always verified.  No redirects, no proxies, no .netrc, no cookies;
 * an answer has an upper length.  A pool of handles, each with its kept-alive
 * connections, is shared by the threads.
 */
#ifndef NOMP_AWS_HTTP_H
#define NOMP_AWS_HTTP_H

#include "aws_sigv4.h"

typedef struct AwsHttp AwsHttp;

typedef struct AwsRequest
{
	const char *method;
	const char *url;
	bool		plain;			/* HTTP instead of HTTPS */
	const AwsHeader *headers;	/* "host" is for libcurl to say */
	int			n_headers;
	const char *body;
	size_t		body_len;
	int64_t		until;			/* by aws_now() */
	long		connect_ms;		/* at most so long to connect, 0: a third */
	const char *secret;			/* that an error's words may repeat, or NULL */
	bool		once;			/* on a connection of its own: libcurl sends
								 * again by itself what an old one has lost */
} AwsRequest;

typedef struct AwsAnswer
{
	int			status;			/* 0: none came */
	bool		arrived;		/* the request may have; if there was no answer */
	bool		again;			/* worth another try; if there was no answer */
	AwsText		body;			/* free it */
	int64_t		date;			/* the server's, seconds since 1970, or 0 */
	char		error[80];		/* header x-amzn-errortype */
} AwsAnswer;

/* ca_file: "" for the system's */
extern AwsHttp *aws_http_create(const char *ca_file);
extern void aws_http_free(AwsHttp *http);

/* KS_OK: an answer came, whatever its status. */
extern KsStatus aws_http_call(AwsHttp *http, const AwsRequest *request,
							  AwsAnswer *answer, KsFailure *why);

#endif							/* NOMP_AWS_HTTP_H */
