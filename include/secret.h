/*
 * secret.h
 *		Memory for secrets: locked, and kept out of core dumps.
 */
#ifndef NOMP_SECRET_H
#define NOMP_SECRET_H

#include "postgres.h"

#define SECRET_PAGE		4096

/* Best effort; false if the system refuses one of the two.  Whole pages. */
extern bool secret_protect(void *start, Size size);
extern bool secret_all_protected(void);

/* Shared memory for secrets: to request, and to find on whole pages. */
extern void secret_shmem_request(Size size);
extern void *secret_shmem_startup(const char *name, Size size, bool *found);

#endif							/* NOMP_SECRET_H */
