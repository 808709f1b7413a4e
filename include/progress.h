/*
 * progress.h
 *		How far long commands are, for nomp_crypt.progress.
 */
#ifndef NOMP_PROGRESS_H
#define NOMP_PROGRESS_H

#include "postgres.h"

extern void progress_init(void);
extern void progress_shmem_request(void);
extern void progress_shmem_startup(void);

/* This process runs such a command, on that; perhaps in many transactions. */
extern void progress_start(const char *command, const char *object, bool across_commits);

/* The next part of it, of so many units. */
extern void progress_phase(const char *phase, const char *unit, int64 total);
extern void progress_done(int64 done);

/* The end of the transaction does it too if that is aborted. */
extern void progress_end(void);

#endif							/* NOMP_PROGRESS_H */
