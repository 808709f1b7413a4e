/*
 * helper_link.h
 *		The broker's hold on a keystore helper: start, frames, kill.
 */
#ifndef NOMP_HELPER_LINK_H
#define NOMP_HELPER_LINK_H

#include "postgres.h"

#include "protocol.h"
#include "wire.h"

/* All zero but fd = -1: none runs. */
typedef struct HelperLink
{
	pid_t		pid;
	int			fd;
	size_t		in_len;			/* bytes received */
	size_t		in_used;		/* bytes of the frame handed out last */
	size_t		out_len;		/* bytes of a frame that the socket did not take yet */
	uint8		in_buf[4 + KS_MAX_FRAME];	/* may hold data keys */
	uint8		out_buf[4 + KS_MAX_FRAME];	/* may hold one */
} HelperLink;

extern bool helper_running(const HelperLink *link);
extern pgsocket helper_socket(const HelperLink *link);
extern bool helper_takes_more(const HelperLink *link);
extern bool helper_start(HelperLink *link, const char *uri, const char *pin_stamp,
						 const char *regions, const char *canary);
extern void helper_stop(HelperLink *link);
extern void helper_kill(HelperLink *link);
extern bool helper_send(HelperLink *link, uint64 id, KsOp op, const char *serial,
						int patience, const uint8 *body, size_t len);
extern bool helper_flush(HelperLink *link);

typedef enum HelperRead
{
	HELPER_NOTHING,				/* no whole frame yet */
	HELPER_FRAME,				/* one frame was handed out */
	HELPER_GONE					/* end of file, or not our protocol */
} HelperRead;

/* body points into the link's buffer until the next call; wiped by then. */
extern HelperRead helper_read(HelperLink *link, uint64 *id, KsStatus *status,
							  WireReader *body);

#endif							/* NOMP_HELPER_LINK_H */
