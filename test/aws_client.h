/*
 * aws_client.h
 *		What the test programs of the AWS client share.
 */
#ifndef NOMP_TEST_AWS_CLIENT_H
#define NOMP_TEST_AWS_CLIENT_H

#include <stdarg.h>
#include <stdio.h>

#include "../keystore/aws_credentials.h"
#include "tap.h"

#define ACCESS_KEY	"AKIDEXAMPLE"
#define SECRET		"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

/* The helper's is in the file that answers requests. */
KsStatus
ks_fail(KsFailure *why, KsStatus status, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	vsnprintf(why->reason, sizeof(why->reason), fmt, args);
	va_end(args);
	return status;
}

#endif							/* NOMP_TEST_AWS_CLIENT_H */
