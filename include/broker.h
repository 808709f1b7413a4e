/*
 * broker.h
 *		The background worker between backends and keystore.
 */
#ifndef NOMP_BROKER_H
#define NOMP_BROKER_H

#include "postgres.h"

extern void broker_init(void);
extern PGDLLEXPORT void nomp_crypt_broker_main(Datum arg);

#endif							/* NOMP_BROKER_H */
