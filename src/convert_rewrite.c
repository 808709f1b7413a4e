/*
 * convert_rewrite.c
 *		nomp_crypt.encrypt_column: a plain column of a table that may be locked
 *		becomes an encrypted one, by one ALTER TABLE.
 *
 * The work is SQL (nomp_crypt--1.0.sql).  Here is what has to happen in the
 * caller's own search_path: his expression is read.
 */
#include "postgres.h"

#include "compat.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

NC_FUNCTION(nc_encrypt_column);

#define NARGS	7

/*
 * nomp_crypt.encrypt_column(table_name regclass, column_name name,
 *		tenant_expression text, searchable boolean, normalise text,
 *		drop_dependents boolean, enforce boolean) returns int8
 *
 * The number of values that are encrypted now.  Raises 22004, 22023, 2BP01,
 * 42601, 42703, 42704, 42804, 42809, 42501, NC001 to NC004.
 */
Datum
nc_encrypt_column(PG_FUNCTION_ARGS)
{
	Oid			types[NARGS] = {REGCLASSOID, NAMEOID, TEXTOID, BOOLOID, TEXTOID, BOOLOID, BOOLOID};
	Datum		values[NARGS];
	char		nulls[NARGS];
	bool		isnull;
	int64		encrypted;

	for (int i = 0; i < NARGS; i++)
	{
		if (PG_ARGISNULL(i) && i != 4)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only normalise may be null")));
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	PreventCommandIfReadOnly("nomp_crypt.encrypt_column()");
	PreventCommandDuringRecovery("nomp_crypt.encrypt_column()");
	(void) SPI_connect();
	if (SPI_execute_with_args("SELECT nomp_crypt._encrypt_column($1, $2, e.school, e.expression, e.columns, e.subquery, "
							  "$4, $5, $6, $7) "
							  "FROM nomp_crypt._tenant_expression($1, $2, $3) e",
							  NARGS, types, values, nulls, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "a conversion returned no row");
	encrypted = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	PG_RETURN_INT64(encrypted);
}
