/*
 * helper_link.h
 *		The broker's hold on the keystore helper: start, frames, kill.
 */
#ifndef NOMP_HELPER_LINK_H
#define NOMP_HELPER_LINK_H

#include "postgres.h"

#include "protocol.h"
#include "wire.h"

extern bool helper_running(void);
extern pgsocket helper_socket(void);
extern bool helper_start(const char *uri, const char *pin_stamp);
extern void helper_stop(void);
extern void helper_kill(void);
extern bool helper_send(uint64 id, KsOp op, const uint8 *body, size_t len);

typedef enum HelperRead
{
	HELPER_NOTHING,				/* no whole frame yet */
	HELPER_FRAME,				/* one frame was handed out */
	HELPER_GONE					/* end of file, or not our protocol */
} HelperRead;

/* body points into the link's buffer until the next call; wiped by then. */
extern HelperRead helper_read(uint64 *id, KsStatus *status, WireReader *body);

#endif							/* NOMP_HELPER_LINK_H */
