/*
 * analyze.c
 *		Statistics of encrypted columns: null fraction and width, no values.
 *
 * Needs no key and never raises.  Every value differs from every other, as
 * long as none carries a fingerprint, so the distinct count is "unique".
 */
#include "postgres.h"

#include "access/detoast.h"
#include "commands/vacuum.h"
#include "compat.h"

NC_FUNCTION(nc_analyze);

static void
compute_stats(VacAttrStatsP stats, AnalyzeAttrFetchFunc fetch, int samplerows,
			  double totalrows)
{
	double		width = 0;
	int			nulls = 0;

	for (int i = 0; i < samplerows; i++)
	{
		bool		isnull;
		Datum		value = fetch(stats, i, &isnull);

		vacuum_delay_point();
		if (isnull)
			nulls++;
		else
			width += toast_datum_size(value);
	}
	if (samplerows == 0)
		return;
	stats->stats_valid = true;
	stats->stanullfrac = (float4) nulls / samplerows;
	stats->stawidth = nulls < samplerows ? (int32) (width / (samplerows - nulls)) : 0;
	stats->stadistinct = -1.0f * (1.0f - stats->stanullfrac);
}

/* encrypted_analyze(internal) returns boolean: ANALYZE's typanalyze hook. */
Datum
nc_analyze(PG_FUNCTION_ARGS)
{
	VacAttrStats *stats = (VacAttrStats *) PG_GETARG_POINTER(0);

	stats->compute_stats = compute_stats;
	stats->minrows = 3000;
	PG_RETURN_BOOL(true);
}
