/*
 * broker_checks.h
 *		What comes of asking a keystore again for keys in use.
 */
#ifndef NOMP_BROKER_CHECKS_H
#define NOMP_BROKER_CHECKS_H

#include "broker_jobs.h"
#include "stores.h"

extern void checks_revoke(const UnwrapRequest *what, KsStatus status);
extern void checks_ask_for_later(const Job *job, KsStatus verdict);
extern void checks_failed(const Job *job, KsStatus status, const char *reason);

#endif							/* NOMP_BROKER_CHECKS_H */
