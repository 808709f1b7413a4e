/*
 * lint_sample.c
 *		Looks into some rows of a table for what looks like personal data.
 *
 * For nomp_crypt.lint(), which counts and shows no value.  The rows are read
 * below the executor: no query, so no function, policy or rule of the table's
 * owner runs, and nothing of a value gets into a plan or the log.  What a query
 * would check is checked here, for whoever called: SELECT on each column, and
 * that no row-level security applies.
 *
 * The same rows each time, from places spread over the table, so that it takes
 * as long for a large one.  A table that is locked is left alone.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "personal.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

NC_FUNCTION(nc_lint_sample);

#define PLACES		50			/* in a table */
#define BLOCKS		8			/* that are read at one of them */
#define TEXT_READ	4096		/* bytes of a value */
#define VALUE_MAX	65536		/* of one that has to be written out */

typedef struct Column
{
	AttrNumber	number;
	Oid			type;			/* domains looked through */
	bool		is_text;
	Oid			output;
	int			values;
	int			numbers;
	int			shapes;
	int			emails;
	int			phones;
} Column;

typedef struct Sample
{
	Relation	rel;
	Column	   *columns;
	int			n;
} Sample;

/* Types that could hold such things, and whose output function is safe. */
static bool
can_hold(Column *column)
{
	bool		varlena;
	char		category;
	bool		preferred;

	get_type_category_preferred(column->type, &category, &preferred);
	getTypeOutputInfo(column->type, &column->output, &varlena);
	switch (column->type)
	{
		case JSONBOID:
		case INT8OID:
		case NUMERICOID:
		case TEXTARRAYOID:
		case VARCHARARRAYOID:
		case BPCHARARRAYOID:
			return true;
		case JSONOID:
		case XMLOID:
			column->is_text = true;
			return true;
		default:
			/* citext and its like */
			column->is_text = get_typtype(column->type) == TYPTYPE_BASE && varlena;
			return category == TYPCATEGORY_STRING && column->is_text;
	}
}

static bool
may_read(Oid relid, AttrNumber number)
{
	Oid			role = GetOuterUserId();

	return pg_class_aclcheck(relid, role, ACL_SELECT) == ACLCHECK_OK ||
		pg_attribute_aclcheck(relid, number, role, ACL_SELECT) == ACLCHECK_OK;
}

/* The columns to look at; what is in the way of that, or NULL. */
static const char *
find_columns(Sample *sample)
{
	TupleDesc	desc = RelationGetDescr(sample->rel);
	Oid			relid = RelationGetRelid(sample->rel);

	sample->columns = palloc0(Max(desc->natts, 1) * sizeof(Column));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Column	   *column = &sample->columns[sample->n];

		if (att->attisdropped)
			continue;
		memset(column, 0, sizeof(Column));
		column->number = att->attnum;
		column->type = getBaseType(att->atttypid);
		if (!can_hold(column))
			continue;
		if (!may_read(relid, att->attnum))
			return "right";
		sample->n++;
	}
	if (sample->n > 0 && check_enable_rls(relid, GetOuterUserId(), true) == RLS_ENABLED)
		return "policy";
	return NULL;
}

static void
look_at(Column *column, Datum value)
{
	PersonalLook look;

	if (column->is_text)
	{
		text	   *start = DatumGetTextPSlice(value, 0, TEXT_READ);

		look = personal_look(VARDATA_ANY(start), VARSIZE_ANY_EXHDR(start));
	}
	else if (get_typlen(column->type) == -1 && toast_raw_datum_size(value) > VALUE_MAX)
		return;
	else
	{
		char	   *start = OidOutputFunctionCall(column->output, value);

		look = personal_look(start, strlen(start));
	}
	column->values++;
	column->numbers += look.number;
	column->shapes += look.number_shape;
	column->emails += look.email;
	column->phones += look.phone;
}

/* Up to that many rows of a range of blocks. */
static void
look_at_blocks(Sample *sample, TableScanDesc scan, TupleTableSlot *slot, int rows, MemoryContext context)
{
	while (rows-- > 0 && table_scan_getnextslot_tidrange(scan, ForwardScanDirection, slot))
	{
		MemoryContext before = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		for (int i = 0; i < sample->n; i++)
		{
			AttrNumber	number = sample->columns[i].number;

			if (!slot->tts_isnull[number - 1])
				look_at(&sample->columns[i], slot->tts_values[number - 1]);
		}
		MemoryContextSwitchTo(before);
		MemoryContextReset(context);
	}
}

static void
look_at_rows(Sample *sample, int rows)
{
	BlockNumber blocks = RelationGetNumberOfBlocks(sample->rel);
	int			places = Min(Min(blocks, PLACES), Max(rows, 0));
	int			each = places > 0 ? (rows - 1) / places + 1 : 0;
	TupleTableSlot *slot = table_slot_create(sample->rel, NULL);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt sample",
											   ALLOCSET_DEFAULT_SIZES);
	TableScanDesc scan = NULL;

	for (int i = 0; i < places; i++)
	{
		BlockNumber first = (uint64) blocks * i / places;
		BlockNumber last = Min((uint64) blocks * (i + 1) / places, (uint64) first + BLOCKS) - 1;
		ItemPointerData from;
		ItemPointerData to;

		ItemPointerSet(&from, first, FirstOffsetNumber);
		ItemPointerSet(&to, last, MaxOffsetNumber);
		if (scan == NULL)
			scan = table_beginscan_tidrange(sample->rel, GetActiveSnapshot(), &from, &to);
		else
			table_rescan_tidrange(scan, &from, &to);
		look_at_blocks(sample, scan, slot, Min(each, rows), context);
		rows -= each;
	}
	if (scan != NULL)
		table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(context);
}

static void
put_trouble(ReturnSetInfo *result, const char *trouble)
{
	Datum		values[7] = {0};
	bool		nulls[7] = {true, true, true, true, true, true, false};

	values[6] = CStringGetTextDatum(trouble);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static void
put_columns(ReturnSetInfo *result, Sample *sample)
{
	for (int i = 0; i < sample->n; i++)
	{
		Column	   *column = &sample->columns[i];
		Datum		values[7];
		bool		nulls[7] = {false, false, false, false, false, false, true};

		values[0] = NameGetDatum(&TupleDescAttr(RelationGetDescr(sample->rel), column->number - 1)->attname);
		values[1] = Int32GetDatum(column->values);
		values[2] = Int32GetDatum(column->numbers);
		values[3] = Int32GetDatum(column->shapes);
		values[4] = Int32GetDatum(column->emails);
		values[5] = Int32GetDatum(column->phones);
		values[6] = (Datum) 0;
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

/* What is in the way, or NULL; the relation may be gone. */
static const char *
take_sample(Sample *sample, int rows)
{
	const char *trouble = NULL;

	if (sample->rel->rd_rel->relkind != RELKIND_RELATION && sample->rel->rd_rel->relkind != RELKIND_MATVIEW)
		return NULL;
	if (RELATION_IS_OTHER_TEMP(sample->rel) || !RelationIsPopulated(sample->rel))
		return NULL;
	trouble = find_columns(sample);
	if (trouble == NULL && sample->n > 0 && sample->rel->rd_tableam->scan_set_tidrange == NULL)
		trouble = "access method";
	if (trouble == NULL && sample->n > 0)
		look_at_rows(sample, rows);
	return trouble;
}

/*
 * nomp_crypt._lint_sample(relation oid, "rows" int, OUT column_name name, OUT "values" int,
 *		OUT numbers int, OUT shapes int, OUT emails int, OUT phones int,
 *		OUT trouble text) returns setof record
 *
 * In how many of a column's values there is something like that.  Or one row
 * with what is in the way: 'locked', 'right' (SELECT), 'policy' (row-level
 * security), 'access method'.  Nothing for a relation that has no such columns,
 * no rows, or is gone.
 */
Datum
nc_lint_sample(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			relid = PG_GETARG_OID(0);
	Sample		sample = {0};
	const char *trouble;

	InitMaterializedSRF(fcinfo, 0);
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
	{
		put_trouble(result, "locked");
		return (Datum) 0;
	}
	sample.rel = try_relation_open(relid, NoLock);
	if (sample.rel != NULL)
	{
		trouble = take_sample(&sample, PG_GETARG_INT32(1));
		if (trouble != NULL)
			put_trouble(result, trouble);
		else
			put_columns(result, &sample);
		relation_close(sample.rel, NoLock);
	}
	UnlockRelationOid(relid, AccessShareLock);
	return (Datum) 0;
}
