/*
 * verify.c
 *		What of a table's values opens: nomp_crypt.verify and verify_values.
 *
 * Reads every value as a decrypting query would, and says of each what it is
 * instead of failing at the first: so it is for the day after a restore.
 * Besides opening, a value must be what its column is declared as, carry the
 * fingerprint that its content has by the school's present index key, and
 * belong to the school that its row names, where enforce_tenant is installed.
 * Only a keystore that does not answer, or a missing right, ends it: what
 * could not be looked at is not called bad.
 *
 * Writes nothing, so it works on a standby.  The procedure goes by ranges of
 * blocks, each with a snapshot of its own, which replay need not wait for
 * long; the function has one for all.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "compat.h"
#include "envelope.h"
#include "errors.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "inside.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "progress.h"
#include "reencrypt.h"
#include "steps.h"
#include "storage/bufmgr.h"
#include "tables.h"
#include "typemod.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

NC_FUNCTION(nc_verify);
NC_FUNCTION(nc_verify_values);

#define MAX_NAMED	100			/* rows of a kind that are named */
#define RANGE		1024		/* blocks */

/* After ValueState. */
#define VALUE_MISFIT		(VALUE_DAMAGED + 1)
#define VALUE_FOREIGN		(VALUE_DAMAGED + 2)
#define VALUE_FINGERPRINT	(VALUE_DAMAGED + 3)

static const char *const status_names[] = {
	[VALUE_OPENS] = "opens",
	[VALUE_ERASED] = "erased",
	[VALUE_SUSPENDED] = "suspended",
	[VALUE_UNKNOWN] = "unknown",
	[VALUE_DAMAGED] = "damaged",
	[VALUE_MISFIT] = "misfit",
	[VALUE_FOREIGN] = "foreign",
	[VALUE_FINGERPRINT] = "fingerprint",
};

/* Values of a column and tenant that are alike.  Hashed as bytes. */
typedef struct GroupKey
{
	Oid			table;
	int			column;
	int			status;
	char		tenant[NAMEDATALEN * 2];
} GroupKey;

typedef struct Tally
{
	GroupKey	key;
	char	   *table_name;
	char	   *column_name;
	int64		values;
	int			nnamed;
	char	  **named;
} Tally;

typedef struct Verification
{
	MemoryContext context;		/* of the tallies and all they hold */
	HTAB	   *tallies;
	Relation	rel;
	TableColumns columns;
	AttrNumber	school;			/* 0: rows may have values of any tenant */
	Oid			school_type;
	Oid			school_output;
	Bitmapset  *primary_key;
	TupleTableSlot *row;
	const char *school_said;	/* by the row; NULL if it says nothing */
	int			column;
} Verification;

/* ---- naming ---- */

/* "(0,7) id=7, part=x": never a value of ours, nor much of anybody's. */
static char *
name_row(Verification *v)
{
	TupleDesc	desc = RelationGetDescr(v->rel);
	StringInfoData name;
	int			number = -1;
	const char *separator = " ";

	initStringInfo(&name);
	appendStringInfo(&name, "(%u,%u)", ItemPointerGetBlockNumber(&v->row->tts_tid),
					 ItemPointerGetOffsetNumber(&v->row->tts_tid));
	while ((number = bms_next_member(v->primary_key, number)) >= 0)
	{
		int			column = number + FirstLowInvalidHeapAttributeNumber - 1;
		Form_pg_attribute att;
		Oid			output;
		bool		is_varlena;
		char	   *text;

		if (column < 0)
			continue;
		att = TupleDescAttr(desc, column);
		if (v->row->tts_isnull[column] || inside_holds(att->atttypid))
			continue;
		getTypeOutputInfo(att->atttypid, &output, &is_varlena);
		text = OidOutputFunctionCall(output, v->row->tts_values[column]);
		appendStringInfo(&name, "%s%s=%.*s", separator, NameStr(att->attname),
						 pg_mbcliplen(text, strlen(text), 100), text);
		separator = ", ";
	}
	return name.data;
}

static bool
is_bad(int status)
{
	return status >= VALUE_UNKNOWN;
}

static void
count(Verification *v, int status, const TenantRow *owner)
{
	GroupKey	key;
	Tally	   *tally;
	bool		found;

	memset(&key, 0, sizeof(key));
	key.table = RelationGetRelid(v->rel);
	key.column = v->column;
	key.status = status;
	strlcpy(key.tenant, owner->id, sizeof(key.tenant));
	tally = hash_search(v->tallies, &key, HASH_ENTER, &found);
	if (!found)
	{
		MemoryContext old = MemoryContextSwitchTo(v->context);

		tally->values = 0;
		tally->nnamed = 0;
		tally->table_name = tables_name(key.table);
		tally->column_name = pstrdup(NameStr(TupleDescAttr(RelationGetDescr(v->rel),
														   v->column - 1)->attname));
		tally->named = is_bad(status) ? palloc(MAX_NAMED * sizeof(char *)) : NULL;
		MemoryContextSwitchTo(old);
	}
	tally->values++;
	if (is_bad(status) && tally->nnamed < MAX_NAMED)
		tally->named[tally->nnamed++] = MemoryContextStrdup(v->context, name_row(v));
}

/* ---- one value ---- */

/* Of a value that opens: is it also what it should be where it is? */
static int
judge(Verification *v, const ValueView *view, const bytea *payload, const TenantRow *owner,
	  int32 typmod)
{
	uint8		fingerprint[VALUE_FINGERPRINT_LEN];

	if (typmod >= 0 && (view->type_code != typemod_type_code(typmod) ||
						(view->fingerprint != NULL) != typemod_searchable(typmod)))
		return VALUE_MISFIT;
	if (v->school != InvalidAttrNumber &&
		(v->school_said == NULL || strcmp(v->school_said, owner->id) != 0))
		return VALUE_FOREIGN;
	if (view->fingerprint == NULL || typmod < 0)
		return VALUE_OPENS;
	reencrypt_fingerprint(view, payload, owner, RIGHT_DECRYPT, typmod, fingerprint);
	return memcmp(fingerprint, view->fingerprint, VALUE_FINGERPRINT_LEN) == 0 ?
		VALUE_OPENS : VALUE_FINGERPRINT;
}

static Datum
verify_value(Datum value, int32 typmod, void *arg)
{
	Verification *v = arg;
	bytea	   *bytes = inside_try(value, false);
	int			status = VALUE_DAMAGED;
	TenantRow	owner = {0};
	ValueView	view;
	bytea	   *payload;

	if (bytes != NULL &&
		value_parse((const uint8 *) VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes), &view))
		status = envelope_try_open(&view, &owner, &payload);
	if (status == VALUE_OPENS)
	{
		status = judge(v, &view, payload, &owner, typmod);
		envelope_wipe(payload);
	}
	count(v, status, &owner);
	return value;
}

/* ---- rows ---- */

static void
verify_row(Verification *v)
{
	TupleDesc	desc = RelationGetDescr(v->rel);
	TupleTableSlot *row = v->row;

	slot_getallattrs(row);
	v->school_said = NULL;
	if (v->school != InvalidAttrNumber && !row->tts_isnull[v->school - 1])
		v->school_said = tables_school_text(row->tts_values[v->school - 1],
											v->school_type, v->school_output);
	for (int i = 0; i < v->columns.n; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, v->columns.numbers[i] - 1);

		v->column = att->attnum;
		if (!row->tts_isnull[att->attnum - 1])
			(void) inside_map(row->tts_values[att->attnum - 1], att->atttypid,
							  att->atttypmod, verify_value, v);
	}
}

/* False if the table is gone. */
static bool
open_table(Verification *v, Oid relid)
{
	bool		is_varlena;

	v->rel = try_table_open(relid, AccessShareLock);
	if (v->rel == NULL)
		return false;
	v->columns = tables_columns(v->rel, NULL);
	v->school = tables_school(v->rel);
	if (v->school != InvalidAttrNumber)
	{
		v->school_type = getBaseType(TupleDescAttr(RelationGetDescr(v->rel), v->school - 1)->atttypid);
		getTypeOutputInfo(v->school_type, &v->school_output, &is_varlena);
	}
	v->primary_key = RelationGetIndexAttrBitmap(v->rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	return true;
}

/* Blocks from "from" on, so many; how many blocks there are. */
static BlockNumber
verify_range(Verification *v, Oid relid, BlockNumber from, BlockNumber n)
{
	MemoryContext per_row;
	MemoryContext old;
	BlockNumber blocks = 0;
	ItemPointerData first;
	ItemPointerData last;
	TableScanDesc scan;

	if (!open_table(v, relid))
		return 0;
	blocks = RelationGetNumberOfBlocks(v->rel);
	if (from < blocks)
	{
		n = Min(n, blocks - from);
		ItemPointerSet(&first, from, FirstOffsetNumber);
		ItemPointerSet(&last, from + n - 1, MaxOffsetNumber);
		PushActiveSnapshot(GetTransactionSnapshot());
		v->row = table_slot_create(v->rel, NULL);
		per_row = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt row",
										ALLOCSET_DEFAULT_SIZES);
		scan = table_beginscan_tidrange(v->rel, GetActiveSnapshot(), &first, &last);
		while (table_scan_getnextslot_tidrange(scan, ForwardScanDirection, v->row))
		{
			CHECK_FOR_INTERRUPTS();
			old = MemoryContextSwitchTo(per_row);
			verify_row(v);
			MemoryContextSwitchTo(old);
			MemoryContextReset(per_row);
		}
		table_endscan(scan);
		MemoryContextDelete(per_row);
		ExecDropSingleTupleTableSlot(v->row);
		PopActiveSnapshot();
	}
	table_close(v->rel, AccessShareLock);
	return blocks;
}

/* ---- results ---- */

static Verification *
begin(void)
{
	Verification *v = palloc0(sizeof(Verification));
	HASHCTL		ctl = {0};

	v->context = AllocSetContextCreate(CurrentMemoryContext, "nomp_crypt verification",
									   ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(GroupKey);
	ctl.entrysize = sizeof(Tally);
	ctl.hcxt = v->context;
	v->tallies = hash_create("nomp_crypt verification", 256, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return v;
}

static int
compare_tallies(const void *a, const void *b)
{
	const Tally *x = *(Tally *const *) a;
	const Tally *y = *(Tally *const *) b;
	int			order = strcmp(x->table_name, y->table_name);

	if (order == 0)
		order = x->key.column - y->key.column;
	if (order == 0)
		order = strcmp(x->key.tenant, y->key.tenant);
	return order != 0 ? order : x->key.status - y->key.status;
}

static Tally **
sorted(Verification *v, long *n)
{
	Tally	  **tallies = palloc(Max(1, hash_get_num_entries(v->tallies)) * sizeof(Tally *));
	HASH_SEQ_STATUS scan;
	Tally	   *tally;

	*n = 0;
	hash_seq_init(&scan, v->tallies);
	while ((tally = hash_seq_search(&scan)) != NULL)
		tallies[(*n)++] = tally;
	qsort(tallies, *n, sizeof(Tally *), compare_tallies);
	return tallies;
}

/* The relations to go through, which the caller may read. */
static List *
choose(FunctionCallInfo fcinfo)
{
	List	   *result;
	ListCell   *lc;

	if (!PG_ARGISNULL(0))
	{
		tables_require(PG_GETARG_OID(0), NULL, ACL_SELECT);
		return tables_storage(PG_GETARG_OID(0));
	}
	result = tables_all();
	foreach(lc, result)
		tables_require(lfirst_oid(lc), NULL, ACL_SELECT);
	return result;
}

static char *
object_name(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(0) ? "" : tables_name(PG_GETARG_OID(0));
}

/*
 * nomp_crypt.verify_values(of_table regclass) returns setof
 *		(table_name text, column_name text, tenant text, status text,
 *		 values bigint, rows text[])
 *
 * Counts per column, tenant and status, in one snapshot, with the first rows
 * of those that are bad.  Needs SELECT, and the right "decrypt" everywhere.
 * Raises 42501, NC004.
 */
Datum
nc_verify_values(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Verification *v = begin();
	Tally	  **tallies;
	ListCell   *lc;
	long		n;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, choose(fcinfo))
		(void) verify_range(v, lfirst_oid(lc), 0, MaxBlockNumber);
	tallies = sorted(v, &n);
	for (long i = 0; i < n; i++)
	{
		Tally	   *tally = tallies[i];
		Datum		values[6];
		bool		nulls[6] = {false};
		Datum	   *named = palloc(Max(1, tally->nnamed) * sizeof(Datum));

		for (int j = 0; j < tally->nnamed; j++)
			named[j] = CStringGetTextDatum(tally->named[j]);
		values[0] = CStringGetTextDatum(tally->table_name);
		values[1] = CStringGetTextDatum(tally->column_name);
		values[2] = CStringGetTextDatum(tally->key.tenant);
		nulls[2] = tally->key.tenant[0] == '\0';
		values[3] = CStringGetTextDatum(status_names[tally->key.status]);
		values[4] = Int64GetDatum(tally->values);
		values[5] = PointerGetDatum(construct_array(named, tally->nnamed, TEXTOID, -1,
													false, TYPALIGN_INT));
		nulls[5] = tally->nnamed == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static void
say(const Tally *tally)
{
	StringInfoData rows;

	initStringInfo(&rows);
	for (int i = 0; i < tally->nnamed; i++)
		appendStringInfo(&rows, "%s%s", i == 0 ? " in rows " : "; ", tally->named[i]);
	if (tally->nnamed > 0 && tally->values > tally->nnamed)
		appendStringInfoString(&rows, "; ...");
	if (tally->key.tenant[0] != '\0')
		ereport(NOTICE,
				(errmsg("%s.%s, tenant \"%s\", %s: %lld%s", tally->table_name,
						quote_identifier(tally->column_name), tally->key.tenant,
						status_names[tally->key.status], (long long) tally->values, rows.data)));
	else
		ereport(NOTICE,
				(errmsg("%s.%s, %s: %lld%s", tally->table_name,
						quote_identifier(tally->column_name),
						status_names[tally->key.status], (long long) tally->values, rows.data)));
	pfree(rows.data);
}

/* All of a relation, in ranges; commits after each. */
static void
verify_all(Verification *v, Oid relid, int64 *done)
{
	BlockNumber at = 0;

	for (;;)
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
		BlockNumber end = verify_range(v, relid, at, RANGE);

		MemoryContextSwitchTo(old);
		SPI_commit();
		*done += at < end ? Min(RANGE, end - at) : 0;
		progress_done(*done);
		if (end <= at || end - at <= RANGE)
			return;
		at += RANGE;
	}
}

static int64
total_blocks(List *relations)
{
	int64		total = 0;
	ListCell   *lc;

	foreach(lc, relations)
	{
		Relation	rel = try_table_open(lfirst_oid(lc), AccessShareLock);

		if (rel == NULL)
			continue;
		total += RelationGetNumberOfBlocks(rel);
		table_close(rel, AccessShareLock);
	}
	return total;
}

/*
 * CALL nomp_crypt.verify(table_name regclass, INOUT problems bigint)
 *
 * The same with notices, in short transactions; of all tables without a
 * table's name.  "problems" is the number of values that are bad: unknown,
 * damaged, misfit, foreign or with a wrong fingerprint.  Raises 2D000 inside a
 * transaction block, 42501, NC004.
 */
Datum
nc_verify(PG_FUNCTION_ARGS)
{
	Verification *v;
	List	   *relations;
	Tally	  **tallies;
	ListCell   *lc;
	int64		done = 0;
	int64		problems = 0;
	long		n;
	TupleDesc	desc;
	Datum		value;
	bool		isnull = false;

	steps_refuse_atomic(fcinfo, "verify");
	(void) SPI_connect_ext(SPI_OPT_NONATOMIC);
	v = begin();
	relations = choose(fcinfo);
	progress_start("verify", object_name(fcinfo), true);
	progress_phase("reading", "blocks", total_blocks(relations));
	foreach(lc, relations)
		verify_all(v, lfirst_oid(lc), &done);
	tallies = sorted(v, &n);
	for (long i = 0; i < n; i++)
	{
		say(tallies[i]);
		if (is_bad(tallies[i]->key.status))
			problems += tallies[i]->values;
	}
	progress_end();
	SPI_finish();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	value = Int64GetDatum(problems);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), &value, &isnull));
}
