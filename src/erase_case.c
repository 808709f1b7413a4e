/*
 * erase_case.c
 *		What an erasure waits for, and the calls that drive many of them.
 *
 * A case passes the fence when nothing is missing any more: the grace period
 * is over, enough roles have approved, no legal hold is on the school, its data
 * was given back where that is asked for, and not too many went today.  What
 * is missing is told by the SQL function _erase_missing; the fence itself
 * asks it again.  Two things happen here.  Many cases are driven one after the
 * other, and the failure of one is not the others'.  And before that, those of
 * an agreement are tried together, each step one transaction for all, so that
 * one look at the keystore sees the keys of all.
 */
#include "postgres.h"

#include "compat.h"
#include "catalog/pg_type.h"
#include "erase.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "steps.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"

NC_FUNCTION(nc_actors);
NC_FUNCTION(nc_erase_agreement);
NC_FUNCTION(nc_run_due_erasures);

static int	erasure_approvals = 0;
static int	max_erasures_per_day = 10;
static bool erasure_requires_return = false;

void
erase_case_init(void)
{
	DefineCustomIntVariable("nomp_crypt.erasure_approvals",
							"How many roles other than the one that asks must approve an erasure.",
							"A case that is open needs no fewer when this is lowered.",
							&erasure_approvals, 0, 0, 10,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("nomp_crypt.max_erasures_per_day",
							"How many erasures may become final within 24 hours.",
							"The schools of one agreement that are erased together count as one. 0 sets no limit.",
							&max_erasures_per_day, 10, 0, 100000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("nomp_crypt.erasure_requires_return",
							 "Whether an erasure waits for word that the data was returned, or is not wanted.",
							 NULL,
							 &erasure_requires_return, false,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
}

/*
 * nomp_crypt._actors() returns text[]
 *
 * Everybody that the caller is: the role whose rights it has, the session's,
 * and the one that logged in.  SET ROLE and SET SESSION AUTHORIZATION add to
 * them and take none away.
 */
Datum
nc_actors(PG_FUNCTION_ARGS)
{
	Oid			roles[3] = {GetOuterUserId(), GetSessionUserId(), GetAuthenticatedUserId()};
	Datum		names[3];
	int			n = 0;

	for (int i = 0; i < 3; i++)
	{
		bool		known = !OidIsValid(roles[i]);

		for (int j = 0; j < i; j++)
			known = known || roles[j] == roles[i];
		if (!known)
			names[n++] = CStringGetTextDatum(GetUserNameFromId(roles[i], false));
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
}

typedef struct Run
{
	int			done;
	int			failed;
	ErrorData  *first;
} Run;

/* One case from where it is to its end; a failure is a warning. */
static void
execute(Run *run, char *case_id)
{
	char	   *args[1] = {case_id};
	char	   *tenant = steps_run("SELECT nomp_crypt._erase_tenant_id($1::pg_catalog.uuid)", 1, args);
	ErrorData  *error;

	steps_commit();
	error = steps_attempt(erase_execute, args);
	CHECK_FOR_INTERRUPTS();
	if (error == NULL)
	{
		run->done++;
		return;
	}
	run->failed++;
	if (run->first == NULL)
		run->first = error;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("the erasure of tenant \"%s\" has not come to its end: %s",
					tenant, error->message),
			 error->hint != NULL ? errhint("%s", error->hint) : 0));
}

/* Cases that wait for nothing, in args[0], from the fence to their end; each step commits. */
static void
execute_together(char **args)
{
	char	   *left;

	(void) steps_run("SELECT nomp_crypt._erase_fence_together($1::pg_catalog.uuid[])::pg_catalog.text", 1, args);
	steps_commit();
	(void) steps_run("SELECT pg_catalog.count(nomp_crypt._erase_wipe(c)) FROM pg_catalog.unnest($1::pg_catalog.uuid[]) c", 1, args);
	(void) steps_run("SELECT nomp_crypt._erase_disable_together($1::pg_catalog.uuid[])::pg_catalog.text", 1, args);
	steps_commit();
	(void) steps_run("SELECT nomp_crypt._erase_submit_together($1::pg_catalog.uuid[])::pg_catalog.text", 1, args);
	steps_commit();
	do
	{
		left = steps_run("SELECT nomp_crypt._erase_destroy_together($1::pg_catalog.uuid[])::pg_catalog.text", 1, args);
		steps_commit();
	} while (strcmp(left, "0") != 0);
	(void) steps_run("SELECT pg_catalog.count(nomp_crypt._erase_wipe(c)) FROM pg_catalog.unnest($1::pg_catalog.uuid[]) c", 1, args);
	steps_commit();
}

/*
 * What is due of an agreement's cases, many with one look at the keystore.  If
 * that fails, execute() goes through them one by one, and says why.
 */
static void
execute_group(Run *run, char *group)
{
	char	   *batch;

	while ((batch = steps_run("SELECT nomp_crypt._erase_batch($1::pg_catalog.uuid)::pg_catalog.text", 1, &group)) != NULL)
	{
		char	   *n = steps_run("SELECT pg_catalog.cardinality($1::pg_catalog.uuid[])::pg_catalog.text", 1, &batch);
		ErrorData  *error;

		steps_commit();
		error = steps_attempt(execute_together, &batch);
		CHECK_FOR_INTERRUPTS();
		if (error != NULL)
		{
			ereport(DEBUG1,
					(errmsg("these erasures go one by one: %s", error->message)));
			return;
		}
		run->done += pg_strtoint32(n);
	}
	steps_commit();
}

/* Everything that could be done is committed: say what could not. */
static void
finish(const Run *run)
{
	if (run->failed > 0)
		ereport(ERROR,
				(errcode(run->first->sqlerrcode),
				 errmsg("%d of %d erasures have not come to their end",
						run->failed, run->failed + run->done),
				 errdetail("The first one: %s.", run->first->message),
				 errhint("The warnings and nomp_crypt.erasures say which. Repeating the call goes on with them.")));
	SPI_finish();
}

/*
 * CALL nomp_crypt.run_due_erasures()
 *
 * Every case that waits for nothing, or that an interrupted call has left,
 * to its end; for pg_cron.  Raises 2D000 inside a transaction block, and at
 * the end the first failure's SQLSTATE, when all others are done.
 */
Datum
nc_run_due_erasures(PG_FUNCTION_ARGS)
{
	Run			run = {0};
	char	   *last = NULL;
	char	   *group = NULL;

	steps_begin(fcinfo, "run_due_erasures");
	while ((group = steps_run("SELECT nomp_crypt._erase_next_group($1::pg_catalog.uuid)::pg_catalog.text", 1, &group)) != NULL)
		execute_group(&run, group);
	while ((last = steps_run("SELECT nomp_crypt._erase_next($1::pg_catalog.uuid)::pg_catalog.text", 1, &last)) != NULL)
	{
		steps_commit();
		execute(&run, last);
	}
	steps_commit();
	ereport(NOTICE, (errmsg("erasures executed: %d", run.done)));
	finish(&run);
	PG_RETURN_VOID();
}

/* Request, and wipe what is requested. */
static char *
request_all(char **args)
{
	char	   *group;
	char	   *pair[2];

	group = steps_run("SELECT nomp_crypt._erase_request_agreement($1, $2, $3)::pg_catalog.text", 3, args);
	steps_commit();
	pair[0] = group;
	pair[1] = NULL;
	while (group != NULL &&
		   (pair[1] = steps_run("SELECT nomp_crypt._erase_next_of($1::pg_catalog.uuid, $2::pg_catalog.uuid)::pg_catalog.text", 2, pair)) != NULL)
	{
		(void) steps_run("SELECT nomp_crypt._erase_wipe($1::pg_catalog.uuid)::pg_catalog.text", 1, &pair[1]);
		steps_commit();
	}
	return group;
}

/*
 * CALL nomp_crypt.erase_agreement(agreement text, reason text, reference text)
 *
 * As erase_tenant, for all living schools of an agreement: a case for each,
 * with one number, one approval and one place in a day's limit for all of
 * them.  A school that waits for something of its own, a legal hold, does not
 * keep the others.  Raises as erase_tenant; 42704 if no tenant has the
 * agreement.
 */
Datum
nc_erase_agreement(PG_FUNCTION_ARGS)
{
	Run			run = {0};
	char	   *args[3];
	char	   *pair[2] = {NULL, NULL};
	char	   *before;
	char	   *waits;

	steps_begin(fcinfo, "erase_agreement");
	for (int i = 0; i < 3; i++)
		args[i] = PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
	before = steps_run("SELECT nomp_crypt._erase_group($1)::pg_catalog.text", 1, args);
	pair[0] = request_all(args);
	if (pair[0] == NULL)
		ereport(NOTICE, (errmsg("all tenants of this agreement are erased")));
	else
		execute_group(&run, pair[0]);
	while (pair[0] != NULL &&
		   (pair[1] = steps_run("SELECT nomp_crypt._erase_next_of($1::pg_catalog.uuid, $2::pg_catalog.uuid)::pg_catalog.text", 2, pair)) != NULL)
	{
		waits = steps_run("SELECT nomp_crypt._erase_due($1::pg_catalog.uuid)", 1, &pair[1]);
		steps_commit();
		if (waits != NULL && waits[0] == '\0')
			execute(&run, pair[1]);
	}
	steps_commit();
	waits = steps_run("SELECT nomp_crypt._erase_group_waits($1::pg_catalog.uuid)", 1, pair);
	if (waits != NULL && before != NULL && run.failed == 0)
		(void) steps_run("SELECT nomp_crypt._erase_refuse_group($1::pg_catalog.uuid)::pg_catalog.text", 1, pair);
	if (waits != NULL)
		ereport(NOTICE,
				(errmsg("%s", waits),
				 errhint("Call erase_agreement again then.")));
	steps_commit();
	finish(&run);
	PG_RETURN_VOID();
}
