/*
 * owned.c
 *		Whose values are inside what a column holds?
 *
 * For commands in SQL that go through all rows of a school that may be erased:
 * by the headers of values and the rows that belong to their keys.  No key is
 * needed and no right: whoever has the value can see whose it is
 * (nomp_crypt.tenant_of).
 */
#include "postgres.h"

#include "compat.h"
#include "envelope.h"
#include "inside.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

NC_FUNCTION(nc_values_of);
NC_FUNCTION(nc_first_value);
NC_FUNCTION(nc_reading);

typedef struct Search
{
	const pg_uuid_t *tenant;	/* NULL: anybody's, damaged ones too */
	int			found;
	Datum		first;
} Search;

static bool
is_wanted(Search *search, Datum value)
{
	bytea	   *head = inside_try(value, true);
	ValueView	view;
	TenantRow	owner;

	if (search->tenant == NULL)
		return true;
	return head != NULL &&
		value_parse((const uint8 *) VARDATA_ANY(head), VARSIZE_ANY_EXHDR(head), &view) &&
		envelope_tenant(&view, &owner) &&
		memcmp(&owner.uuid, search->tenant, UUID_LEN) == 0;
}

static Datum
look(Datum value, int32 typmod, void *arg)
{
	Search	   *search = arg;

	if (is_wanted(search, value) && search->found++ == 0)
		search->first = value;
	return value;
}

static Search
search_in(FunctionCallInfo fcinfo)
{
	Search		search = {0};

	if (!PG_ARGISNULL(1))
		search.tenant = PG_GETARG_UUID_P(1);
	if (!PG_ARGISNULL(0))
		(void) inside_map(PG_GETARG_DATUM(0), get_fn_expr_argtype(fcinfo->flinfo, 0),
						  -1, look, &search);
	return search;
}

/*
 * nomp_crypt._values_of(value anyelement, tenant uuid) returns int
 *
 * How many encrypted values of that tenant are inside; for NULL, how many at
 * all.
 */
Datum
nc_values_of(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(search_in(fcinfo).found);
}

/*
 * nomp_crypt._first_value(value anyelement, tenant uuid) returns encrypted
 *
 * The first of them, or NULL.
 */
Datum
nc_first_value(PG_FUNCTION_ARGS)
{
	Search		search = search_in(fcinfo);

	if (search.found == 0)
		PG_RETURN_NULL();
	PG_RETURN_BYTEA_P(DatumGetByteaPCopy(search.first));
}

/*
 * nomp_crypt._reading(sample bytea) returns text
 *
 * Can that ciphertext be read here?  NC001 or NC003 if this node knows that
 * its tenant is erased, or does not know its key; else it is opened, which
 * needs the right "decrypt", and thrown away: "readable".  Raises 42501, NC002
 * to NC005.
 */
Datum
nc_reading(PG_FUNCTION_ARGS)
{
	ValueView	view;
	TenantRow	owner;

	envelope_parse(PG_GETARG_BYTEA_PP(0), &view);
	if (!envelope_tenant(&view, &owner))
		PG_RETURN_TEXT_P(cstring_to_text("NC003"));
	if (owner.state == TENANT_ERASED)
		PG_RETURN_TEXT_P(cstring_to_text("NC001"));
	envelope_wipe(envelope_open(&view, RIGHT_DECRYPT));
	PG_RETURN_TEXT_P(cstring_to_text("readable"));
}
