/*
 * broker_flight.h
 *		What keystores were asked and have not answered yet.
 */
#ifndef NOMP_BROKER_FLIGHT_H
#define NOMP_BROKER_FLIGHT_H

#include "broker_jobs.h"
#include "stores.h"

extern bool flight_room(const Store *store);
extern int	flight_checks(const Store *store);
extern int64 flight_deadline(const Store *store);
extern void flight_attend(Store *store, int64 now);
extern void flight_replace(Store *store, Job *guilty, KsStatus status, const char *why);
extern bool flight_put_back(Store *store);

#endif							/* NOMP_BROKER_FLIGHT_H */
