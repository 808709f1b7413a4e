/*
 * aws_errors.h
 *		What a service's error means: its name, its words, and what to do.
 *
 * Pure.
 */
#ifndef NOMP_AWS_ERRORS_H
#define NOMP_AWS_ERRORS_H

#include "aws_http.h"

typedef struct AwsVerdict
{
	KsStatus	status;			/* what to say if nothing helps */
	bool		again;			/* the same request may succeed later */
	bool		refused;		/* the service has done nothing, for sure */
	bool		renew;			/* with other credentials perhaps */
} AwsVerdict;

/* Fill error and message of the reply from an answer that is no success. */
extern void aws_read_error(const AwsAnswer *answer, AwsReply *reply);

/* Words that repeat a secret, or a part of it, are no words; NULL is none. */
extern void aws_hide_echo(AwsReply *reply, const char *secret);

/* "now" is this machine's clock, in seconds since 1970. */
extern AwsVerdict aws_judge(const AwsAnswer *answer, const AwsReply *reply,
							int64_t now, KsFailure *why);

#endif							/* NOMP_AWS_ERRORS_H */
