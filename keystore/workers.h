/*
 * workers.h
 *		Threads that answer requests, for a keystore that answers several.
 */
#ifndef NOMP_WORKERS_H
#define NOMP_WORKERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

/* Of every thread of the helper: memory that is locked is not for stacks. */
#define KS_STACK_SIZE	(1024 * 1024)

/* Where a request and its answer are; data keys among them. */
typedef struct Frames
{
	uint8_t		request[KS_MAX_FRAME];
	uint8_t		reply[4 + KS_MAX_FRAME];
} Frames;

typedef struct Worker Worker;

/*
 * A worker that has nothing to do, of at most "max": waits for one.  NULL if
 * there can be none.  The request goes into its frames, then it is started.
 */
extern Worker *workers_take(int max);
extern Frames *worker_frames(Worker *worker);
extern void worker_start(Worker *worker, size_t len);

/* Has any of them met a request that ends the conversation? */
extern bool workers_met_bad_frame(void);

/* End them all; false if one is still at work after so many seconds. */
extern bool workers_end(unsigned seconds);

/* main.c: run one request, and send its answer whole; false to end. */
extern bool serve(Frames *frames, size_t len, bool *bad_frame);
extern void stop_reading(void);

#endif							/* NOMP_WORKERS_H */
