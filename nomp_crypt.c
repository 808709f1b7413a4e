/*
 * nomp_crypt.c
 *		Encryption of columns at rest, keys in an HSM, erasure by destroying
 *		them.  A table of contents: each module has its own settings, shared
 *		memory and hooks.
 */
#include "postgres.h"

#include "access_log.h"
#include "admin.h"
#include "broker.h"
#include "compat.h"
#include "guard.h"
#include "holders.h"
#include "keyring.h"
#include "keystat.h"
#include "lease.h"
#include "miscadmin.h"
#include "mykeys.h"
#include "progress.h"
#include "register.h"
#include "register_file.h"
#include "request.h"
#include "rights.h"
#include "session.h"
#include "stores.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "warmer.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static shmem_request_hook_type next_shmem_request = NULL;
static shmem_startup_hook_type next_shmem_startup = NULL;

static void
shmem_request(void)
{
	if (next_shmem_request != NULL)
		next_shmem_request();
	keyring_shmem_request();
	holders_shmem_request();
	request_shmem_request();
	session_shmem_request();
	access_table_shmem_request();
	progress_shmem_request();
	keystat_shmem_request();
}

static void
shmem_startup(void)
{
	if (next_shmem_startup != NULL)
		next_shmem_startup();
	keyring_shmem_startup();
	holders_shmem_startup();
	request_shmem_startup();
	session_shmem_startup();
	access_table_shmem_startup();
	progress_shmem_startup();
	keystat_shmem_startup();
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("nomp_crypt must be loaded when the server starts"),
				 errhint("Add nomp_crypt to shared_preload_libraries and restart the server.")));

	lease_init();
	keyring_init();
	request_init();
	stores_init();
	broker_init();
	warmer_init();
	register_init();
	register_file_init();
	erase_init();
	lifecycle_init();
	session_init();
	rights_init();
	access_log_init();
	mykeys_init();
	progress_init();
	keystore_sql_init();

	next_shmem_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	next_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;

	query_guard_init();
	ddl_guard_init();
	log_guard_init();

	MarkGUCPrefixReserved("nomp_crypt");
}
