/*
 * erase.h
 *		Erasures: what waits for what, and the steps from the fence on.
 */
#ifndef NOMP_ERASE_H
#define NOMP_ERASE_H

#include "postgres.h"

extern void erase_case_init(void);
extern void nodes_init(void);

/* Within a procedure of steps.h: args[0] is the case. */
extern void erase_execute(char **args);

#endif							/* NOMP_ERASE_H */
