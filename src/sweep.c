/*
 * sweep.c
 *		Goes through a table's rows and puts its values under other keys.
 *
 * What a value says does not change here, only how it is encrypted: so rows
 * are updated below the executor's triggers.  No user's trigger fires, none
 * that keeps unchanged values, and none of PostgreSQL's own for foreign keys:
 * they go by bytes where a referenced row changes, and ON UPDATE SET NULL would
 * take the reference away from a row that still has it.  Constraints, generated
 * columns, indexes, the replica identity and logical replication are as with
 * any UPDATE, and an update is HOT where none of its columns is indexed.
 *
 * A row is looked at by its values' headers first, which needs no key; then it
 * is locked, without waiting, and looked at again.  Rows that others hold are
 * counted and left.
 *
 * Plaintext is in payloads only, which are wiped.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "envelope.h"
#include "errors.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "inside.h"
#include "miscadmin.h"
#include "progress.h"
#include "reencrypt.h"
#include "storage/bufmgr.h"
#include "sweep.h"
#include "tables.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Blocks that sweep_find remembers; what is beyond is found the next time. */
#define MAX_FOUND	10000

typedef struct Sweep
{
	Relation	rel;
	TableColumns columns;
	const TenantRow *tenant;	/* whose fingerprints; NULL: everybody's values */
	SweepCounts *counts;
	bool		wanted;			/* has this row something to do? */
	bool		renewed;		/* has it been done? */
	bool		failed;			/* could it not be opened? */
	ValueState	why;
	Snapshot	snapshot;
	EState	   *estate;
	EPQState	epq;
	ResultRelInfo *result;
	TupleTableSlot *found;
	TupleTableSlot *locked;
	TupleTableSlot *changed;
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
	TupleDesc	desc = RelationGetDescr(sweep->rel);

	for (int i = 0; i < sweep->columns.n; i++)
	{
		int			column = sweep->columns.numbers[i] - 1;
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
wants_row(Sweep *sweep, TupleTableSlot *slot)
{
	slot_getallattrs(slot);
	sweep->wanted = false;
	map_row(sweep, slot, look, NULL);
	return sweep->wanted;
}

/*
 * A row that changed meanwhile has been written by others: it is found again.
 * Fingerprints are changed under a lock on the table, and all of them.
 */
static bool
lock_row(Sweep *sweep)
{
	TM_FailureData failure;

	switch (table_tuple_lock(sweep->rel, &sweep->found->tts_tid, sweep->snapshot,
							 sweep->locked, GetCurrentCommandId(false),
							 LockTupleExclusive,
							 sweep->tenant != NULL ? LockWaitBlock : LockWaitSkip,
							 0, &failure))
	{
		case TM_Ok:
			return true;
		case TM_WouldBlock:
			sweep->counts->locked++;
			return false;
		default:
			if (sweep->tenant != NULL)
				elog(ERROR, "a row was changed under a lock on its table");
			return false;
	}
}

static void
refuse_row(Sweep *sweep)
{
	ereport(ERROR,
			(errcode(sweep->why == VALUE_DAMAGED ? ERRCODE_NC_INTEGRITY : ERRCODE_NC_KEY_UNKNOWN),
			 errmsg("row (%u,%u) of %s has a value that cannot be opened",
					ItemPointerGetBlockNumber(&sweep->found->tts_tid),
					ItemPointerGetOffsetNumber(&sweep->found->tts_tid),
					tables_name(RelationGetRelid(sweep->rel))),
			 errhint("Nothing was changed. CALL nomp_crypt.verify('%s') names all such rows.",
					 tables_name(RelationGetRelid(sweep->rel)))));
}

static void
update_row(Sweep *sweep)
{
	TupleTableSlot *old = sweep->locked;
	TupleTableSlot *new = sweep->changed;
	int			natts = RelationGetDescr(sweep->rel)->natts;

	if (!lock_row(sweep))
		return;
	slot_getallattrs(old);
	ExecClearTuple(new);
	memcpy(new->tts_values, old->tts_values, natts * sizeof(Datum));
	memcpy(new->tts_isnull, old->tts_isnull, natts * sizeof(bool));
	sweep->renewed = sweep->failed = false;
	map_row(sweep, old, renew, new);
	if (sweep->failed && sweep->tenant != NULL)
		refuse_row(sweep);
	if (!sweep->renewed)
		return;
	ExecStoreVirtualTuple(new);
	ExecSimpleRelationUpdate(sweep->result, sweep->estate, &sweep->epq, old, new);
	sweep->counts->rows++;
}

/* ---- a relation ---- */

static void
begin_scan(Sweep *sweep, Oid relid, const char *column, LOCKMODE lock)
{
	sweep->rel = try_table_open(relid, lock);
	if (sweep->rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("a table was dropped meanwhile"),
				 errhint("Repeat the call.")));
	if (sweep->rel->rd_tableam->scan_set_tidrange == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s has an access method without scans by block", tables_name(relid))));
	sweep->columns = tables_columns(sweep->rel, column);
	sweep->snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(sweep->snapshot);
	sweep->found = table_slot_create(sweep->rel, NULL);
}

static void
end_scan(Sweep *sweep)
{
	ExecDropSingleTupleTableSlot(sweep->found);
	PopActiveSnapshot();
	UnregisterSnapshot(sweep->snapshot);
	table_close(sweep->rel, NoLock);
}

/* What the executor would set up for an UPDATE, but for the triggers. */
static void
begin_update(Sweep *sweep)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(sweep->rel);
	rte->relkind = sweep->rel->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;
	for (int i = 0; i < sweep->columns.n; i++)
		rte->updatedCols = bms_add_member(rte->updatedCols,
										  sweep->columns.numbers[i] - FirstLowInvalidHeapAttributeNumber);
	sweep->estate = CreateExecutorState();
	ExecInitRangeTable(sweep->estate, list_make1(rte));
	sweep->estate->es_snapshot = sweep->snapshot;
	sweep->estate->es_output_cid = GetCurrentCommandId(true);
	sweep->result = makeNode(ResultRelInfo);
	InitResultRelInfo(sweep->result, sweep->rel, 1, NULL, 0);
	sweep->result->ri_TrigDesc = NULL;
	ExecOpenIndices(sweep->result, false);
	EvalPlanQualInit(&sweep->epq, sweep->estate, NULL, NIL, -1);
	sweep->locked = table_slot_create(sweep->rel, NULL);
	sweep->changed = MakeSingleTupleTableSlot(RelationGetDescr(sweep->rel), &TTSOpsVirtual);
}

static void
end_update(Sweep *sweep)
{
	EvalPlanQualEnd(&sweep->epq);
	ExecCloseIndices(sweep->result);
	ExecDropSingleTupleTableSlot(sweep->locked);
	ExecDropSingleTupleTableSlot(sweep->changed);
	FreeExecutorState(sweep->estate);
}

static TableScanDesc
scan_blocks(Sweep *sweep, BlockNumber from, BlockNumber to)
{
	ItemPointerData first;
	ItemPointerData last;

	ItemPointerSet(&first, from, FirstOffsetNumber);
	ItemPointerSet(&last, to - 1, MaxOffsetNumber);
	return table_beginscan_tidrange(sweep->rel, sweep->snapshot, &first, &last);
}

/* Rows of those blocks, until so many are changed; the block to go on with. */
static BlockNumber
sweep_blocks(Sweep *sweep, BlockNumber from, BlockNumber to, int max_rows)
{
	MemoryContext per_row = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt row",
												  ALLOCSET_DEFAULT_SIZES);
	TableScanDesc scan = scan_blocks(sweep, from, to);
	int64		before = sweep->counts->rows;
	BlockNumber block = from;

	while (table_scan_getnextslot_tidrange(scan, ForwardScanDirection, sweep->found))
	{
		MemoryContext old;

		CHECK_FOR_INTERRUPTS();
		if (ItemPointerGetBlockNumber(&sweep->found->tts_tid) != block)
		{
			block = ItemPointerGetBlockNumber(&sweep->found->tts_tid);
			if (sweep->counts->rows - before >= max_rows)
			{
				to = block;
				break;
			}
		}
		old = MemoryContextSwitchTo(per_row);
		if (wants_row(sweep, sweep->found))
			update_row(sweep);
		MemoryContextSwitchTo(old);
		ExecClearTuple(sweep->changed);
		ResetPerTupleExprContext(sweep->estate);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	MemoryContextDelete(per_row);
	return to;
}

BlockNumber
sweep_newest(Oid relid, const char *column, BlockNumber from, BlockNumber to,
			 int max_rows, SweepCounts *counts)
{
	Sweep		sweep = {.counts = counts};
	BlockNumber next;

	begin_scan(&sweep, relid, column, RowExclusiveLock);
	begin_update(&sweep);
	/* it may have been truncated meanwhile */
	next = Min(to, RelationGetNumberOfBlocks(sweep.rel));
	if (from < next)
		next = sweep_blocks(&sweep, from, next, max_rows);
	else
		next = to;
	end_update(&sweep);
	end_scan(&sweep);
	return next;
}

List *
sweep_find(Oid relid, const char *column, int64 *rows)
{
	SweepCounts ignored = {0};
	Sweep		sweep = {.counts = &ignored};
	MemoryContext per_row = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt row",
												  ALLOCSET_DEFAULT_SIZES);
	BlockNumber last = InvalidBlockNumber;
	List	   *blocks = NIL;
	TableScanDesc scan;

	begin_scan(&sweep, relid, column, AccessShareLock);
	scan = table_beginscan(sweep.rel, sweep.snapshot, 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, sweep.found))
	{
		BlockNumber block = ItemPointerGetBlockNumber(&sweep.found->tts_tid);
		MemoryContext old;
		bool		wanted;

		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(per_row);
		wanted = wants_row(&sweep, sweep.found);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
		if (!wanted)
			continue;
		(*rows)++;
		if (block != last && list_length(blocks) < MAX_FOUND)
			blocks = lappend_oid(blocks, block);
		last = block;
	}
	table_endscan(scan);
	MemoryContextDelete(per_row);
	end_scan(&sweep);
	return blocks;
}

void
sweep_fingerprints(Oid relid, const TenantRow *tenant, SweepCounts *counts)
{
	Sweep		sweep = {.counts = counts,.tenant = tenant};
	BlockNumber blocks;

	begin_scan(&sweep, relid, NULL, RowExclusiveLock);
	begin_update(&sweep);
	blocks = RelationGetNumberOfBlocks(sweep.rel);
	if (blocks > 0)
		(void) sweep_blocks(&sweep, 0, blocks, PG_INT32_MAX);
	end_update(&sweep);
	end_scan(&sweep);
}
