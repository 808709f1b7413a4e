/*
 * session.c
 *		Which school this session is inside, and what that means.
 *
 * Owns nomp_crypt.tenant, nomp_crypt.tenant_scope, nomp_crypt.other_tenants,
 * nomp_crypt.strict_tenant.
 * The tenant may come from SET, SET LOCAL, set_config and connection options
 * only: a tenant in a file, a role's or a database's settings would make
 * pg_dump and walsenders emit plaintext.
 *
 * tenant_scope = transaction: the number of the transaction in which a value
 * was set travels with the value (as the setting's "extra", which the GUC
 * machinery saves and restores with it), and counts only in that
 * transaction.  Parallel workers set up their settings in a transaction of
 * their own, so they take the leader's word, from shared memory.
 *
 * strict_tenant: one transaction, one school.  Which school a transaction has
 * used is noted at the first use.  Another is refused when it is set, and when
 * it is used: RESET and ROLLBACK TO change the setting without asking.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/parallel.h"
#include "access/xact.h"
#include "errors.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "postmaster/autovacuum.h"
#include "replication/logicalworker.h"
#include "replication/walsender.h"
#include "rows.h"
#include "session.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/backend_status.h"
#include "utils/guc.h"

typedef enum TenantScope
{
	SCOPE_SESSION,
	SCOPE_TRANSACTION
} TenantScope;

typedef enum OtherTenants
{
	OTHERS_ERROR,
	OTHERS_CIPHERTEXT
} OtherTenants;

static const struct config_enum_entry scope_options[] = {
	{"session", SCOPE_SESSION, false},
	{"transaction", SCOPE_TRANSACTION, false},
	{NULL, 0, false}
};

static const struct config_enum_entry others_options[] = {
	{"error", OTHERS_ERROR, false},
	{"ciphertext", OTHERS_CIPHERTEXT, false},
	{NULL, 0, false}
};

static char *tenant = NULL;
static int	tenant_scope = SCOPE_SESSION;
static int	other_tenants = OTHERS_ERROR;

static uint64 set_in_xact = 0;	/* in which transaction the value was set */
static uint64 this_xact = 1;	/* counts this backend's transactions */

/* The looked-up tenant, for one transaction and epoch, while rows stay. */
static TenantRow cached_row;
static uint64 cached_xact = 0;
static uint64 cached_epoch = 0;
static uint64 cached_rows = 0;

static void (*on_change) (void) = NULL;

/* The school that a transaction has used. */
static bool strict_tenant = false;
static char used_tenant[sizeof(cached_row.id)];
static uint64 used_xact = 0;

/*
 * Per PGPROC: what parallel workers must know of their leader, and what they
 * tell it.
 */
#define LEADER_IN_FORCE 1		/* the tenant counts in this transaction */
#define LEADER_IN_CLEAR 2		/* the client's connection is not encrypted */
#define WORKERS_USED	4		/* a worker has used the tenant */

/* On a cache line of its own: it may be written in every transaction. */
typedef struct LeaderWord
{
	pg_atomic_uint32 word;
} pg_attribute_aligned(PG_CACHE_LINE_SIZE) LeaderWord;

static LeaderWord *leaders = NULL;

/* The word of this process, or NULL where it has none. */
static pg_atomic_uint32 *
own_word(void)
{
	if (leaders == NULL || MyProc == NULL || MyProc->pgprocno >= MaxBackends)
		return NULL;
	return &leaders[MyProc->pgprocno].word;
}

/* The word of this parallel worker's leader, or NULL if it is gone. */
static pg_atomic_uint32 *
leader_word(void)
{
	PGPROC	   *leader = MyProc->lockGroupLeader;

	return leader != NULL ? &leaders[leader->pgprocno].word : NULL;
}

/* This transaction has used that school. */
static void
note_use(const char *name)
{
	strlcpy(used_tenant, name, sizeof(used_tenant));
	used_xact = this_xact;
	if (IsParallelWorker() && leader_word() != NULL)
		pg_atomic_fetch_or_u32(leader_word(), WORKERS_USED);
}

/* Before the tenant changes: what workers used was the tenant until now. */
static void
note_workers_use(void)
{
	pg_atomic_uint32 *word = own_word();

	if (word != NULL && !IsParallelWorker() && session_names_tenant() &&
		(pg_atomic_read_u32(word) & WORKERS_USED) != 0)
		note_use(tenant);
}

static bool
another_was_used(const char *name)
{
	return used_xact == this_xact && strcmp(used_tenant, name) != 0;
}

#define STRICT_HINT "Commit first, or work for each tenant in a transaction of its own; nomp_crypt.strict_tenant is on."

static bool
check_tenant(char **newval, void **extra, GucSource source)
{
	uint64	   *when;

	note_workers_use();
	if (*newval == NULL || (*newval)[0] == '\0')
		return true;
	if (strlen(*newval) >= sizeof(cached_row.id))
	{
		GUC_check_errmsg("tenant name too long");
		return false;
	}
	if (source != PGC_S_SESSION && source != PGC_S_CLIENT &&
		source != PGC_S_INTERACTIVE && source != PGC_S_OVERRIDE)
	{
		GUC_check_errmsg("\"nomp_crypt.tenant\" cannot be set for a role, a database, a function or in a file");
		GUC_check_errhint("Use SET, SET LOCAL, set_config or a connection option. Elsewhere it would make dumps and replication emit plaintext.");
		return false;
	}
	if (strict_tenant && another_was_used(*newval))
	{
		GUC_check_errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE);
		GUC_check_errmsg("tenant cannot be changed to \"%s\": this transaction has used tenant \"%s\"",
						 *newval, used_tenant);
		GUC_check_errhint(STRICT_HINT);
		return false;
	}
	when = malloc(sizeof(uint64));
	if (when == NULL)
		return false;
	*when = IsTransactionState() ? this_xact : 0;
	*extra = when;
	return true;
}

/*
 * Does the client send and see values in the clear, over a network?  By this
 * process's entry for pg_stat_activity, which always says.
 */
static bool
connection_in_clear(void)
{
	if (MyProcPort == NULL)
		return false;			/* nobody's client */
	if (MyBEEntry == NULL)
		return true;
	return MyBEEntry->st_clientaddr.addr.ss_family != AF_UNIX &&
		!MyBEEntry->st_ssl &&
		!(MyBEEntry->st_gss && MyBEEntry->st_gssstatus->gss_enc);
}

/*
 * Tell parallel workers how things stand.  Runs at the end of each
 * transaction, and the connection's set-up is one, so there is always a word.
 */
static void
publish(void)
{
	pg_atomic_uint32 *word = own_word();

	if (word != NULL && !IsParallelWorker())
		pg_atomic_write_u32(word,
							(set_in_xact == this_xact ? LEADER_IN_FORCE : 0) |
							(connection_in_clear() ? LEADER_IN_CLEAR : 0));
}

static void
assign_tenant(const char *newval, void *extra)
{
	note_workers_use();
	set_in_xact = extra != NULL ? *(uint64 *) extra : 0;
	cached_xact = 0;
	publish();
	if (on_change != NULL)
		on_change();
}

static void
assign_scope(int newval, void *extra)
{
	if (on_change != NULL)
		on_change();
}

static void
at_xact_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
		case XACT_EVENT_PREPARE:
			this_xact++;
			cached_xact = 0;
			publish();
			/* a tenant that counted for this transaction only */
			if (tenant_scope == SCOPE_TRANSACTION && session_names_tenant() && on_change != NULL)
				on_change();
			break;
		default:
			break;
	}
}

void
session_on_change(void (*callback) (void))
{
	on_change = callback;
}

void
session_init(void)
{
	DefineCustomStringVariable("nomp_crypt.tenant",
							   "The school this session works for: inside one, encrypted columns read and take plaintext.",
							   NULL,
							   &tenant, "",
							   PGC_USERSET,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   check_tenant, assign_tenant, NULL);
	DefineCustomEnumVariable("nomp_crypt.tenant_scope",
							 "Whether nomp_crypt.tenant lasts for the session or only for the transaction that set it.",
							 "Use transaction behind a connection pooler.",
							 &tenant_scope, SCOPE_SESSION, scope_options,
							 PGC_USERSET, 0, NULL, assign_scope, NULL);
	DefineCustomEnumVariable("nomp_crypt.other_tenants",
							 "What a session inside one school sees of another's values: error or ciphertext.",
							 NULL,
							 &other_tenants, OTHERS_ERROR, others_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("nomp_crypt.strict_tenant",
							 "Whether a transaction that has used one school is refused another.",
							 NULL,
							 &strict_tenant, false,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	RegisterXactCallback(at_xact_event, NULL);
}

static Size
shared_size(void)
{
	return mul_size(MaxBackends, sizeof(LeaderWord));
}

void
session_shmem_request(void)
{
	RequestAddinShmemSpace(shared_size());
}

void
session_shmem_startup(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	leaders = ShmemInitStruct("nomp_crypt sessions", shared_size(), &found);
	for (int i = 0; !found && i < MaxBackends; i++)
		pg_atomic_init_u32(&leaders[i].word, 0);
	LWLockRelease(AddinShmemInitLock);
}

bool
session_names_tenant(void)
{
	return tenant != NULL && tenant[0] != '\0';
}

bool
session_shows_others(void)
{
	return other_tenants == OTHERS_CIPHERTEXT;
}

/* The processes that always work with values as they are stored. */
static bool
is_outside_by_nature(void)
{
	return am_walsender || IsAutoVacuumWorkerProcess() || IsLogicalWorker();
}

const char *
session_tenant(void)
{
	pg_atomic_uint32 *word;

	if (!session_names_tenant() || is_outside_by_nature())
		return NULL;
	if (tenant_scope == SCOPE_SESSION)
		return tenant;
	if (!IsParallelWorker())
		return set_in_xact == this_xact ? tenant : NULL;
	word = leader_word();
	return word != NULL && (pg_atomic_read_u32(word) & LEADER_IN_FORCE) != 0 ? tenant : NULL;
}

bool
session_in_clear(void)
{
	pg_atomic_uint32 *word;

	if (!IsParallelWorker())
		return connection_in_clear();
	word = leader_word();
	return word == NULL || (pg_atomic_read_u32(word) & LEADER_IN_CLEAR) != 0;
}

const TenantRow *
session_tenant_row(void)
{
	const char *name = session_tenant();
	uint64		epoch = keyring_epoch();
	uint64		generation;

	if (name == NULL)
		return NULL;
	if (cached_xact == this_xact && cached_epoch == epoch &&
		cached_rows == rows_generation())
		return &cached_row;
	if (strict_tenant && another_was_used(name))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("tenant \"%s\" cannot be used: this transaction has used tenant \"%s\"",
						name, used_tenant),
				 errhint(STRICT_HINT)));
	rows_listen();
	generation = rows_generation();
	if (!rows_tenant_by_id(name, &cached_row))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("tenant \"%s\" does not exist", name),
				 errhint("See nomp_crypt.tenants, or create it with nomp_crypt.create_tenant().")));
	note_use(name);
	cached_xact = this_xact;
	cached_epoch = epoch;
	cached_rows = generation;
	return &cached_row;
}
