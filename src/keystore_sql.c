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
#include "catalog/pg_type.h"
#include "errors.h"
#include "compat.h"
#include "funcapi.h"
#include "keystore_sql.h"
#include "miscadmin.h"
#include "request.h"
#include "stores.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "wire.h"

NC_FUNCTION(nc_keystore_setup);
NC_FUNCTION(nc_keystore_confirm);
NC_FUNCTION(nc_keystore_list);
NC_FUNCTION(nc_keystore_remove);
NC_FUNCTION(nc_keystore_see);
NC_FUNCTION(nc_keystore_look);
NC_FUNCTION(nc_keystore_destroy);
NC_FUNCTION(nc_keystore_destroy_kek);
NC_FUNCTION(nc_keystore_enable);
NC_FUNCTION(nc_keystore_status);

#define BODY_MAX	2048
#define DAY_SECONDS			(24 * 60 * 60)
#define LAST_SECOND UINT64CONST(253402300799)	/* of the year 9999 */

static int	key_deletion_window = 7 * DAY_SECONDS;	/* seconds */

/* A request under construction, and its answer. */
typedef struct Exchange
{
	uint8		body[BODY_MAX];
	WireWriter	w;
	uint8		answer[REQUEST_BODY_MAX];
	WireReader	r;
	char		reason[REQUEST_REASON_MAX];
} Exchange;

void
keystore_deletion_init(void)
{
	DefineCustomIntVariable("nomp_crypt.key_deletion_window",
							"How long a keystore that destroys keys later waits before it does.",
							"In whole days, rounded up. Until then the destruction can be cancelled there.",
							&key_deletion_window, 7 * 24 * 60 * 60,
							7 * DAY_SECONDS, 30 * DAY_SECONDS,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

static uint64
deletion_days(void)
{
	return (uint64) (key_deletion_window + DAY_SECONDS - 1) / DAY_SECONDS;
}

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

static Exchange *
new_exchange(void)
{
	Exchange   *x = palloc0(sizeof(Exchange));

	x->w = (WireWriter) {x->body, sizeof(x->body), 0, false};
	return x;
}

static void
put_uuid(Exchange *x, const pg_uuid_t *uuid)
{
	char		text[37];

	uuid_text(uuid, text);
	wire_put_str(&x->w, text, 36);
}

/* Schools, as protocol.h has them. */
static void
put_uuids(Exchange *x, ArrayType *uuids)
{
	StringInfoData text;
	Datum	   *items;
	bool	   *nulls;
	int			n;

	deconstruct_array(uuids, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &items, &nulls, &n);
	if (n < 1 || n > KS_MAX_TENANTS)
		elog(ERROR, "%d tenants in a request to the keystore", n);
	initStringInfo(&text);
	for (int i = 0; i < n; i++)
	{
		char		one[37];

		if (nulls[i])
			elog(ERROR, "a tenant without uuid in a request to the keystore");
		uuid_text(DatumGetUUIDP(items[i]), one);
		appendStringInfo(&text, "%s%s", i > 0 ? " " : "", one);
	}
	wire_put_str(&x->w, text.data, text.len);
}

static void
put_text(Exchange *x, const char *text)
{
	wire_put_str(&x->w, text, strlen(text));
}

static KsStatus
try_exchange(Exchange *x, KsOp op, const KeystoreRef *store)
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

static void
exchange(Exchange *x, KsOp op, KeystoreRef store)
{
	KsStatus	status = try_exchange(x, op, &store);

	if (status != KS_OK)
		error_keystore(status, x->reason, NULL);
}

static void
must_be_done(Exchange *x)
{
	if (!wire_done(&x->r))
		error_keystore(KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL);
}

static char *
get_text(Exchange *x)
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
	Exchange   *x = new_exchange();
	KeystoreRef store = keystore_store_arg(fcinfo, 1);
	char	   *serial;

	store.place = Max(PG_GETARG_INT32(2) - 1, 0);
	put_uuid(x, PG_GETARG_UUID_P(0));
	exchange(x, KS_OP_SETUP, store);
	(void) wire_get_uint(&x->r, 1);
	serial = get_text(x);
	must_be_done(x);
	PG_RETURN_TEXT_P(cstring_to_text(serial));
}

/* nomp_crypt._keystore_confirm(installation uuid, label text, serial text) returns void */
Datum
nc_keystore_confirm(PG_FUNCTION_ARGS)
{
	Exchange   *x = new_exchange();

	put_uuid(x, PG_GETARG_UUID_P(0));
	put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	exchange(x, KS_OP_CONFIRM, keystore_store_arg(fcinfo, 2));
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
		Exchange   *x = new_exchange();
		int			n;

		put_uuid(x, PG_GETARG_UUID_P(0));
		wire_put_uint(&x->w, offset, 4);
		exchange(x, KS_OP_LIST, keystore_store_arg(fcinfo, 1));
		total = (uint32) wire_get_uint(&x->r, 4);
		n = (int) wire_get_uint(&x->r, 2);
		for (int i = 0; i < n && !x->r.bad; i++)
		{
			char	   *label = get_text(x);
			pg_time_t	created = (pg_time_t) wire_get_uint(&x->r, 8);
			Datum		values[2];
			bool		nulls[2] = {false, false};

			values[0] = CStringGetTextDatum(label);
			values[1] = TimestampTzGetDatum(time_t_to_timestamptz(created));
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
		must_be_done(x);
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
	Exchange   *x = new_exchange();
	KeystoreRef store = keystore_store_arg(fcinfo, 3);
	KsStatus	status;
	bool		removed;

	put_uuid(x, PG_GETARG_UUID_P(0));
	put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	wire_put_uint(&x->w, (uint64) Max(PG_GETARG_INT64(2), 0), 8);
	status = try_exchange(x, KS_OP_REMOVE, &store);
	if (status == KS_REFUSED)	/* confirmed or too young by now */
		PG_RETURN_BOOL(false);
	if (status != KS_OK)
		error_keystore(status, x->reason, NULL);
	removed = wire_get_uint(&x->r, 1) != 0;
	must_be_done(x);
	PG_RETURN_BOOL(removed);
}

static Datum
text_array(Datum *items, int n)
{
	return PointerGetDatum(construct_array(items, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* A time of the keystore's; false if it did not tell one. */
static bool
get_time(Exchange *x, Datum *out)
{
	uint64		seconds = wire_get_uint(&x->r, 8);

	*out = TimestampTzGetDatum(time_t_to_timestamptz((pg_time_t) Min(seconds, LAST_SECOND)));
	return seconds != 0;
}

static Datum
row_datum(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

static const char *
state_name(uint64 state)
{
	switch ((KsKeyState) state)
	{
		case KS_STATE_USABLE:
			return "usable";
		case KS_STATE_DISABLED:
			return "disabled";
		case KS_STATE_PENDING:
			return "pending";
	}
	return "unknown";
}

/* A key's state, and when it will be gone, as members of a JSON object. */
static void
get_state(Exchange *x, StringInfo json)
{
	const char *state = state_name(wire_get_uint(&x->r, 1));
	char		when[MAXDATELEN + 1];
	Datum		until;

	appendStringInfo(json, "\"state\":\"%s\"", state);
	if (get_time(x, &until))
		appendStringInfo(json, ",\"until\":\"%s\"",
						 JsonEncodeDateTime(when, until, TIMESTAMPTZOID, NULL));
}

static void
put_reference(StringInfo json, const char *reference)
{
	appendStringInfoString(json, ",\"reference\":");
	escape_json(json, reference);
}

/* One key of the answer to SEE, as an object in a JSON array; its label. */
static char *
get_seen_key(Exchange *x, StringInfo json)
{
	char	   *label = get_text(x);
	char	   *reference;
	StringInfoData state;

	initStringInfo(&state);
	(void) wire_get_uint(&x->r, 1);
	get_state(x, &state);
	reference = get_text(x);
	appendStringInfoString(json, json->len > 1 ? ",{\"label\":" : "{\"label\":");
	escape_json(json, label);
	appendStringInfo(json, ",%s", state.data);
	if (reference[0] != '\0')
		put_reference(json, reference);
	appendStringInfoChar(json, '}');
	return label;
}

/*
 * nomp_crypt._keystore_see(installation uuid, tenants uuid[], keystore text,
 *							OUT serial text, OUT labels text[], OUT keys jsonb)
 *
 * Every key that the keystore of that serial has for the tenants, its canary
 * found before and after.  keys: the same with their states, when those that
 * are pending will be gone, and what the keystore itself calls them.
 */
Datum
nc_keystore_see(PG_FUNCTION_ARGS)
{
	Datum		values[3];
	bool		nulls[3] = {false, false, false};
	Datum	   *labels = palloc(KS_LIST_PAGE * sizeof(Datum));
	StringInfoData json;
	int			total = 0;
	int			n;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	do							/* a full page may have left more */
	{
		Exchange   *x = new_exchange();

		put_uuid(x, PG_GETARG_UUID_P(0));
		put_uuids(x, PG_GETARG_ARRAYTYPE_P(1));
		wire_put_uint(&x->w, (uint64) total, 4);
		exchange(x, KS_OP_SEE, keystore_store_arg(fcinfo, 2));
		values[0] = CStringGetTextDatum(get_text(x));
		n = (int) wire_get_uint(&x->r, 2);
		labels = repalloc(labels, (total + n + 1) * sizeof(Datum));
		for (int i = 0; i < n && !x->r.bad; i++)
			labels[total++] = CStringGetTextDatum(get_seen_key(x, &json));
		must_be_done(x);
	} while (n >= KS_LIST_PAGE);
	appendStringInfoChar(&json, ']');
	values[1] = text_array(labels, total);
	values[2] = DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
	PG_RETURN_DATUM(row_datum(fcinfo, values, nulls));
}

/* Ask for up to KS_MAX_REFERENCES keys; those that are there, into the array. */
static void
look_at(Exchange *x, const KeystoreRef *store, Datum *references, int n, StringInfo json)
{
	wire_put_uint(&x->w, n, 1);
	for (int i = 0; i < n; i++)
		put_text(x, TextDatumGetCString(references[i]));
	exchange(x, KS_OP_LOOK, *store);
	if (wire_get_uint(&x->r, 1) != n)
		x->r.bad = true;
	for (int i = 0; i < n && !x->r.bad; i++)
	{
		bool		found = wire_get_uint(&x->r, 1) != 0;
		StringInfoData state;

		initStringInfo(&state);
		get_state(x, &state);
		if (!found)
			continue;
		appendStringInfo(json, json->len > 1 ? ",{%s" : "{%s", state.data);
		put_reference(json, TextDatumGetCString(references[i]));
		appendStringInfoChar(json, '}');
	}
	must_be_done(x);
}

/*
 * nomp_crypt._keystore_look(installation uuid, keys text[], serial text)
 *		returns jsonb
 *
 * Keys by what the keystore of that serial itself calls them: those that are
 * there, as in _keystore_see's "keys" but without a label, which may have been
 * changed.  The others were looked for several times, the canary found before
 * and after.  Raises NC004 for a keystore without such names.
 */
Datum
nc_keystore_look(PG_FUNCTION_ARGS)
{
	KeystoreRef store = keystore_store_arg(fcinfo, 2);
	StringInfoData json;
	Datum	   *references;
	bool	   *nulls;
	int			n;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &references,
					  &nulls, &n);
	if (array_contains_nulls(PG_GETARG_ARRAYTYPE_P(1)))
		elog(ERROR, "a key without a name in a request to the keystore");
	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	for (int i = 0; i < n; i += KS_MAX_REFERENCES)
	{
		Exchange   *x = new_exchange();

		put_uuid(x, PG_GETARG_UUID_P(0));
		look_at(x, &store, references + i, Min(n - i, KS_MAX_REFERENCES), &json);
	}
	appendStringInfoChar(&json, ']');
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}

/*
 * nomp_crypt._keystore_destroy(installation uuid, tenants uuid[], serial text,
 *								OUT labels text[], OUT pending int,
 *								OUT until timestamptz)
 *
 * Destroys every key of the tenants on the token of that serial and sees that
 * none is left; the labels destroyed now (none, if an earlier call did).  In a
 * keystore that destroys later, asks for that: the labels are those that it
 * was asked for now, so many are pending in all, and the last will be gone at
 * "until", NULL if none is pending.
 */
Datum
nc_keystore_destroy(PG_FUNCTION_ARGS)
{
	Datum		values[3];
	bool		nulls[3] = {false, false, false};
	Datum	   *labels = NULL;
	int			total = 0;
	int			n;

	do							/* a full page may have left more */
	{
		Exchange   *x = new_exchange();

		put_uuid(x, PG_GETARG_UUID_P(0));
		put_uuids(x, PG_GETARG_ARRAYTYPE_P(1));
		put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(2)));
		wire_put_uint(&x->w, deletion_days(), 2);
		exchange(x, KS_OP_DESTROY, keystore_store_arg(fcinfo, 2));
		n = (int) wire_get_uint(&x->r, 2);
		labels = labels == NULL ? palloc((n + 1) * sizeof(Datum)) :
			repalloc(labels, (total + n + 1) * sizeof(Datum));
		for (int i = 0; i < n; i++)
			labels[total++] = CStringGetTextDatum(get_text(x));
		values[1] = Int32GetDatum((int32) wire_get_uint(&x->r, 2));
		nulls[2] = !get_time(x, &values[2]);
		must_be_done(x);
	} while (n >= KS_LIST_PAGE);
	values[0] = text_array(labels, total);
	PG_RETURN_DATUM(row_datum(fcinfo, values, nulls));
}

/*
 * nomp_crypt._keystore_destroy_kek(installation uuid, label text, serial text,
 *									OUT destroyed boolean, OUT until timestamptz)
 *
 * The same for one KEK; false if it was not there any more.
 */
Datum
nc_keystore_destroy_kek(PG_FUNCTION_ARGS)
{
	Exchange   *x = new_exchange();
	Datum		values[2];
	bool		nulls[2] = {false, false};

	put_uuid(x, PG_GETARG_UUID_P(0));
	put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(2)));
	wire_put_uint(&x->w, deletion_days(), 2);
	exchange(x, KS_OP_DESTROY_KEK, keystore_store_arg(fcinfo, 2));
	values[0] = BoolGetDatum(wire_get_uint(&x->r, 1) != 0);
	nulls[1] = !get_time(x, &values[1]);
	must_be_done(x);
	PG_RETURN_DATUM(row_datum(fcinfo, values, nulls));
}

/*
 * nomp_crypt._keystore_enable(installation uuid, tenants uuid[], enable boolean,
 *							   serial text, OUT keys int, OUT obeyed int)
 *
 * Lets the tenants' keys be used in that keystore, or not.  It has so many
 * keys; so many of them are as they should be now.
 */
Datum
nc_keystore_enable(PG_FUNCTION_ARGS)
{
	Exchange   *x = new_exchange();
	Datum		values[2];
	bool		nulls[2] = {false, false};

	put_uuid(x, PG_GETARG_UUID_P(0));
	put_uuids(x, PG_GETARG_ARRAYTYPE_P(1));
	wire_put_uint(&x->w, PG_GETARG_BOOL(2), 1);
	exchange(x, KS_OP_ENABLE, keystore_store_arg(fcinfo, 3));
	for (int i = 0; i < 2; i++)
		values[i] = Int32GetDatum((int32) wire_get_uint(&x->r, 2));
	must_be_done(x);
	PG_RETURN_DATUM(row_datum(fcinfo, values, nulls));
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
	Exchange   *x = new_exchange();
	KeystoreRef store = {{0}, PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1) - 1};
	const char *uri = stores_uri(store.place);
	Datum		values[12];
	bool		nulls[12] = {false};
	KsStatus	status;

	if (uri == NULL)
		PG_RETURN_NULL();
	if (PG_ARGISNULL(0))
		put_text(x, "");
	else
		put_uuid(x, PG_GETARG_UUID_P(0));
	status = try_exchange(x, KS_OP_STATUS, &store);
	values[0] = CStringGetTextDatum(uri);
	values[1] = CStringGetTextDatum(status == KS_OK ? "ok" : keystore_status_text(status));
	values[2] = CStringGetTextDatum(x->reason);
	for (int i = 3; i < lengthof(values); i++)
		nulls[i] = status != KS_OK;
	if (status == KS_OK)
	{
		for (int i = 3; i < 7; i++)
			values[i] = CStringGetTextDatum(get_text(x));
		for (int i = 7; i < 10; i++)
			values[i] = BoolGetDatum(wire_get_uint(&x->r, 1) != 0);
		nulls[8] = PG_ARGISNULL(0);
		values[10] = CStringGetTextDatum(get_text(x));
		values[11] = BoolGetDatum(wire_get_uint(&x->r, 1) != 0);
		must_be_done(x);
	}
	PG_RETURN_DATUM(row_datum(fcinfo, values, nulls));
}
