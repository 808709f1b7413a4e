/*
 * keystore_sql.h
 *		What the files of internal keystore functions share.
 */
#ifndef NOMP_KEYSTORE_SQL_H
#define NOMP_KEYSTORE_SQL_H

#include "postgres.h"

#include "fmgr.h"
#include "keyspec.h"
#include "protocol.h"
#include "request.h"
#include "utils/uuid.h"
#include "wire.h"

#define KEYSTORE_BODY_MAX	2048

/* A request under construction, and its answer. */
typedef struct Exchange
{
	uint8		body[KEYSTORE_BODY_MAX];
	WireWriter	w;
	uint8		answer[REQUEST_BODY_MAX];
	WireReader	r;
	char		reason[REQUEST_REASON_MAX];
} Exchange;

extern Exchange *keystore_new_exchange(void);
extern void keystore_put_uuid(Exchange *x, const pg_uuid_t *uuid);
extern void keystore_put_text(Exchange *x, const char *text);
extern void keystore_exchange(Exchange *x, KsOp op, KeystoreRef store);
extern char *keystore_get_text(Exchange *x);
extern void keystore_must_be_done(Exchange *x);
extern Datum keystore_row_datum(FunctionCallInfo fcinfo, Datum *values, bool *nulls);
extern KeystoreRef keystore_store_arg(FunctionCallInfo fcinfo, int i);
extern void keystore_deletion_init(void);
extern Datum keystore_bytea(const uint8 *bytes, size_t len);

#endif							/* NOMP_KEYSTORE_SQL_H */
