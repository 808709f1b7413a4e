/*
 * keystore_create.c
 *		Makes KEKs, as internal SQL functions, and confirms them.
 *
 * Building blocks like those of keystore_sql.c.  A KEK is made provisional,
 * inside the transaction that inserts its row; it is confirmed when that has
 * committed, without waiting.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "admin.h"
#include "catalog.h"
#include "compat.h"
#include "errors.h"
#include "funcapi.h"
#include "keystore_sql.h"
#include "nodes/pg_list.h"
#include "request.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "wire.h"

NC_FUNCTION(nc_keystore_create);
NC_FUNCTION(nc_keystore_create_kek);

/* A key made in this transaction, to be confirmed when it commits. */
typedef struct CreatedKey
{
	KeystoreRef store;
	char		label[KS_MAX_LABEL];
} CreatedKey;

static List *created_keys = NIL;

/* Confirm what this transaction made, unless a savepoint took its row back. */
static void
confirm_created(void)
{
	ListCell   *lc;
	pg_uuid_t	installation;

	if (created_keys == NIL || !catalog_installation(&installation))
		return;
	foreach(lc, created_keys)
	{
		CreatedKey *key = lfirst(lc);

		if (!catalog_label_exists(key->label))
			key->label[0] = '\0';
	}
}

static void
post_confirmations(void)
{
	ListCell   *lc;

	foreach(lc, created_keys)
	{
		CreatedKey *key = lfirst(lc);
		uint8		body[2 * KS_MAX_LABEL];
		WireWriter	w = {body, sizeof(body), 0, false};

		if (key->label[0] == '\0')
			continue;
		/* nomp_crypt:<installation, 36 characters>:... */
		wire_put_str(&w, key->label + strlen("nomp_crypt:"), 36);
		wire_put_str(&w, key->label, strlen(key->label));
		if (!w.bad)
			request_post(KS_OP_CONFIRM, &key->store, body, w.len);
	}
}

static void
at_xact_event(XactEvent event, void *arg)
{
	if (created_keys == NIL)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			confirm_created();
			return;
		case XACT_EVENT_COMMIT:
			post_confirmations();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:	/* confirmed at first use */
			break;
		default:
			return;
	}
	list_free_deep(created_keys);
	created_keys = NIL;
}

void
keystore_sql_init(void)
{
	RegisterXactCallback(at_xact_event, NULL);
	keystore_deletion_init();
}

static void
remember_created(const char *label, const char *serial)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	CreatedKey *key = palloc0(sizeof(CreatedKey));

	strlcpy(key->label, label, sizeof(key->label));
	strlcpy(key->store.serial, serial, sizeof(key->store.serial));
	created_keys = lappend(created_keys, key);
	MemoryContextSwitchTo(old);
}

/* Bytes as a bytea of their own. */
Datum
keystore_bytea(const uint8 *bytes, size_t len)
{
	bytea	   *value = palloc(VARHDRSZ + len);

	SET_VARSIZE(value, VARHDRSZ + len);
	memcpy(VARDATA(value), bytes, len);
	return PointerGetDatum(value);
}

/*
 * A new KEK for the installation, tenant and generation of the arguments, in
 * the keystore of the fourth, provisional until this transaction has committed, and first data keys of
 * it: for values, for the index.
 */
static CreateAnswer *
create_kek(FunctionCallInfo fcinfo, int nkeys, char label[KS_MAX_LABEL])
{
	pg_uuid_t  *tenant = PG_GETARG_UUID_P(1);
	KeystoreRef store = keystore_store_arg(fcinfo, 3);
	CreateRequest what = {0};
	CreateAnswer *answer = palloc0(REQUEST_BODY_MAX);
	char		reason[REQUEST_REASON_MAX];
	size_t		len;
	KsStatus	status;

	uuid_text(PG_GETARG_UUID_P(0), what.installation);
	uuid_text(tenant, what.tenant);
	what.generation = (uint32) PG_GETARG_INT32(2);
	what.nkeys = nkeys;
	for (int i = 0; i < nkeys; i++)
	{
		memcpy(what.places[i].tenant, tenant->data, UUID_LEN);
		what.places[i].is_index = i;
		what.places[i].version = 1;
	}
	status = request_keystore(KS_OP_CREATE_KEK, &store, (uint8 *) &what, sizeof(what),
							  (uint8 *) answer, REQUEST_BODY_MAX, &len, reason);
	if (status != KS_OK || len != sizeof(CreateAnswer) || answer->nkeys != nkeys)
		error_keystore(status != KS_OK ? status : KS_MODULE_ERROR, reason, NULL);
	snprintf(label, KS_MAX_LABEL, "nomp_crypt:%s:%s:%u", what.installation,
			 what.tenant, what.generation);
	remember_created(label, answer->serial);
	return answer;
}

/* The column kek.keystore: where the KEK is. */
static Datum
keystore_datum(const CreateAnswer *answer)
{
	return CStringGetTextDatum(psprintf("%s%s", strncmp(answer->serial, KEYSTORE_ARN, strlen(KEYSTORE_ARN)) == 0 ?
										"" : KEYSTORE_PREFIX, answer->serial));
}

/*
 * nomp_crypt._keystore_create(installation uuid, tenant uuid, generation int,
 *							   serial text)
 *		returns setof (label text, keystore text, purpose text, version int,
 *					   key_id bytea, wrapped bytea, key_check bytea)
 *
 * A new KEK, provisional until this transaction has committed, with a first
 * data key for values and one for the index.
 */
Datum
nc_keystore_create(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char		label[KS_MAX_LABEL];
	CreateAnswer *answer;

	InitMaterializedSRF(fcinfo, 0);
	answer = create_kek(fcinfo, 2, label);
	for (int i = 0; i < 2; i++)
	{
		KeySpec    *spec = &answer->keys[i];
		Datum		values[7];
		bool		nulls[7] = {false};

		values[0] = CStringGetTextDatum(label);
		values[1] = keystore_datum(answer);
		values[2] = CStringGetTextDatum(i == 0 ? "values" : "index");
		values[3] = Int32GetDatum(1);
		values[4] = keystore_bytea(spec->key_check, VALUE_KEY_ID_LEN);
		values[5] = keystore_bytea(spec->wrapped, spec->wrapped_len);
		values[6] = keystore_bytea(spec->key_check, KEY_CHECK_LEN);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * nomp_crypt._keystore_create_kek(installation uuid, tenant uuid, generation int,
 *								   serial text, OUT label text, OUT keystore text)
 *
 * The same without data keys.
 */
Datum
nc_keystore_create_kek(PG_FUNCTION_ARGS)
{
	char		label[KS_MAX_LABEL];
	CreateAnswer *answer = create_kek(fcinfo, 0, label);
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(label);
	values[1] = keystore_datum(answer);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
