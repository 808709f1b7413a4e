/*
 * worker.h
 *		What our background workers have in common.
 */
#ifndef NOMP_WORKER_H
#define NOMP_WORKER_H

#include "postgres.h"

#include "postmaster/bgworker.h"

/*
 * One that runs a function of this library, from when a node is consistent,
 * standbys included, and shows in pg_stat_activity under that name.
 */
static inline BackgroundWorker
worker_of(const char *function, const char *name)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	strlcpy(worker.bgw_library_name, "nomp_crypt", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, name, BGW_MAXLEN);
	return worker;
}

#endif							/* NOMP_WORKER_H */
