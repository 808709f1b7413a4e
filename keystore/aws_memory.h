/*
 * aws_memory.h
 *		Memory of the AWS client: wiped when freed; texts that grow.
 *
 * The allocator itself is in aws.h.  Only the AWS client and the KMS provider
 * above it use this.
 */
#ifndef NOMP_AWS_MEMORY_H
#define NOMP_AWS_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "aws.h"

/* A text that is put together; {0} is an empty one.  It may hold secrets. */
typedef struct AwsText
{
	char	   *data;			/* ends with a zero; NULL as long as empty */
	size_t		len;
	size_t		room;
	bool		bad;			/* no memory, or longer than AWS_TEXT_MAX */
} AwsText;

#define AWS_TEXT_MAX	(1024 * 1024)

/*
 * Give libcurl, OpenSSL, jansson and expat an allocator that wipes, and start
 * libcurl.  Call before any of them is used; false if that cannot be done.
 */
extern bool aws_memory_init(void);

extern void aws_text_add(AwsText *text, const char *data, size_t len);

/* Not for secrets: printf leaves parts of them on the stack. */
extern void aws_text_addf(AwsText *text, const char *fmt,...)
			__attribute__((format(printf, 2, 3)));

/* Percent-encoded as in a form or a query (RFC 3986's unreserved stay). */
extern void aws_text_add_encoded(AwsText *text, const char *s);
extern void aws_text_free(AwsText *text);

/*
 * Copy what may go to a log: printable ASCII alone, the rest as "?", cut to
 * fit.
 */
extern void aws_printable(char *out, size_t size, const char *in, size_t len);

/* Milliseconds of a clock that goes on while the machine sleeps. */
extern int64_t aws_now(void);

#endif							/* NOMP_AWS_MEMORY_H */
