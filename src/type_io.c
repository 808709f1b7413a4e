/*
 * type_io.c
 *		Text and binary form of values, and the session rule that chooses.
 *
 * Inside a school text is plaintext, both ways; outside it is ciphertext,
 * "nc1:" and base64 of the value.  The binary form is the value itself,
 * whatever the session.
 *
 * A literal or parameter arrives without a column's modifier, at parse or
 * bind time: it is sealed as text, and becomes what the column is when it is
 * coerced (type_convert.c).
 */
#include "postgres.h"

#include <limits.h>

#include "catalog/pg_type.h"
#include "common/base64.h"
#include "envelope.h"
#include "errors.h"
#include "compat.h"
#include "inner.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "register_proof.h"
#include "rights.h"
#include "session.h"
#include "type_io.h"
#include "typemod.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

NC_FUNCTION(nc_in);
NC_FUNCTION(nc_out);
NC_FUNCTION(nc_recv);
NC_FUNCTION(nc_send);

#define TEXT_PREFIX		"nc1:"
#define TEXT_PREFIX_LEN 4

LiteralMode type_literal_mode = LITERALS_TAKEN;
TypeWire	type_wire = {false, InvalidOid};

char *
type_text_form(const bytea *value)
{
	int			len = VARSIZE_ANY_EXHDR(value);
	int			room = pg_b64_enc_len(len);
	char	   *text = palloc(TEXT_PREFIX_LEN + room + 1);
	int			n;

	memcpy(text, TEXT_PREFIX, TEXT_PREFIX_LEN);
	n = pg_b64_encode(VARDATA_ANY(value), len, text + TEXT_PREFIX_LEN, room);
	if (n < 0)
		elog(ERROR, "could not encode a value in base64");
	text[TEXT_PREFIX_LEN + n] = '\0';
	return text;
}

/*
 * Parse the text form.  NULL unless it is exactly what type_text_form would
 * write for a well-formed value.
 */
static bytea *
parse_text_form(const char *text, size_t len)
{
	int			room;
	int			n;
	bytea	   *value;
	ValueView	view;
	char	   *again;
	bool		canonical;

	if (len <= TEXT_PREFIX_LEN || len > MaxAllocSize / 2 ||
		memcmp(text, TEXT_PREFIX, TEXT_PREFIX_LEN) != 0)
		return NULL;
	room = pg_b64_dec_len((int) len);
	value = palloc(VARHDRSZ + room);
	n = pg_b64_decode(text + TEXT_PREFIX_LEN, (int) len - TEXT_PREFIX_LEN,
					  VARDATA(value), room);
	if (n < 0 || !value_parse((uint8 *) VARDATA(value), (size_t) n, &view))
	{
		pfree(value);
		return NULL;
	}
	SET_VARSIZE(value, VARHDRSZ + n);
	again = type_text_form(value);
	canonical = strlen(again) == len && memcmp(again, text, len) == 0;
	pfree(again);
	if (canonical)
		return value;
	pfree(value);
	return NULL;
}

/* Storing ciphertext as it stands is a right of its own. */
static void
require_load(const ValueView *view)
{
	TenantRow	tenant;
	bool		known;
	bool		may = rights_may_load(NULL);
	Oid			user;
	int			context;

	if (may)
		return;
	known = envelope_tenant(view, &tenant);
	GetUserIdAndSecContext(&user, &context);
	if (OidIsValid(type_wire.owner))
		SetUserIdAndSecContext(type_wire.owner, context | SECURITY_LOCAL_USERID_CHANGE);
	may = rights_may_load(known ? &tenant.uuid : NULL);
	SetUserIdAndSecContext(user, context);
	if (!may)
		error_right_missing("load", known ? tenant.id : "(unknown)");
}

void
type_check_modifier(const bytea *value, int32 typmod)
{
	ValueView	view;

	envelope_parse(value, &view);
	if (typmod >= 0 &&
		(view.type_code != typemod_type_code(typmod) ||
		 (view.fingerprint != NULL) != typemod_searchable(typmod)))
		error_misfit();
}

/* What a key is for never changes, so the last one looked up is kept. */
void
type_refuse_probe(const ValueView *view)
{
	static uint8 no_index_key[VALUE_KEY_ID_LEN];
	static bool known = false;
	KeyFacts	facts;

	if (known && memcmp(no_index_key, view->key_id, VALUE_KEY_ID_LEN) == 0)
		return;
	if (!rows_key(view->key_id, &facts))
		return;
	if (facts.place.is_index)
		error_integrity();
	memcpy(no_index_key, view->key_id, VALUE_KEY_ID_LEN);
	known = true;
}

/*
 * A key's id is derived from its tenant, so what was true of the last one
 * stays true; this saves the lookup at every value that is read.
 */
bool
type_is_own(const ValueView *view, const TenantRow *tenant, TenantRow *owner)
{
	static uint8 last_key[VALUE_KEY_ID_LEN];
	static pg_uuid_t last_tenant;
	static bool known = false;

	if (known && memcmp(last_key, view->key_id, VALUE_KEY_ID_LEN) == 0 &&
		memcmp(&last_tenant, &tenant->uuid, UUID_LEN) == 0)
		return true;
	if (!envelope_known_owner(view, &tenant->uuid))
	{
		if (!envelope_tenant(view, owner))
			error_key_unknown(NULL);
		if (memcmp(&owner->uuid, &tenant->uuid, UUID_LEN) != 0)
			return false;
	}
	memcpy(last_key, view->key_id, VALUE_KEY_ID_LEN);
	last_tenant = tenant->uuid;
	known = true;
	return true;
}

void
type_refuse_other(const TenantRow *owner, const TenantRow *tenant, const char *hint)
{
	/* this school's own, from before it was erased and onboarded again */
	if (owner->state == TENANT_ERASED && strcmp(owner->id, tenant->id) == 0)
		register_raise_erased(owner);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("value belongs to tenant \"%s\", the session is inside \"%s\"",
					owner->id, tenant->id),
			 errhint("%s", hint)));
}

void
type_refuse_ciphertext(const char *text, size_t len)
{
	bytea	   *value = parse_text_form(text, len);

	if (value != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value is encrypted already"),
				 errhint("Inside a tenant, input is plaintext. To store ciphertext, RESET nomp_crypt.tenant first.")));
}

bytea *
type_seal_text(const TenantRow *tenant, int rights, const char *text, size_t len)
{
	char	   *utf8 = pg_server_to_any(text, (int) len, PG_UTF8);
	size_t		utf8_len = utf8 == text ? len : strlen(utf8);
	bytea	   *value = envelope_seal(tenant, rights, VALUE_TYPE_TEXT, utf8, utf8_len,
									  NULL);

	if (utf8 != text)
	{
		explicit_bzero(utf8, utf8_len);
		pfree(utf8);
	}
	return value;
}

/* Outside a tenant: ciphertext, from whoever may load it. */
static bytea *
load_text_form(const char *text, size_t len, int32 typmod)
{
	bytea	   *value = parse_text_form(text, len);
	ValueView	view;

	if (value == NULL)
		error_no_tenant("plaintext cannot be encrypted");
	type_check_modifier(value, typmod);
	envelope_parse(value, &view);
	require_load(&view);
	type_refuse_probe(&view);
	return value;
}

bytea *
type_from_text(const char *text, size_t len, int32 typmod)
{
	const TenantRow *tenant = session_tenant_row();
	bytea	   *plain;
	bytea	   *value;

	if (tenant == NULL)
		return load_text_form(text, len, typmod);
	type_refuse_ciphertext(text, len);
	if (typemod_type_code(typmod) == VALUE_TYPE_TEXT && !typemod_searchable(typmod))
		return type_seal_text(tenant, RIGHTS_TO_SEAL(typmod), text, len);

	plain = (bytea *) cstring_to_text_with_len(text, (int) len);
	value = type_seal(tenant, RIGHTS_TO_SEAL(typmod), PointerGetDatum(plain), TEXTOID,
					  typmod, false);
	explicit_bzero(VARDATA(plain), len);
	pfree(plain);
	return value;
}

/* A text into a string, in its own place. */
static char *
move_text(text *value)
{
	size_t		len = VARSIZE(value) - VARHDRSZ;
	char	   *string = (char *) value;

	memmove(string, VARDATA(value), len);
	string[len] = '\0';
	return string;
}

/* The value's text, by the inner type's output function. */
static char *
open_text(const ValueView *view)
{
	Datum		value = inner_take_payload(view->type_code, envelope_open(view, RIGHT_DECRYPT));

	if (view->type_code != VALUE_TYPE_TEXT)
		return inner_to_text(view->type_code, value);
	return move_text(DatumGetTextP(value));
}

text *
type_to_text(const bytea *value)
{
	ValueView	view;
	Datum		inside;

	envelope_parse(value, &view);
	inside = inner_take_payload(view.type_code, envelope_open(&view, RIGHT_DECRYPT));
	if (view.type_code == VALUE_TYPE_TEXT)
		return DatumGetTextP(inside);
	return cstring_to_text(inner_to_text(view.type_code, inside));
}

void
type_refuse_literal(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a constant of type encrypted cannot be stored in a definition"),
			 errhint("It would belong to one tenant. Leave it to the statement that writes the row.")));
}

/* Well-formed, and of no key: nobody will ever read it. */
static bytea *
any_value(void)
{
	static const uint8 zeros[VALUE_NONCE_LEN] = {0};
	size_t		size = value_size(0, false);
	bytea	   *value = palloc0(VARHDRSZ + size);

	SET_VARSIZE(value, VARHDRSZ + size);
	(void) value_write_header((uint8 *) VARDATA(value), VALUE_TYPE_TEXT, zeros, zeros, NULL);
	return value;
}

/*
 * encrypted_in(cstring, oid, int4) returns encrypted.  Raises NC001 to
 * NC006, 42501, 22023 for ciphertext inside a tenant.
 */
Datum
nc_in(PG_FUNCTION_ARGS)
{
	char	   *text = PG_GETARG_CSTRING(0);
	int32		typmod = PG_GETARG_INT32(2);

	if (type_literal_mode == LITERALS_REFUSED)
		type_refuse_literal();
	if (type_literal_mode == LITERALS_CHECKED)
		PG_RETURN_BYTEA_P(any_value());
	if (type_wire.as_stored)
		PG_RETURN_BYTEA_P(load_text_form(text, strlen(text), typmod));
	PG_RETURN_BYTEA_P(type_from_text(text, strlen(text), typmod));
}

/*
 * encrypted_out(encrypted) returns cstring.  Raises NC001 to NC005, 42501,
 * 55000 for another tenant's value.
 */
Datum
nc_out(PG_FUNCTION_ARGS)
{
	bytea	   *value = PG_GETARG_BYTEA_PP(0);
	const TenantRow *tenant = type_wire.as_stored ? NULL : session_tenant_row();
	TenantRow	owner;
	ValueView	view;

	if (tenant == NULL)
		PG_RETURN_CSTRING(type_text_form(value));
	envelope_parse(value, &view);
	if (type_is_own(&view, tenant, &owner))
		PG_RETURN_CSTRING(open_text(&view));
	if (session_shows_others())
		PG_RETURN_CSTRING(type_text_form(value));
	type_refuse_other(&owner, tenant,
					  "Select only rows of the session's tenant, or set nomp_crypt.other_tenants to \"ciphertext\".");
}

/*
 * encrypted_recv(internal, oid, int4) returns encrypted: the stored bytes.
 * Raises 22P03 for anything else, NC005 for the wrong type, 42501.
 */
Datum
nc_recv(PG_FUNCTION_ARGS)
{
	StringInfo	buf = (StringInfo) PG_GETARG_POINTER(0);
	int32		typmod = PG_GETARG_INT32(2);
	int			len = buf->len - buf->cursor;
	bytea	   *value = palloc(VARHDRSZ + len);
	ValueView	view;

	SET_VARSIZE(value, VARHDRSZ + len);
	pq_copymsgbytes(buf, VARDATA(value), len);
	if (!value_parse((uint8 *) VARDATA(value), (size_t) len, &view))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("binary input of type encrypted is not an encrypted value"),
				 errhint("In binary, values of this type are always ciphertext. Send plaintext as a text parameter, or declare the parameter as text.")));
	type_check_modifier(value, typmod);
	require_load(&view);
	type_refuse_probe(&view);
	PG_RETURN_BYTEA_P(value);
}

/* encrypted_send(encrypted) returns bytea: the stored bytes. */
Datum
nc_send(PG_FUNCTION_ARGS)
{
	PG_RETURN_BYTEA_P(PG_GETARG_BYTEA_P_COPY(0));
}
