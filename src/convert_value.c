/*
 * convert_value.c
 *		One value of a plain column into one of an encrypted column, for the
 *		school that its row belongs to, and the proof that they say the same.
 *
 * Unlike the casts these go by a tenant that is given, not by the session's.
 * Plaintext is the executor's; payloads are wiped here.
 */
#include "postgres.h"

#include "compat.h"
#include "envelope.h"
#include "errors.h"
#include "inner.h"
#include "reencrypt.h"
#include "rights.h"
#include "rows.h"
#include "type_io.h"
#include "typemod.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

NC_FUNCTION(nc_encrypt_as);
NC_FUNCTION(nc_says_the_same);
NC_FUNCTION(nc_school_trouble);
NC_FUNCTION(nc_inner_type);

/* The type of an argument that is declared anyelement, domains looked through. */
static Oid
argument_type(FunctionCallInfo fcinfo, int n)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, n);

	if (!OidIsValid(type))
		elog(ERROR, "could not determine the argument's type");
	return getBaseType(type);
}

/*
 * nomp_crypt._encrypt_as(value anyelement, tenant text, modifier int4)
 *		returns encrypted
 *
 * For that tenant, as a column of that modifier has it; NULL for NULL.  Needs
 * the right "encrypt".  Raises 22004 for a value without a tenant, 42704, NC001
 * to NC004, 42501, and what the type inside raises.
 */
Datum
nc_encrypt_as(PG_FUNCTION_ARGS)
{
	TenantRow	tenant;
	char	   *id;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("a row with a value to encrypt has no tenant"),
				 errhint("The tenant expression must give a tenant's id for every row whose column is not null.")));
	if (PG_ARGISNULL(2) || PG_GETARG_INT32(2) < 0)
		elog(ERROR, "a column of type encrypted has no modifier");
	id = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!rows_tenant_by_id(id, &tenant))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("tenant \"%s\" does not exist", id)));
	PG_RETURN_BYTEA_P(type_seal(&tenant, RIGHT_ENCRYPT, PG_GETARG_DATUM(0),
								argument_type(fcinfo, 0), PG_GETARG_INT32(2), false));
}

/* Are these the bytes that the value of that type would be encrypted from? */
static bool
is_payload_of(const bytea *payload, Datum plain, Oid type, int32 modifier)
{
	uint8		code = typemod_type_code(modifier);
	size_t		len;
	char	   *expected;
	bool		same;

	plain = inner_convert(plain, type, code, typemod_inner(modifier), false);
	expected = inner_payload(code, plain, &len);
	same = len == VARSIZE_ANY_EXHDR(payload) &&
		memcmp(expected, VARDATA_ANY(payload), len) == 0;
	explicit_bzero(expected, len);
	pfree(expected);
	return same;
}

static bool
has_right_fingerprint(const ValueView *view, const bytea *payload,
					  const TenantRow *tenant, int32 modifier)
{
	uint8		fingerprint[VALUE_FINGERPRINT_LEN];

	if (!typemod_searchable(modifier))
		return view->fingerprint == NULL;
	if (view->fingerprint == NULL)
		return false;
	reencrypt_fingerprint(view, payload, tenant, RIGHT_ENCRYPT | RIGHT_DECRYPT, modifier,
						  fingerprint);
	return memcmp(fingerprint, view->fingerprint, VALUE_FINGERPRINT_LEN) == 0;
}

static bool
says(const bytea *value, Datum plain, Oid type, const char *tenant, int32 modifier)
{
	ValueView	view;
	TenantRow	owner;
	bytea	   *payload;
	bool		same;

	if (!value_parse((const uint8 *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), &view) ||
		view.type_code != typemod_type_code(modifier) ||
		envelope_try_open(&view, &owner, &payload) != VALUE_OPENS)
		return false;
	same = strcmp(owner.id, tenant) == 0 &&
		is_payload_of(payload, plain, type, modifier) &&
		has_right_fingerprint(&view, payload, &owner, modifier);
	envelope_wipe(payload);
	return same;
}

/*
 * nomp_crypt._says_the_same(plain anyelement, value encrypted, tenant text,
 *		modifier int4) returns boolean
 *
 * Is the value that tenant's, for a column of that modifier, and does it hold
 * the plain one, byte for byte?  Both may be null.  Needs the right "decrypt".
 * Raises 42501 and NC004.
 */
Datum
nc_says_the_same(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_BOOL(PG_ARGISNULL(0) && PG_ARGISNULL(1));
	if (PG_ARGISNULL(2) || PG_ARGISNULL(3))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(says(PG_GETARG_BYTEA_PP(1), PG_GETARG_DATUM(0), argument_type(fcinfo, 0),
						text_to_cstring(PG_GETARG_TEXT_PP(2)), PG_GETARG_INT32(3)));
}

/*
 * nomp_crypt._school_trouble(id text, read boolean) returns text
 *
 * Why the current role cannot encrypt values for that tenant, or with "read"
 * decrypt them; NULL if it can.
 */
Datum
nc_school_trouble(PG_FUNCTION_ARGS)
{
	bool		read = PG_GETARG_BOOL(1);
	TenantRow	tenant;
	const char *trouble = NULL;

	if (PG_ARGISNULL(0))
		PG_RETURN_TEXT_P(cstring_to_text("no tenant"));
	if (!rows_tenant_by_id(text_to_cstring(PG_GETARG_TEXT_PP(0)), &tenant))
		trouble = "no such tenant";
	else if (tenant.state == TENANT_ERASED)
		trouble = "erased";
	else if (tenant.state != TENANT_ACTIVE)
		trouble = "suspended";
	else if (!rights_has(&tenant.uuid, read ? RIGHT_DECRYPT : RIGHT_ENCRYPT))
		trouble = read ? "right \"decrypt\" missing" : "right \"encrypt\" missing";
	if (trouble == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(trouble));
}

/*
 * nomp_crypt._inner_type(modifier int4) returns text
 *
 * The type inside a column of that modifier, as SQL spells it.
 */
Datum
nc_inner_type(PG_FUNCTION_ARGS)
{
	int32		modifier = PG_GETARG_INT32(0);

	PG_RETURN_TEXT_P(cstring_to_text(format_type_with_typemod(inner_type(typemod_type_code(modifier)),
															  typemod_inner(modifier))));
}
