/*
 * stops_module.c
 *		A server module that stops a session at a named point of the
 *		extension's procedures, so that a test can kill or cancel something
 *		there.  For tests only; nothing of the extension knows it.
 *
 * Preloaded behind nomp_crypt.  Points are the beginnings and ends of
 * functions in the extension's schema, and what follows a commit:
 *
 *		_erase_fence begins			called, and has done nothing
 *		_erase_fence ends			returned, in an open transaction
 *		_erase_fence committed		the transaction in which it was called
 *									outside of any other has committed, and
 *									nobody has been told
 *
 * Settings: stops.folder, where the files are; stops.at, a name for the session
 * and its point, with a number for a later time than the first, or with the
 * function within which it is, or after which in the same transaction: "a: 2
 * _erase_wipe ends", "a: _erase_fence, _register_at_commit ends".  There the
 * session makes a file of that name and waits until it is gone; while it waits
 * it can be cancelled, but not after a commit.  With stops.log on, the points
 * that a session passes outside of any other function are appended to the file
 * "passed".
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

PG_MODULE_MAGIC;

#define SCHEMA		"nomp_crypt"
#define MAX_STEPS	64
#define POLL_US		2000

PGDLLEXPORT void _PG_init(void);

static needs_fmgr_hook_type next_needs_hook = NULL;
static fmgr_hook_type next_hook = NULL;

static char *folder = NULL;
static char *stop_at = NULL;
static bool log_points = false;

/* What stops.at says, taken apart. */
static int	times_left = 0;
static char wanted_around[NAMEDATALEN] = "";
static char wanted_point[NAMEDATALEN + 16] = "";

/* Functions of this transaction: those within each other, and those that have
 * ended and were not within another. */
static int	depth = 0;
static NameData within[MAX_STEPS];
static int	n_steps = 0;
static NameData steps[MAX_STEPS];

static void
open_file(const char *name, int flags, const char *line)
{
	char		path[MAXPGPATH];
	int			fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, flags | O_WRONLY | O_CREAT, 0600);
	if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t) strlen(line))
		elog(PANIC, "could not write \"%s\": %m", path);
	close(fd);
}

static void
wait_there(const char *point, bool interruptible)
{
	char		path[MAXPGPATH];

	open_file(point, O_EXCL, "");
	snprintf(path, sizeof(path), "%s/%s", folder, point);
	while (access(path, F_OK) == 0)
	{
		pg_usleep(POLL_US);
		if (interruptible)
			CHECK_FOR_INTERRUPTS();
	}
}

static bool
is_around(const char *name)
{
	for (int i = 0; i < Min(depth, MAX_STEPS); i++)
	{
		if (strcmp(NameStr(within[i]), name) == 0)
			return true;
	}
	for (int i = 0; i < n_steps; i++)
	{
		if (strcmp(NameStr(steps[i]), name) == 0)
			return true;
	}
	return false;
}

static void
pass(const char *name, const char *what, bool interruptible)
{
	char		point[NAMEDATALEN + 16];

	if (folder == NULL || folder[0] == '\0')
		return;
	snprintf(point, sizeof(point), "%s %s", name, what);
	if (log_points && (depth == 0 || strcmp(what, "committed") == 0))
	{
		char		line[NAMEDATALEN + 17];

		snprintf(line, sizeof(line), "%s\n", point);
		open_file("passed", O_APPEND, line);
	}
	if (strcmp(point, wanted_point) == 0 &&
		(wanted_around[0] == '\0' || is_around(wanted_around)) && --times_left == 0)
		wait_there(stop_at, interruptible);
}

/* Is it a step: a function of the extension, but none of what values need? */
static bool
needs_hook(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	char	   *schema;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	schema = get_namespace_name(proc->pronamespace);
	result = schema != NULL && strcmp(schema, SCHEMA) == 0 &&
		proc->prokind == PROKIND_FUNCTION && !proc->proleakproof &&
		(proc->prolang != ClanguageId || NameStr(proc->proname)[0] == '_');
	ReleaseSysCache(tuple);
	return result || (next_needs_hook != NULL && next_needs_hook(function));
}

static void
remember_step(const char *name)
{
	if (n_steps < MAX_STEPS)
		namestrcpy(&steps[n_steps++], name);
}

static void
at_function(FmgrHookEventType event, FmgrInfo *flinfo, Datum *private)
{
	char	   *name = event == FHET_ABORT ? NULL : get_func_name(flinfo->fn_oid);

	if (event == FHET_START)
	{
		pass(name, "begins", true);
		if (depth < MAX_STEPS)
			namestrcpy(&within[depth], name);
		depth++;
	}
	else
		depth = Max(depth - 1, 0);
	if (event == FHET_END)
	{
		if (depth == 0)
			remember_step(name);
		pass(name, "ends", true);
	}
	if (next_hook != NULL)
		next_hook(event, flinfo, private);
}

static void
at_xact(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	for (int i = 0; event == XACT_EVENT_COMMIT && i < n_steps; i++)
		pass(NameStr(steps[i]), "committed", false);
	n_steps = 0;
	depth = 0;
}

static void
assign_at(const char *value, void *extra)
{
	const char *at = value == NULL ? NULL : strstr(value, ": ");
	const char *comma;
	char	   *rest;

	wanted_around[0] = wanted_point[0] = '\0';
	if (at == NULL)
		return;
	times_left = strtol(at + 2, &rest, 10);
	if (rest == at + 2)
		times_left = 1;
	rest += strspn(rest, " ");
	comma = strstr(rest, ", ");
	if (comma != NULL)
	{
		strlcpy(wanted_around, rest, Min(comma - rest + 1, NAMEDATALEN));
		rest = unconstify(char *, comma) + 2;
	}
	strlcpy(wanted_point, rest, sizeof(wanted_point));
}

void
_PG_init(void)
{
	DefineCustomStringVariable("stops.folder", "Where the files are.", NULL,
							   &folder, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("stops.at", "The session's point.", NULL,
							   &stop_at, "", PGC_USERSET, 0, NULL, assign_at, NULL);
	DefineCustomBoolVariable("stops.log", "Whether points are appended to a file.", NULL,
							 &log_points, false, PGC_USERSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("stops");
	next_needs_hook = needs_fmgr_hook;
	needs_fmgr_hook = needs_hook;
	next_hook = fmgr_hook;
	fmgr_hook = at_function;
	RegisterXactCallback(at_xact, NULL);
}
