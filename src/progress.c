/*
 * progress.c
 *		How far long commands are: the view nomp_crypt.progress.
 *
 * One slot per process in shared memory, written by its process and read by
 * anybody who may, under the slot's spinlock.  PostgreSQL's own progress
 * reporting has numbers for its own commands only.  Nothing is kept: a slot is
 * empty when its command has ended, been aborted, or its process is gone.
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "progress.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

NC_FUNCTION(nc_progress);
NC_FUNCTION(nc_progress_note);

typedef struct Progress
{
	int			pid;			/* 0: nothing is under way */
	Oid			database;
	TimestampTz started;
	TimestampTz phase_started;
	int64		done;
	int64		total;			/* 0: not known */
	char		command[NAMEDATALEN];
	char		object[2 * NAMEDATALEN + 2];
	char		phase[NAMEDATALEN];
	char		unit[16];
} Progress;

typedef struct Slot
{
	slock_t		mutex;
	Progress	progress;
} Slot;

static Slot *slots = NULL;
static bool running = false;	/* is something in this process's slot? */
static bool commits = false;	/* does it go on after a commit? */
static bool suspended = false;	/* has a commit hidden it? */

static Size
shared_size(void)
{
	return mul_size(MaxBackends, sizeof(Slot));
}

void
progress_shmem_request(void)
{
	RequestAddinShmemSpace(shared_size());
}

void
progress_shmem_startup(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	slots = ShmemInitStruct("nomp_crypt progress", shared_size(), &found);
	if (!found)
	{
		memset(slots, 0, shared_size());
		for (int i = 0; i < MaxBackends; i++)
			SpinLockInit(&slots[i].mutex);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* This process's slot, or NULL. */
static Slot *
own_slot(void)
{
	if (slots == NULL || MyProc == NULL || MyProc->pgprocno >= MaxBackends)
		return NULL;
	return &slots[MyProc->pgprocno];
}

static void
show(int pid)
{
	Slot	   *slot = own_slot();

	SpinLockAcquire(&slot->mutex);
	slot->progress.pid = pid;
	SpinLockRelease(&slot->mutex);
	running = pid != 0;
}

void
progress_end(void)
{
	suspended = false;
	if (running && own_slot() != NULL)
		show(0);
}

static void
at_exit(int code, Datum arg)
{
	progress_end();
}

/*
 * What does not go on after a commit is hidden by it, until it is reported
 * again: nobody says so when an error is caught.
 */
static void
at_xact_event(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		progress_end();
	else if (event == XACT_EVENT_COMMIT && running && !commits)
	{
		show(0);
		suspended = true;
	}
}

void
progress_init(void)
{
	RegisterXactCallback(at_xact_event, NULL);
}

/* As much of a text as there is room for, in whole characters. */
static void
take_text(char *to, size_t size, const char *from)
{
	int			len = pg_mbcliplen(from, strlen(from), size - 1);

	memcpy(to, from, len);
	to[len] = '\0';
}

static void
set_slot(const Progress *progress)
{
	static bool registered = false;
	Slot	   *slot = own_slot();

	if (slot == NULL)
		return;
	if (!registered)
		before_shmem_exit(at_exit, 0);
	registered = true;
	running = true;
	suspended = false;
	SpinLockAcquire(&slot->mutex);
	slot->progress = *progress;
	SpinLockRelease(&slot->mutex);
}

void
progress_start(const char *command, const char *object, bool across_commits)
{
	Progress	progress = {0};

	progress.pid = MyProcPid;
	progress.database = MyDatabaseId;
	progress.started = progress.phase_started = GetCurrentTimestamp();
	take_text(progress.command, sizeof(progress.command), command);
	take_text(progress.object, sizeof(progress.object), object);
	commits = across_commits;
	set_slot(&progress);
}

void
progress_phase(const char *phase, const char *unit, int64 total)
{
	Slot	   *slot = own_slot();
	Progress	progress;

	if (!running || slot == NULL)
		return;
	progress = slot->progress;	/* nobody else writes it */
	take_text(progress.phase, sizeof(progress.phase), phase);
	take_text(progress.unit, sizeof(progress.unit), unit);
	progress.phase_started = GetCurrentTimestamp();
	progress.done = 0;
	progress.total = total;
	set_slot(&progress);
}

void
progress_done(int64 done)
{
	Slot	   *slot = own_slot();

	if (!running || slot == NULL)
		return;
	SpinLockAcquire(&slot->mutex);
	slot->progress.done = done;
	SpinLockRelease(&slot->mutex);
}

static char *
text_or_empty(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/* Is that what was taken of a text? */
static bool
says(const char *taken, const char *text)
{
	return strncmp(taken, text, strlen(taken)) == 0 && (taken[0] != '\0' || text[0] == '\0');
}

/*
 * nomp_crypt._progress(command text, object text, phase text, unit text,
 *		done bigint, total bigint) returns void
 *
 * For commands that are written in SQL: this session is that far.  Another
 * phase or command starts its own clock; without a command it has ended.
 */
Datum
nc_progress_note(PG_FUNCTION_ARGS)
{
	char	   *command = text_or_empty(fcinfo, 0);
	char	   *object = text_or_empty(fcinfo, 1);
	char	   *phase = text_or_empty(fcinfo, 2);
	Slot	   *slot = own_slot();

	if (command[0] == '\0' || slot == NULL)
	{
		progress_end();
		PG_RETURN_VOID();
	}
	if ((!running && !suspended) || !says(slot->progress.command, command) ||
		!says(slot->progress.object, object))
		progress_start(command, object, false);
	else if (!running)
		show(MyProcPid);
	if (!says(slot->progress.phase, phase))
		progress_phase(phase, text_or_empty(fcinfo, 3),
					   PG_ARGISNULL(5) ? 0 : PG_GETARG_INT64(5));
	progress_done(PG_ARGISNULL(4) ? 0 : PG_GETARG_INT64(4));
	PG_RETURN_VOID();
}

static Datum
text_or_null(const char *string, bool *isnull)
{
	*isnull = string[0] == '\0';
	return *isnull ? (Datum) 0 : CStringGetTextDatum(string);
}

/*
 * nomp_crypt._progress_read() returns setof (pid int, command text,
 *		object text, phase text, unit text, done bigint, total bigint,
 *		started timestamptz, phase_started timestamptz)
 *
 * What is under way in this database, on this node.
 */
Datum
nc_progress(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; slots != NULL && i < MaxBackends; i++)
	{
		Progress	progress;
		Datum		values[9];
		bool		nulls[9] = {false};

		SpinLockAcquire(&slots[i].mutex);
		progress = slots[i].progress;
		SpinLockRelease(&slots[i].mutex);
		if (progress.pid == 0 || progress.database != MyDatabaseId)
			continue;
		values[0] = Int32GetDatum(progress.pid);
		values[1] = CStringGetTextDatum(progress.command);
		values[2] = text_or_null(progress.object, &nulls[2]);
		values[3] = text_or_null(progress.phase, &nulls[3]);
		values[4] = text_or_null(progress.unit, &nulls[4]);
		values[5] = Int64GetDatum(progress.done);
		values[6] = Int64GetDatum(progress.total);
		nulls[6] = progress.total == 0;
		values[7] = TimestampTzGetDatum(progress.started);
		values[8] = TimestampTzGetDatum(progress.phase_started);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
