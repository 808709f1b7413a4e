/*
 * broker_answer.h
 *		What the broker does with the answers of the keystores' helpers.
 */
#ifndef NOMP_BROKER_ANSWER_H
#define NOMP_BROKER_ANSWER_H

#include "broker_jobs.h"
#include "wire.h"

/* A request that had been sent is over: how did the keystore do? */
extern void answer_note(Job *job, KsStatus status, const char *reason);

/* A job ends with an error, unless another keystore may do better. */
extern void answer_failed(Job *job, KsStatus status, const char *reason);

/* A frame came for it. */
extern void answer_take(Job *job, KsStatus status, WireReader *r);

#endif							/* NOMP_BROKER_ANSWER_H */
