/*
 * convert_fill.h
 *		Fills in the encrypted copies of rows that were there before a
 *		conversion began.
 */
#ifndef NOMP_CONVERT_FILL_H
#define NOMP_CONVERT_FILL_H

#include "postgres.h"

#include "storage/block.h"

typedef struct FillCounts
{
	int64		filled;			/* rows */
	int64		held;			/* that others hold */
	int64		failed;			/* whose copy could not be made */
} FillCounts;

/*
 * Within the current transaction: rows of a relation from block "from" on,
 * before "to", until that many are filled in and their block is done; with
 * "all" those that have a copy, too.  Returns the block to go on with.  Raises
 * 55000 if the conversion is not under way.
 */
extern BlockNumber convert_fill(Oid relid, const char *conversion, BlockNumber from,
								BlockNumber to, int max_rows, bool all, FillCounts *counts);

#endif							/* NOMP_CONVERT_FILL_H */
