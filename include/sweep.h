/*
 * sweep.h
 *		Goes through a table's rows and puts its values under other keys.
 */
#ifndef NOMP_SWEEP_H
#define NOMP_SWEEP_H

#include "envelope.h"
#include "nodes/pg_list.h"
#include "storage/block.h"

/* What has been done, and what was found. */
typedef struct SweepCounts
{
	int64		rows;			/* changed */
	int64		values;			/* made anew */
	int64		newest;			/* that needed nothing */
	int64		left[VALUE_DAMAGED + 1];	/* that cannot be opened, by ValueState */
	int64		locked;			/* rows that others hold */
} SweepCounts;

/*
 * Within the current transaction: rows of a relation from block "from" on,
 * before "to", until that many have been changed and their block is done.
 * Returns the block to go on with.
 */
extern BlockNumber sweep_newest(Oid relid, const char *column, BlockNumber from,
								BlockNumber to, int max_rows, SweepCounts *counts);

/*
 * The blocks that have rows with older values of schools that are active,
 * in one snapshot; "rows" is how many such rows there are.
 */
extern List *sweep_find(Oid relid, const char *column, int64 *rows);

/*
 * All of a relation's fingerprints of that tenant by its newest index key, in
 * a table that is locked against writers.  Raises if a value cannot be opened,
 * with its row.
 */
extern void sweep_fingerprints(Oid relid, const TenantRow *tenant, SweepCounts *counts);

#endif							/* NOMP_SWEEP_H */
