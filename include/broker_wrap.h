/*
 * broker_wrap.h
 *		KS_OP_WRAP: the frames that wrapping a data key takes, in order.
 */
#ifndef NOMP_BROKER_WRAP_H
#define NOMP_BROKER_WRAP_H

#include "broker_jobs.h"
#include "wire.h"

extern KsOp wrap_put(Job *job, WireWriter *w);
extern KsStatus wrap_answered(Job *job, WireReader *r);
extern bool wrap_done(const Job *job);

#endif							/* NOMP_BROKER_WRAP_H */
