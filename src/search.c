/*
 * search.c
 *		What a searchable column is compared with: probe values.
 *
 * A probe is laid out like a stored value and carries a fingerprint, so that
 * the opclasses take it; but its key is the school's index key, its nonce is
 * zero, and its body says only which normalisation made it.  It can be
 * compared, never opened (envelope_is_probe knows one).
 *
 * The rewriting of plans (rewrite.c) puts the calls in; a probe is made once
 * for the same input, however many rows it is compared with.  What that keeps
 * of the input lives as long as the running plan, which holds the input too.
 */
#include "postgres.h"

#include "canonical.h"
#include "catalog/pg_type.h"
#include "cipher.h"
#include "compat.h"
#include "envelope.h"
#include "errors.h"
#include "inner.h"
#include "miscadmin.h"
#include "rights.h"
#include "session.h"
#include "type_io.h"
#include "typemod.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

NC_FUNCTION(nc_probe);
NC_FUNCTION(nc_search_values);
NC_FUNCTION(nc_search_values_as);

/* How often revocations may make a search across schools start over. */
#define MAX_TRIES	100

/* What kind of column is searched. */
typedef struct Column
{
	uint8		code;
	Normal		normal;
} Column;

/* The last input and what was made of it, in fn_extra. */
typedef struct Memo
{
	bool		valid;
	Oid			type;			/* of the input */
	int16		typlen;
	bool		typbyval;
	Datum		input;
	int32		typmod;
	Oid			role;
	uint64		epoch;
	bool		inside;
	pg_uuid_t	tenant;
	struct varlena *result;
} Memo;

static bool
is_textual(uint8 code)
{
	return code == VALUE_TYPE_TEXT || code == VALUE_TYPE_VARCHAR ||
		code == VALUE_TYPE_BPCHAR;
}

static Column
column_of(int32 typmod)
{
	Column		column = {typemod_type_code(typmod), NORMAL_EXACT};
	bool		good = typemod_searchable(typmod) && canonical_exists(column.code);

	if (good)
	{
		column.normal = typemod_normal(typmod);
		good = column.normal == NORMAL_EXACT ||
			(is_textual(column.code) && column.normal <= NORMAL_DIGITS);
	}
	if (!good)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("modifier is not one of a searchable column")));
	return column;
}

/* Lay out a probe. */
static bytea *
build_probe(const Column *column, const uint8 key_id[VALUE_KEY_ID_LEN],
			const uint8 fingerprint[VALUE_FINGERPRINT_LEN])
{
	static const uint8 no_nonce[VALUE_NONCE_LEN] = {0};
	size_t		size = value_size(0, true);
	bytea	   *probe = palloc0(VARHDRSZ + size);
	uint8	   *body;

	SET_VARSIZE(probe, VARHDRSZ + size);
	body = value_write_header((uint8 *) VARDATA(probe), column->code, key_id,
							  no_nonce, fingerprint);
	body[0] = (uint8) column->normal;
	return probe;
}

/*
 * Were these fingerprints made as the column's are?  Text and varchar are
 * made alike.
 */
static void
require_same_kind(const ValueView *probe, const Column *column)
{
	bool		same_type = probe->type_code == column->code ||
		(is_textual(probe->type_code) && is_textual(column->code) &&
		 probe->type_code != VALUE_TYPE_BPCHAR && column->code != VALUE_TYPE_BPCHAR);

	if (!same_type || probe->body[0] != (uint8) column->normal)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("search values were made for another kind of column"),
				 errhint("Compare the column with nomp_crypt.search_values('...') itself: column = ANY (nomp_crypt.search_values('...')).")));
}

/* Refuse another school's value, as the type's output does. */
static void
require_own(const ValueView *view, const TenantRow *tenant)
{
	TenantRow	owner;

	if (!type_is_own(view, tenant, &owner))
		type_refuse_other(&owner, tenant, "Compare only rows of the session's tenant.");
}

/*
 * Is a value the same after conversion to the column's type?  1.5 is not
 * equal to any integer, although a cast would make it one.  A text is the
 * type's input, whatever its spelling.
 */
static bool
survives(Datum value, Oid type, Datum converted, const Column *column)
{
	uint8		code = inner_code(type);
	Datum		back;
	char	   *before;
	char	   *after;
	size_t		before_len;
	size_t		after_len;
	bool		same;

	if (code == column->code || is_textual(code) || !canonical_exists(code))
		return true;
	back = inner_convert(converted, inner_type(column->code), code, -1, true);
	before = canonical_text(code, value, NORMAL_EXACT, &before_len);
	after = canonical_text(code, back, NORMAL_EXACT, &after_len);
	same = before_len == after_len && memcmp(before, after, before_len) == 0;
	cipher_wipe(before, before_len);
	cipher_wipe(after, after_len);
	pfree(before);
	pfree(after);
	return same;
}

/*
 * The text to take the fingerprint of.  The column's own modifier is not
 * applied: a comparison does not round and does not truncate.  "possible" is
 * false for a value that no value of the column equals.
 */
static char *
searched_text(Datum value, Oid type, const Column *column, size_t *len,
			  bool *possible)
{
	Datum		converted = inner_convert(value, type, column->code, -1, true);

	*possible = survives(value, type, converted, column);
	return canonical_text(column->code, converted, column->normal, len);
}

/* A fingerprint that nothing has. */
static void
make_impossible(uint8 fingerprint[VALUE_FINGERPRINT_LEN])
{
	if (!cipher_random(fingerprint, VALUE_FINGERPRINT_LEN))
		elog(ERROR, "could not get random bytes");
}

/* A probe in one tenant for a value of a built-in type. */
static bytea *
probe_plain(const TenantRow *tenant, Datum value, Oid type, const Column *column)
{
	uint8		fingerprint[VALUE_FINGERPRINT_LEN];
	uint8		key_id[VALUE_KEY_ID_LEN];
	size_t		len;
	bool		possible;
	char	   *text;

	rights_require(tenant, RIGHT_SEARCH);
	text = searched_text(value, type, column, &len, &possible);
	envelope_fingerprint(tenant, RIGHT_SEARCH, text, len, fingerprint, key_id);
	cipher_wipe(text, len);
	pfree(text);
	if (!possible)
		make_impossible(fingerprint);
	return build_probe(column, key_id, fingerprint);
}

/* A probe for a value of our type, or that value if it will do. */
static bytea *
probe_encrypted(const TenantRow *tenant, bytea *value, const Column *column)
{
	ValueView	view;
	Oid			type;

	envelope_parse(value, &view);
	if (envelope_is_probe(&view))
	{
		require_same_kind(&view, column);
		return value;
	}
	if (tenant == NULL)
	{
		if (view.fingerprint == NULL)
			error_no_tenant("an encrypted column cannot be searched");
		return value;
	}
	/* PostgreSQL's check of a foreign key: ddl_guard.c saw to its columns */
	if (view.fingerprint != NULL && InNoForceRLSOperation())
		return value;
	require_own(&view, tenant);
	rights_require(tenant, RIGHT_SEARCH);
	type = inner_type(view.type_code);
	return probe_plain(tenant,
					   type_open(&view, RIGHT_SEARCH | RIGHT_DECRYPT, type, -1, true),
					   type, column);
}

/* The memo of this call site; "type" is always the same there. */
static Memo *
memo_of(FunctionCallInfo fcinfo, Oid type)
{
	Memo	   *memo = fcinfo->flinfo->fn_extra;

	if (memo == NULL)
	{
		memo = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Memo));
		memo->type = type == TEXTOID ? type : getBaseType(type);
		get_typlenbyval(memo->type, &memo->typlen, &memo->typbyval);
		fcinfo->flinfo->fn_extra = memo;
	}
	return memo;
}

static bool
memo_fits(const Memo *memo, Datum input, int32 typmod, const TenantRow *tenant)
{
	return memo->valid && memo->typmod == typmod && memo->role == GetUserId() &&
		memo->epoch == keyring_epoch() && memo->inside == (tenant != NULL) &&
		(tenant == NULL || memcmp(&memo->tenant, &tenant->uuid, UUID_LEN) == 0) &&
		datumIsEqual(memo->input, input, memo->typbyval, memo->typlen);
}

static void
memo_forget(Memo *memo)
{
	if (!memo->valid)
		return;
	memo->valid = false;
	if (!memo->typbyval)
	{
		cipher_wipe(DatumGetPointer(memo->input),
					datumGetSize(memo->input, false, memo->typlen));
		pfree(DatumGetPointer(memo->input));
	}
	pfree(memo->result);
}

/* Remember; returns the memo's own copy of the result. */
static struct varlena *
memo_keep(FunctionCallInfo fcinfo, Memo *memo, Datum input, int32 typmod,
		  const TenantRow *tenant, uint64 epoch, struct varlena *result)
{
	MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

	memo_forget(memo);
	memo->input = datumCopy(input, memo->typbyval, memo->typlen);
	memo->result = palloc(VARSIZE_ANY(result));
	memcpy(memo->result, result, VARSIZE_ANY(result));
	memo->typmod = typmod;
	memo->role = GetUserId();
	memo->epoch = epoch;
	memo->inside = tenant != NULL;
	if (tenant != NULL)
		memo->tenant = tenant->uuid;
	memo->valid = true;
	MemoryContextSwitchTo(old);
	return memo->result;
}

/*
 * nomp_crypt._probe(value anyelement, typmod integer) returns encrypted
 *
 * What a searchable column of that modifier is compared with.  Inside a
 * tenant: a probe for the value, encrypted or not; needs the right "search",
 * and for an encrypted value that or "decrypt".  Outside: values that have a
 * fingerprint as they are.  Raises 22023 for search values of another kind
 * of column, 55000 for another tenant's value, 42501, NC001 to NC006, and
 * the conversion's own errors.
 */
Datum
nc_probe(PG_FUNCTION_ARGS)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, 0);
	Datum		input = PG_GETARG_DATUM(0);
	int32		typmod = PG_GETARG_INT32(1);
	uint64		epoch = keyring_epoch();
	const TenantRow *tenant = session_tenant_row();
	Column		column = column_of(typmod);
	Memo	   *memo;
	bytea	   *probe;
	bytea	   *copy;

	if (!OidIsValid(type))
		elog(ERROR, "could not determine the type of a searched value");
	memo = memo_of(fcinfo, type);
	if (memo->typlen == -1)
		input = PointerGetDatum(PG_DETOAST_DATUM(input));
	if (memo_fits(memo, input, typmod, tenant))
	{
		/* a copy: the next call may replace the memo */
		copy = palloc(VARSIZE_ANY(memo->result));
		memcpy(copy, memo->result, VARSIZE_ANY(memo->result));
		PG_RETURN_BYTEA_P(copy);
	}
	if (memo->type == catalog_type())
		probe = probe_encrypted(tenant, (bytea *) DatumGetPointer(input), &column);
	else if (tenant == NULL)
		error_no_tenant("an encrypted column cannot be searched");
	else
		probe = probe_plain(tenant, input, memo->type, &column);
	(void) memo_keep(fcinfo, memo, input, typmod, tenant, epoch, probe);
	PG_RETURN_BYTEA_P(probe);
}

/* The schools that are searched. */
typedef struct Targets
{
	RightsHeld	held;
	FingerprintTarget *items;
	int			count;
	int			room;
} Targets;

static void
add_target(const TenantRow *row, void *arg)
{
	Targets    *targets = arg;

	if (row->state != TENANT_ACTIVE || !rights_held(&targets->held, &row->uuid))
		return;
	if (targets->count == targets->room)
	{
		targets->room = Max(64, 2 * targets->room);
		targets->items = targets->items == NULL ?
			palloc(targets->room * sizeof(FingerprintTarget)) :
			repalloc_huge(targets->items, targets->room * sizeof(FingerprintTarget));
	}
	targets->items[targets->count].tenant = *row;
	targets->items[targets->count++].key.place.version = 0;
}

static int
compare_targets(const void *a, const void *b)
{
	return memcmp(&((const FingerprintTarget *) a)->tenant.uuid,
				  &((const FingerprintTarget *) b)->tenant.uuid, UUID_LEN);
}

/* Versions count from 1. */
static void
add_key(const KeyRow *row, void *arg)
{
	Targets    *targets = arg;
	FingerprintTarget wanted;
	FingerprintTarget *target;

	memcpy(&wanted.tenant.uuid, row->spec.place.tenant, UUID_LEN);
	target = bsearch(&wanted, targets->items, targets->count,
					 sizeof(FingerprintTarget), compare_targets);
	if (target != NULL && row->spec.place.version > target->key.place.version)
		rows_take_facts(&target->key, row);
}

/*
 * Every active school where the current role may search, with its index key:
 * one scan of each table, however many schools there are.
 */
static void
collect_targets(Targets *targets)
{
	memset(targets, 0, sizeof(*targets));
	rights_holdings(RIGHT_SEARCH, &targets->held);
	if (!targets->held.everywhere && targets->held.count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("right \"search\" missing for every tenant"),
				 errhint("SELECT nomp_crypt.grant_all_tenants('<role>', '{search}'); or nomp_crypt.grant_tenant() for some.")));
	catalog_tenants(add_target, targets);
	if (targets->count == 0)
		return;
	qsort(targets->items, targets->count, sizeof(FingerprintTarget), compare_targets);
	catalog_index_keys(add_key, targets);
	for (int i = 0; i < targets->count; i++)
	{
		if (targets->items[i].key.place.version == 0)
			error_key_unknown(targets->items[i].tenant.id);
	}
}

static struct varlena *
probe_array(const Targets *targets, const Column *column)
{
	Oid			type = catalog_type();
	Datum	   *probes = palloc(Max(targets->count, 1) * sizeof(Datum));
	int16		typlen;
	bool		typbyval;
	char		typalign;

	for (int i = 0; i < targets->count; i++)
	{
		FingerprintTarget *target = &targets->items[i];

		probes[i] = PointerGetDatum(build_probe(column, target->key.key_check,
												target->fingerprint));
	}
	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return (struct varlena *) construct_array(probes, targets->count, type,
											  typlen, typbyval, typalign);
}

/* The probes of a text for a kind of column, in every school. */
static struct varlena *
search_everywhere(Datum value, const Column *column)
{
	Targets		targets;
	bool		possible;		/* always, for text */
	size_t		len;
	char	   *text = searched_text(value, TEXTOID, column, &len, &possible);

	for (int try = 0; try < MAX_TRIES; try++)
	{
		uint64		epoch = keyring_epoch();

		collect_targets(&targets);
		if (envelope_fingerprint_all(targets.items, targets.count, epoch, text, len))
		{
			cipher_wipe(text, len);
			pfree(text);
			return probe_array(&targets, column);
		}
	}
	error_keystore(KS_RETRY, "", NULL);
}

static Datum
search_values(FunctionCallInfo fcinfo, const Column *column, int32 typmod)
{
	Datum		input = PointerGetDatum(PG_GETARG_TEXT_PP(0));
	uint64		epoch = keyring_epoch();
	Memo	   *memo = memo_of(fcinfo, TEXTOID);
	struct varlena *result;

	if (memo_fits(memo, input, typmod, NULL))
		PG_RETURN_POINTER(memo->result);
	result = search_everywhere(input, column);
	PG_RETURN_POINTER(memo_keep(fcinfo, memo, input, typmod, NULL, epoch, result));
}

/*
 * nomp_crypt.search_values(value text) returns encrypted[]
 *
 * For "column = ANY (nomp_crypt.search_values('...'))": one probe for every
 * active tenant in which the current role has the right "search", inside a
 * tenant or outside.  Compared with a searchable column, the value is of the
 * column's type and kind; by itself, it is exact text.  Raises 42501 if the
 * role may search nowhere, NC003 to NC005 if any tenant's key cannot be had.
 */
Datum
nc_search_values(PG_FUNCTION_ARGS)
{
	static const Column exact_text = {VALUE_TYPE_TEXT, NORMAL_EXACT};

	return search_values(fcinfo, &exact_text, -1);
}

/*
 * nomp_crypt._search_values(value text, typmod integer) returns encrypted[]
 *
 * The same for a column of that modifier.  Raises also 22023 for one that is
 * not searchable, and the type's input errors.
 */
Datum
nc_search_values_as(PG_FUNCTION_ARGS)
{
	int32		typmod = PG_GETARG_INT32(1);
	Column		column = column_of(typmod);

	return search_values(fcinfo, &column, typmod);
}
