/*
 * envelope.c
 *		Plaintext into values and back: rights, key, cipher, format.
 *
 * The one place where a school's state, the role's rights, the key and the
 * cipher meet; every way into or out of a value passes here, and is counted
 * here (access_log.h).  Order of
 * refusals: right missing, then erased or suspended, then the keystore's.
 *
 * Holds no secret: keys stay in mykeys.c, plaintext belongs to the caller.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access_log.h"
#include "catalog.h"
#include "cipher.h"
#include "envelope.h"
#include "errors.h"
#include "holders.h"
#include "miscadmin.h"
#include "mykeys.h"
#include "register_proof.h"
#include "request.h"
#include "rights.h"
#include "rows.h"
#include "utils/snapmgr.h"

/* Revocations and evictions may make us start over; not for ever. */
#define MAX_TRIES	100

void
envelope_parse(const bytea *value, ValueView *view)
{
	if (!value_parse((const uint8 *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), view))
		error_integrity();
}

bool
envelope_known_owner(const ValueView *value, const pg_uuid_t *tenant)
{
	int			key = mykeys_find(value->key_id);

	return key >= 0 && memcmp(mykeys_place(key)->tenant, tenant->data, UUID_LEN) == 0;
}

bool
envelope_tenant(const ValueView *value, TenantRow *row)
{
	int			key = mykeys_find(value->key_id);
	pg_uuid_t	uuid;
	KeyFacts	facts;

	if (key >= 0)
		memcpy(uuid.data, mykeys_place(key)->tenant, UUID_LEN);
	else if (rows_key(value->key_id, &facts))
		memcpy(uuid.data, facts.place.tenant, UUID_LEN);
	else
		return false;
	return rows_tenant(&uuid, row);
}

static bool
all_zero(const uint8 *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		if (bytes[i] != 0)
			return false;
	}
	return true;
}

/* The shape first: it is cheap, and no stored value has a zero nonce. */
bool
envelope_is_probe(const ValueView *value)
{
	KeyFacts	key;

	return value->fingerprint != NULL && value->body_len == VALUE_TAG_LEN &&
		all_zero(value->nonce, VALUE_NONCE_LEN) &&
		all_zero(value->body + 1, VALUE_TAG_LEN - 1) &&
		rows_key(value->key_id, &key) && key.place.is_index;
}

static void
require_active(const TenantRow *tenant)
{
	switch (tenant->state)
	{
		case TENANT_ACTIVE:
			return;
		case TENANT_ERASED:
			register_raise_erased(tenant);
		case TENANT_SUSPENDED:
		case TENANT_FENCED:
			error_suspended(tenant->id, tenant->state == TENANT_FENCED);
	}
}

/*
 * If the keyring still has the keys of a school that is not active, as on a
 * standby that has just replayed the news, wipe them there and tell the
 * others.
 */
static void
drop_inactive(const TenantRow *tenant)
{
	if (tenant->state != TENANT_ACTIVE && keyring_holds(tenant->uuid.data))
	{
		(void) keyring_revoke(tenant->uuid.data);
		holders_poke(tenant->uuid.data);
	}
}

/* Refuse a school that is not active. */
static void
refuse_inactive(const TenantRow *tenant)
{
	drop_inactive(tenant);
	require_active(tenant);
}

/* Have a key unwrapped. */
static KsStatus
unwrap_key(const KeyFacts *facts, uint64 epoch, char *reason)
{
	UnwrapRequest *what = palloc(sizeof(UnwrapRequest));
	KeyRow		row;
	KeyRow		now;
	bool		known = catalog_key_by_id(facts->key_check, &row);
	KsStatus	status = KS_KEY_ABSENT;

	if (known && catalog_unwrap_request(&row, what))
		status = mykeys_load(what, epoch, reason);
	pfree(what);
	/* the KEK was replaced, and destroyed, since its row was read? */
	if (status == KS_KEY_ABSENT && known && catalog_key_by_id(facts->key_check, &now) &&
		memcmp(&now.kek, &row.kek, UUID_LEN) != 0)
		return KS_RETRY;
	return status;
}

/* Have a key at hand, most often from the keyring; says what prevents it. */
static KsStatus
try_load_key(const KeyFacts *facts, uint64 epoch, char *reason)
{
	KsStatus	status;

	reason[0] = '\0';
	mykeys_watch(catalog_relation("tenant"));
	status = mykeys_load_cached(&facts->place, facts->key_check, facts->own_transaction,
								epoch);
	return status == KS_KEY_ABSENT ? unwrap_key(facts, epoch, reason) : status;
}

/* The same; raises what prevents it. */
static void
load_key(const KeyFacts *facts, const TenantRow *tenant, uint64 epoch)
{
	char		reason[REQUEST_REASON_MAX];
	KsStatus	status = try_load_key(facts, epoch, reason);

	if (status != KS_OK && status != KS_RETRY)
		error_keystore(status, reason, tenant->id);
}

/* Make sure that a value's key is here and may be used to read. */
static void
prepare_to_open(const ValueView *value, int rights)
{
	uint64		epoch = keyring_epoch();
	KeyFacts	facts;
	TenantRow	tenant;
	pg_uuid_t	uuid;

	if (!rows_key(value->key_id, &facts))
		error_key_unknown(NULL);
	memcpy(uuid.data, facts.place.tenant, UUID_LEN);
	if (!rows_tenant(&uuid, &tenant))
		error_key_unknown(NULL);
	rights_require(&tenant, rights);
	refuse_inactive(&tenant);
	if (facts.place.is_index)
		error_integrity();
	load_key(&facts, &tenant, epoch);
}

void
envelope_wipe(bytea *payload)
{
	explicit_bzero(VARDATA(payload), VARSIZE(payload) - VARHDRSZ);
	pfree(payload);
}

/* What opens the value, once its key is here and may be used to read. */
static CipherCtx *
find_opener(const ValueView *value, int rights, const KeyPlace **place)
{
	CipherCtx  *ctx = mykeys_opener_again(value->key_id, value->nonce, place);

	if (ctx != NULL && rights_cached((const pg_uuid_t *) (*place)->tenant, rights))
		return ctx;
	for (int try = 0; try < MAX_TRIES; try++)
	{
		int			key = mykeys_find(value->key_id);

		if (key < 0 ||
			!rights_cached((const pg_uuid_t *) mykeys_place(key)->tenant, rights))
		{
			prepare_to_open(value, rights); /* says who lacks what */
			continue;
		}
		*place = mykeys_place(key);
		if ((*place)->is_index)
			error_integrity();
		ctx = mykeys_opener(key, value->nonce);
		if (ctx != NULL)
			return ctx;
	}
	error_keystore(KS_RETRY, "", NULL);
}

bytea *
envelope_open(const ValueView *value, int rights)
{
	size_t		len = value->body_len - VALUE_TAG_LEN;
	bytea	   *payload = palloc(VARHDRSZ + len + 1);
	uint8		room[VALUE_MAX_AAD];
	size_t		aad_len;
	const uint8 *aad = value_aad(value, room, &aad_len);
	const KeyPlace *place;
	CipherCtx  *ctx = find_opener(value, rights, &place);

	SET_VARSIZE(payload, VARHDRSZ + len);
	if (!cipher_open(ctx, value->nonce + CIPHER_PREFIX_LEN, aad, aad_len,
					 value->body, value->body_len, (uint8 *) VARDATA(payload)))
		error_integrity();
	VARDATA(payload)[len] = '\0';
	access_opened((const pg_uuid_t *) place->tenant, rights);
	return payload;
}

/*
 * Have that tenant's key at hand if no keystore has to be asked for it.  False
 * for a key that is another's, for values no more, or not to be had.
 */
static bool
key_is_near(const uint8 key_id[VALUE_KEY_ID_LEN], const TenantRow *tenant)
{
	uint64		epoch = keyring_epoch();
	int			key = mykeys_find(key_id);
	KeyFacts	facts;
	TenantRow	now;

	if (key >= 0)
		return !mykeys_place(key)->is_index &&
			memcmp(mykeys_place(key)->tenant, tenant->uuid.data, UUID_LEN) == 0;
	if (!rows_key(key_id, &facts) || facts.place.is_index ||
		memcmp(facts.place.tenant, tenant->uuid.data, UUID_LEN) != 0 ||
		!rows_tenant(&tenant->uuid, &now) || now.state != TENANT_ACTIVE)
		return false;
	mykeys_watch(catalog_relation("tenant"));
	return mykeys_load_cached(&facts.place, facts.key_check, facts.own_transaction,
							  epoch) == KS_OK;
}

/* Open a value if its key is here; raises nothing. */
static bool
open_quietly(const ValueView *value, uint8 *payload)
{
	int			key = mykeys_find(value->key_id);
	uint8		room[VALUE_MAX_AAD];
	size_t		aad_len;
	const uint8 *aad = value_aad(value, room, &aad_len);
	CipherCtx  *ctx = key >= 0 ? mykeys_opener(key, value->nonce) : NULL;

	return ctx != NULL &&
		cipher_open(ctx, value->nonce + CIPHER_PREFIX_LEN, aad, aad_len,
					value->body, value->body_len, payload);
}

/* A row that names the key wrongly is a damaged value's; nothing is open then. */
static ValueState
find_key(const uint8 key_id[VALUE_KEY_ID_LEN], KeyFacts *key)
{
	MemoryContext context = CurrentMemoryContext;
	volatile ValueState state = VALUE_UNKNOWN;

	PG_TRY();
	{
		if (rows_key(key_id, key))
			state = VALUE_OPENS;
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_NC_INTEGRITY)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		state = VALUE_DAMAGED;
	}
	PG_END_TRY();
	return state;
}

ValueState
envelope_state(const ValueView *value, TenantRow *owner, KeyFacts *key)
{
	ValueState	state = find_key(value->key_id, key);
	pg_uuid_t	uuid;

	owner->id[0] = '\0';
	if (state != VALUE_OPENS)
		return state;
	memcpy(uuid.data, key->place.tenant, UUID_LEN);
	if (!rows_tenant(&uuid, owner))
	{
		owner->id[0] = '\0';
		return VALUE_UNKNOWN;
	}
	drop_inactive(owner);
	if (owner->state == TENANT_ERASED)
		return register_proves_erased(owner) ? VALUE_ERASED : VALUE_UNKNOWN;
	if (owner->state != TENANT_ACTIVE)
		return VALUE_SUSPENDED;
	return key->place.is_index ? VALUE_DAMAGED : VALUE_OPENS;
}

bool
envelope_is_newest(const TenantRow *owner, const KeyFacts *key)
{
	KeyFacts	newest;

	if (!rows_current_key(&owner->uuid, false, &newest))
		error_key_unknown(owner->id);
	return memcmp(newest.key_check, key->key_check, KEY_CHECK_LEN) == 0;
}

/* Have a value's key at hand; KS_RETRY: begin again. */
static KsStatus
try_prepare(const ValueView *value, const KeyFacts *key, uint64 epoch, const char *tenant)
{
	char		reason[REQUEST_REASON_MAX];
	KsStatus	status;

	if (mykeys_find(value->key_id) >= 0)
		return KS_OK;
	status = try_load_key(key, epoch, reason);
	if (status != KS_OK && status != KS_RETRY && status != KS_KEY_ABSENT &&
		status != KS_KEY_DISABLED && status != KS_INTEGRITY)
		error_keystore(status, reason, tenant);
	return status;
}

ValueState
envelope_try_open(const ValueView *value, TenantRow *owner, bytea **payload)
{
	size_t		len = value->body_len - VALUE_TAG_LEN;
	uint8		room[VALUE_MAX_AAD];
	size_t		aad_len;
	const uint8 *aad = value_aad(value, room, &aad_len);

	for (int try = 0; try < MAX_TRIES; try++)
	{
		uint64		epoch = keyring_epoch();
		KeyFacts	key;
		ValueState	state = envelope_state(value, owner, &key);
		KsStatus	status;
		CipherCtx  *ctx;
		int			mine;

		if (state != VALUE_OPENS)
			return state;
		rights_require(owner, RIGHT_DECRYPT);
		status = try_prepare(value, &key, epoch, owner->id);
		if (status == KS_KEY_ABSENT)
			return VALUE_UNKNOWN;
		if (status == KS_KEY_DISABLED)
			return VALUE_SUSPENDED;
		if (status == KS_INTEGRITY)
			return VALUE_DAMAGED;
		mine = mykeys_find(value->key_id);
		ctx = mine >= 0 ? mykeys_opener(mine, value->nonce) : NULL;
		if (ctx == NULL)
			continue;
		*payload = palloc(VARHDRSZ + len + 1);
		SET_VARSIZE(*payload, VARHDRSZ + len);
		VARDATA(*payload)[len] = '\0';
		if (cipher_open(ctx, value->nonce + CIPHER_PREFIX_LEN, aad, aad_len,
						value->body, value->body_len, (uint8 *) VARDATA(*payload)))
		{
			access_opened(&owner->uuid, RIGHT_DECRYPT);
			return VALUE_OPENS;
		}
		envelope_wipe(*payload);
		return VALUE_DAMAGED;
	}
	error_keystore(KS_RETRY, "", owner->id);
}

bool
envelope_same_payload(const TenantRow *tenant, const ValueView *a, const ValueView *b)
{
	size_t		len = a->body_len - VALUE_TAG_LEN;
	uint8	   *first;
	uint8	   *second;
	bool		same;

	/* the second says no where the connection may not carry values */
	if (b->body_len != a->body_len ||
		!rights_has(&tenant->uuid, RIGHT_DECRYPT) ||
		!rights_cached(&tenant->uuid, RIGHT_DECRYPT) ||
		!key_is_near(a->key_id, tenant) || !key_is_near(b->key_id, tenant))
		return false;
	first = palloc(len + 1);
	second = palloc(len + 1);
	same = open_quietly(a, first) && open_quietly(b, second);
	if (same)
		access_opened(&tenant->uuid, RIGHT_DECRYPT);
	same = same && cipher_equal(first, second, len);
	explicit_bzero(first, len);
	explicit_bzero(second, len);
	pfree(first);
	pfree(second);
	return same;
}

/*
 * A transaction whose snapshot is from before a change of the index key sees
 * the fingerprints of then, and would not find them with the new one.
 */
static void
require_seen(const KeyFacts *key, const TenantRow *tenant)
{
	if (key->place.is_index && key->place.version > 1 && IsolationUsesXactSnapshot() &&
		FirstSnapshotSet &&
		!catalog_key_in_snapshot(key->key_check, GetTransactionSnapshot()))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the index key of tenant \"%s\" was changed after this transaction's snapshot was taken",
						tenant->id),
				 errhint("Repeat the transaction.")));
}

/* Of what the rows said when the current key was last looked up, by is_index. */
static uint64 current_as_of[2] = {0, 0};

/*
 * The copy that a school's new values are written with, or -1.  A rotation
 * takes effect at the next statement of a transaction under way, too.
 */
static inline int
find_current(const TenantRow *tenant, bool is_index)
{
	if (current_as_of[is_index] != rows_generation())
		return -1;
	return mykeys_current(tenant->uuid.data, is_index);
}

/* Make sure that a school's current key, or its index key, is here. */
static void
prepare_current(const TenantRow *tenant, bool is_index)
{
	uint64		epoch = keyring_epoch();
	uint64		as_of = rows_generation();
	KeyFacts	facts;
	TenantRow	now;

	/* the caller's row may be older than the epoch */
	if (!rows_tenant(&tenant->uuid, &now))
		error_key_unknown(tenant->id);
	refuse_inactive(&now);
	if (!rows_current_key(&tenant->uuid, is_index, &facts))
		error_key_unknown(tenant->id);
	require_seen(&facts, tenant);
	if (mykeys_find(facts.key_check) < 0)
		load_key(&facts, tenant, epoch);
	mykeys_set_current(tenant->uuid.data, is_index, facts.key_check);
	current_as_of[is_index] = as_of;
}

bytea *
envelope_seal(const TenantRow *tenant, int rights, uint8 type_code,
			  const char *payload, size_t len, const uint8 *fingerprint)
{
	size_t		size = value_size(len, fingerprint != NULL);
	bytea	   *value = palloc(VARHDRSZ + size);

	rights_require(tenant, rights);
	SET_VARSIZE(value, VARHDRSZ + size);
	for (int try = 0; try < MAX_TRIES; try++)
	{
		int			key = find_current(tenant, false);
		uint8		nonce[VALUE_NONCE_LEN];
		uint8		room[VALUE_MAX_AAD];
		const uint8 *aad;
		size_t		aad_len;
		uint8	   *body;
		ValueView	view;
		CipherCtx  *ctx;

		if (key < 0)
		{
			prepare_current(tenant, false);
			continue;
		}
		ctx = mykeys_sealer(key, nonce);
		if (ctx == NULL)
			continue;
		body = value_write_header((uint8 *) VARDATA(value), type_code,
								  mykeys_id(key), nonce, fingerprint);
		memset(body, 0, len + VALUE_TAG_LEN);
		if (!value_parse((uint8 *) VARDATA(value), size, &view))
			elog(ERROR, "could not lay out an encrypted value");
		aad = value_aad(&view, room, &aad_len);
		if (!cipher_seal(ctx, nonce + CIPHER_PREFIX_LEN, aad, aad_len,
						 (const uint8 *) payload, len, body))
			elog(ERROR, "could not encrypt a value");
		access_sealed(tenant, rights);
		return value;
	}
	error_keystore(KS_RETRY, "", tenant->id);
}

void
envelope_fingerprint(const TenantRow *tenant, int rights, const char *text,
					 size_t len, uint8 fingerprint[VALUE_FINGERPRINT_LEN],
					 uint8 *key_id)
{
	rights_require(tenant, rights);
	for (int try = 0; try < MAX_TRIES; try++)
	{
		int			key = find_current(tenant, true);

		if (key < 0)
		{
			prepare_current(tenant, true);
			continue;
		}
		if (!mykeys_fingerprint(key, (const uint8 *) text, len, fingerprint))
			continue;
		if (key_id != NULL)
			memcpy(key_id, mykeys_id(key), VALUE_KEY_ID_LEN);
		access_fingerprinted(tenant, rights);
		return;
	}
	error_keystore(KS_RETRY, "", tenant->id);
}

/* One of many; the key most often waits in the keyring.  False: start over. */
static bool
fingerprint_one(FingerprintTarget *target, uint64 epoch, const char *text, size_t len)
{
	for (int try = 0; try < MAX_TRIES && keyring_epoch() == epoch; try++)
	{
		int			key = mykeys_find(target->key.key_check);

		if (key < 0)
		{
			load_key(&target->key, &target->tenant, epoch);
			continue;
		}
		require_seen(&target->key, &target->tenant);
		if (memcmp(mykeys_place(key)->tenant, target->tenant.uuid.data, UUID_LEN) != 0)
			error_integrity();
		if (mykeys_fingerprint(key, (const uint8 *) text, len, target->fingerprint))
			return true;
	}
	if (keyring_epoch() == epoch)
		error_keystore(KS_RETRY, "", target->tenant.id);
	return false;
}

bool
envelope_fingerprint_all(FingerprintTarget *targets, int count, uint64 epoch,
						 const char *text, size_t len)
{
	mykeys_watch(catalog_relation("tenant"));
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!fingerprint_one(&targets[i], epoch, text, len))
			return false;
	}
	for (int i = 0; i < count; i++)
		access_fingerprinted(&targets[i].tenant, RIGHT_SEARCH);
	return true;
}
