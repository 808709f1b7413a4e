/*
 * broker_heads.h
 *		The register's heads, on their way to a keystore one after the other.
 */
#ifndef NOMP_BROKER_HEADS_H
#define NOMP_BROKER_HEADS_H

#include "broker_jobs.h"
#include "stores.h"

extern bool heads_superseded(const Job *job);
extern void heads_drop(Job *job);
extern bool heads_must_wait(const Store *store, const Job *job);
extern void heads_given_up(Store *store, const Job *job);

#endif							/* NOMP_BROKER_HEADS_H */
