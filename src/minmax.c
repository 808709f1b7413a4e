/*
 * minmax.c
 *		Two values' order by what is inside, the larger and the smaller one.
 *
 * For min(), max(), GREATEST and LEAST, whose result is one of the values as
 * it is stored, and for comparisons of which only the values themselves know
 * what is inside.  Needs a tenant and the right "decrypt".
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "envelope.h"
#include "errors.h"
#include "inner.h"
#include "session.h"
#include "type_io.h"
#include "utils/builtins.h"
#include "utils/typcache.h"

NC_FUNCTION(nc_compare);
NC_FUNCTION(nc_larger);
NC_FUNCTION(nc_smaller);

/*
 * The type to compare as: what is inside, but a text beside another type is a
 * literal or a parameter, which takes that type.
 */
static Oid
common_type(const ValueView *a, const ValueView *b)
{
	Oid			type = inner_type(a->type_code == VALUE_TYPE_TEXT ?
								  b->type_code : a->type_code);

	return type == VARCHAROID ? TEXTOID : type;
}

static int
compare_inside(bytea *a, bytea *b, Oid collation)
{
	ValueView	view_a;
	ValueView	view_b;
	TypeCacheEntry *cache;
	Oid			type;
	Datum		inside_a;
	Datum		inside_b;
	int			result;

	envelope_parse(a, &view_a);
	envelope_parse(b, &view_b);
	type = common_type(&view_a, &view_b);
	cache = lookup_type_cache(type, TYPECACHE_CMP_PROC_FINFO);
	if (!OidIsValid(cache->cmp_proc_finfo.fn_oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("could not identify a comparison function for type %s",
						format_type_be(type))));
	inside_a = type_open_in_session(&view_a, type);
	inside_b = type_open_in_session(&view_b, type);
	result = DatumGetInt32(FunctionCall2Coll(&cache->cmp_proc_finfo, collation,
											 inside_a, inside_b));
	if (!cache->typbyval)
	{
		pfree(DatumGetPointer(inside_a));
		pfree(DatumGetPointer(inside_b));
	}
	return result;
}

/*
 * nomp_crypt._compare(encrypted, encrypted) returns integer: negative, zero
 * or positive.  Raises NC006 outside a tenant, 55000 for another tenant's
 * value, NC001 to NC005, 42501.
 */
Datum
nc_compare(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(compare_inside(PG_GETARG_BYTEA_PP(0), PG_GETARG_BYTEA_PP(1),
								   PG_GET_COLLATION()));
}

/*
 * NULLs are passed over.  Of equal values GREATEST and LEAST give the first,
 * max and min the last, as PostgreSQL's own do: 1 month or 30 days.
 */
static Datum
choose(FunctionCallInfo fcinfo, int sign)
{
	int			order;

	if (PG_ARGISNULL(0) && PG_ARGISNULL(1))
		PG_RETURN_NULL();
	if (PG_ARGISNULL(0))
		PG_RETURN_DATUM(PG_GETARG_DATUM(1));
	if (PG_ARGISNULL(1))
		PG_RETURN_DATUM(PG_GETARG_DATUM(0));
	order = compare_inside(PG_GETARG_BYTEA_PP(0), PG_GETARG_BYTEA_PP(1), PG_GET_COLLATION());
	if (order == 0)
		PG_RETURN_DATUM(PG_GETARG_DATUM(AggCheckCallContext(fcinfo, NULL) != 0));
	PG_RETURN_DATUM(PG_GETARG_DATUM(order * sign < 0));
}

/*
 * nomp_crypt._larger(encrypted, encrypted) returns encrypted.  Raises NC006
 * outside a tenant, 55000 for another tenant's value, NC001 to NC005, 42501.
 */
Datum
nc_larger(PG_FUNCTION_ARGS)
{
	return choose(fcinfo, 1);
}

/* nomp_crypt._smaller(encrypted, encrypted) returns encrypted, the same way. */
Datum
nc_smaller(PG_FUNCTION_ARGS)
{
	return choose(fcinfo, -1);
}
