/*
 * outage.h
 *		Leaves a keystore alone that takes its time to fail.
 */
#ifndef NOMP_OUTAGE_H
#define NOMP_OUTAGE_H

#include "postgres.h"

#include "protocol.h"

typedef struct Outage
{
	int			failures;		/* in a row; none: no outage */
	int64		began;			/* CLOCK_BOOTTIME, us */
	int64		until;			/* nobody asks before */
	int64		well_at;		/* the last answer that was no such failure */
	char		suspect[KS_MAX_LABEL];	/* the key of one since then, if it may be its fault */
	KsStatus	status;			/* what the last failure was, for those refused */
	char		reason[240];
} Outage;

extern void outage_note(Outage *outage, KsStatus status, const char *label,
						const char *reason, int64 took, int64 now);
extern bool outage_pauses(const Outage *outage, int64 now);

#endif							/* NOMP_OUTAGE_H */
