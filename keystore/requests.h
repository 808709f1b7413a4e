/*
 * requests.h
 *		One frame in, one frame out.
 */
#ifndef NOMP_REQUESTS_H
#define NOMP_REQUESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Carry out the request in "frame" (without its length word) and write the
 * whole reply, length word included, to "reply" of 4 + KS_MAX_FRAME bytes.
 * Returns the reply's length, or 0 if the frame is not one of the protocol.
 * The reply may hold data keys: the caller wipes it.
 */
extern size_t request_run(const uint8_t *frame, size_t len, uint8_t *reply);

/* How many requests may run at once, each in a thread of its own. */
extern int	request_max_in_flight(void);

/* Release the keystore, if one is open. */
extern void request_shutdown(void);

#endif							/* NOMP_REQUESTS_H */
