/*
 * convert_row.c
 *		The encrypted copy of one row's plain value, while a table is being
 *		converted: nomp_crypt._convert_row, a trigger, and what fills in the rows
 *		that were there before.
 *
 * Whoever writes to the table knows nothing of the conversion, has no right
 * in any school, and must not meet an error because of it.  So the copy is
 * made with the rights of the role that converts, in a subtransaction; where
 * it cannot be made it is left out and a sequence counts that, which the
 * conversion looks at before it swaps the columns.
 *
 * The role comes from nomp_crypt.conversion, whose rows say who made them, and
 * not from the trigger's arguments, which the table's owner can choose.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_authid_d.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "compat.h"
#include "convert_row.h"
#include "executor/spi.h"
#include "inside.h"
#include "miscadmin.h"
#include "rights.h"
#include "rows.h"
#include "tables.h"
#include "type_io.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

NC_FUNCTION(nc_convert_row);

struct ConvertRow
{
	Oid			relid;
	AttrNumber	plain;
	AttrNumber	shadow;
	Oid			type;			/* of the plain column, domains looked through */
	int32		modifier;		/* of the other */
	Oid			role;			/* whose rights count */
	Oid			sequence;		/* counts what could not be made */
	AttrNumber	school;			/* the column that says whose row it is, or ... */
	Oid			school_type;
	Oid			school_out;
	Oid			function;		/* ... the function, of these columns */
	int			nargs;
	AttrNumber	args[FUNC_MAX_ARGS];
	FmgrInfo	call;
};

/* ---- what is on record ---- */

/* The table that a partition belongs to in the end, or the relation itself. */
static Oid
topmost(Relation rel)
{
	if (!rel->rd_rel->relispartition)
		return RelationGetRelid(rel);
	return llast_oid(get_partition_ancestors(RelationGetRelid(rel)));
}

/* nomp_crypt._conversion_facts(uuid), as a superuser. */
static bool
read_facts(const char *conversion, Datum *values, bool *nulls, int n)
{
	Oid			type = UUIDOID;
	Datum		argument = DirectFunctionCall1(uuid_in, CStringGetDatum(conversion));
	Oid			role;
	int			context;
	bool		found;

	GetUserIdAndSecContext(&role, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_execute_with_args("SELECT * FROM nomp_crypt._conversion_facts($1)",
							  1, &type, &argument, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "the facts of a conversion could not be read");
	SetUserIdAndSecContext(role, context);
	found = SPI_processed == 1;
	if (found)
		heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, values, nulls);
	return found && SPI_tuptable->tupdesc->natts == n;
}

static AttrNumber
number_of(Relation rel, Datum name)
{
	return get_attnum(RelationGetRelid(rel), NameStr(*DatumGetName(name)));
}

static bool
take_arguments(ConvertRow *row, Relation rel, Datum columns)
{
	Datum	   *names;

	deconstruct_array(DatumGetArrayTypeP(columns), TEXTOID, -1, false, TYPALIGN_INT,
					  &names, NULL, &row->nargs);
	if (row->nargs > FUNC_MAX_ARGS)
		return false;
	for (int i = 0; i < row->nargs; i++)
	{
		row->args[i] = get_attnum(RelationGetRelid(rel), TextDatumGetCString(names[i]));
		if (row->args[i] <= 0)
			return false;
	}
	return true;
}

/* The facts: table, column, shadow, modifier, school, function, columns, role, sequence. */
static bool
take_facts(ConvertRow *row, Relation rel, const Datum *values, const bool *nulls)
{
	if (nulls[0] || nulls[7] || nulls[8] || DatumGetObjectId(values[0]) != topmost(rel))
		return false;
	row->relid = RelationGetRelid(rel);
	row->plain = number_of(rel, values[1]);
	row->shadow = number_of(rel, values[2]);
	row->modifier = DatumGetInt32(values[3]);
	row->role = DatumGetObjectId(values[7]);
	row->sequence = DatumGetObjectId(values[8]);
	if (row->plain <= 0 || row->shadow <= 0)
		return false;
	row->type = getBaseType(TupleDescAttr(RelationGetDescr(rel), row->plain - 1)->atttypid);
	if (!nulls[4])
	{
		bool		is_varlena;

		row->school = number_of(rel, values[4]);
		if (row->school <= 0)
			return false;
		row->school_type = getBaseType(TupleDescAttr(RelationGetDescr(rel), row->school - 1)->atttypid);
		getTypeOutputInfo(row->school_type, &row->school_out, &is_varlena);
		return true;
	}
	if (nulls[5] || nulls[6])
		return false;
	row->function = DatumGetObjectId(values[5]);
	return take_arguments(row, rel, values[6]);
}

#define FACTS	9

ConvertRow *
convert_row_prepare(Relation rel, const char *conversion)
{
	ConvertRow *row = palloc0(sizeof(ConvertRow));
	MemoryContext context = CurrentMemoryContext;
	Datum		values[FACTS];
	bool		nulls[FACTS];
	bool		known;

	(void) SPI_connect();
	known = read_facts(conversion, values, nulls, FACTS) && take_facts(row, rel, values, nulls);
	SPI_finish();
	if (known && OidIsValid(row->function))
		fmgr_info_cxt(row->function, &row->call, context);
	return known ? row : NULL;
}

AttrNumber
convert_row_plain(const ConvertRow *row)
{
	return row->plain;
}

AttrNumber
convert_row_shadow(const ConvertRow *row)
{
	return row->shadow;
}

/* ---- one row ---- */

/* The tenant's id, or NULL. */
static char *
school_of(ConvertRow *row, const Datum *values, const bool *nulls)
{
	LOCAL_FCINFO(fcinfo, FUNC_MAX_ARGS);
	Datum		result;

	if (row->school > 0)
		return nulls[row->school - 1] ? NULL :
			tables_school_text(values[row->school - 1], row->school_type, row->school_out);
	InitFunctionCallInfoData(*fcinfo, &row->call, row->nargs, DEFAULT_COLLATION_OID, NULL, NULL);
	for (int i = 0; i < row->nargs; i++)
	{
		fcinfo->args[i].value = values[row->args[i] - 1];
		fcinfo->args[i].isnull = nulls[row->args[i] - 1];
	}
	result = FunctionCallInvoke(fcinfo);
	return fcinfo->isnull ? NULL : TextDatumGetCString(result);
}

/* Raises what it meets. */
static Datum
make_copy(ConvertRow *row, const Datum *values, const bool *nulls)
{
	TenantRow	tenant;
	char	   *id;
	Datum		copy;
	Oid			role;
	int			context;

	GetUserIdAndSecContext(&role, &context);
	SetUserIdAndSecContext(row->role, context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	id = school_of(row, values, nulls);
	if (id == NULL || !rows_tenant_by_id(id, &tenant))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("a row has no known tenant")));
	copy = PointerGetDatum(type_seal(&tenant, RIGHT_ENCRYPT, values[row->plain - 1], row->type,
									 row->modifier, false));
	SetUserIdAndSecContext(role, context);
	return copy;
}

/* Is it an error of ours to make, and not the end of the whole transaction? */
static bool
may_go_on(int code)
{
	return code != ERRCODE_QUERY_CANCELED && code != ERRCODE_OUT_OF_MEMORY &&
		ERRCODE_TO_CATEGORY(code) != ERRCODE_OPERATOR_INTERVENTION &&
		ERRCODE_TO_CATEGORY(code) != ERRCODE_TRANSACTION_ROLLBACK;
}

bool
convert_row(ConvertRow *row, const Datum *values, const bool *nulls, Datum *copy, bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool made = false;
	volatile Datum result = 0;

	*isnull = true;
	*copy = 0;
	if (nulls[row->plain - 1])
		return true;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		result = make_copy(row, values, nulls);
		ReleaseCurrentSubTransaction();
		made = true;
	}
	PG_CATCH();
	{
		if (!may_go_on(geterrcode()))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	*copy = result;
	*isnull = !made;
	if (!made)
		(void) nextval_internal(row->sequence, false);
	return made;
}

/* ---- the trigger ---- */

static ConvertRow *
prepare(FmgrInfo *flinfo, const TriggerData *trigger)
{
	ConvertRow *row = flinfo->fn_extra;
	MemoryContext old;

	if (row != NULL && row->relid == RelationGetRelid(trigger->tg_relation))
		return row;
	old = MemoryContextSwitchTo(flinfo->fn_mcxt);
	row = convert_row_prepare(trigger->tg_relation, trigger->tg_trigger->tgargs[0]);
	MemoryContextSwitchTo(old);
	flinfo->fn_extra = row;
	return row;
}

/* With one column of it replaced. */
static HeapTuple
with_column(HeapTuple tuple, TupleDesc desc, int number, Datum value, bool isnull)
{
	return heap_modify_tuple_by_cols(tuple, desc, 1, &number, &value, &isnull);
}

/*
 * nomp_crypt._convert_row('conversion' [, 'clear']) returns trigger
 *
 * BEFORE INSERT OR UPDATE FOR EACH ROW, the last one: the row's plain value,
 * encrypted, into the column that will take its place; with 'clear', the first
 * one, which takes it away, so that triggers between them do not see one that
 * belongs to the row as it was.  Raises 39P01 for another kind of trigger.
 */
Datum
nc_convert_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	tuple;
	TupleDesc	desc;
	ConvertRow *row;
	Datum	   *values;
	bool	   *nulls;
	Datum		copy = 0;
	bool		isnull = true;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) || TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ||
		trigger->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"_convert_row\" must be fired BEFORE INSERT OR UPDATE FOR EACH ROW")));
	tuple = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
		trigger->tg_newtuple : trigger->tg_trigtuple;
	row = prepare(fcinfo->flinfo, trigger);
	if (row == NULL)
		PG_RETURN_POINTER(tuple);
	desc = RelationGetDescr(trigger->tg_relation);
	if (trigger->tg_trigger->tgnargs == 1)
	{
		values = palloc(desc->natts * sizeof(Datum));
		nulls = palloc(desc->natts * sizeof(bool));
		heap_deform_tuple(tuple, desc, values, nulls);
		(void) convert_row(row, values, nulls, &copy, &isnull);
	}
	PG_RETURN_POINTER(with_column(tuple, desc, row->shadow, copy, isnull));
}
