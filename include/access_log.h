/*
 * access_log.h
 *		Audit of use: who read, wrote and searched how many values of whom.
 */
#ifndef NOMP_ACCESS_LOG_H
#define NOMP_ACCESS_LOG_H

#include "access_table.h"
#include "catalog.h"

typedef enum AccessLog
{
	ACCESS_LOG_NONE,
	ACCESS_LOG_HOURLY,
	ACCESS_LOG_TRANSACTION
} AccessLog;

extern int	access_log;			/* nomp_crypt.log_access */

extern void access_log_init(void);
extern void access_note(const pg_uuid_t *tenant, AccessKind kind);

/*
 * Call these when it has been done, with the rights that it was done under:
 * they tell what it was for.  Turning a literal into a column's value opens
 * it under "encrypt", sealing a literal is allowed to whoever holds any right,
 * and a stored value's fingerprint is made under "encrypt": none of these is
 * reading, writing or searching.
 */
static inline void
access_opened(const pg_uuid_t *tenant, int rights)
{
	if (unlikely(access_log != ACCESS_LOG_NONE) && (rights & RIGHT_DECRYPT) != 0)
		access_note(tenant, ACCESS_READ);
}

static inline void
access_sealed(const pg_uuid_t *tenant, int rights)
{
	if (unlikely(access_log != ACCESS_LOG_NONE) && rights == RIGHT_ENCRYPT)
		access_note(tenant, ACCESS_WRITTEN);
}

static inline void
access_fingerprinted(const pg_uuid_t *tenant, int rights)
{
	if (unlikely(access_log != ACCESS_LOG_NONE) && (rights & RIGHT_SEARCH) != 0)
		access_note(tenant, ACCESS_SEARCHED);
}

#endif							/* NOMP_ACCESS_LOG_H */
