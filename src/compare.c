/*
 * compare.c
 *		Keyless comparison: identical values only.
 *
 * For the opclasses that unique checks, sorting, hashing, ANALYZE and replica
 * identity need.  Never raises in those roles and never asks for a key.  Two
 * encryptions of one plaintext differ, so an application's comparison would
 * mislead: the guards refuse it (compare_guard.c), and so do these functions
 * when an expression calls them.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "compat.h"
#include "nodes/primnodes.h"

NC_FUNCTION(nc_eq);
NC_FUNCTION(nc_ne);
NC_FUNCTION(nc_lt);
NC_FUNCTION(nc_le);
NC_FUNCTION(nc_gt);
NC_FUNCTION(nc_ge);
NC_FUNCTION(nc_cmp);
NC_FUNCTION(nc_hash);
NC_FUNCTION(nc_hash_extended);

static int
compare_bytes(FunctionCallInfo fcinfo)
{
	bytea	   *a = PG_GETARG_BYTEA_PP(0);
	bytea	   *b = PG_GETARG_BYTEA_PP(1);
	int			len_a = VARSIZE_ANY_EXHDR(a);
	int			len_b = VARSIZE_ANY_EXHDR(b);
	int			result = memcmp(VARDATA_ANY(a), VARDATA_ANY(b), Min(len_a, len_b));

	if (result == 0)
		result = (len_a > len_b) - (len_a < len_b);
	PG_FREE_IF_COPY(a, 0);
	PG_FREE_IF_COPY(b, 1);
	return result;
}

/*
 * Written in an expression, as opposed to used by an opclass, whose support
 * functions are called with no expression or with a Const of its options.
 */
static void
refuse_in_expression(FunctionCallInfo fcinfo)
{
	Node	   *expr = fcinfo->flinfo != NULL ? fcinfo->flinfo->fn_expr : NULL;

	if (expr != NULL && !IsA(expr, Const))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("encrypted values cannot be compared"),
				 errhint("Compare what is inside: column::text = '...'.")));
}

static int
compare_operands(FunctionCallInfo fcinfo)
{
	refuse_in_expression(fcinfo);
	return compare_bytes(fcinfo);
}

Datum
nc_eq(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_operands(fcinfo) == 0);
}

Datum
nc_ne(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_operands(fcinfo) != 0);
}

Datum
nc_lt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_operands(fcinfo) < 0);
}

Datum
nc_le(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_operands(fcinfo) <= 0);
}

Datum
nc_gt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_operands(fcinfo) > 0);
}

Datum
nc_ge(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare_operands(fcinfo) >= 0);
}

Datum
nc_cmp(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(compare_operands(fcinfo));
}

Datum
nc_hash(PG_FUNCTION_ARGS)
{
	bytea	   *value;
	Datum		result;

	refuse_in_expression(fcinfo);
	value = PG_GETARG_BYTEA_PP(0);
	result = hash_any((unsigned char *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
	PG_FREE_IF_COPY(value, 0);
	return result;
}

Datum
nc_hash_extended(PG_FUNCTION_ARGS)
{
	bytea	   *value;
	Datum		result;

	refuse_in_expression(fcinfo);
	value = PG_GETARG_BYTEA_PP(0);
	result = hash_any_extended((unsigned char *) VARDATA_ANY(value),
							   VARSIZE_ANY_EXHDR(value), PG_GETARG_INT64(1));
	PG_FREE_IF_COPY(value, 0);
	return result;
}
