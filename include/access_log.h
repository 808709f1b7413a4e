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
extern void access_note(const pg_uuid_t *tenant, const char *id, AccessKind kind);

/*
 * Call these when it has been done, with the rights that it was done under:
 * one right alone says what it was for.  Alternatives belong to what happens
 * on the way: a literal is sealed for whoever holds any right, and opened
 * again to become a column's value or to be looked up.  That is neither
 * reading nor writing.
 */
static inline void
access_opened(const pg_uuid_t *tenant, int rights)
{
	if (unlikely(access_log != ACCESS_LOG_NONE) && rights == RIGHT_DECRYPT)
		access_note(tenant, NULL, ACCESS_READ);
}

static inline void
access_sealed(const TenantRow *tenant, int rights)
{
	if (unlikely(access_log != ACCESS_LOG_NONE) && rights == RIGHT_ENCRYPT)
		access_note(&tenant->uuid, tenant->id, ACCESS_WRITTEN);
}

static inline void
access_fingerprinted(const TenantRow *tenant, int rights)
{
	if (unlikely(access_log != ACCESS_LOG_NONE) && rights == RIGHT_SEARCH)
		access_note(&tenant->uuid, tenant->id, ACCESS_SEARCHED);
}

#endif							/* NOMP_ACCESS_LOG_H */
