/*
 * admin.h
 *		Internal SQL functions behind administration and erasure.
 */
#ifndef NOMP_ADMIN_H
#define NOMP_ADMIN_H

#include "postgres.h"

#include "fmgr.h"

extern void keystore_sql_init(void);
extern void erase_init(void);
extern void lifecycle_init(void);

/* For a procedure that commits between its steps: refuse where it cannot (2D000). */
extern void admin_require_nonatomic(FunctionCallInfo fcinfo, const char *procedure);

#endif							/* NOMP_ADMIN_H */
