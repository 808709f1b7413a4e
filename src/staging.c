/*
 * staging.c
 *		For nomp_crypt.replace_values: what can be told of a value whose key
 *		nobody here has, and what the caller wants in its place.
 *
 * A copy of production at a place that cannot reach production's keystore has
 * values that nothing can open.  Their headers say under which key each is, and
 * which are equal.  No key is used here; the rest is SQL.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "compat.h"
#include "envelope.h"
#include "expression.h"
#include "funcapi.h"
#include "inside.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/varlena.h"

NC_FUNCTION(nc_value_key);
NC_FUNCTION(nc_value_identity);
NC_FUNCTION(nc_staging_expression);

static Datum
bytes(const void *data, size_t len)
{
	bytea	   *result = palloc(VARHDRSZ + len);

	SET_VARSIZE(result, VARHDRSZ + len);
	memcpy(VARDATA(result), data, len);
	return PointerGetDatum(result);
}

/*
 * nomp_crypt._value_key(value encrypted) returns bytea
 *
 * The id of its key, known here or not.  Raises NC005.
 */
Datum
nc_value_key(PG_FUNCTION_ARGS)
{
	ValueView	view;

	envelope_parse(inside_head(PG_GETARG_DATUM(0)), &view);
	PG_RETURN_DATUM(bytes(view.key_id, VALUE_KEY_ID_LEN));
}

/*
 * nomp_crypt._value_identity(value encrypted) returns bytea
 *
 * The same for equal values of a school, if they are searchable; of others
 * what no second value has.  Raises NC005.
 */
Datum
nc_value_identity(PG_FUNCTION_ARGS)
{
	ValueView	view;

	envelope_parse(inside_head(PG_GETARG_DATUM(0)), &view);
	if (view.fingerprint != NULL)
		PG_RETURN_DATUM(bytes(view.fingerprint, VALUE_FINGERPRINT_LEN));
	PG_RETURN_DATUM(bytes(view.nonce, VALUE_NONCE_LEN));
}

/* A column, "table.column" as the session's search_path has it. */
static AttrNumber
column_by_name(text *name, Oid *table)
{
	List	   *names = textToQualifiedNameList(name);
	char	   *column = strVal(llast(names));
	AttrNumber	number;

	if (list_length(names) < 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" does not name a column of a table", text_to_cstring(name)),
				 errhint("Write 'table.column'.")));
	*table = RangeVarGetRelid(makeRangeVarFromNameList(list_truncate(names, list_length(names) - 1)),
							  AccessShareLock, false);
	number = get_attnum(*table, column);
	if (number <= 0 || !inside_holds(get_atttype(*table, number)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("\"%s\" is not an encrypted column", text_to_cstring(name))));
	return number;
}

/*
 * nomp_crypt._staging_expression(column_name text, expression text,
 *		OUT relation regclass, OUT name name, OUT made text) returns record
 *
 * What the caller means by both, in his search_path: the column, and the
 * expression over its table "t" as a text, with all names qualified.  Raises
 * 22023, 42P01, 42703, and 42601 for anything but one expression.
 */
Datum
nc_staging_expression(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};
	Oid			table;
	AttrNumber	number = column_by_name(PG_GETARG_TEXT_PP(0), &table);
	Relation	rel = table_open(table, AccessShareLock);
	Node	   *expr;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	expr = expression_parse(rel, text_to_cstring(PG_GETARG_TEXT_PP(1)), expression_as_text,
							"made-up values must be one expression",
							"Write one expression, without SELECT.");
	values[0] = ObjectIdGetDatum(table);
	values[1] = DirectFunctionCall1(namein, CStringGetDatum(get_attname(table, number, false)));
	values[2] = CStringGetTextDatum(expression_text(expr, table, true));
	table_close(rel, AccessShareLock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
