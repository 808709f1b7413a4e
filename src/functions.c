/*
 * functions.c
 *		nomp_crypt.encrypt, decrypt, try_decrypt, tenant_of, key_info, and the
 *		wrapper of literals.
 */
#include "postgres.h"

#include "envelope.h"
#include "errors.h"
#include "compat.h"
#include "funcapi.h"
#include "register_proof.h"
#include "rights.h"
#include "rows.h"
#include "session.h"
#include "type_io.h"
#include "inner.h"
#include "utils/builtins.h"

NC_FUNCTION(nc_encrypt);
NC_FUNCTION(nc_decrypt);
NC_FUNCTION(nc_try_decrypt);
NC_FUNCTION(nc_tenant_of);
NC_FUNCTION(nc_key_info);
NC_FUNCTION(nc_literal);

/*
 * nomp_crypt.encrypt(value text, tenant text) returns encrypted
 *
 * As text and without a fingerprint, for that tenant, inside a session of another or of none.  Needs its right
 * "encrypt".  Raises 42704 for an unknown tenant, 42501, NC001 to NC004.
 */
Datum
nc_encrypt(PG_FUNCTION_ARGS)
{
	text	   *plain = PG_GETARG_TEXT_PP(0);
	char	   *id = text_to_cstring(PG_GETARG_TEXT_PP(1));
	TenantRow	tenant;

	if (!rows_tenant_by_id(id, &tenant))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("tenant \"%s\" does not exist", id)));
	PG_RETURN_BYTEA_P(type_seal_text(&tenant, RIGHT_ENCRYPT, VARDATA_ANY(plain),
									 VARSIZE_ANY_EXHDR(plain)));
}

/*
 * nomp_crypt.decrypt(value encrypted) returns text
 *
 * The text of whatever type is inside.  Needs the right "decrypt" for the value's tenant.  Raises 42501, NC001 to
 * NC005.
 */
Datum
nc_decrypt(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(type_to_text(PG_GETARG_BYTEA_PP(0)));
}

/*
 * nomp_crypt.try_decrypt(value encrypted) returns text
 *
 * As decrypt, but NULL for a value whose tenant has been erased, and only
 * for that.  Raises 42501, NC002 to NC005.
 */
Datum
nc_try_decrypt(PG_FUNCTION_ARGS)
{
	bytea	   *value = PG_GETARG_BYTEA_PP(0);
	ValueView	view;
	TenantRow	owner;

	envelope_parse(value, &view);
	if (envelope_tenant(&view, &owner) && owner.state == TENANT_ERASED)
	{
		rights_require(&owner, RIGHT_DECRYPT);
		register_require_erased(&owner);
		PG_RETURN_NULL();
	}
	PG_RETURN_TEXT_P(type_to_text(value));
}

/*
 * nomp_crypt.tenant_of(value encrypted) returns text
 *
 * The id of the tenant whose value it is; NULL if its key is not known in
 * this database.  Needs no key and no right.  Raises NC005 for bytes that are
 * no value.
 */
Datum
nc_tenant_of(PG_FUNCTION_ARGS)
{
	ValueView	view;
	TenantRow	owner;

	envelope_parse(PG_GETARG_BYTEA_PP(0), &view);
	if (!envelope_tenant(&view, &owner))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(owner.id));
}

static char *
hex(const uint8 *bytes, size_t len)
{
	char	   *text = palloc(2 * len + 1);

	hex_encode((const char *) bytes, len, text);
	text[2 * len] = '\0';
	return text;
}

/*
 * nomp_crypt.key_info(value encrypted)
 *		returns (format int, type text, key_id text, searchable boolean,
 *				 tenant text, version int, state text)
 *
 * What a value says about itself and what this database knows of its key;
 * the last three are NULL if that is nothing.  Needs no key and no right.
 */
Datum
nc_key_info(PG_FUNCTION_ARGS)
{
	static const char *const states[] = {"active", "suspended", "fenced", "erased"};
	ValueView	view;
	TupleDesc	desc;
	Datum		values[7];
	bool		nulls[7] = {false};
	KeyRow		key;
	TenantRow	owner;

	envelope_parse(PG_GETARG_BYTEA_PP(0), &view);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int32GetDatum(1);
	values[1] = CStringGetTextDatum(inner_name(view.type_code));
	values[2] = CStringGetTextDatum(hex(view.key_id, VALUE_KEY_ID_LEN));
	values[3] = BoolGetDatum(view.fingerprint != NULL);
	nulls[4] = nulls[5] = nulls[6] = true;
	if (catalog_key_by_id(view.key_id, &key) && envelope_tenant(&view, &owner))
	{
		values[4] = CStringGetTextDatum(owner.id);
		values[5] = Int32GetDatum((int32) key.spec.place.version);
		values[6] = CStringGetTextDatum(states[owner.state]);
		nulls[4] = nulls[5] = nulls[6] = false;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * A literal again, for the tenant that the session is inside now.  Anybody
 * can call _literal with anything: it takes what the caller may read.
 */
static bytea *
make_again(const ValueView *view, const TenantRow *tenant)
{
	bytea	   *payload = envelope_open(view, RIGHT_DECRYPT);
	bytea	   *value = envelope_seal(tenant, RIGHTS_TO_SEAL(-1), view->type_code,
									  VARDATA(payload), VARSIZE(payload) - VARHDRSZ, NULL);

	envelope_wipe(payload);
	return value;
}

/*
 * nomp_crypt._literal(value encrypted, inside boolean) returns encrypted
 *
 * Stands around every constant of the type in a plan: PostgreSQL makes the
 * constant when it parses, and a plan that is kept would carry it into
 * another school.  Plans are made again when the school changes
 * (query_guard.c), but those within a call of an SQL function only with the
 * call; there the literal is made again here.  Raises NC006 if the session
 * has left its tenant, 55000 if ciphertext was given outside any and the
 * session is inside one now.
 */
Datum
nc_literal(PG_FUNCTION_ARGS)
{
	bytea	   *value = PG_GETARG_BYTEA_PP(0);
	bool		inside = PG_GETARG_BOOL(1);
	const TenantRow *tenant = session_tenant_row();
	ValueView	view;
	TenantRow	owner;

	if (!inside && tenant == NULL)
		PG_RETURN_BYTEA_P(value);
	if (tenant == NULL)
		error_no_tenant("plaintext cannot be encrypted");
	if (!inside)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("statement was prepared outside a tenant"),
				 errdetail("It contains a literal that was taken for ciphertext."),
				 errhint("Pass the value as a parameter, or prepare the statement again.")));
	envelope_parse(value, &view);
	if (type_is_own(&view, tenant, &owner))
		PG_RETURN_BYTEA_P(value);
	PG_RETURN_BYTEA_P(make_again(&view, tenant));
}
