/*
 * admin.h
 *		Internal SQL functions behind administration and erasure.
 */
#ifndef NOMP_ADMIN_H
#define NOMP_ADMIN_H

extern void keystore_sql_init(void);
extern void erase_init(void);
extern void lifecycle_init(void);

#endif							/* NOMP_ADMIN_H */
