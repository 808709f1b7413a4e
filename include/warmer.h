/*
 * warmer.h
 *		Keeps the busiest schools' keys in this node's memory.
 */
#ifndef NOMP_WARMER_H
#define NOMP_WARMER_H

#include "postgres.h"

extern void warmer_init(void);
extern void warmer_launch_due(int64 now);
extern void warmer_launch_soon(void);
extern PGDLLEXPORT void nomp_crypt_warmer_main(Datum arg);

#endif							/* NOMP_WARMER_H */
