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
#include "utils/memutils.h"
#include "utils/resowner.h"

static bool attempting = false; /* within steps_attempt */
static bool step_failed = false;	/* its error is of a step, whose changes are gone */

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

static char *
run(const char *sql, int nargs, char **args)
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

/*
 * The same in a subtransaction, so that nothing is left of a step that fails.
 * Its error goes on to steps_attempt, but for the caller's own wish to stop.
 */
static char *
run_alone(const char *sql, int nargs, char **args)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile result = NULL;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		result = run(sql, nargs, args);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL)
	{
		step_failed = error->sqlerrcode != ERRCODE_QUERY_CANCELED;
		ReThrowError(error);
	}
	return result;
}

/* Run one step; the single value it returns as text, or NULL. */
char *
steps_run(const char *sql, int nargs, char **args)
{
	return attempting ? run_alone(sql, nargs, args) : run(sql, nargs, args);
}

/*
 * Go through steps; what a step reports as an error ends them and is returned,
 * NULL if none does.  The steps before it stay committed.  "drive" must hold
 * nothing that an error would have to clean up.
 */
ErrorData *
steps_attempt(void (*drive) (char **args), char **args)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	attempting = true;
	step_failed = false;
	PG_TRY();
	{
		drive(args);
		attempting = false;
	}
	PG_CATCH();
	{
		attempting = false;
		if (!step_failed)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	if (error != NULL)
		SPI_rollback();
	return error;
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
