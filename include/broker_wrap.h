/*
 * broker_wrap.h
 *		KS_OP_WRAP: the frames that wrapping a data key takes, in order.
 */
#ifndef NOMP_BROKER_WRAP_H
#define NOMP_BROKER_WRAP_H

#include "broker_jobs.h"
#include "wire.h"

#define WRAP_BODY_MAX	2048	/* of any of those frames */

extern KsOp wrap_begin(Job *job, WireWriter *w);
extern KsStatus wrap_answered(Job *job, WireReader *r, KsOp *op, WireWriter *w);

#endif							/* NOMP_BROKER_WRAP_H */
