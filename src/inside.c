/*
 * inside.c
 *		Encrypted values inside what a column holds: itself, a domain, an
 *		array, a composite, and these in each other.
 *
 * Knows types only, no key.  What is mapped is built anew where something
 * changed, and left as it is, out of line perhaps, where nothing did.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "inside.h"
#include "miscadmin.h"
#include "typemod.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/typcache.h"
#include "value.h"

#define HEAD_LEN	(VALUE_MIN_LEN + VALUE_FINGERPRINT_LEN)

bytea *
inside_head(Datum value)
{
	if (VARATT_IS_EXTERNAL(DatumGetPointer(value)))
		return DatumGetByteaPSlice(value, 0, HEAD_LEN);
	return DatumGetByteaPP(value);
}

/* In a subtransaction: its pieces may be missing. */
bytea *
inside_try(Datum value, bool head)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	bytea	   *volatile result = NULL;

	if (!VARATT_IS_EXTERNAL(DatumGetPointer(value)))
		return DatumGetByteaPP(value);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		result = head ? inside_head(value) : DatumGetByteaPP(value);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int			code = geterrcode();

		if (code != ERRCODE_DATA_CORRUPTED && code != ERRCODE_INTERNAL_ERROR &&
			code != ERRCODE_INDEX_CORRUPTED)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		result = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return result;
}

typedef bool (*TypeTest) (int32 typmod);

static bool
any_value(int32 typmod)
{
	return true;
}

/* Is there one of ours in that type for which the test says so? */
static bool
contains(Oid type, int32 typmod, TypeTest test)
{
	Oid			base = getBaseTypeAndTypmod(type, &typmod);
	Oid			element = get_element_type(base);
	TupleDesc	desc;
	bool		found = false;

	check_stack_depth();
	if (base == catalog_type())
		return test(typmod);
	if (OidIsValid(element))
		return contains(element, typmod, test);
	if (get_typtype(base) != TYPTYPE_COMPOSITE)
		return false;
	desc = lookup_rowtype_tupdesc_copy(base, -1);
	for (int i = 0; i < desc->natts && !found; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		found = !att->attisdropped && contains(att->atttypid, att->atttypmod, test);
	}
	return found;
}

bool
inside_holds(Oid type)
{
	return contains(type, -1, any_value);
}

bool
inside_searchable(Oid type, int32 typmod)
{
	return contains(type, typmod, typemod_searchable);
}

static Datum
map_array(Datum value, Oid element, int32 typmod, InsideMap map, void *arg)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	bool		changed = false;
	Datum	   *items;
	bool	   *nulls;
	int			n;
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(element, &len, &byval, &align);
	deconstruct_array(array, element, len, byval, align, &items, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		Datum		mapped = nulls[i] ? items[i] :
			inside_map(items[i], element, typmod, map, arg);

		changed = changed || mapped != items[i];
		items[i] = mapped;
	}
	if (!changed)
		return value;
	return PointerGetDatum(construct_md_array(items, nulls, ARR_NDIM(array), ARR_DIMS(array),
											  ARR_LBOUND(array), element, len, byval, align));
}

static Datum
map_composite(Datum value, InsideMap map, void *arg)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(header),
												   HeapTupleHeaderGetTypMod(header));
	Datum	   *fields = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	bool		changed = false;
	HeapTupleData tuple;

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, desc, fields, nulls);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Datum		mapped;

		if (att->attisdropped || nulls[i] || !inside_holds(att->atttypid))
			continue;
		mapped = inside_map(fields[i], att->atttypid, att->atttypmod, map, arg);
		changed = changed || mapped != fields[i];
		fields[i] = mapped;
	}
	if (!changed)
		return value;
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), fields, nulls));
}

Datum
inside_map(Datum value, Oid type, int32 typmod, InsideMap map, void *arg)
{
	Oid			base = getBaseTypeAndTypmod(type, &typmod);
	Oid			element;

	check_stack_depth();
	if (base == catalog_type())
		return map(value, typmod, arg);
	element = get_element_type(base);
	if (OidIsValid(element))
		return map_array(value, element, typmod, map, arg);
	if (get_typtype(base) == TYPTYPE_COMPOSITE)
		return map_composite(value, map, arg);
	return value;
}
