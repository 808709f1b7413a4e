/*
 * analyze.c
 *		Statistics of encrypted columns: null fraction, width and distinct
 *		count; no values.
 *
 * Needs no key and never raises.  Values with fingerprints are counted by
 * them; one without differs from every other, as the opclasses have it.
 */
#include "postgres.h"

#include <math.h>

#include "access/detoast.h"
#include "commands/vacuum.h"
#include "compat.h"
#include "value.h"

NC_FUNCTION(nc_analyze);

/* All that is before the body, and a body as short as it gets. */
#define HEADER_MAX	(VALUE_MIN_LEN + VALUE_FINGERPRINT_LEN)

/* The first 8 bytes of a value's fingerprint, which are random enough. */
static bool
fingerprint_hash(Datum value, uint64 *hash)
{
	struct varlena *header = PG_DETOAST_DATUM_SLICE(value, 0, HEADER_MAX);
	ValueView	view;
	bool		found;

	found = value_parse((const uint8_t *) VARDATA_ANY(header),
						VARSIZE_ANY_EXHDR(header), &view) &&
		view.fingerprint != NULL;
	if (found)
		memcpy(hash, view.fingerprint, sizeof(*hash));
	if ((Pointer) header != DatumGetPointer(value))
		pfree(header);
	return found;
}

static int
compare_hashes(const void *a, const void *b)
{
	uint64		left = *(const uint64 *) a;
	uint64		right = *(const uint64 *) b;

	return (left > right) - (left < right);
}

/* How many different ones, and how many of them came once only.  Sorts. */
static void
count_distinct(uint64 *hashes, int n, int *distinct, int *once)
{
	int			run = 0;

	*distinct = *once = 0;
	qsort(hashes, n, sizeof(uint64), compare_hashes);
	for (int i = 0; i < n; i++)
	{
		run++;
		if (i + 1 < n && hashes[i + 1] == hashes[i])
			continue;
		(*distinct)++;
		*once += run == 1;
		run = 0;
	}
}

/*
 * The distinct count as pg_statistic has it, positive or a fraction of the
 * rows, by the estimator of Haas and Stokes that PostgreSQL's own types use:
 * n*d / (n - f1 + f1*n/N), for n values of N, d of them distinct, f1 of those
 * seen once.
 */
static float4
estimate_distinct(int n, int distinct, int once, float4 nullfrac, double totalrows)
{
	double		total = totalrows * (1.0 - nullfrac);
	double		estimate;

	if (n == 0)
		return 0;				/* unknown */
	if (once == n)
		return -1.0f * (1.0f - nullfrac);
	if (once == 0)
		estimate = distinct;
	else
	{
		estimate = total > 0 ?
			(double) n * distinct / ((double) (n - once) + (double) once * n / total) : 0;
		estimate = floor(Min(Max(estimate, distinct), Max(total, distinct)) + 0.5);
	}
	if (estimate > 0.1 * totalrows)
		return (float4) -(estimate / totalrows);
	return (float4) estimate;
}

static void
compute_stats(VacAttrStatsP stats, AnalyzeAttrFetchFunc fetch, int samplerows,
			  double totalrows)
{
	uint64	   *hashes;
	double		width = 0;
	int			nulls = 0;
	int			hashed = 0;
	int			unique = 0;		/* without fingerprint */
	int			distinct;
	int			once;

	if (samplerows == 0)
		return;
	hashes = palloc(samplerows * sizeof(uint64));
	for (int i = 0; i < samplerows; i++)
	{
		bool		isnull;
		Datum		value = fetch(stats, i, &isnull);

		vacuum_delay_point();
		if (isnull)
		{
			nulls++;
			continue;
		}
		width += toast_datum_size(value);
		if (fingerprint_hash(value, &hashes[hashed]))
			hashed++;
		else
			unique++;
	}
	count_distinct(hashes, hashed, &distinct, &once);
	pfree(hashes);
	stats->stats_valid = true;
	stats->stanullfrac = (float4) nulls / samplerows;
	stats->stawidth = nulls < samplerows ? (int32) (width / (samplerows - nulls)) : 0;
	stats->stadistinct = estimate_distinct(samplerows - nulls, distinct + unique,
										   once + unique, stats->stanullfrac, totalrows);
}

/* encrypted_analyze(internal) returns boolean: ANALYZE's typanalyze hook. */
Datum
nc_analyze(PG_FUNCTION_ARGS)
{
	VacAttrStats *stats = (VacAttrStats *) PG_GETARG_POINTER(0);

	stats->compute_stats = compute_stats;
	stats->minrows = 300 * default_statistics_target;	/* as of other types */
	PG_RETURN_BOOL(true);
}
