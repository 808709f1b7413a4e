/*
 * errors.h
 *		The seven things that can be wrong with a value's key, one SQLSTATE
 *		each, and the one place that maps keystore statuses to them.
 *
 *		NC001 erased                 NC004 keystore unavailable
 *		NC002 suspended              NC005 integrity failure
 *		NC003 key unknown            NC006 no tenant set
 *		42501 right missing
 *
 * "reason" goes to the server log only.  None of these ever contains a value
 * or a key.
 */
#ifndef NOMP_ERRORS_H
#define NOMP_ERRORS_H

#include "postgres.h"

#include "protocol.h"

#define ERRCODE_NC_ERASED		MAKE_SQLSTATE('N', 'C', '0', '0', '1')
#define ERRCODE_NC_SUSPENDED	MAKE_SQLSTATE('N', 'C', '0', '0', '2')
#define ERRCODE_NC_KEY_UNKNOWN	MAKE_SQLSTATE('N', 'C', '0', '0', '3')
#define ERRCODE_NC_UNAVAILABLE	MAKE_SQLSTATE('N', 'C', '0', '0', '4')
#define ERRCODE_NC_INTEGRITY	MAKE_SQLSTATE('N', 'C', '0', '0', '5')
#define ERRCODE_NC_NO_TENANT	MAKE_SQLSTATE('N', 'C', '0', '0', '6')

extern void error_erased(const char *tenant) pg_attribute_noreturn();
extern void error_suspended(const char *tenant, bool fenced) pg_attribute_noreturn();
extern void error_key_unknown(const char *tenant) pg_attribute_noreturn();
extern void error_not_erased(const char *tenant) pg_attribute_noreturn();
extern void error_integrity(void) pg_attribute_noreturn();
extern void error_misfit(void) pg_attribute_noreturn();
extern void error_no_tenant(const char *what) pg_attribute_noreturn();
extern void error_right_missing(const char *right, const char *tenant) pg_attribute_noreturn();
extern void error_keystore(KsStatus status, const char *reason,
						   const char *tenant) pg_attribute_noreturn();
extern void error_register_key(KsStatus status, const char *reason) pg_attribute_noreturn();
extern const char *keystore_status_text(KsStatus status);

#endif							/* NOMP_ERRORS_H */
