/*
 * keystore_wrap.c
 *		Wrapping data keys in the keystore, as internal SQL functions.
 *
 * Building blocks like those of keystore_sql.c.  Data keys stay between
 * broker and helper: what comes here is wrapped, with its key_check, and has
 * been unwrapped again by then (broker_wrap.c).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "compat.h"
#include "errors.h"
#include "funcapi.h"
#include "keystore_sql.h"
#include "request.h"
#include "utils/builtins.h"

NC_FUNCTION(nc_keystore_fresh);
NC_FUNCTION(nc_keystore_rewrap);

static void
take_text(FunctionCallInfo fcinfo, int i, char *out, size_t size)
{
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(i), out, size);
}

/* Take bytes that must not be longer than that; their length. */
static size_t
take_bytes(FunctionCallInfo fcinfo, int i, uint8 *out, size_t size)
{
	bytea	   *bytes = PG_GETARG_BYTEA_PP(i);
	size_t		len = VARSIZE_ANY_EXHDR(bytes);

	if (len > size)
		error_integrity();
	memcpy(out, VARDATA_ANY(bytes), len);
	return len;
}

/* A key's place, from three arguments: tenant, purpose, version. */
static void
take_place(FunctionCallInfo fcinfo, int i, KeyPlace *place)
{
	char		purpose[16];

	memcpy(place->tenant, PG_GETARG_UUID_P(i)->data, UUID_LEN);
	take_text(fcinfo, i + 1, purpose, sizeof(purpose));
	place->is_index = strcmp(purpose, "index") == 0;
	place->version = (uint32) PG_GETARG_INT32(i + 2);
}

/* The keystore of a KEK, as its row names it. */
static void
take_keystore(FunctionCallInfo fcinfo, int i, char serial[KEYSPEC_SERIAL_MAX])
{
	if (!catalog_keystore_serial(text_to_cstring(PG_GETARG_TEXT_PP(i)), serial))
		error_integrity();
}

/* Have it done, beginning in that keystore; the key with its new wrapped form. */
static KeySpec *
wrap(const WrapRequest *what, const KeystoreRef *store)
{
	KeySpec    *key = palloc(sizeof(KeySpec));
	char		reason[REQUEST_REASON_MAX];
	size_t		len;
	KsStatus	status;

	status = request_keystore(KS_OP_WRAP, store, (const uint8 *) what, sizeof(*what),
							  (uint8 *) key, sizeof(*key), &len, reason);
	if (status == KS_OK && len != sizeof(*key))
		status = KS_MODULE_ERROR;
	if (status != KS_OK)
	{
		pg_uuid_t	uuid;
		TenantRow	tenant;

		memcpy(uuid.data, what->key.place.tenant, UUID_LEN);
		error_keystore(status, reason,
					   catalog_tenant_by_uuid(&uuid, &tenant) ? tenant.id : NULL);
	}
	return key;
}

/*
 * nomp_crypt._keystore_fresh(installation uuid, keystore text, label text,
 *							  tenant uuid, purpose text, version int,
 *							  OUT wrapped bytea, OUT key_check bytea)
 *
 * A new data key, wrapped by the KEK of that label in that keystore.
 */
Datum
nc_keystore_fresh(PG_FUNCTION_ARGS)
{
	WrapRequest what = {0};
	KeystoreRef store = {{0}, 0};
	KeySpec    *key;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	uuid_text(PG_GETARG_UUID_P(0), what.installation);
	take_keystore(fcinfo, 1, store.serial);
	take_text(fcinfo, 2, what.label, sizeof(what.label));
	take_place(fcinfo, 3, &what.key.place);
	key = wrap(&what, &store);
	values[0] = keystore_bytea(key->wrapped, key->wrapped_len);
	values[1] = keystore_bytea(key->key_check, KEY_CHECK_LEN);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * nomp_crypt._keystore_rewrap(installation uuid, from_keystore text, from_label text,
 *							   confirm boolean, keystore text, label text,
 *							   tenant uuid, purpose text, version int,
 *							   wrapped bytea, key_check bytea) returns bytea
 *
 * A data key that the KEK "from_label" wraps, wrapped by the KEK "label".
 * confirm: the row that names the old KEK is committed.  Raises NC005 if the
 * key is not the one that the key_check was made of.
 */
Datum
nc_keystore_rewrap(PG_FUNCTION_ARGS)
{
	WrapRequest what = {0};
	KeystoreRef store = {{0}, 0};
	KeySpec    *key;

	uuid_text(PG_GETARG_UUID_P(0), what.installation);
	take_keystore(fcinfo, 1, store.serial);
	take_text(fcinfo, 2, what.from, sizeof(what.from));
	what.from_own_transaction = !PG_GETARG_BOOL(3);
	take_keystore(fcinfo, 4, what.serial);
	take_text(fcinfo, 5, what.label, sizeof(what.label));
	take_place(fcinfo, 6, &what.key.place);
	what.key.wrapped_len = (uint16) take_bytes(fcinfo, 9, what.key.wrapped, KS_MAX_WRAPPED);
	if (what.from[0] == '\0' ||
		take_bytes(fcinfo, 10, what.key.key_check, KEY_CHECK_LEN) != KEY_CHECK_LEN)
		error_integrity();
	key = wrap(&what, &store);
	PG_RETURN_DATUM(keystore_bytea(key->wrapped, key->wrapped_len));
}
