/*
 * guard.h
 *		Hooks that refuse what would mislead.
 */
#ifndef NOMP_GUARD_H
#define NOMP_GUARD_H

extern void query_guard_init(void);
extern void ddl_guard_init(void);
extern void log_guard_init(void);

#endif							/* NOMP_GUARD_H */
