/*
 * keep_unchanged.c
 *		nomp_crypt.keep_unchanged: a trigger that keeps a stored value where an
 *		UPDATE writes the same plaintext again.
 *
 * Every encryption gives other bytes.  An ORM that writes all columns of a row
 * thereby changes all its encrypted ones: indexes on them get new entries, so
 * no update is HOT, and large values are written out of line again.  This
 * puts the old value's Datum, toast pointer and all, into the new row where
 * key, type, fingerprint and plaintext are the same.
 *
 * To keep the new value is always right.  So that is what happens wherever
 * the answer is not at hand, without an error: outside a tenant, for values of
 * another, under another version of the key (the update encrypts with the
 * current one), for old values that are damaged or cannot be read (the update
 * repairs them), and when the key is in no memory of this node.  It also
 * happens without the right "decrypt": who sees ciphertext change or stay
 * could find out by writing guesses what he may not read.
 *
 * Not looked into: arrays and composites.  Plaintext is compared and wiped in
 * envelope.c, and counted there as read; this file sees none.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "commands/trigger.h"
#include "compat.h"
#include "envelope.h"
#include "inside.h"
#include "session.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

NC_FUNCTION(nc_keep_unchanged);

/* What belongs to a table, looked up once per statement. */
typedef struct Keeping
{
	Oid			relid;
	int			ncolumns;		/* the encrypted ones */
	int		   *columns;		/* their numbers */
	Datum	   *kept;			/* room for one row's: numbers, values, */
	int		   *kept_columns;
	bool	   *kept_nulls;		/* and no nulls */
	Datum	   *old_values;		/* room for whole rows */
	Datum	   *new_values;
	bool	   *old_nulls;
	bool	   *new_nulls;
} Keeping;

static Keeping *
prepare(FmgrInfo *flinfo, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Keeping    *what = flinfo->fn_extra;
	MemoryContext old;

	if (what != NULL && what->relid == RelationGetRelid(rel))
		return what;
	old = MemoryContextSwitchTo(flinfo->fn_mcxt);
	what = palloc0(sizeof(Keeping));
	what->relid = RelationGetRelid(rel);
	what->columns = palloc(desc->natts * sizeof(int));
	what->kept = palloc(desc->natts * sizeof(Datum));
	what->kept_columns = palloc(desc->natts * sizeof(int));
	what->kept_nulls = palloc0(desc->natts * sizeof(bool));
	what->old_values = palloc(desc->natts * sizeof(Datum));
	what->new_values = palloc(desc->natts * sizeof(Datum));
	what->old_nulls = palloc(desc->natts * sizeof(bool));
	what->new_nulls = palloc(desc->natts * sizeof(bool));
	MemoryContextSwitchTo(old);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		/* generated columns are computed after the triggers */
		if (!att->attisdropped && att->attgenerated == '\0' &&
			getBaseType(att->atttypid) == catalog_type())
			what->columns[what->ncolumns++] = i + 1;
	}
	flinfo->fn_extra = what;
	return what;
}

static bool
parse(const bytea *value, ValueView *view)
{
	return value_parse((const uint8_t *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), view);
}

/* All that can be told without a key: anything else is another value. */
static bool
same_header(const bytea *a, const bytea *b)
{
	ValueView	va;
	ValueView	vb;

	if (!parse(a, &va) || !parse(b, &vb) || va.type_code != vb.type_code ||
		memcmp(va.key_id, vb.key_id, VALUE_KEY_ID_LEN) != 0)
		return false;
	if (va.fingerprint == NULL || vb.fingerprint == NULL)
		return va.fingerprint == vb.fingerprint;
	return memcmp(va.fingerprint, vb.fingerprint, VALUE_FINGERPRINT_LEN) == 0;
}

static bool
same_payload(Datum old, Datum new)
{
	const TenantRow *tenant = session_tenant_row();
	ValueView	old_view;
	ValueView	new_view;

	return tenant != NULL && parse(DatumGetByteaPP(old), &old_view) &&
		parse(DatumGetByteaPP(new), &new_view) &&
		envelope_same_payload(tenant, &old_view, &new_view);
}

/* Is it another encryption of the same? */
static bool
is_unchanged(Datum old, Datum new)
{
	if (datumIsEqual(old, new, false, -1) ||
		toast_raw_datum_size(old) != toast_raw_datum_size(new) ||
		!same_header(inside_head(old), inside_head(new)))
		return false;
	return same_payload(old, new);
}

/*
 * nomp_crypt.keep_unchanged() returns trigger
 *
 * BEFORE UPDATE FOR EACH ROW: where the new row has the same plaintext in an
 * encrypted column as the old one, it gets the old one's value.  Needs the
 * right "decrypt" for the session's tenant, else it does nothing.  Raises
 * 39P01 for another kind of trigger, 22023 for arguments.
 */
Datum
nc_keep_unchanged(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	Keeping    *what;
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
	if (session_tenant() == NULL)
		PG_RETURN_POINTER(trigger->tg_newtuple);
	desc = RelationGetDescr(trigger->tg_relation);
	what = prepare(fcinfo->flinfo, trigger->tg_relation);
	heap_deform_tuple(trigger->tg_trigtuple, desc, what->old_values, what->old_nulls);
	heap_deform_tuple(trigger->tg_newtuple, desc, what->new_values, what->new_nulls);
	for (int i = 0; i < what->ncolumns; i++)
	{
		int			column = what->columns[i] - 1;

		if (what->old_nulls[column] || what->new_nulls[column] ||
			!is_unchanged(what->old_values[column], what->new_values[column]))
			continue;
		what->kept[n] = what->old_values[column];
		what->kept_columns[n++] = column + 1;
	}
	if (n == 0)
		PG_RETURN_POINTER(trigger->tg_newtuple);
	PG_RETURN_POINTER(heap_modify_tuple_by_cols(trigger->tg_newtuple, desc, n,
												what->kept_columns, what->kept,
												what->kept_nulls));
}
