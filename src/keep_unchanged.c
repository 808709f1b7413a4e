/*
 * keep_unchanged.c
 *		nomp_crypt.keep_unchanged: a trigger that keeps stored values where an
 *		UPDATE writes the same plaintext again.
 *
 * ORMs write all columns of a row that is saved.  Encrypted anew, none of
 * them is the same as before: every index gets a new entry, and every large
 * value a new copy in TOAST.  With the old bytes kept, PostgreSQL sees that
 * nothing has changed.
 *
 * Whether two plaintexts are the same is something that only those may learn
 * who may read them: without the right "decrypt" nothing is kept, and a value
 * that cannot be read or was sealed with another version of the key is
 * replaced, as it would be without this trigger.
 *
 * Both plaintexts are wiped here.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog.h"
#include "cipher.h"
#include "commands/trigger.h"
#include "compat.h"
#include "envelope.h"
#include "rights.h"
#include "session.h"
#include "type_io.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

NC_FUNCTION(nc_keep_unchanged);

/* A table's columns of our type; kept with the trigger. */
typedef struct Columns
{
	Oid			relid;
	int			n;
	int			numbers[FLEXIBLE_ARRAY_MEMBER];
} Columns;

static Columns *
columns_of(FmgrInfo *flinfo, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Columns    *columns = flinfo->fn_extra;

	if (columns != NULL && columns->relid == RelationGetRelid(rel))
		return columns;
	columns = MemoryContextAllocZero(flinfo->fn_mcxt,
									 offsetof(Columns, numbers) + desc->natts * sizeof(int));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && getBaseType(att->atttypid) == catalog_type())
			columns->numbers[columns->n++] = i + 1;
	}
	columns->relid = RelationGetRelid(rel);
	flinfo->fn_extra = columns;
	return columns;
}

/* Could they be two encryptions of one plaintext?  By what is in the clear. */
static bool
look_alike(const ValueView *old, const ValueView *new)
{
	if (old->type_code != new->type_code || old->body_len != new->body_len ||
		memcmp(old->key_id, new->key_id, VALUE_KEY_ID_LEN) != 0 ||
		(old->fingerprint != NULL) != (new->fingerprint != NULL))
		return false;
	return old->fingerprint == NULL ||
		memcmp(old->fingerprint, new->fingerprint, VALUE_FINGERPRINT_LEN) == 0;
}

/* The payloads of two values of one key: the right was checked. */
static bool
same_inside(const ValueView *old, const ValueView *new)
{
	bytea	   *before = envelope_try_open(old, RIGHT_ENCRYPT | RIGHT_DECRYPT);
	bytea	   *after = envelope_try_open(new, RIGHT_ENCRYPT | RIGHT_DECRYPT);
	bool		same;

	same = before != NULL && after != NULL && VARSIZE(before) == VARSIZE(after) &&
		cipher_equal(VARDATA(before), VARDATA(after), VARSIZE(before) - VARHDRSZ);
	if (before != NULL)
		envelope_wipe(before);
	if (after != NULL)
		envelope_wipe(after);
	return same;
}

static bool
parse(const bytea *value, ValueView *view)
{
	return value_parse((const uint8 *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), view);
}

/* Has the UPDATE written the old plaintext again, in other bytes? */
static bool
is_unchanged(Datum old, Datum new, const TenantRow *tenant)
{
	bytea	   *before;
	bytea	   *after;
	ValueView	old_view;
	ValueView	new_view;
	TenantRow	owner;
	bool		unchanged;

	/* one that is in TOAST already was not written now */
	if (VARATT_IS_EXTERNAL(DatumGetPointer(new)) ||
		toast_raw_datum_size(old) != toast_raw_datum_size(new))
		return false;
	before = DatumGetByteaPP(old);
	after = DatumGetByteaPP(new);
	unchanged = parse(before, &old_view) && parse(after, &new_view) &&
		look_alike(&old_view, &new_view) &&
		memcmp(old_view.nonce, new_view.nonce, VALUE_NONCE_LEN) != 0 &&
		type_is_own(&new_view, tenant, &owner) &&
		same_inside(&old_view, &new_view);
	if ((Pointer) before != DatumGetPointer(old))
		pfree(before);
	if ((Pointer) after != DatumGetPointer(new))
		pfree(after);
	return unchanged;
}

/*
 * nomp_crypt.keep_unchanged() returns trigger
 *
 * BEFORE UPDATE FOR EACH ROW: inside a tenant, for a role with the right
 * "decrypt", columns that were given their old plaintext keep their old
 * bytes.  Raises 39P01 for another kind of trigger, 22023 for arguments,
 * NC002 to NC004 for the tenant's own state and keystore, NC003 for values of
 * an unknown key.
 */
Datum
nc_keep_unchanged(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const TenantRow *tenant;
	Columns    *columns;
	TupleDesc	desc;
	Datum	   *values;
	bool	   *nulls;
	int		   *kept;
	int			n = 0;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"keep_unchanged\" must be fired BEFORE UPDATE FOR EACH ROW")));
	if (trigger->tg_trigger->tgnargs != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger function \"keep_unchanged\" takes no arguments"),
				 errhint("It sees to all encrypted columns. Restrict it by UPDATE OF ... or WHEN (...).")));
	tenant = session_tenant_row();
	if (tenant == NULL || !rights_has(&tenant->uuid, RIGHT_DECRYPT))
		PG_RETURN_POINTER(trigger->tg_newtuple);

	columns = columns_of(fcinfo->flinfo, trigger->tg_relation);
	desc = RelationGetDescr(trigger->tg_relation);
	values = palloc(columns->n * sizeof(Datum));
	nulls = palloc0(columns->n * sizeof(bool));
	kept = palloc(columns->n * sizeof(int));
	for (int i = 0; i < columns->n; i++)
	{
		int			number = columns->numbers[i];
		bool		old_null;
		bool		new_null;
		Datum		old = heap_getattr(trigger->tg_trigtuple, number, desc, &old_null);
		Datum		new = heap_getattr(trigger->tg_newtuple, number, desc, &new_null);

		if (old_null || new_null || !is_unchanged(old, new, tenant))
			continue;
		values[n] = old;
		kept[n++] = number;
	}
	if (n == 0)
		PG_RETURN_POINTER(trigger->tg_newtuple);
	PG_RETURN_POINTER(heap_modify_tuple_by_cols(trigger->tg_newtuple, desc, n, kept, values, nulls));
}
