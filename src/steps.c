/*
 * steps.c
 *		Procedures that go through steps, with a commit after each.
 *
 * The steps are SQL functions of nomp_crypt--1.0.sql, each safe alone and
 * harmless when repeated.  What a step is about to do outside the database is
 * committed by the one before, so that after a crash between any two of them
 * the same call goes on where it was.
 *
 * Invoker procedures, because definer ones cannot commit.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "steps.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"

/* The procedure of that name cannot commit?  Raises 2D000. */
void
steps_refuse_atomic(FunctionCallInfo fcinfo, const char *name)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s cannot run inside a transaction block", name),
				 errhint("It commits between its steps: call it alone, with the driver's autocommit on.")));
}

/*
 * The procedure of that name begins.  Raises 2D000 where it could not commit,
 * 25006 on a standby.
 */
void
steps_begin(FunctionCallInfo fcinfo, const char *name)
{
	steps_refuse_atomic(fcinfo, name);
	PreventCommandDuringRecovery(psprintf("nomp_crypt.%s()", name));
	(void) SPI_connect_ext(SPI_OPT_NONATOMIC);
}

/* Run one step; the single value it returns as text, or NULL. */
char *
steps_run(const char *sql, int nargs, char **args)
{
	Oid			types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[3];
	char		nulls[3];

	for (int i = 0; i < nargs; i++)
	{
		nulls[i] = args[i] == NULL ? 'n' : ' ';
		values[i] = args[i] == NULL ? (Datum) 0 : CStringGetTextDatum(args[i]);
	}
	if (SPI_execute_with_args(sql, nargs, types, values, nulls, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "a step returned no row");
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/* Commit durably, whatever the session's synchronous_commit says. */
void
steps_commit(void)
{
	if (synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	SPI_commit();
}
