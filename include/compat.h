/*
 * compat.h
 *		What differs between PostgreSQL's versions; nowhere else.
 */
#ifndef NOMP_COMPAT_H
#define NOMP_COMPAT_H

#include "postgres.h"

#include "fmgr.h"

/*
 * An SQL-callable function.  PostgreSQL 15's PG_FUNCTION_INFO_V1 exports the
 * function's information record only, later ones the function too.
 */
#define NC_FUNCTION(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name)

/*
 * What VACUUM FULL does to one table, locked already, within a transaction.
 * PostgreSQL 18's takes the open relation and closes it.
 */
#if PG_VERSION_NUM >= 180000
#define NC_WRITE_ANEW(relid, params) \
	cluster_rel(table_open(relid, NoLock), InvalidOid, params)
#else
#define NC_WRITE_ANEW(relid, params) cluster_rel(relid, InvalidOid, params)
#endif

#endif							/* NOMP_COMPAT_H */
