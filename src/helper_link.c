/*
 * helper_link.c
 *		The broker's hold on a keystore helper: start, frames, kill.
 *
 * The helper is a program of its own, started with posix_spawn (the broker
 * is a PostgreSQL process and must not run code between fork and exec), with
 * one end of a socketpair as fd 3 and nothing of PostgreSQL's memory.  There
 * is one per configured keystore; the broker alone calls this file.
 *
 * Frames with data keys pass through the links' buffers, which are wiped when
 * their frame is done with.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cipher.h"
#include "helper_link.h"
#include "miscadmin.h"

#define HELPER_PROGRAM	"nomp_crypt-keystore"
#define STOP_WAIT_MS	1000

extern char **environ;

bool
helper_running(const HelperLink *link)
{
	return link->pid != 0;
}

pgsocket
helper_socket(const HelperLink *link)
{
	return link->fd;
}

/* Is all that was sent to it out of our hands? */
bool
helper_takes_more(const HelperLink *link)
{
	return link->out_len == 0;
}

/* Spawn the program with fd 3 = child_fd, default signals, nothing blocked. */
static bool
spawn(HelperLink *link, int child_fd)
{
	char		path[MAXPGPATH];
	char	   *argv[2];
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t	none;
	sigset_t	all;
	int			rc;

	snprintf(path, sizeof(path), "%s/%s", pkglib_path, HELPER_PROGRAM);
	argv[0] = HELPER_PROGRAM;
	argv[1] = NULL;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, child_fd, KS_HELPER_FD);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	rc = posix_spawn(&link->pid, path, &actions, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
	if (rc != 0)
	{
		link->pid = 0;
		errno = rc;
		ereport(LOG,
				(errmsg("could not start the keystore helper \"%s\": %m", path)));
	}
	return rc == 0;
}

/*
 * Start a helper for a keystore.  Its HELLO answer comes like any other
 * frame, with id 0.
 */
bool
helper_start(HelperLink *link, const char *uri, const char *pin_stamp, const char *regions,
			 const char *canary)
{
	int			fds[2];
	uint8		hello[12000];	/* the longest URI and list of regions, and the rest */
	WireWriter	w = {hello, sizeof(hello), 0, false};

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
	{
		ereport(LOG, (errmsg("could not create a socket pair: %m")));
		return false;
	}
	/* dup2 onto itself would leave close-on-exec set */
	if (fds[1] == KS_HELPER_FD)
		(void) fcntl(fds[1], F_SETFD, 0);
	if (!spawn(link, fds[1]))
	{
		close(fds[0]);
		close(fds[1]);
		return false;
	}
	close(fds[1]);
	link->fd = fds[0];
	(void) fcntl(link->fd, F_SETFL, O_NONBLOCK);
	link->in_len = link->in_used = link->out_len = 0;

	wire_put_uint(&w, KS_PROTOCOL_VERSION, 2);
	wire_put_str(&w, uri, strlen(uri));
	wire_put_str(&w, pin_stamp, strlen(pin_stamp));
	wire_put_str(&w, regions, strlen(regions));
	wire_put_str(&w, canary, strlen(canary));
	if (w.bad || !helper_send(link, 0, KS_OP_HELLO, "", 0, hello, w.len))
	{
		helper_kill(link);
		return false;
	}
	return true;
}

static void
forget_helper(HelperLink *link)
{
	link->pid = 0;
	cipher_wipe(link->in_buf, link->in_len);
	cipher_wipe(link->out_buf, link->out_len);
	link->in_len = link->in_used = link->out_len = 0;
}

/*
 * Let it close its session with the token, as it does when the socket ends;
 * not for long.  Harmless if none runs.
 */
void
helper_stop(HelperLink *link)
{
	if (link->fd >= 0)
		close(link->fd);
	link->fd = -1;
	for (int i = 0; link->pid != 0 && i < STOP_WAIT_MS; i++)
	{
		if (waitpid(link->pid, NULL, WNOHANG) == link->pid)
			forget_helper(link);
		else
			pg_usleep(1000L);
	}
	helper_kill(link);
}

/* Kill and reap; harmless if none runs. */
void
helper_kill(HelperLink *link)
{
	if (link->fd >= 0)
		close(link->fd);
	link->fd = -1;
	if (link->pid != 0)
	{
		(void) kill(link->pid, SIGKILL);
		while (waitpid(link->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	forget_helper(link);
}

/*
 * Hand on what the socket did not take before.  False if the helper is gone;
 * one that does not read is found out by its silence.
 */
bool
helper_flush(HelperLink *link)
{
	ssize_t		sent;

	if (link->out_len == 0)
		return true;
	if (link->fd < 0)
		return false;
	do
	{
		sent = send(link->fd, link->out_buf, link->out_len, MSG_NOSIGNAL);
	} while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK;
	memmove(link->out_buf, link->out_buf + sent, link->out_len - sent);
	cipher_wipe(link->out_buf + link->out_len - sent, sent);
	link->out_len -= (size_t) sent;
	return true;
}

/*
 * Send one frame, for the token of that serial ("": any), and say how long
 * its answer is waited for, in milliseconds.  Only while helper_takes_more().
 * False if the helper is gone.
 */
bool
helper_send(HelperLink *link, uint64 id, KsOp op, const char *serial, int patience,
			const uint8 *body, size_t len)
{
	WireWriter	w = {link->out_buf, sizeof(link->out_buf), 0, false};

	Assert(helper_takes_more(link));
	wire_put_uint(&w, 8 + 1 + 2 + strlen(serial) + 4 + len, 4);
	wire_put_uint(&w, id, 8);
	wire_put_uint(&w, op, 1);
	wire_put_str(&w, serial, strlen(serial));
	wire_put_uint(&w, (uint64) patience, 4);
	wire_put(&w, body, len);
	if (w.bad)
	{
		cipher_wipe(link->out_buf, w.len);
		return false;
	}
	link->out_len = w.len;
	return helper_flush(link);
}

/* Forget the frame that was handed out last. */
static void
drop_used_frame(HelperLink *link)
{
	if (link->in_used == 0)
		return;
	cipher_wipe(link->in_buf, link->in_used);
	memmove(link->in_buf, link->in_buf + link->in_used, link->in_len - link->in_used);
	cipher_wipe(link->in_buf + link->in_len - link->in_used, link->in_used);
	link->in_len -= link->in_used;
	link->in_used = 0;
}

/* Is there a whole frame?  HELPER_GONE if what is there is none. */
static HelperRead
whole_frame(const HelperLink *link, size_t *len)
{
	WireReader	r = {link->in_buf, link->in_len, 0, false};

	*len = 0;
	if (link->in_len < 4)
		return HELPER_NOTHING;
	*len = (size_t) wire_get_uint(&r, 4);
	if (*len < 8 + 1 || *len > KS_MAX_FRAME)
		return HELPER_GONE;
	return link->in_len < 4 + *len ? HELPER_NOTHING : HELPER_FRAME;
}

/* Several may have come at once: the socket is read when none is left. */
HelperRead
helper_read(HelperLink *link, uint64 *id, KsStatus *status, WireReader *body)
{
	size_t		frame;
	HelperRead	have;
	WireReader	head;

	drop_used_frame(link);
	if (link->fd < 0)
		return HELPER_GONE;
	have = whole_frame(link, &frame);
	if (have == HELPER_NOTHING)
	{
		ssize_t		got = recv(link->fd, link->in_buf + link->in_len,
							   sizeof(link->in_buf) - link->in_len, MSG_DONTWAIT);

		if (got == 0)
			return HELPER_GONE;
		if (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			return HELPER_GONE;
		if (got > 0)
			link->in_len += (size_t) got;
		have = whole_frame(link, &frame);
	}
	if (have != HELPER_FRAME)
		return have;
	head = (WireReader) {link->in_buf + 4, 8 + 1, 0, false};
	*id = wire_get_uint(&head, 8);
	*status = (KsStatus) wire_get_uint(&head, 1);
	*body = (WireReader) {link->in_buf + 4 + 9, frame - 9, 0, false};
	link->in_used = 4 + frame;
	return HELPER_FRAME;
}
