/*
 * type_convert.c
 *		Between encrypted values and values of built-in types: casts, the
 *		coercion to a column's modifier, and what rewritten plans call.
 *
 * Casts into the type follow the session's tenant, as the input function
 * does.  Casts out of it decrypt for whoever holds the right, inside a tenant
 * or not.  The rule for coercion is at nc_coerce.
 *
 * Decrypted payloads are wiped here; a result is the executor's.
 */
#include "postgres.h"

#include "access_log.h"
#include "canonical.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "envelope.h"
#include "errors.h"
#include "inner.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "rights.h"
#include "session.h"
#include "type_io.h"
#include "typemod.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

NC_FUNCTION(nc_coerce);
NC_FUNCTION(nc_from_value);
NC_FUNCTION(nc_to_value);
NC_FUNCTION(nc_to_json);
NC_FUNCTION(nc_plain);
NC_FUNCTION(nc_store);

/* With its fingerprint, a value must fit a third of a btree's page. */
#define MAX_SEARCHABLE	2500

/* What a coercion starts from, to be kept if it changes nothing. */
typedef struct Original
{
	bytea	   *value;
	ValueView	view;
	bytea	   *payload;
} Original;

static void
wipe(char *bytes, size_t len)
{
	explicit_bzero(bytes, len);
	pfree(bytes);
}

static void
take_fingerprint(const TenantRow *tenant, int rights, uint8 code, Datum value,
				 size_t payload_len, int32 typmod,
				 uint8 fingerprint[VALUE_FINGERPRINT_LEN])
{
	size_t		len;
	char	   *text;

	if (payload_len > MAX_SEARCHABLE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("value is too long for a searchable column"),
				 errdetail("It has %zu bytes; a searchable value has at most %d, so that an index can hold it.",
						   payload_len, MAX_SEARCHABLE),
				 errhint("Declare the column without \"searchable\", or search in a shorter one.")));
	text = canonical_text(code, value, typemod_normal(typmod), &len);
	envelope_fingerprint(tenant, rights, text, len, fingerprint, NULL);
	wipe(text, len);
}

static bool
is_unchanged(const Original *old, uint8 code, const char *payload, size_t len,
			 const uint8 *fingerprint)
{
	if (old == NULL || old->view.type_code != code ||
		VARSIZE(old->payload) - VARHDRSZ != len ||
		memcmp(VARDATA(old->payload), payload, len) != 0 ||
		(old->view.fingerprint != NULL) != (fingerprint != NULL))
		return false;
	return fingerprint == NULL ||
		memcmp(old->view.fingerprint, fingerprint, VALUE_FINGERPRINT_LEN) == 0;
}

/* Encrypt a value of the type that "code" says; old may be NULL. */
static bytea *
seal(const TenantRow *tenant, int rights, uint8 code, Datum value, int32 typmod,
	 const Original *old)
{
	size_t		len;
	char	   *payload = inner_payload(code, value, &len);
	uint8		buffer[VALUE_FINGERPRINT_LEN];
	uint8	   *fingerprint = NULL;
	bytea	   *sealed;

	if (typemod_searchable(typmod))
	{
		fingerprint = buffer;
		take_fingerprint(tenant, rights, code, value, len, typmod, fingerprint);
	}
	if (is_unchanged(old, code, payload, len, fingerprint))
	{
		sealed = old->value;
		access_sealed(tenant, rights);
	}
	else
		sealed = envelope_seal(tenant, rights, code, payload, len, fingerprint);
	wipe(payload, len);
	return sealed;
}

static uint8
require_code(Oid type)
{
	uint8		code = inner_code(type);

	if (code == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_COERCE),
				 errmsg("values of type %s cannot be encrypted", format_type_be(type)),
				 errhint("Cast to text or bytea.")));
	return code;
}

bytea *
type_seal(const TenantRow *tenant, int rights, Datum value, Oid type, int32 typmod,
		  bool explicit)
{
	uint8		code;

	if (typmod < 0)
		return seal(tenant, rights, require_code(type), value, -1, NULL);
	code = typemod_type_code(typmod);
	value = inner_convert(value, type, code, typemod_inner(typmod), explicit);
	return seal(tenant, rights, code, value, typmod, NULL);
}

Datum
type_open(const ValueView *view, int rights, Oid type, int32 modifier, bool explicit)
{
	Oid			from = inner_type(view->type_code);
	bool		as_is = modifier < 0 && (from == type || (from == VARCHAROID && type == TEXTOID));
	uint8		code = as_is ? 0 : require_code(type);
	Datum		value = inner_take_payload(view->type_code, envelope_open(view, rights));

	return as_is ? value : inner_convert(value, from, code, modifier, explicit);
}

Datum
type_open_in_session(const ValueView *view, Oid type)
{
	const TenantRow *tenant = session_tenant_row();
	TenantRow	owner;

	if (tenant == NULL)
		error_no_tenant("encrypted values cannot be compared");
	if (!type_is_own(view, tenant, &owner))
		type_refuse_other(&owner, tenant, "Select only rows of the session's tenant.");
	return type_open(view, RIGHT_DECRYPT, type, -1, false);
}

/* ---- coercion to a column's modifier ---- */

/* Its payload is still needed. */
static Datum
original_value(const Original *old)
{
	return inner_from_payload(old->view.type_code, VARDATA(old->payload),
							  VARSIZE(old->payload) - VARHDRSZ);
}

/*
 * Convert for a role that may write but not read: the reason why a value
 * does not fit would quote the value.
 */
static Datum
convert_unseen(const Original *old, int32 typmod, bool explicit)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Datum value = 0;

	PG_TRY();
	{
		value = inner_convert(original_value(old), inner_type(old->view.type_code),
							  typemod_type_code(typmod), typemod_inner(typmod), explicit);
	}
	PG_CATCH();
	{
		int			code = geterrcode();

		if (ERRCODE_TO_CATEGORY(code) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(ERROR,
				(errcode(code),
				 errmsg("value is not valid for the column's type %s",
						format_type_with_typemod(inner_type(typemod_type_code(typmod)),
												 typemod_inner(typmod))),
				 errhint("The reason is shown to roles with the right \"decrypt\" only.")));
	}
	PG_END_TRY();
	return value;
}

/* Decrypt, convert, and encrypt again, for a tenant in which we may. */
static bytea *
recode(Original *old, const TenantRow *tenant, int32 typmod, bool explicit)
{
	uint8		code = typemod_type_code(typmod);
	Datum		value;
	bytea	   *result;

	old->payload = envelope_open(&old->view, RIGHT_ENCRYPT | RIGHT_DECRYPT);
	if (rights_has(&tenant->uuid, RIGHT_DECRYPT))
		value = inner_convert(original_value(old), inner_type(old->view.type_code), code,
							  typemod_inner(typmod), explicit);
	else
		value = convert_unseen(old, typmod, explicit);
	result = seal(tenant, RIGHT_ENCRYPT, code, value, typmod, old);
	envelope_wipe(old->payload);
	return result;
}

/* Nothing but a decrypted value could show more. */
static bool
fits_as_it_is(const ValueView *view, int32 typmod)
{
	return view->type_code == typemod_type_code(typmod) && view->fingerprint == NULL &&
		!typemod_searchable(typmod) && typemod_inner(typmod) < 0;
}

/*
 * encrypted(encrypted, int4, boolean) returns encrypted: to a column's
 * modifier.
 *
 * Inside a tenant the value must be its own, and becomes what the column
 * says; a fingerprint is taken anew, because a value does not say after which
 * normalisation its own was.  Outside, the header must fit, no key is used;
 * but an explicit cast converts, for the value's own tenant.  Raises NC005,
 * 55000 for another tenant's value, 42501, and what the type inside raises.
 */
Datum
nc_coerce(PG_FUNCTION_ARGS)
{
	Original	old = {.value = PG_GETARG_BYTEA_PP(0)};
	int32		typmod = PG_GETARG_INT32(1);
	bool		explicit = PG_GETARG_BOOL(2);
	const TenantRow *tenant = session_tenant_row();
	TenantRow	owner;

	envelope_parse(old.value, &old.view);
	if (typmod < 0)
		PG_RETURN_BYTEA_P(old.value);
	if (tenant == NULL)
	{
		type_refuse_probe(&old.view);
		if (!explicit)
			type_check_modifier(old.value, typmod);
		if (!explicit || fits_as_it_is(&old.view, typmod))
			PG_RETURN_BYTEA_P(old.value);
		if (!envelope_tenant(&old.view, &owner))
			error_key_unknown(NULL);
		rights_require(&owner, RIGHT_DECRYPT);
		tenant = &owner;
	}
	else if (!type_is_own(&old.view, tenant, &owner))
		type_refuse_other(&owner, tenant,
						  "A tenant stores its own values only. Decrypt it first: value::text.");
	/* ON UPDATE CASCADE copies a value from a column of the same kind */
	if (InNoForceRLSOperation() && old.view.fingerprint != NULL)
	{
		type_check_modifier(old.value, typmod);
		PG_RETURN_BYTEA_P(old.value);
	}
	rights_require(tenant, RIGHT_ENCRYPT);
	if (fits_as_it_is(&old.view, typmod))
	{
		access_sealed(tenant, RIGHT_ENCRYPT);	/* a literal, to be stored now */
		PG_RETURN_BYTEA_P(old.value);
	}
	PG_RETURN_BYTEA_P(recode(&old, tenant, typmod, explicit));
}

/* ---- casts ---- */

/*
 * A scan comes by the same column of row after row, and rows lie side by side
 * in their page: what is read next is about as far from here as this is from
 * the one before, and can be fetched into the processor's cache meanwhile.
 * "last" is the caller's, one for each place of calling.
 */
static inline void
fetch_ahead(const ValueView *value, const uint8 **last)
{
	ptrdiff_t	step = value->start - *last;

	*last = value->start;
	if (step > -BLCKSZ / 4 && step < BLCKSZ / 4)
	{
		__builtin_prefetch(value->start + step - 48);
		__builtin_prefetch(value->start + step + 16);
		__builtin_prefetch(value->start + step + 80);
	}
}

/* What a cast keeps between calls: its type, the last value's address. */
typedef struct Cast
{
	Oid			type;
	const uint8 *last;
} Cast;

/* A type of the called function's own signature, looked up once. */
static Cast *
cast_of(FunctionCallInfo fcinfo, bool result)
{
	Cast	   *cast = fcinfo->flinfo->fn_extra;
	Oid		   *args;
	int			nargs;
	Oid			type;

	if (cast != NULL)
		return cast;
	type = get_func_signature(fcinfo->flinfo->fn_oid, &args, &nargs);
	if (!result)
		type = args[0];
	cast = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Cast));
	cast->type = type;
	fcinfo->flinfo->fn_extra = cast;
	return cast;
}

/*
 * encrypted(<type>, int4, boolean) returns encrypted
 *
 * For the session's tenant.  Outside one text and varchar are taken for
 * ciphertext, as by the input function.  Raises NC001 to NC006, 42501, 22023
 * for ciphertext inside a tenant, and what the type inside raises.
 */
Datum
nc_from_value(PG_FUNCTION_ARGS)
{
	Oid			type = cast_of(fcinfo, false)->type;
	int32		typmod = PG_GETARG_INT32(1);
	const TenantRow *tenant = session_tenant_row();
	text	   *plain;

	if (type == TEXTOID || type == VARCHAROID || type == BPCHAROID)
	{
		char	   *data;
		int			len;

		plain = PG_GETARG_TEXT_PP(0);
		data = VARDATA_ANY(plain);
		len = VARSIZE_ANY_EXHDR(plain);
		if (type == BPCHAROID)
			len = bpchartruelen(data, len);
		if (tenant == NULL)
			PG_RETURN_BYTEA_P(type_from_text(data, len, typmod));
		type_refuse_ciphertext(data, len);
		if (type != BPCHAROID && typemod_type_code(typmod) == VALUE_TYPE_TEXT &&
			!typemod_searchable(typmod))
			PG_RETURN_BYTEA_P(type_seal_text(tenant, RIGHTS_TO_SEAL(typmod), data, len));
	}
	if (tenant == NULL)
		error_no_tenant("plaintext cannot be encrypted");
	PG_RETURN_BYTEA_P(type_seal(tenant, RIGHTS_TO_SEAL(typmod), PG_GETARG_DATUM(0), type,
								typmod, PG_GETARG_BOOL(2)));
}

/*
 * <type>(encrypted) returns <type>
 *
 * Decrypts, for whoever holds the right, inside a tenant or not.  Raises
 * 42501, NC001 to NC005, 42846 if there is no cast from the type inside.
 */
Datum
nc_to_value(PG_FUNCTION_ARGS)
{
	Cast	   *cast = cast_of(fcinfo, true);
	ValueView	view;

	envelope_parse(PG_GETARG_BYTEA_PP(0), &view);
	fetch_ahead(&view, &cast->last);
	PG_RETURN_DATUM(type_open(&view, RIGHT_DECRYPT, cast->type, -1, true));
}

/* to_json(value), as if a query had called it with that type. */
static Datum
call_to_json(Datum value, Oid type)
{
	FmgrInfo	to_json;
	Const	   *argument = makeNullConst(type, -1, get_typcollation(type));

	fmgr_info(F_TO_JSON, &to_json);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSON, JSONOID, list_make1(argument),
											 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL),
					   &to_json);
	return FunctionCall1Coll(&to_json, DEFAULT_COLLATION_OID, value);
}

/*
 * encrypted_to_json(encrypted) returns json
 *
 * The cast; but PostgreSQL's JSON functions also call it, without an
 * expression, for a column of the type in to_jsonb(NEW), row_to_json and the
 * like.  There the session's rule holds, as for output: the value inside its
 * tenant, ciphertext as a string outside.
 */
Datum
nc_to_json(PG_FUNCTION_ARGS)
{
	bytea	   *value = PG_GETARG_BYTEA_PP(0);
	const TenantRow *tenant = session_tenant_row();
	ValueView	view;
	TenantRow	owner;
	Oid			type;

	if (fcinfo->flinfo->fn_expr != NULL)
		return nc_to_value(fcinfo);
	envelope_parse(value, &view);
	if (tenant == NULL ||
		(!type_is_own(&view, tenant, &owner) && session_shows_others()))
		return call_to_json(CStringGetTextDatum(type_text_form(value)), TEXTOID);
	if (!type_is_own(&view, tenant, &owner))
		type_refuse_other(&owner, tenant,
						  "Select only rows of the session's tenant, or set nomp_crypt.other_tenants to \"ciphertext\".");
	type = inner_type(view.type_code);
	return call_to_json(type_open(&view, RIGHT_DECRYPT, type, -1, false), type);
}

/* ---- for rewritten plans ---- */

/* What nc_plain keeps between calls: the last input and its result. */
typedef struct Kept
{
	Oid			type;
	int16		len;
	bool		byval;
	bool		has_result;
	pg_uuid_t	tenant;
	bytea	   *input;
	Datum		result;
	const uint8 *last;
} Kept;

static Kept *
kept_for(FunctionCallInfo fcinfo)
{
	Kept	   *kept = fcinfo->flinfo->fn_extra;

	if (kept != NULL)
		return kept;
	kept = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Kept));
	kept->type = get_fn_expr_rettype(fcinfo->flinfo);
	if (!OidIsValid(kept->type))
		elog(ERROR, "could not determine the result type");
	get_typlenbyval(kept->type, &kept->len, &kept->byval);
	fcinfo->flinfo->fn_extra = kept;
	return kept;
}

/* May a kept result still be shown?  Key and right must be at hand. */
static bool
is_kept(const Kept *kept, const bytea *value, const ValueView *view,
		const TenantRow *tenant)
{
	return kept->has_result &&
		VARSIZE_ANY_EXHDR(kept->input) == VARSIZE_ANY_EXHDR(value) &&
		memcmp(VARDATA_ANY(kept->input), VARDATA_ANY(value),
			   VARSIZE_ANY_EXHDR(value)) == 0 &&
		memcmp(&kept->tenant, &tenant->uuid, UUID_LEN) == 0 &&
		envelope_known_owner(view, &tenant->uuid) &&
		rights_cached(&tenant->uuid, RIGHT_DECRYPT);
}

static void
keep(Kept *kept, const bytea *value, const TenantRow *tenant, Datum result,
	 MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	if (kept->has_result)
	{
		kept->has_result = false;
		pfree(kept->input);
		if (!kept->byval)
			pfree(DatumGetPointer(kept->result));
	}
	kept->input = (bytea *) DatumGetPointer(datumCopy(PointerGetDatum(value), false, -1));
	kept->result = datumCopy(result, kept->byval, kept->len);
	kept->tenant = tenant->uuid;
	kept->has_result = true;
	MemoryContextSwitchTo(old);
}

/*
 * nomp_crypt._plain(value encrypted, witness anyelement, once boolean)
 *		returns anyelement
 *
 * A side of a comparison, decrypted to the type of "witness", inside a tenant
 * only.  With "once" the argument is the same in every row, and so is
 * decrypted once.  Raises NC001 to NC006, 42501, 55000 for another tenant's
 * value.
 */
Datum
nc_plain(PG_FUNCTION_ARGS)
{
	const TenantRow *tenant = session_tenant_row();
	Kept	   *kept = kept_for(fcinfo);
	bytea	   *value;
	ValueView	view;
	Datum		result;

	if (tenant == NULL)
		error_no_tenant("encrypted values cannot be compared");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	value = PG_GETARG_BYTEA_PP(0);
	envelope_parse(value, &view);
	fetch_ahead(&view, &kept->last);
	if (is_kept(kept, value, &view, tenant))
		PG_RETURN_DATUM(kept->result);
	result = type_open_in_session(&view, kept->type);
	if (!PG_ARGISNULL(2) && PG_GETARG_BOOL(2))
		keep(kept, value, tenant, result, fcinfo->flinfo->fn_mcxt);
	PG_RETURN_DATUM(result);
}

/*
 * nomp_crypt._store(value encrypted, typmod int4) returns encrypted
 *
 * Stands around a value that a rewritten plan is about to store without a
 * coercion: its header must fit the column, and inside a tenant it must be
 * the tenant's own.  Raises NC005, 55000, 42501.
 */
Datum
nc_store(PG_FUNCTION_ARGS)
{
	bytea	   *value = PG_GETARG_BYTEA_PP(0);
	const TenantRow *tenant = session_tenant_row();
	ValueView	view;
	TenantRow	owner;

	type_check_modifier(value, PG_GETARG_INT32(1));
	envelope_parse(value, &view);
	type_refuse_probe(&view);
	if (tenant != NULL)
	{
		if (!type_is_own(&view, tenant, &owner))
			type_refuse_other(&owner, tenant,
							  "A tenant stores its own values only. Decrypt it first: value::text.");
		rights_require(tenant, RIGHT_ENCRYPT);
	}
	PG_RETURN_BYTEA_P(value);
}
