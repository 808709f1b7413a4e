/*
 * convert_fill.c
 *		Fills in the encrypted copies of rows that were there before a
 *		conversion began.
 *
 * Below the triggers: what changes is a column that nobody else knows.
 */
#include "postgres.h"

#include "convert_fill.h"
#include "convert_row.h"
#include "row_sweep.h"
#include "utils/rel.h"

typedef struct Fill
{
	RowSweep	rows;
	ConvertRow *row;
	bool		all;			/* make again what is there, too */
	int64		failed;
} Fill;

static bool
wants_copy(void *arg, TupleTableSlot *slot)
{
	Fill	   *fill = arg;
	bool		plain = !slot->tts_isnull[convert_row_plain(fill->row) - 1];
	bool		copy = !slot->tts_isnull[convert_row_shadow(fill->row) - 1];

	return fill->all ? plain || copy : plain && !copy;
}

static bool
make_copy(void *arg, TupleTableSlot *old, TupleTableSlot *new)
{
	Fill	   *fill = arg;
	int			shadow = convert_row_shadow(fill->row) - 1;

	if (!wants_copy(fill, old))
		return false;
	if (convert_row(fill->row, old->tts_values, old->tts_isnull,
					&new->tts_values[shadow], &new->tts_isnull[shadow]))
		return true;
	fill->failed++;
	return false;
}

BlockNumber
convert_fill(Oid relid, const char *conversion, BlockNumber from, BlockNumber to,
			 int max_rows, bool all, FillCounts *counts)
{
	Fill		fill = {.all = all};
	AttrNumber	shadow;

	row_sweep_open(&fill.rows, relid, RowExclusiveLock);
	fill.row = convert_row_prepare(fill.rows.rel, conversion);
	if (fill.row == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the conversion of %s has lost its columns, or was cancelled",
						tables_name(relid))));
	shadow = convert_row_shadow(fill.row);
	fill.rows.columns.n = 1;
	fill.rows.columns.numbers = &shadow;
	fill.rows.wants = wants_copy;
	fill.rows.change = make_copy;
	fill.rows.arg = &fill;
	row_sweep_prepare(&fill.rows);
	from = row_sweep_blocks(&fill.rows, from, to, max_rows);
	counts->filled += fill.rows.rows;
	counts->held += fill.rows.locked;
	counts->failed += fill.failed;
	row_sweep_close(&fill.rows);
	return from;
}
