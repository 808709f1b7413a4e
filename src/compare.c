/*
 * compare.c
 *		Keyless comparison: by fingerprint, or of the bytes as they are.
 *
 * For "=" and for the opclasses that unique checks, indexes, grouping,
 * sorting, ANALYZE and replica identity need.  Values with a fingerprint are
 * equal if the fingerprints are; those without one only if they are
 * identical, and sort after the others.  Never raises in those roles and
 * never asks for a key.
 *
 * In an expression, values without a fingerprint are refused: two
 * encryptions of one plaintext differ, so the answer would mislead.  Queries
 * are rewritten (rewrite_expr.c) so that this does not happen; what was never
 * rewritten ends here.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "compat.h"
#include "nodes/primnodes.h"
#include "port/pg_bswap.h"
#include "value.h"

NC_FUNCTION(nc_eq);
NC_FUNCTION(nc_ne);
NC_FUNCTION(nc_lt);
NC_FUNCTION(nc_le);
NC_FUNCTION(nc_gt);
NC_FUNCTION(nc_ge);
NC_FUNCTION(nc_cmp);
NC_FUNCTION(nc_hash);
NC_FUNCTION(nc_hash_extended);
NC_FUNCTION(nc_not_rewritten);

/* What a value is compared by. */
typedef struct Subject
{
	const uint8 *bytes;
	int			len;
	bool		is_fingerprint;
} Subject;

static inline Subject
subject_of(const bytea *value)
{
	Subject		subject;
	const uint8 *fingerprint;

	subject.bytes = (const uint8 *) VARDATA_ANY(value);
	subject.len = VARSIZE_ANY_EXHDR(value);
	fingerprint = value_fingerprint(subject.bytes, subject.len);
	subject.is_fingerprint = fingerprint != NULL;
	if (subject.is_fingerprint)
	{
		subject.bytes = fingerprint;
		subject.len = VALUE_FINGERPRINT_LEN;
	}
	return subject;
}

/* An argument as it is, most often: indexes hold values inline. */
static inline bytea *
packed(Datum value)
{
	struct varlena *as_is = (struct varlena *) DatumGetPointer(value);

	if (VARATT_IS_COMPRESSED(as_is) || VARATT_IS_EXTERNAL(as_is))
		as_is = pg_detoast_datum_packed(as_is);
	return (bytea *) as_is;
}

static void
refuse(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("encrypted values cannot be compared"),
			 errhint("Compare what is inside, for example column::text = '...', or declare the column searchable.")));
}

/*
 * Written in an expression, as opposed to used by an opclass, whose support
 * functions are called with no expression or with a Const of its options.
 */
static inline bool
in_expression(FunctionCallInfo fcinfo)
{
	Node	   *expr = fcinfo->flinfo != NULL ? fcinfo->flinfo->fn_expr : NULL;

	return expr != NULL && !IsA(expr, Const);
}

/* As memcmp does, in the order of their bytes. */
static inline int
compare_fingerprints(const uint8 *a, const uint8 *b)
{
	uint64		x[2];
	uint64		y[2];
	int			which;

	memcpy(x, a, sizeof(x));
	memcpy(y, b, sizeof(y));
	which = x[0] == y[0];
	x[which] = pg_ntoh64(x[which]);
	y[which] = pg_ntoh64(y[which]);
	return (x[which] > y[which]) - (x[which] < y[which]);
}

static inline int
compare_subjects(const Subject *a, const Subject *b)
{
	int			result;

	if (a->is_fingerprint && b->is_fingerprint)
		return compare_fingerprints(a->bytes, b->bytes);
	if (a->is_fingerprint != b->is_fingerprint)
		return a->is_fingerprint ? -1 : 1;
	result = memcmp(a->bytes, b->bytes, Min(a->len, b->len));
	return result != 0 ? result : (a->len > b->len) - (a->len < b->len);
}

static inline int
compare(FunctionCallInfo fcinfo, bool equality)
{
	bytea	   *a = packed(PG_GETARG_DATUM(0));
	bytea	   *b = packed(PG_GETARG_DATUM(1));
	Subject		subject_a = subject_of(a);
	Subject		subject_b = subject_of(b);
	int			result;

	if (!(equality && subject_a.is_fingerprint && subject_b.is_fingerprint) &&
		in_expression(fcinfo))
		refuse();
	result = compare_subjects(&subject_a, &subject_b);
	PG_FREE_IF_COPY(a, 0);
	PG_FREE_IF_COPY(b, 1);
	return result;
}

Datum
nc_eq(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo, true) == 0);
}

Datum
nc_ne(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo, true) != 0);
}

Datum
nc_lt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo, false) < 0);
}

Datum
nc_le(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo, false) <= 0);
}

Datum
nc_gt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo, false) > 0);
}

Datum
nc_ge(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo, false) >= 0);
}

Datum
nc_cmp(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(compare(fcinfo, false));
}

Datum
nc_hash(PG_FUNCTION_ARGS)
{
	bytea	   *value = PG_GETARG_BYTEA_PP(0);
	Subject		subject = subject_of(value);
	Datum		result;

	if (in_expression(fcinfo) && !subject.is_fingerprint)
		refuse();
	result = hash_any(subject.bytes, subject.len);
	PG_FREE_IF_COPY(value, 0);
	return result;
}

Datum
nc_hash_extended(PG_FUNCTION_ARGS)
{
	bytea	   *value = PG_GETARG_BYTEA_PP(0);
	Subject		subject = subject_of(value);
	Datum		result;

	if (in_expression(fcinfo) && !subject.is_fingerprint)
		refuse();
	result = hash_any_extended(subject.bytes, subject.len, PG_GETARG_INT64(1));
	PG_FREE_IF_COPY(value, 0);
	return result;
}

/*
 * Stands for comparisons with a value of another type and for LIKE and its
 * kin, which queries have rewritten.  Reached only where nothing rewrites.
 */
Datum
nc_not_rewritten(PG_FUNCTION_ARGS)
{
	refuse();
	PG_RETURN_NULL();
}
