/*
 * broker_route.h
 *		Which keystore is asked for what.
 */
#ifndef NOMP_BROKER_ROUTE_H
#define NOMP_BROKER_ROUTE_H

#include "broker_jobs.h"
#include "stores.h"

extern Job *route_next(Store *store);
extern bool route_elsewhere(Job *job, KsStatus status, const char *reason);
extern bool route_see_next(Job *job);
extern void route_probe_failed(Store *store, KsStatus status, const char *reason);
extern void route_refuse(Store *store, bool keep_first);
extern void route_end(Job *job, KsStatus status, const char *reason);
extern void route_settle(void);
extern void route_forget(void);
extern bool route_matches(const Store *store, const Job *job);

#endif							/* NOMP_BROKER_ROUTE_H */
