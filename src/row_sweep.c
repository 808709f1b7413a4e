/*
 * row_sweep.c
 *		Goes through the blocks of a table and changes rows below the triggers.
 *
 * Rows are updated below the executor's triggers, as a subscriber's worker
 * writes them: no user's trigger fires, and none of PostgreSQL's own for foreign
 * keys: they go by bytes where a referenced row changes, and ON UPDATE SET NULL
 * would take the reference away from a row that still has it.  Constraints,
 * generated columns, indexes, the replica identity and logical replication are
 * as with any UPDATE, and an update is HOT where none of its columns is
 * indexed.
 *
 * A row is looked at first; then it is locked, without waiting unless that is
 * asked for, and looked at again by whoever changes it.  Rows that others hold
 * are counted and left.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "row_sweep.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Blocks that row_sweep_find remembers; what is beyond is found the next time. */
#define MAX_FOUND	10000

/* ---- one row ---- */

/* A row that changed meanwhile has been written by others: it is found again. */
static bool
lock_row(RowSweep *sweep)
{
	TM_FailureData failure;

	switch (table_tuple_lock(sweep->rel, &sweep->found->tts_tid, sweep->snapshot,
							 sweep->held, GetCurrentCommandId(false),
							 LockTupleExclusive,
							 sweep->wait ? LockWaitBlock : LockWaitSkip, 0, &failure))
	{
		case TM_Ok:
			return true;
		case TM_WouldBlock:
			sweep->locked++;
			return false;
		default:
			if (sweep->wait)
				elog(ERROR, "a row was changed under a lock on its table");
			return false;
	}
}

static void
update_row(RowSweep *sweep)
{
	TupleTableSlot *old = sweep->held;
	TupleTableSlot *new = sweep->changed;
	int			natts = RelationGetDescr(sweep->rel)->natts;

	if (!lock_row(sweep))
		return;
	slot_getallattrs(old);
	ExecClearTuple(new);
	memcpy(new->tts_values, old->tts_values, natts * sizeof(Datum));
	memcpy(new->tts_isnull, old->tts_isnull, natts * sizeof(bool));
	if (!sweep->change(sweep->arg, old, new))
		return;
	ExecStoreVirtualTuple(new);
	ExecSimpleRelationUpdate(sweep->result, sweep->estate, &sweep->epq, old, new);
	sweep->rows++;
}

static bool
is_wanted(RowSweep *sweep)
{
	slot_getallattrs(sweep->found);
	return sweep->wants(sweep->arg, sweep->found);
}

/* ---- a relation ---- */

void
row_sweep_open(RowSweep *sweep, Oid relid, LOCKMODE lock)
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
	sweep->snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(sweep->snapshot);
	sweep->found = table_slot_create(sweep->rel, NULL);
	sweep->estate = NULL;
}

/* What the executor would set up for an UPDATE, but for the triggers. */
void
row_sweep_prepare(RowSweep *sweep)
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
	sweep->held = table_slot_create(sweep->rel, NULL);
	sweep->changed = MakeSingleTupleTableSlot(RelationGetDescr(sweep->rel), &TTSOpsVirtual);
}

void
row_sweep_close(RowSweep *sweep)
{
	if (sweep->estate != NULL)
	{
		EvalPlanQualEnd(&sweep->epq);
		ExecCloseIndices(sweep->result);
		ExecDropSingleTupleTableSlot(sweep->held);
		ExecDropSingleTupleTableSlot(sweep->changed);
		FreeExecutorState(sweep->estate);
	}
	ExecDropSingleTupleTableSlot(sweep->found);
	PopActiveSnapshot();
	UnregisterSnapshot(sweep->snapshot);
	table_close(sweep->rel, NoLock);
}

static TableScanDesc
scan_blocks(RowSweep *sweep, BlockNumber from, BlockNumber to)
{
	ItemPointerData first;
	ItemPointerData last;

	ItemPointerSet(&first, from, FirstOffsetNumber);
	ItemPointerSet(&last, to - 1, MaxOffsetNumber);
	return table_beginscan_tidrange(sweep->rel, sweep->snapshot, &first, &last);
}

BlockNumber
row_sweep_blocks(RowSweep *sweep, BlockNumber from, BlockNumber to, int64 max_rows)
{
	MemoryContext per_row;
	TableScanDesc scan;
	int64		before = sweep->rows;
	BlockNumber block = from;
	BlockNumber end = Min(to, RelationGetNumberOfBlocks(sweep->rel));

	/* it may have been truncated meanwhile */
	if (from >= end)
		return to;
	per_row = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt row", ALLOCSET_DEFAULT_SIZES);
	scan = scan_blocks(sweep, from, end);
	while (table_scan_getnextslot_tidrange(scan, ForwardScanDirection, sweep->found))
	{
		MemoryContext old;

		CHECK_FOR_INTERRUPTS();
		if (ItemPointerGetBlockNumber(&sweep->found->tts_tid) != block)
		{
			block = ItemPointerGetBlockNumber(&sweep->found->tts_tid);
			if (sweep->rows - before >= max_rows)
			{
				end = block;
				break;
			}
		}
		old = MemoryContextSwitchTo(per_row);
		if (is_wanted(sweep))
			update_row(sweep);
		MemoryContextSwitchTo(old);
		ExecClearTuple(sweep->changed);
		ResetPerTupleExprContext(sweep->estate);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	MemoryContextDelete(per_row);
	return end;
}

List *
row_sweep_find(RowSweep *sweep, int64 *rows)
{
	MemoryContext per_row = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt row",
												  ALLOCSET_DEFAULT_SIZES);
	TableScanDesc scan = table_beginscan(sweep->rel, sweep->snapshot, 0, NULL);
	BlockNumber last = InvalidBlockNumber;
	List	   *blocks = NIL;

	while (table_scan_getnextslot(scan, ForwardScanDirection, sweep->found))
	{
		BlockNumber block = ItemPointerGetBlockNumber(&sweep->found->tts_tid);
		MemoryContext old;
		bool		wanted;

		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(per_row);
		wanted = is_wanted(sweep);
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
	return blocks;
}
