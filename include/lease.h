/*
 * lease.h
 *		How long an unwrapped key may be used, by two clocks.
 *
 * A lease ends when either CLOCK_BOOTTIME (which counts suspended time and
 * cannot be set) or the wall clock (which a restored snapshot sees jump)
 * reaches its end.  Times in microseconds.
 */
#ifndef NOMP_LEASE_H
#define NOMP_LEASE_H

#include "postgres.h"

typedef struct Lease
{
	int64		boot_end;
	int64		wall_end;
} Lease;

extern void lease_init(void);
extern Lease lease_start(void);
extern bool lease_valid(const Lease *lease);
extern bool lease_valid_at(const Lease *lease, int64 *wall);
extern int64 lease_left(const Lease *lease);
extern bool lease_valid_coarse(const Lease *lease, int64 *checked);
extern int64 lease_boot_now(void);

#endif							/* NOMP_LEASE_H */
