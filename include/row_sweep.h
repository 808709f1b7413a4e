/*
 * row_sweep.h
 *		Goes through the blocks of a table and changes rows below the triggers.
 */
#ifndef NOMP_ROW_SWEEP_H
#define NOMP_ROW_SWEEP_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "storage/block.h"
#include "storage/lockdefs.h"
#include "tables.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/*
 * "wants" looks at a row, with all its columns at hand.  "change" gets the row
 * as it is locked and a copy of it to change; false leaves the row.
 */
typedef struct RowSweep
{
	Relation	rel;
	TableColumns columns;		/* that may be changed */
	bool		wait;			/* for rows that others hold? */
	bool		(*wants) (void *arg, TupleTableSlot *row);
	bool		(*change) (void *arg, TupleTableSlot *row, TupleTableSlot *changed);
	void	   *arg;
	int64		rows;			/* changed */
	int64		locked;			/* that others hold */
	/* the module's own */
	Snapshot	snapshot;
	EState	   *estate;
	EPQState	epq;
	ResultRelInfo *result;
	TupleTableSlot *found;
	TupleTableSlot *held;
	TupleTableSlot *changed;
} RowSweep;

/*
 * Opens the relation and takes a snapshot of now; set the columns afterwards,
 * and then say whether rows shall be changed.  Raises 42P01, 0A000.
 */
extern void row_sweep_open(RowSweep *sweep, Oid relid, LOCKMODE lock);
extern void row_sweep_prepare(RowSweep *sweep);
extern void row_sweep_close(RowSweep *sweep);

/*
 * Rows from a block on, before "to", until that many are changed and their
 * block is done; the block to go on with.
 */
extern BlockNumber row_sweep_blocks(RowSweep *sweep, BlockNumber from, BlockNumber to,
									int64 max_rows);

/* The blocks with rows that "wants" wants, in one snapshot, and how many rows. */
extern List *row_sweep_find(RowSweep *sweep, int64 *rows);

#endif							/* NOMP_ROW_SWEEP_H */
