/*
 * enforce.c
 *		nomp_crypt.enforce_tenant: a trigger that ties values to their row's
 *		school.
 *
 * A value says whose it is by its key_id, which the catalog resolves: so this
 * needs neither key nor right, and works in COPY, for ciphertext that is
 * loaded, and for rows that come by logical replication (ENABLE ALWAYS).
 *
 * What belongs to a table is looked up once per statement and kept in the
 * trigger's FmgrInfo, with the school of the last key seen, since the values
 * of a row mostly have one key.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "compat.h"
#include "envelope.h"
#include "errors.h"
#include "executor/spi.h"
#include "inside.h"
#include "tables.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

NC_FUNCTION(nc_enforce_tenant);

typedef struct Enforcement
{
	Oid			relid;
	int			school;			/* attribute number */
	Oid			school_type;	/* its base type */
	Oid			school_out;		/* and output function */
	int			ncolumns;		/* those with encrypted values inside */
	int		   *columns;
	bool		known;			/* is what follows? */
	uint8		key_id[VALUE_KEY_ID_LEN];
	char		owner[sizeof(((TenantRow *) 0)->id)];
} Enforcement;

/* One row under examination. */
typedef struct Row
{
	Enforcement *what;
	Relation	rel;
	const char *column;			/* being looked at */
	const char *school;			/* what the row says, or NULL */
} Row;

/* Whose value is it?  Raises NC003, NC005. */
static const char *
owner_of(Enforcement *what, const ValueView *view)
{
	TenantRow	owner;

	if (what->known && memcmp(what->key_id, view->key_id, VALUE_KEY_ID_LEN) == 0)
		return what->owner;
	if (!envelope_tenant(view, &owner))
		error_key_unknown(NULL);
	memcpy(what->key_id, view->key_id, VALUE_KEY_ID_LEN);
	strlcpy(what->owner, owner.id, sizeof(what->owner));
	what->known = true;
	return what->owner;
}

static Datum
check_one(Datum value, int32 typmod, void *arg)
{
	Row		   *row = arg;
	bytea	   *head = inside_head(value);
	ValueView	view;
	const char *school = NameStr(TupleDescAttr(RelationGetDescr(row->rel),
											   row->what->school - 1)->attname);
	const char *owner;

	envelope_parse(head, &view);
	owner = owner_of(row->what, &view);
	if (row->school == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("column \"%s\" holds a value of tenant \"%s\", but the row's column \"%s\" is null",
						row->column, owner, school),
				 errhint("Say whose row it is."),
				 errtablecol(row->rel, row->what->school)));
	if (strcmp(owner, row->school) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("column \"%s\" holds a value of tenant \"%s\", but the row's column \"%s\" says \"%s\"",
						row->column, owner, school, row->school),
				 errhint("A row's values must be encrypted for the row's tenant."),
				 errtablecol(row->rel, row->what->school)));
	if ((Pointer) head != DatumGetPointer(value))
		pfree(head);
	return value;
}

/* What to look at in this table.  Raises 22023, 42703, 42804. */
static Enforcement *
prepare(FmgrInfo *flinfo, const TriggerData *trigger)
{
	Relation	rel = trigger->tg_relation;
	TupleDesc	desc = RelationGetDescr(rel);
	Enforcement *what = flinfo->fn_extra;
	const char *name;
	bool		is_varlena;

	if (what != NULL && what->relid == RelationGetRelid(rel))
		return what;
	if (trigger->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger function \"enforce_tenant\" needs one argument"),
				 errhint("Name the column that says whose row it is: EXECUTE FUNCTION nomp_crypt.enforce_tenant('school').")));
	name = trigger->tg_trigger->tgargs[0];
	what = MemoryContextAllocZero(flinfo->fn_mcxt, sizeof(Enforcement));
	what->relid = RelationGetRelid(rel);
	what->school = SPI_fnumber(desc, name);
	if (what->school <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						name, RelationGetRelationName(rel)),
				 errhint("The argument of nomp_crypt.enforce_tenant names the column that says whose row it is.")));
	what->school_type = getBaseType(SPI_gettypeid(desc, what->school));
	if (inside_holds(what->school_type))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" cannot say whose row it is: it is encrypted itself", name)));
	getTypeOutputInfo(what->school_type, &what->school_out, &is_varlena);
	what->columns = MemoryContextAlloc(flinfo->fn_mcxt, desc->natts * sizeof(int));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && inside_holds(att->atttypid))
			what->columns[what->ncolumns++] = i + 1;
	}
	flinfo->fn_extra = what;
	return what;
}

/*
 * nomp_crypt.enforce_tenant('column') returns trigger
 *
 * BEFORE INSERT OR UPDATE FOR EACH ROW: every encrypted value of the new row,
 * in domains, arrays and composites too, is of the tenant that the column
 * names.  Raises 23514 if not, NC003 for a value whose key is not known here,
 * 39P01 for another kind of trigger, 22023, 42703 and 42804 for a wrong
 * argument.
 */
Datum
nc_enforce_tenant(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	HeapTuple	tuple;
	TupleDesc	desc;
	Row			row;
	Datum		value;
	bool		isnull;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"enforce_tenant\" must be fired BEFORE INSERT OR UPDATE FOR EACH ROW")));
	row.rel = trigger->tg_relation;
	row.what = prepare(fcinfo->flinfo, trigger);
	desc = RelationGetDescr(row.rel);
	tuple = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
		trigger->tg_newtuple : trigger->tg_trigtuple;
	value = heap_getattr(tuple, row.what->school, desc, &isnull);
	row.school = isnull ? NULL : tables_school_text(value, row.what->school_type, row.what->school_out);
	for (int i = 0; i < row.what->ncolumns; i++)
	{
		int			number = row.what->columns[i];

		value = heap_getattr(tuple, number, desc, &isnull);
		if (isnull)
			continue;
		row.column = NameStr(TupleDescAttr(desc, number - 1)->attname);
		(void) inside_map(value, TupleDescAttr(desc, number - 1)->atttypid, -1,
						  check_one, &row);
	}
	PG_RETURN_POINTER(tuple);
}
