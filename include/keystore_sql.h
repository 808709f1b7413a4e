/*
 * keystore_sql.h
 *		What the files of internal keystore functions share.
 */
#ifndef NOMP_KEYSTORE_SQL_H
#define NOMP_KEYSTORE_SQL_H

#include "postgres.h"

#include "fmgr.h"
#include "keyspec.h"

extern KeystoreRef keystore_store_arg(FunctionCallInfo fcinfo, int i);
extern void keystore_deletion_init(void);
extern Datum keystore_bytea(const uint8 *bytes, size_t len);

#endif							/* NOMP_KEYSTORE_SQL_H */
