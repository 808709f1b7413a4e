/*
 * sweep.c
 *		Goes through a table's rows and puts its values under other keys.
 *
 * What a value says does not change here, only how it is encrypted: so rows
 * are updated below the triggers (row_sweep.c), also those that keep unchanged
 * values.  A row is looked at by its values' headers first, which needs no key.
 *
 * Plaintext is in payloads only, which are wiped.
 */
#include "postgres.h"

#include "envelope.h"
#include "errors.h"
#include "inside.h"
#include "reencrypt.h"
#include "row_sweep.h"
#include "sweep.h"
#include "tables.h"
#include "utils/rel.h"

typedef struct Sweep
{
	RowSweep	rows;
	const TenantRow *tenant;	/* whose fingerprints; NULL: everybody's values */
	SweepCounts *counts;
	bool		wanted;			/* has this row something to do? */
	bool		renewed;		/* has it been done? */
	bool		failed;			/* could it not be opened? */
	ValueState	why;
} Sweep;

/* ---- one value ---- */

/* Is there something to do for a value, by its header? */
static bool
wants(Sweep *sweep, const bytea *head, ValueState *state)
{
	ValueView	view;
	TenantRow	owner;
	KeyFacts	key;

	*state = VALUE_DAMAGED;
	if (head == NULL ||
		!value_parse((const uint8 *) VARDATA_ANY(head), VARSIZE_ANY_EXHDR(head), &view))
		return false;
	*state = envelope_state(&view, &owner, &key);
	if (sweep->tenant != NULL)
		return view.fingerprint != NULL && owner.id[0] != '\0' &&
			memcmp(&owner.uuid, &sweep->tenant->uuid, UUID_LEN) == 0;
	return *state == VALUE_OPENS && !envelope_is_newest(&owner, &key);
}

static Datum
look(Datum value, int32 typmod, void *arg)
{
	Sweep	   *sweep = arg;
	bytea	   *head = inside_try(value, true);
	ValueState	state;

	if (wants(sweep, head, &state))
		sweep->wanted = true;
	else if (state == VALUE_OPENS)
		sweep->counts->newest++;
	else
		sweep->counts->left[state]++;
	if (head != NULL && (Pointer) head != DatumGetPointer(value))
		pfree(head);
	return value;
}

/* What was opened, as it shall be: the old value if it is that. */
static bytea *
again(Sweep *sweep, bytea *old, const ValueView *view, const bytea *payload,
	  const TenantRow *owner, int32 typmod)
{
	uint8		fingerprint[VALUE_FINGERPRINT_LEN];

	if (sweep->tenant == NULL)
		return reencrypt_payload(view, payload, owner, owner, typmod);
	reencrypt_fingerprint(view, payload, owner, RIGHT_ENCRYPT, typmod, fingerprint);
	if (memcmp(fingerprint, view->fingerprint, VALUE_FINGERPRINT_LEN) == 0)
		return old;
	return envelope_seal(owner, RIGHT_ENCRYPT, view->type_code, VARDATA_ANY(payload),
						 VARSIZE_ANY_EXHDR(payload), fingerprint);
}

static Datum
renew(Datum value, int32 typmod, void *arg)
{
	Sweep	   *sweep = arg;
	bytea	   *old;
	bytea	   *payload;
	bytea	   *new;
	ValueState	state;
	ValueView	view;
	TenantRow	owner;

	if (!wants(sweep, inside_try(value, true), &state))
		return value;
	old = inside_try(value, false);
	state = VALUE_DAMAGED;
	if (old != NULL &&
		value_parse((const uint8 *) VARDATA_ANY(old), VARSIZE_ANY_EXHDR(old), &view))
		state = envelope_try_open(&view, &owner, &payload);
	if (state != VALUE_OPENS)
	{
		sweep->failed = true;
		sweep->why = state;
		sweep->counts->left[state]++;
		return value;
	}
	new = again(sweep, old, &view, payload, &owner, typmod);
	envelope_wipe(payload);
	if (new == old)
		return value;
	sweep->renewed = true;
	sweep->counts->values++;
	return PointerGetDatum(new);
}

/* ---- one row ---- */

/* Call "map" for each value of a row; what it gives goes into "to", or nowhere. */
static void
map_row(Sweep *sweep, TupleTableSlot *slot, InsideMap map, TupleTableSlot *to)
{
	TupleDesc	desc = RelationGetDescr(sweep->rows.rel);

	for (int i = 0; i < sweep->rows.columns.n; i++)
	{
		int			column = sweep->rows.columns.numbers[i] - 1;
		Form_pg_attribute att = TupleDescAttr(desc, column);
		Datum		mapped;

		if (slot->tts_isnull[column])
			continue;
		mapped = inside_map(slot->tts_values[column], att->atttypid, att->atttypmod,
							map, sweep);
		if (to != NULL)
			to->tts_values[column] = mapped;
	}
}

static bool
wants_row(void *arg, TupleTableSlot *slot)
{
	Sweep	   *sweep = arg;

	sweep->wanted = false;
	map_row(sweep, slot, look, NULL);
	return sweep->wanted;
}

static void
refuse_row(Sweep *sweep, ItemPointer place)
{
	char	   *table = tables_name(RelationGetRelid(sweep->rows.rel));

	ereport(ERROR,
			(errcode(sweep->why == VALUE_DAMAGED ? ERRCODE_NC_INTEGRITY : ERRCODE_NC_KEY_UNKNOWN),
			 errmsg("row (%u,%u) of %s has a value that cannot be opened",
					ItemPointerGetBlockNumber(place), ItemPointerGetOffsetNumber(place), table),
			 errhint("Nothing was changed. CALL nomp_crypt.verify('%s') names all such rows.", table)));
}

/* Fingerprints are changed under a lock on the table, and all of them. */
static bool
renew_row(void *arg, TupleTableSlot *old, TupleTableSlot *new)
{
	Sweep	   *sweep = arg;

	sweep->renewed = sweep->failed = false;
	map_row(sweep, old, renew, new);
	if (sweep->failed && sweep->tenant != NULL)
		refuse_row(sweep, &old->tts_tid);
	return sweep->renewed;
}

/* ---- a relation ---- */

static void
begin(Sweep *sweep, Oid relid, const char *column, LOCKMODE lock)
{
	row_sweep_open(&sweep->rows, relid, lock);
	sweep->rows.columns = tables_columns(sweep->rows.rel, column);
	sweep->rows.wait = sweep->tenant != NULL;
	sweep->rows.wants = wants_row;
	sweep->rows.change = renew_row;
	sweep->rows.arg = sweep;
}

static void
end(Sweep *sweep)
{
	sweep->counts->rows += sweep->rows.rows;
	sweep->counts->locked += sweep->rows.locked;
	row_sweep_close(&sweep->rows);
}

BlockNumber
sweep_newest(Oid relid, const char *column, BlockNumber from, BlockNumber to,
			 int max_rows, SweepCounts *counts)
{
	Sweep		sweep = {.counts = counts};
	BlockNumber next;

	begin(&sweep, relid, column, RowExclusiveLock);
	row_sweep_prepare(&sweep.rows);
	next = row_sweep_blocks(&sweep.rows, from, to, max_rows);
	end(&sweep);
	return next;
}

List *
sweep_find(Oid relid, const char *column, int64 *rows)
{
	SweepCounts ignored = {0};
	Sweep		sweep = {.counts = &ignored};
	List	   *blocks;

	begin(&sweep, relid, column, AccessShareLock);
	blocks = row_sweep_find(&sweep.rows, rows);
	end(&sweep);
	return blocks;
}

void
sweep_fingerprints(Oid relid, const TenantRow *tenant, SweepCounts *counts)
{
	Sweep		sweep = {.counts = counts,.tenant = tenant};

	begin(&sweep, relid, NULL, RowExclusiveLock);
	row_sweep_prepare(&sweep.rows);
	(void) row_sweep_blocks(&sweep.rows, 0, MaxBlockNumber, PG_INT64_MAX);
	end(&sweep);
}
