/*
 * reencrypt.c
 *		A value again, under another key: nomp_crypt.reencrypt(value, tenant).
 *
 * The payload goes from one key to the other as it is, without becoming a
 * value of its type.  A fingerprint depends on the canonical text and on the
 * school's index key, so within a school it stays, and for another school it
 * is made from the canonical text.  Which normalisation that text has had is
 * not in the value but in its column; where no column is at hand, the one
 * that gives the old fingerprint under the old key is the one.
 *
 * Payloads and texts are wiped here.
 */
#include "postgres.h"

#include "canonical.h"
#include "compat.h"
#include "envelope.h"
#include "errors.h"
#include "inner.h"
#include "inside.h"
#include "reencrypt.h"
#include "register_proof.h"
#include "rights.h"
#include "rows.h"
#include "typemod.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

NC_FUNCTION(nc_reencrypt);
NC_FUNCTION(nc_reencrypt_inside);

static void
wipe(char *bytes, size_t len)
{
	explicit_bzero(bytes, len);
	pfree(bytes);
}

static char *
text_of(const ValueView *view, const bytea *payload, Normal normal, size_t *len)
{
	Datum		value = inner_from_payload(view->type_code, VARDATA_ANY(payload),
										   VARSIZE_ANY_EXHDR(payload));

	return canonical_text(view->type_code, value, normal, len);
}

void
reencrypt_fingerprint(const ValueView *view, const bytea *payload, const TenantRow *tenant,
					  int rights, int32 typmod, uint8 fingerprint[VALUE_FINGERPRINT_LEN])
{
	size_t		len;
	char	   *text = text_of(view, payload, typemod_normal(typmod), &len);

	envelope_fingerprint(tenant, rights, text, len, fingerprint, NULL);
	wipe(text, len);
}

static bool
is_textual(uint8 code)
{
	return code == VALUE_TYPE_TEXT || code == VALUE_TYPE_VARCHAR || code == VALUE_TYPE_BPCHAR;
}

/* From the old fingerprint to the new one; no column says how it was made. */
static void
carry_fingerprint(const ValueView *view, const bytea *payload, const TenantRow *owner,
				  const TenantRow *to, uint8 fingerprint[VALUE_FINGERPRINT_LEN])
{
	Normal		last = is_textual(view->type_code) ? NORMAL_DIGITS : NORMAL_EXACT;

	for (Normal normal = NORMAL_EXACT; normal <= last; normal++)
	{
		size_t		len;
		char	   *text = text_of(view, payload, normal, &len);
		bool		found;

		envelope_fingerprint(owner, RIGHT_DECRYPT, text, len, fingerprint, NULL);
		found = memcmp(fingerprint, view->fingerprint, VALUE_FINGERPRINT_LEN) == 0;
		if (found)
			envelope_fingerprint(to, RIGHT_ENCRYPT, text, len, fingerprint, NULL);
		wipe(text, len);
		if (found)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("fingerprint of the value is not by the present index key of tenant \"%s\"",
					owner->id),
			 errhint("Write it again first, inside its tenant: UPDATE ... SET column = column::text.")));
}

static bool
same_tenant(const TenantRow *a, const TenantRow *b)
{
	return memcmp(&a->uuid, &b->uuid, UUID_LEN) == 0;
}

bytea *
reencrypt_payload(const ValueView *view, const bytea *payload, const TenantRow *owner,
				  const TenantRow *to, int32 typmod)
{
	uint8		room[VALUE_FINGERPRINT_LEN];
	const uint8 *fingerprint = view->fingerprint;

	if (fingerprint != NULL && !same_tenant(owner, to))
	{
		if (typemod_searchable(typmod))
			reencrypt_fingerprint(view, payload, to, RIGHT_ENCRYPT, typmod, room);
		else
			carry_fingerprint(view, payload, owner, to, room);
		fingerprint = room;
	}
	return envelope_seal(to, RIGHT_ENCRYPT, view->type_code, VARDATA_ANY(payload),
						 VARSIZE_ANY_EXHDR(payload), fingerprint);
}

/* Raise what keeps a value from being opened. */
static void
refuse(ValueState state, const TenantRow *owner)
{
	switch (state)
	{
		case VALUE_OPENS:
			return;
		case VALUE_ERASED:
			register_raise_erased(owner);
		case VALUE_SUSPENDED:
			error_suspended(owner->id, owner->state == TENANT_FENCED);
		case VALUE_UNKNOWN:
			error_key_unknown(owner->id[0] != '\0' ? owner->id : NULL);
		case VALUE_DAMAGED:
			error_integrity();
	}
}

/* To the newest key of a tenant, or with NULL of the value's own. */
static Datum
reencrypt(Datum value, const TenantRow *to, int32 typmod)
{
	bytea	   *old = DatumGetByteaPP(value);
	bytea	   *payload;
	bytea	   *result;
	ValueView	view;
	TenantRow	owner;
	KeyFacts	key;
	ValueState	state;

	envelope_parse(old, &view);
	state = envelope_state(&view, &owner, &key);
	if (to == NULL)
		to = &owner;
	if (owner.id[0] != '\0')
		rights_require(&owner, RIGHT_DECRYPT);
	if (to->id[0] != '\0')
		rights_require(to, RIGHT_ENCRYPT);
	refuse(state, &owner);
	if (same_tenant(to, &owner) && envelope_is_newest(&owner, &key))
		return value;
	payload = envelope_open(&view, RIGHT_DECRYPT);
	result = reencrypt_payload(&view, payload, &owner, to, typmod);
	envelope_wipe(payload);
	return PointerGetDatum(result);
}

void
reencrypt_tenant(text *name, TenantRow *tenant)
{
	char	   *id = text_to_cstring(name);

	if (!rows_tenant_by_id(id, tenant))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("tenant \"%s\" does not exist", id)));
}

/*
 * nomp_crypt.reencrypt(value encrypted, to_tenant text) returns encrypted
 *
 * Under the newest key of its own tenant (to_tenant is NULL), or of another
 * one; the same value if it is that already.  Needs the right "decrypt" in
 * the value's tenant and "encrypt" in the other.  Raises 42704, 42501, NC001
 * to NC005; 55000 if the fingerprint is by an index key of the past.
 */
Datum
nc_reencrypt(PG_FUNCTION_ARGS)
{
	TenantRow	to;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (PG_ARGISNULL(1))
		PG_RETURN_DATUM(reencrypt(PG_GETARG_DATUM(0), NULL, -1));
	reencrypt_tenant(PG_GETARG_TEXT_PP(1), &to);
	PG_RETURN_DATUM(reencrypt(PG_GETARG_DATUM(0), &to, -1));
}

static Datum
reencrypt_one(Datum value, int32 typmod, void *arg)
{
	return reencrypt(value, arg, typmod);
}

/*
 * nomp_crypt._reencrypt(value anyelement, to_tenant text, typmod int4)
 *		returns anyelement
 *
 * The same for whatever a column of that modifier holds.
 */
Datum
nc_reencrypt_inside(PG_FUNCTION_ARGS)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, 0);
	TenantRow	to;

	if (!OidIsValid(type))
		elog(ERROR, "could not determine the argument's type");
	reencrypt_tenant(PG_GETARG_TEXT_PP(1), &to);
	PG_RETURN_DATUM(inside_map(PG_GETARG_DATUM(0), type, PG_GETARG_INT32(2),
							   reencrypt_one, &to));
}
