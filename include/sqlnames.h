/*
 * sqlnames.h
 *		Our own SQL functions, by OID: those that plans are rewritten to call.
 */
#ifndef NOMP_SQLNAMES_H
#define NOMP_SQLNAMES_H

#include "postgres.h"

typedef enum SqlFunction
{
	SQL_LITERAL,				/* _literal(encrypted, boolean) */
	SQL_PLAIN,					/* _plain(encrypted, anyelement, boolean) */
	SQL_PROBE,					/* _probe(anyelement, integer) */
	SQL_STORE,					/* _store(encrypted, integer) */
	SQL_COMPARE,				/* _compare(encrypted, encrypted) */
	SQL_LARGER,					/* _larger(encrypted, encrypted) */
	SQL_SMALLER,				/* _smaller(encrypted, encrypted) */
	SQL_SEARCH_VALUES,			/* search_values(text) */
	SQL_SEARCH_VALUES_AS,		/* _search_values(text, integer) */
	SQL_ENFORCE_TENANT			/* enforce_tenant() */
} SqlFunction;

#define SQL_FUNCTION_COUNT (SQL_ENFORCE_TENANT + 1)

/* InvalidOid where the extension does not exist. */
extern Oid	sql_function(SqlFunction which);

#endif							/* NOMP_SQLNAMES_H */
