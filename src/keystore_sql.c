/*
 * keystore_sql.c
 *		The keystore's operations as internal SQL functions.
 *
 * Building blocks of nomp_crypt--1.0.sql's functions, which alone may call
 * them: EXECUTE is revoked from everybody.  Each encodes one request of
 * protocol.h, waits for the broker, decodes, and raises errors.h's errors.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "errors.h"
#include "compat.h"
#include "funcapi.h"
#include "keystore_sql.h"
#include "miscadmin.h"
#include "request.h"
#include "stores.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "wire.h"

NC_FUNCTION(nc_keystore_setup);
NC_FUNCTION(nc_keystore_confirm);
NC_FUNCTION(nc_keystore_list);
NC_FUNCTION(nc_keystore_remove);
NC_FUNCTION(nc_keystore_status);

/* The keystore whose token has that serial; '' for the first. */
KeystoreRef
keystore_store_arg(FunctionCallInfo fcinfo, int i)
{
	KeystoreRef ref = {{0}, 0};
	char	   *serial = text_to_cstring(PG_GETARG_TEXT_PP(i));

	if (strlcpy(ref.serial, serial, sizeof(ref.serial)) >= sizeof(ref.serial))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not the serial number of a token", serial)));
	return ref;
}

Exchange *
keystore_new_exchange(void)
{
	Exchange   *x = palloc0(sizeof(Exchange));

	x->w = (WireWriter) {x->body, sizeof(x->body), 0, false};
	return x;
}

void
keystore_put_uuid(Exchange *x, const pg_uuid_t *uuid)
{
	char		text[37];

	uuid_text(uuid, text);
	wire_put_str(&x->w, text, 36);
}

void
keystore_put_text(Exchange *x, const char *text)
{
	wire_put_str(&x->w, text, strlen(text));
}

static KsStatus
keystore_try_exchange(Exchange *x, KsOp op, const KeystoreRef *store)
{
	size_t		len;
	KsStatus	status;

	if (x->w.bad)
		return KS_REFUSED;
	status = request_keystore(op, store, x->body, x->w.len, x->answer,
							  sizeof(x->answer), &len, x->reason);
	x->r = (WireReader) {x->answer, len, 0, false};
	return status;
}

void
keystore_exchange(Exchange *x, KsOp op, KeystoreRef store)
{
	KsStatus	status = keystore_try_exchange(x, op, &store);

	if (status != KS_OK)
		error_keystore(status, x->reason, NULL);
}

void
keystore_must_be_done(Exchange *x)
{
	if (!wire_done(&x->r))
		error_keystore(KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL);
}

char *
keystore_get_text(Exchange *x)
{
	const uint8 *data;
	size_t		len = wire_get_str(&x->r, &data);

	return x->r.bad ? pstrdup("") : pnstrdup((const char *) data, len);
}

/*
 * nomp_crypt._keystore_setup(installation uuid, serial text, place int)
 *		returns text
 *
 * Creates the canary in that keystore unless it is there; its token's serial.
 * Here and below a serial of '' means the first keystore; here, the one at
 * that place in the settings, from 1: a key service without a key of ours has
 * no serial yet.
 */
Datum
nc_keystore_setup(PG_FUNCTION_ARGS)
{
	Exchange   *x = keystore_new_exchange();
	KeystoreRef store = keystore_store_arg(fcinfo, 1);
	char	   *serial;

	store.place = Max(PG_GETARG_INT32(2) - 1, 0);
	keystore_put_uuid(x, PG_GETARG_UUID_P(0));
	keystore_exchange(x, KS_OP_SETUP, store);
	(void) wire_get_uint(&x->r, 1);
	serial = keystore_get_text(x);
	keystore_must_be_done(x);
	PG_RETURN_TEXT_P(cstring_to_text(serial));
}

/* nomp_crypt._keystore_confirm(installation uuid, label text, serial text) returns void */
Datum
nc_keystore_confirm(PG_FUNCTION_ARGS)
{
	Exchange   *x = keystore_new_exchange();

	keystore_put_uuid(x, PG_GETARG_UUID_P(0));
	keystore_put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	keystore_exchange(x, KS_OP_CONFIRM, keystore_store_arg(fcinfo, 2));
	PG_RETURN_VOID();
}

/*
 * nomp_crypt._keystore_list(installation uuid, serial text)
 *		returns setof (label text, created timestamptz): provisional keys
 */
Datum
nc_keystore_list(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	uint32		offset = 0;
	uint32		total;

	InitMaterializedSRF(fcinfo, 0);
	do
	{
		Exchange   *x = keystore_new_exchange();
		int			n;

		keystore_put_uuid(x, PG_GETARG_UUID_P(0));
		wire_put_uint(&x->w, offset, 4);
		keystore_exchange(x, KS_OP_LIST, keystore_store_arg(fcinfo, 1));
		total = (uint32) wire_get_uint(&x->r, 4);
		n = (int) wire_get_uint(&x->r, 2);
		for (int i = 0; i < n && !x->r.bad; i++)
		{
			char	   *label = keystore_get_text(x);
			pg_time_t	created = (pg_time_t) wire_get_uint(&x->r, 8);
			Datum		values[2];
			bool		nulls[2] = {false, false};

			values[0] = CStringGetTextDatum(label);
			values[1] = TimestampTzGetDatum(time_t_to_timestamptz(created));
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
		keystore_must_be_done(x);
		offset += n;
		if (n == 0)
			break;
	} while (offset < total);
	return (Datum) 0;
}

/*
 * nomp_crypt._keystore_remove(installation uuid, label text, seconds bigint,
 *							   serial text) returns boolean
 *
 * Destroys one key that is provisional and at least that old; the helper
 * checks both.
 */
Datum
nc_keystore_remove(PG_FUNCTION_ARGS)
{
	Exchange   *x = keystore_new_exchange();
	KeystoreRef store = keystore_store_arg(fcinfo, 3);
	KsStatus	status;
	bool		removed;

	keystore_put_uuid(x, PG_GETARG_UUID_P(0));
	keystore_put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	wire_put_uint(&x->w, (uint64) Max(PG_GETARG_INT64(2), 0), 8);
	status = keystore_try_exchange(x, KS_OP_REMOVE, &store);
	if (status == KS_REFUSED)	/* confirmed or too young by now */
		PG_RETURN_BOOL(false);
	if (status != KS_OK)
		error_keystore(status, x->reason, NULL);
	removed = wire_get_uint(&x->r, 1) != 0;
	keystore_must_be_done(x);
	PG_RETURN_BOOL(removed);
}

Datum
keystore_row_datum(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * nomp_crypt._keystore_status(installation uuid, place int)
 *		returns (keystore text, state text, detail text, token text,
 *				 serial text, manufacturer text, model text,
 *				 software boolean, canary boolean, destroys_at_once boolean,
 *				 credentials text, lasting_credentials boolean)
 *
 * The keystore at that place in the settings, from 1; all NULL if there is
 * none.  Never raises for a keystore in trouble: state says what is wrong.
 * detail is for the superuser, who may read the log as well.  credentials:
 * where a key service's come from; the last, whether they do not expire.
 */
Datum
nc_keystore_status(PG_FUNCTION_ARGS)
{
	Exchange   *x = keystore_new_exchange();
	KeystoreRef store = {{0}, PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1) - 1};
	const char *uri = stores_uri(store.place);
	Datum		values[12];
	bool		nulls[12] = {false};
	KsStatus	status;

	if (uri == NULL)
		PG_RETURN_NULL();
	if (PG_ARGISNULL(0))
		keystore_put_text(x, "");
	else
		keystore_put_uuid(x, PG_GETARG_UUID_P(0));
	status = keystore_try_exchange(x, KS_OP_STATUS, &store);
	values[0] = CStringGetTextDatum(uri);
	values[1] = CStringGetTextDatum(status == KS_OK ? "ok" : keystore_status_text(status));
	values[2] = CStringGetTextDatum(x->reason);
	for (int i = 3; i < lengthof(values); i++)
		nulls[i] = status != KS_OK;
	if (status == KS_OK)
	{
		for (int i = 3; i < 7; i++)
			values[i] = CStringGetTextDatum(keystore_get_text(x));
		for (int i = 7; i < 10; i++)
			values[i] = BoolGetDatum(wire_get_uint(&x->r, 1) != 0);
		nulls[8] = PG_ARGISNULL(0);
		values[10] = CStringGetTextDatum(keystore_get_text(x));
		values[11] = BoolGetDatum(wire_get_uint(&x->r, 1) != 0);
		keystore_must_be_done(x);
	}
	PG_RETURN_DATUM(keystore_row_datum(fcinfo, values, nulls));
}
