/*
 * stat_sql.c
 *		The node's statistics as internal SQL functions.
 *
 * Behind the views nomp_crypt.stat_*: for superusers, administrators and
 * pg_monitor.  Numbers, times and uuids only; no key, wrapped or not.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "keyring.h"
#include "keystat.h"
#include "request.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

NC_FUNCTION(nc_stat_keystore);
NC_FUNCTION(nc_stat_keyring);
NC_FUNCTION(nc_keyring_uses);

/* The setting that names each keystore, and where in it. */
static const char *const keystores[KEYSTAT_KEYSTORES] = {
	"nomp_crypt.keystore", "nomp_crypt.other_keystores, 1",
	"nomp_crypt.other_keystores, 2", "nomp_crypt.other_keystores, 3"
};

/* A row under construction. */
typedef struct Row
{
	Datum		values[32];
	bool		nulls[32];
	int			n;
} Row;

static void
put_count(Row *row, uint64 count)
{
	row->nulls[row->n] = false;
	row->values[row->n++] = Int64GetDatum((int64) count);
}

static void
put_ms(Row *row, int64 us)
{
	row->nulls[row->n] = false;
	row->values[row->n++] = Float8GetDatum(us / 1000.0);
}

static void
put_time(Row *row, TimestampTz time)
{
	row->nulls[row->n] = time == 0;
	row->values[row->n++] = TimestampTzGetDatum(time);
}

/*
 * nomp_crypt._stat_keystore() returns setof (keystore text, unwraps bigint,
 *		... as the view)
 */
Datum
nc_stat_keystore(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int k = 0; k < KEYSTAT_KEYSTORES; k++)
	{
		Row			row = {0};
		KeystatView view;

		keystat_view(k, &view);
		/* a place that was never configured */
		if (k > 0 && view.helper_starts == 0 && view.last_failed == 0)
			continue;
		row.values[row.n++] = CStringGetTextDatum(keystores[k]);
		for (int i = 0; i < KEYSTAT_CALLS; i++)
			put_count(&row, view.calls[i]);
		put_count(&row, view.renewals);
		for (int i = 0; i < KEYSTAT_FAILURES; i++)
			put_count(&row, view.failures[i]);
		put_ms(&row, view.p50);
		put_ms(&row, view.p95);
		put_ms(&row, view.p99);
		put_ms(&row, view.max);
		put_count(&row, view.queue);
		put_count(&row, view.queue_longest);
		put_count(&row, k == 0 ? request_num_waiting() : 0);
		put_count(&row, view.helper_starts > 0 ? view.helper_starts - 1 : 0);
		put_time(&row, view.last_ok);
		put_time(&row, view.last_failed);
		put_time(&row, view.since);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row.values, row.nulls);
	}
	return (Datum) 0;
}

/*
 * nomp_crypt._stat_keyring() returns (entries bigint, capacity bigint,
 *		hits bigint, misses bigint, evictions bigint, expirations bigint,
 *		revocations bigint, soonest_lease_end timestamptz)
 */
Datum
nc_stat_keyring(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Row			row = {0};
	KeyringView view;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	keyring_view(&view);
	put_count(&row, view.entries);
	put_count(&row, view.capacity);
	put_count(&row, view.hits);
	put_count(&row, view.misses);
	put_count(&row, view.evictions);
	put_count(&row, view.expirations);
	put_count(&row, view.revocations);
	put_time(&row, view.entries > 0 ? GetCurrentTimestamp() + view.soonest_end : 0);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), row.values, row.nulls)));
}

/*
 * nomp_crypt._keyring_uses()
 *		returns setof (tenant uuid, lease_end timestamptz, used_at timestamptz,
 *					   busyness bigint)
 *
 * One row for each key that is in this node's keyring, of any database.
 */
Datum
nc_keyring_uses(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TimestampTz now = GetCurrentTimestamp();
	KeyringUse *uses;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	uses = keyring_uses(&n);
	for (int i = 0; i < n; i++)
	{
		Row			row = {0};
		pg_uuid_t	tenant;

		memcpy(tenant.data, uses[i].tenant, UUID_LEN);
		row.values[row.n++] = UUIDPGetDatum(&tenant);
		put_time(&row, now + uses[i].lease_left);
		put_time(&row, uses[i].used_at == 0 ? 0 : time_t_to_timestamptz(uses[i].used_at));
		put_count(&row, (uint64) uses[i].busyness);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row.values, row.nulls);
	}
	return (Datum) 0;
}
