/*
 * keystore_seen.c
 *		What a keystore has, and its end, as internal SQL functions.
 *
 * As in keystore_sql.c: one request each, for the erasure's functions alone.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "errors.h"
#include "keystore_sql.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

NC_FUNCTION(nc_keystore_see);
NC_FUNCTION(nc_keystore_look);
NC_FUNCTION(nc_keystore_destroy);
NC_FUNCTION(nc_keystore_destroy_kek);
NC_FUNCTION(nc_keystore_enable);

#define DAY_SECONDS			(24 * 60 * 60)
#define LAST_SECOND UINT64CONST(253402300799)	/* of the year 9999 */

static int	key_deletion_window = 7 * DAY_SECONDS;	/* seconds */

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
	char	   *label = keystore_get_text(x);
	char	   *reference;
	StringInfoData state;

	initStringInfo(&state);
	(void) wire_get_uint(&x->r, 1);
	get_state(x, &state);
	reference = keystore_get_text(x);
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
		Exchange   *x = keystore_new_exchange();

		keystore_put_uuid(x, PG_GETARG_UUID_P(0));
		put_uuids(x, PG_GETARG_ARRAYTYPE_P(1));
		wire_put_uint(&x->w, (uint64) total, 4);
		keystore_exchange(x, KS_OP_SEE, keystore_store_arg(fcinfo, 2));
		values[0] = CStringGetTextDatum(keystore_get_text(x));
		n = (int) wire_get_uint(&x->r, 2);
		labels = repalloc(labels, (total + n + 1) * sizeof(Datum));
		for (int i = 0; i < n && !x->r.bad; i++)
			labels[total++] = CStringGetTextDatum(get_seen_key(x, &json));
		keystore_must_be_done(x);
	} while (n >= KS_LIST_PAGE);
	appendStringInfoChar(&json, ']');
	values[1] = text_array(labels, total);
	values[2] = DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
	PG_RETURN_DATUM(keystore_row_datum(fcinfo, values, nulls));
}

/* Ask for up to KS_MAX_REFERENCES keys; those that are there, into the array. */
static void
look_at(Exchange *x, const KeystoreRef *store, Datum *references, int n, StringInfo json)
{
	wire_put_uint(&x->w, n, 1);
	for (int i = 0; i < n; i++)
		keystore_put_text(x, TextDatumGetCString(references[i]));
	keystore_exchange(x, KS_OP_LOOK, *store);
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
	keystore_must_be_done(x);
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
		Exchange   *x = keystore_new_exchange();

		keystore_put_uuid(x, PG_GETARG_UUID_P(0));
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
		Exchange   *x = keystore_new_exchange();

		keystore_put_uuid(x, PG_GETARG_UUID_P(0));
		put_uuids(x, PG_GETARG_ARRAYTYPE_P(1));
		keystore_put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(2)));
		wire_put_uint(&x->w, deletion_days(), 2);
		keystore_exchange(x, KS_OP_DESTROY, keystore_store_arg(fcinfo, 2));
		n = (int) wire_get_uint(&x->r, 2);
		labels = labels == NULL ? palloc((n + 1) * sizeof(Datum)) :
			repalloc(labels, (total + n + 1) * sizeof(Datum));
		for (int i = 0; i < n; i++)
			labels[total++] = CStringGetTextDatum(keystore_get_text(x));
		values[1] = Int32GetDatum((int32) wire_get_uint(&x->r, 2));
		nulls[2] = !get_time(x, &values[2]);
		keystore_must_be_done(x);
	} while (n >= KS_LIST_PAGE);
	values[0] = text_array(labels, total);
	PG_RETURN_DATUM(keystore_row_datum(fcinfo, values, nulls));
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
	Exchange   *x = keystore_new_exchange();
	Datum		values[2];
	bool		nulls[2] = {false, false};

	keystore_put_uuid(x, PG_GETARG_UUID_P(0));
	keystore_put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	keystore_put_text(x, text_to_cstring(PG_GETARG_TEXT_PP(2)));
	wire_put_uint(&x->w, deletion_days(), 2);
	keystore_exchange(x, KS_OP_DESTROY_KEK, keystore_store_arg(fcinfo, 2));
	values[0] = BoolGetDatum(wire_get_uint(&x->r, 1) != 0);
	nulls[1] = !get_time(x, &values[1]);
	keystore_must_be_done(x);
	PG_RETURN_DATUM(keystore_row_datum(fcinfo, values, nulls));
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
	Exchange   *x = keystore_new_exchange();
	Datum		values[2];
	bool		nulls[2] = {false, false};

	keystore_put_uuid(x, PG_GETARG_UUID_P(0));
	put_uuids(x, PG_GETARG_ARRAYTYPE_P(1));
	wire_put_uint(&x->w, PG_GETARG_BOOL(2), 1);
	keystore_exchange(x, KS_OP_ENABLE, keystore_store_arg(fcinfo, 3));
	for (int i = 0; i < 2; i++)
		values[i] = Int32GetDatum((int32) wire_get_uint(&x->r, 2));
	keystore_must_be_done(x);
	PG_RETURN_DATUM(keystore_row_datum(fcinfo, values, nulls));
}
