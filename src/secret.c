/*
 * secret.c
 *		Memory for secrets: locked, and kept out of core dumps.
 *
 * Locked in the postmaster, shared pages stay locked for as long as it lives;
 * the mark that keeps them out of core dumps is inherited by its children.
 * Whoever asks for the memory wipes it, except at the end: all shared secrets
 * are wiped here when the postmaster leaves or re-creates its shared memory.
 */
#include "postgres.h"

#include <sys/mman.h>

#include "cipher.h"
#include "miscadmin.h"
#include "secret.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

typedef struct SharedSecrets
{
	void	   *start;
	Size		size;
} SharedSecrets;

static SharedSecrets all[4];
static int	num_all = 0;
static bool all_protected = true;	/* of the postmaster, inherited */

bool
secret_protect(void *start, Size size)
{
	bool		locked = mlock(start, size) == 0;

	return madvise(start, size, MADV_DONTDUMP) == 0 && locked;
}

/* Are all pages of shared secrets locked and kept out of core dumps? */
bool
secret_all_protected(void)
{
	return all_protected;
}

/* Room to start and end on a page boundary. */
static Size
padded(Size size)
{
	return add_size(size, 2 * SECRET_PAGE);
}

void
secret_shmem_request(Size size)
{
	RequestAddinShmemSpace(padded(size));
}

static void
wipe_at_exit(int code, Datum arg)
{
	for (int i = 0; i < num_all; i++)
		cipher_wipe(all[i].start, all[i].size);
	num_all = 0;
	all_protected = true;
}

/* Caller holds AddinShmemInitLock. */
void *
secret_shmem_startup(const char *name, Size size, bool *found)
{
	void	   *start = (void *) TYPEALIGN(SECRET_PAGE,
										   ShmemInitStruct(name, padded(size), found));
	Size		whole = TYPEALIGN(SECRET_PAGE, size);
	bool		protected;

	if (*found)
		return start;
	protected = secret_protect(start, whole);
	all_protected = all_protected && protected;
	if (!protected)
		ereport(LOG,
				(errmsg("could not lock memory of %s: %m", name),
				 errhint("Raise the server's limit of locked memory (LimitMEMLOCK) by %zu kB.",
						 whole / 1024)));
	memset(start, 0, size);
	if (IsUnderPostmaster || num_all == lengthof(all))
		return start;
	if (num_all == 0)
		on_shmem_exit(wipe_at_exit, 0);
	all[num_all].start = start;
	all[num_all++].size = size;
	return start;
}
