/*
 * aws_sources.h
 *		Shared by the files that find credentials, and only by them.
 *
 * Each of these says KS_OK without credentials if its source is not set up:
 * then the next one is asked.
 */
#ifndef NOMP_AWS_SOURCES_H
#define NOMP_AWS_SOURCES_H

#include "aws_credentials.h"

/* A variable that is set and not empty, or NULL. */
extern const char *aws_variable(const char *name);

/* "2026-11-27T00:30:00Z" as seconds since 1970; 0 if it is not that. */
extern int64_t aws_read_time(const char *text);

/*
 * Send until an answer comes, a few times, but not after request->until.
 * KS_OK: "answer" has HTTP status 200.
 */
extern KsStatus aws_fetch(AwsHttp *http, const AwsRequest *request, const char *who,
						  AwsAnswer *answer, KsFailure *why);

/* aws_sts.c */
typedef struct AwsAssumption
{
	const char *arn;
	const char *session;		/* or NULL */
	const char *external_id;	/* or NULL */
	const char *duration;		/* seconds, or NULL */
} AwsAssumption;

extern KsStatus aws_assume_role(const AwsSources *from, const AwsAssumption *role,
								const AwsCredentials *by, int64_t until,
								AwsCredentials **out, KsFailure *why);
extern KsStatus aws_assume_with_token(const AwsSources *from, const AwsAssumption *role,
									  const char *token_file, int64_t until,
									  AwsCredentials **out, KsFailure *why);

/* aws_metadata.c */
extern KsStatus aws_from_container(const AwsSources *from, int64_t until,
								   AwsCredentials **out, KsFailure *why);
extern KsStatus aws_from_instance(const AwsSources *from, int64_t until,
								  AwsCredentials **out, KsFailure *why);

#endif							/* NOMP_AWS_SOURCES_H */
