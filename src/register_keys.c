/*
 * register_keys.c
 *		The public keys by which records of the register are believed.
 *
 * A key is trusted because the installation's keystore has it, under the label
 * of its generation.  Those that it has shown once are kept in the register
 * directory's file "register.keys", for when the keystore cannot be asked and
 * for generations that it has no more; a keystore that shows another key for a
 * generation than the file has is not believed, nor is the file.  What a record
 * says of keys is never believed.
 *
 * A session remembers the keys it has learned: a key's generation never
 * changes.  No secrets here.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "compat.h"
#include "errors.h"
#include "funcapi.h"
#include "register_keys.h"
#include "register_pins.h"
#include "request.h"
#include "stores.h"
#include "utils/builtins.h"
#include "wire.h"

NC_FUNCTION(nc_register_key);
NC_FUNCTION(nc_register_sign);
NC_FUNCTION(nc_register_verify);
NC_FUNCTION(nc_register_head);

#define MAX_KEYS	64			/* generations */

static RegisterKey known[MAX_KEYS];
static int	known_count = 0;
static pg_uuid_t known_for;		/* the installation */

static RegisterKey *
find_known(const char *kid)
{
	for (int i = 0; i < known_count; i++)
	{
		if (strcmp(known[i].key.kid, kid) == 0)
			return &known[i];
	}
	return NULL;
}

static RegisterKey *
find_generation(uint32 generation)
{
	for (int i = 0; i < known_count; i++)
	{
		if (known[i].generation == generation)
			return &known[i];
	}
	return NULL;
}

static void
error_two_keys(uint32 generation)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("the register's key of generation %u is not the one that was pinned", generation),
			 errhint("The file register.keys in nomp_crypt.register_directory and the keystore disagree. See \"The register\" in docs/operations.md.")));
}

static RegisterKey *
remember(uint32 generation, const JwsKey *key)
{
	RegisterKey *had = find_generation(generation);

	if (had != NULL && strcmp(had->key.kid, key->kid) != 0)
		error_two_keys(generation);
	if (had != NULL)
		return had;
	if (known_count == MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the register has had more than %d keys", MAX_KEYS)));
	known[known_count].generation = generation;
	known[known_count].key = *key;
	known[known_count].is_placed = false;
	return &known[known_count++];
}

static void
remember_pinned(uint32 generation, const uint8 *spki, size_t len)
{
	JwsKey		key;

	if (!jws_key(spki, len, &key))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"register.keys\" in the register directory is malformed"),
				 errhint("Remove it: the keystore is asked for the keys then.")));
	(void) remember(generation, &key);
}

/* Of which installation are they?  False if this database has none. */
static bool
begin(char installation[37])
{
	pg_uuid_t	mine;

	if (!catalog_installation(&mine))
		return false;
	uuid_text(&mine, installation);
	if (known_count > 0 && memcmp(&known_for, &mine, UUID_LEN) != 0)
		known_count = 0;
	known_for = mine;
	return true;
}

/* ---- asking the keystore ---- */

typedef struct Question
{
	uint8		body[512];
	WireWriter	w;
	uint8		answer[1024];
	WireReader	r;
} Question;

static void
start_question(Question *q, const char *installation, int generation)
{
	q->w = (WireWriter) {q->body, sizeof(q->body), 0, false};
	wire_put_str(&q->w, installation, 36);
	if (generation > 0)
		wire_put_uint(&q->w, generation, 4);
}

static KsStatus
ask(Question *q, KsOp op, const KeystoreRef *store, char *reason)
{
	size_t		len;
	KsStatus	status = request_keystore(op, store, q->body, q->w.len, q->answer,
										  sizeof(q->answer), &len, reason);

	q->r = (WireReader) {q->answer, len, 0, false};
	return status;
}

/* The public key of a generation, if it is known already. */
static void
put_known(Question *q, uint32 generation)
{
	const RegisterKey *key = find_generation(generation);

	wire_put_str(&q->w, key != NULL ? key->key.spki : NULL, key != NULL ? JWS_SPKI_LEN : 0);
}

/*
 * One keystore's key of a generation, made there if asked to.  Whatever is
 * asked of that key afterwards goes to the token that has it: the keystores'
 * order may change meanwhile.
 */
static KsStatus
ask_key(const char *installation, uint32 generation, KsMake make, KeystoreRef store,
		RegisterKey **key, bool *created, char *reason)
{
	Question	q;
	const uint8 *der;
	size_t		len;
	JwsKey		found;
	KsStatus	status;

	start_question(&q, installation, generation);
	put_known(&q, generation);
	wire_put_uint(&q.w, make, 1);
	status = ask(&q, KS_OP_REGISTER_KEY, &store, reason);
	if (status != KS_OK)
		return status;
	*created = wire_get_uint(&q.r, 1) == 1;
	wire_get_cstr(&q.r, store.serial, sizeof(store.serial));
	len = wire_get_str(&q.r, &der);
	if (!wire_done(&q.r) || store.serial[0] == '\0' || !jws_key(der, len, &found))
	{
		strlcpy(reason, "the register's key is no point of P-256 in a token with a serial number", REQUEST_REASON_MAX);
		return KS_MODULE_ERROR;
	}
	*key = remember(generation, &found);
	(*key)->store = store;
	(*key)->is_placed = true;
	return KS_OK;
}

/* The serial of the token at a place in the settings; "" if it has none yet. */
static KsStatus
ask_serial(const char *installation, KeystoreRef *store, char *reason)
{
	const KeystoreRef at = {{0}, store->place};
	Question	q;
	const uint8 *label;
	KsStatus	status;

	start_question(&q, installation, 0);
	status = ask(&q, KS_OP_STATUS, &at, reason);
	if (status != KS_OK)
		return status;
	(void) wire_get_str(&q.r, &label);
	wire_get_cstr(&q.r, store->serial, sizeof(store->serial));
	if (!q.r.bad)
		return KS_OK;
	strlcpy(reason, "malformed answer from the keystore helper", REQUEST_REASON_MAX);
	return KS_MODULE_ERROR;
}

/*
 * Any configured keystore's key of a generation.  KS_KEY_ABSENT: none has it.
 * One in trouble may have it, so its trouble is the answer then.  *twice: a
 * token was met twice, so the keystores changed their places meanwhile, and
 * another may have been missed.
 */
static KsStatus
find_key_once(const char *installation, uint32 generation, KsMake make, RegisterKey **key, char *reason,
			  bool *twice)
{
	KsStatus	answer = KS_NOT_CONFIGURED;
	KeystoreRef list[MAX_KEYSTORES];
	bool		created;

	*twice = false;
	for (int i = 0; i < MAX_KEYSTORES && stores_uri(i) != NULL; i++)
	{
		char		why[REQUEST_REASON_MAX];
		KsStatus	status;

		list[i] = (KeystoreRef) {{0}, i};
		status = ask_serial(installation, &list[i], why);
		for (int k = 0; k < i; k++)
			*twice |= list[i].serial[0] != '\0' && strcmp(list[k].serial, list[i].serial) == 0;
		if (status == KS_OK)
			status = ask_key(installation, generation, make, list[i], key, &created, why);
		if (status == KS_OK)
			return KS_OK;
		/* one that was never used, or that knows no registers */
		if (i > 0 && (status == KS_TOKEN_WRONG || status == KS_UNSUPPORTED))
			continue;
		if (answer == KS_NOT_CONFIGURED || answer == KS_KEY_ABSENT)
		{
			answer = status;
			strlcpy(reason, why, REQUEST_REASON_MAX);
		}
	}
	return answer;
}

static KsStatus
find_key(const char *installation, uint32 generation, KsMake make, RegisterKey **key, char *reason)
{
	KsStatus	status;
	bool		twice;
	int			attempts = 0;

	do
		status = find_key_once(installation, generation, make, key, reason, &twice);
	while (status != KS_OK && twice && ++attempts < 10);
	return status;
}

/* Ask for all generations, until there is none. */
static KsStatus
learn_all(const char *installation, char *reason)
{
	for (uint32 generation = 1; generation <= MAX_KEYS; generation++)
	{
		RegisterKey *key = find_generation(generation);
		KsStatus	status = KS_OK;

		if (key == NULL || !key->is_placed)
			status = find_key(installation, generation, KS_FIND, &key, reason);
		/* an old one may be gone where newer ones are pinned */
		if (status == KS_KEY_ABSENT && key == NULL)
			return KS_OK;
		if (status != KS_OK && status != KS_KEY_ABSENT)
			return status;
	}
	return KS_OK;
}

RegisterKey *
register_key_named(const char *kid, KsStatus *status, char *reason)
{
	char		installation[37];
	RegisterKey *key;

	*status = KS_OK;
	reason[0] = '\0';
	if (!begin(installation))
		return NULL;
	key = find_known(kid);
	if (key == NULL)
	{
		register_pinned_keys(remember_pinned);
		key = find_known(kid);
	}
	if (key == NULL)
	{
		*status = learn_all(installation, reason);
		key = find_known(kid);
		*status = key != NULL ? KS_OK : *status;
	}
	return key;
}

char *
register_open(const char *jws, KsStatus *status, char *reason)
{
	char		kid[JWS_KID_LEN + 1];
	RegisterKey *key;

	*status = KS_OK;
	if (!jws_names(jws, kid))
		return NULL;
	key = register_key_named(kid, status, reason);
	return key != NULL ? jws_open(jws, &key->key) : NULL;
}

/* ---- SQL ---- */

static void
require_installation(char installation[37])
{
	if (!begin(installation))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database has no installation yet"),
				 errhint("It is founded with the first tenant.")));
}

/*
 * nomp_crypt._register_key(generation int, make boolean, OUT kid text,
 *							OUT jwk text, OUT spki bytea, OUT created boolean,
 *							OUT place int)
 *
 * The keystore's key of that generation, made in the first one unless any has
 * it, and in which keystore it is, from 1; NULLs if none has.  Raises NC004, XX001.
 */
Datum
nc_register_key(PG_FUNCTION_ARGS)
{
	uint32		generation = (uint32) PG_GETARG_INT32(0);
	char		installation[37];
	char		reason[REQUEST_REASON_MAX];
	RegisterKey *key = NULL;
	bool		created = false;
	KsStatus	status;
	TupleDesc	desc;
	Datum		values[5] = {0};
	bool		nulls[5] = {true, true, true, true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	require_installation(installation);
	register_pinned_keys(remember_pinned);
	status = find_key(installation, generation, PG_GETARG_BOOL(1) ? KS_CHOOSE : KS_FIND, &key, reason);
	if (status == KS_KEY_ABSENT && PG_GETARG_BOOL(1))
		status = ask_key(installation, generation, KS_MAKE, (KeystoreRef) {{0}, 0}, &key, &created, reason);
	if (status != KS_OK && status != KS_KEY_ABSENT)
		error_register_key(status, reason);
	if (status == KS_OK)
	{
		bytea	   *spki = palloc(VARHDRSZ + JWS_SPKI_LEN);

		SET_VARSIZE(spki, VARHDRSZ + JWS_SPKI_LEN);
		memcpy(VARDATA(spki), key->key.spki, JWS_SPKI_LEN);
		values[0] = CStringGetTextDatum(key->key.kid);
		values[1] = CStringGetTextDatum(jws_jwk(&key->key));
		values[2] = PointerGetDatum(spki);
		values[3] = BoolGetDatum(created);
		values[4] = Int32GetDatum(key->store.place + 1);
		memset(nulls, false, sizeof(nulls));
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* A trusted key, and where it is; raises NC004 if that is nowhere. */
static RegisterKey *
placed_key(const char *kid, const char *installation)
{
	char		reason[REQUEST_REASON_MAX];
	KsStatus	status;
	RegisterKey *key = register_key_named(kid, &status, reason);

	if (key != NULL && !key->is_placed)
		status = find_key(installation, key->generation, KS_FIND, &key, reason);
	if (key == NULL && status == KS_OK)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the register's key is not this installation's"),
				 errhint("See nomp_crypt.register_status().")));
	if (status == KS_KEY_ABSENT)
		error_keystore(KS_OTHER_TOKEN, "no keystore has the register's key", NULL);
	if (status != KS_OK)
		error_register_key(status, reason);
	return key;
}

/*
 * Ask the token that has the key; false if it has it no more, or is configured
 * no more, and is to be looked for again.
 */
static bool
ask_holder(RegisterKey *key, Question *q, KsOp op, KsStatus *status, char *reason)
{
	*status = ask(q, op, &key->store, reason);
	key->is_placed = *status != KS_KEY_ABSENT && *status != KS_OTHER_TOKEN;
	return key->is_placed;
}

/*
 * nomp_crypt._register_sign(kid text, payload text) returns text
 *
 * The payload as a record that the key of that thumbprint signed.  The
 * signature is verified before it is returned.  Raises NC004, NC005, XX001.
 */
Datum
nc_register_sign(PG_FUNCTION_ARGS)
{
	char	   *kid = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *payload = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char		installation[37];
	char		reason[REQUEST_REASON_MAX];
	uint8		digest[KS_DIGEST_LEN];
	KsStatus	status;
	const uint8 *signature = NULL;
	RegisterKey *key;
	Question	q;
	char	   *input;
	char	   *jws;
	int			attempts = 0;

	require_installation(installation);
	do
	{
		key = placed_key(kid, installation);
		input = jws_input(&key->key, payload);
		jws_digest(input, digest);
		start_question(&q, installation, key->generation);
		put_known(&q, key->generation);
		wire_put_str(&q.w, digest, sizeof(digest));
	} while (!ask_holder(key, &q, KS_OP_SIGN, &status, reason) && ++attempts < 2);
	if (status != KS_OK)
		error_register_key(status, reason);
	if (wire_get_str(&q.r, &signature) != KS_SIGNATURE_LEN || !wire_done(&q.r))
		error_keystore(KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL);
	jws = jws_finish(input, signature);
	if (jws_open(jws, &key->key) == NULL)
		error_keystore(KS_MODULE_ERROR, "the register's signature does not verify", NULL);
	PG_RETURN_TEXT_P(cstring_to_text(jws));
}

/*
 * nomp_crypt._register_verify(jws text) returns text
 *
 * The payload, NULL unless a trusted key signed it.  Raises NC004 if that
 * cannot be known now, XX001.
 */
Datum
nc_register_verify(PG_FUNCTION_ARGS)
{
	char		reason[REQUEST_REASON_MAX];
	KsStatus	status;
	char	   *payload = register_open(text_to_cstring(PG_GETARG_TEXT_PP(0)), &status, reason);

	if (payload == NULL && status != KS_OK)
		error_register_key(status, reason);
	if (payload == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(payload));
}

/*
 * nomp_crypt._register_head(kid text, set text) returns text
 *
 * The head that the keystore with that key remembers, '' if it has none yet;
 * replaced first unless "set" is NULL.  NULL if it cannot remember one.
 * Raises NC004.
 */
Datum
nc_register_head(PG_FUNCTION_ARGS)
{
	char		installation[37];
	char		reason[REQUEST_REASON_MAX];
	char		head[KS_MAX_HEAD + 1];
	const char *set = PG_ARGISNULL(1) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(1));
	Question	q;
	RegisterKey *key;
	KsStatus	status;
	int			attempts = 0;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	require_installation(installation);
	do
	{
		key = placed_key(text_to_cstring(PG_GETARG_TEXT_PP(0)), installation);
		start_question(&q, installation, 0);
		wire_put_uint(&q.w, !PG_ARGISNULL(1), 1);
		wire_put_str(&q.w, set, strlen(set));
	} while (!ask_holder(key, &q, KS_OP_HEAD, &status, reason) && ++attempts < 2);
	if (status == KS_UNSUPPORTED)
		PG_RETURN_NULL();
	if (status != KS_OK)
		error_register_key(status, reason);
	wire_get_cstr(&q.r, head, sizeof(head));
	if (!wire_done(&q.r))
		error_keystore(KS_MODULE_ERROR, "malformed answer from the keystore helper", NULL);
	PG_RETURN_TEXT_P(cstring_to_text(head));
}
