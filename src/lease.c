/*
 * lease.c
 *		How long an unwrapped key may be used, by two clocks.
 *
 * Called by the broker, which starts leases, and by everything that uses a
 * key.  Owns nomp_crypt.key_lease.  No secrets here.
 */
#include "postgres.h"

#include <time.h>

#include "lease.h"
#include "utils/guc.h"

static int	key_lease = 4 * 60 * 60;	/* seconds */

void
lease_init(void)
{
	DefineCustomIntVariable("nomp_crypt.key_lease",
							"How long an unwrapped key may be used without the keystore confirming it.",
							"Counts from the last successful unwrap, never from use.",
							&key_lease, 4 * 60 * 60, 1, 24 * 60 * 60,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

static int64
clock_us(clockid_t clock)
{
	struct timespec ts;

	if (clock_gettime(clock, &ts) != 0)
		elog(PANIC, "could not read a system clock: %m");
	return (int64) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int64
lease_boot_now(void)
{
	return clock_us(CLOCK_BOOTTIME);
}

/* A full lease, from now. */
Lease
lease_start(void)
{
	Lease		lease;

	lease.boot_end = clock_us(CLOCK_BOOTTIME) + (int64) key_lease * 1000000;
	lease.wall_end = clock_us(CLOCK_REALTIME) + (int64) key_lease * 1000000;
	return lease;
}

/* Is it valid, and what time is it by the wall clock, in us? */
bool
lease_valid_at(const Lease *lease, int64 *wall)
{
	*wall = clock_us(CLOCK_REALTIME);
	return *wall < lease->wall_end && clock_us(CLOCK_BOOTTIME) < lease->boot_end;
}

bool
lease_valid(const Lease *lease)
{
	int64		wall;

	return lease_valid_at(lease, &wall);
}

/* Microseconds until it ends, none or fewer if it has. */
int64
lease_left(const Lease *lease)
{
	return Min(lease->boot_end - clock_us(CLOCK_BOOTTIME),
			   lease->wall_end - clock_us(CLOCK_REALTIME));
}

/*
 * The same for the hot path: looks at both clocks again only when the wall
 * clock's second has changed since that copy was last looked at, and that
 * clock is read in its cheap, coarse form.  A jump in either direction
 * changes the second, so the answer is late by one second at the most.
 */
bool
lease_valid_coarse(const Lease *lease, int64 *checked)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_REALTIME_COARSE, &ts) != 0)
		return false;
	if ((int64) ts.tv_sec == *checked)
		return true;
	if (!lease_valid(lease))
		return false;
	*checked = (int64) ts.tv_sec;
	return true;
}
