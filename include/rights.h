/*
 * rights.h
 *		May the current role do this with that school?
 */
#ifndef NOMP_RIGHTS_H
#define NOMP_RIGHTS_H

#include "catalog.h"

/* In which schools a role holds a right. */
typedef struct RightsHeld
{
	bool		everywhere;
	int			count;
	int			room;
	pg_uuid_t  *tenants;		/* sorted */
} RightsHeld;

extern void rights_init(void);
extern bool rights_has(const pg_uuid_t *tenant, int right);
extern bool rights_cached(const pg_uuid_t *tenant, int right);
/* Also where keys are used without asking for the rights in one tenant. */
extern void rights_require_connection(void);
extern void rights_require(const TenantRow *tenant, int right);
extern void rights_holdings(int right, RightsHeld *found);
extern bool rights_held(const RightsHeld *found, const pg_uuid_t *tenant);
extern bool rights_may_load(const pg_uuid_t *tenant);

#endif							/* NOMP_RIGHTS_H */
