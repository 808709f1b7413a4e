/*
 * main.c
 *		The keystore helper: the one process that talks to a keystore.
 *
 * Started by the broker with a socket on KS_HELPER_FD and nothing in argv; it
 * shares no memory with PostgreSQL.  It answers one request after another
 * and ends when the socket does, or with the broker.  What it cannot parse
 * ends it with exit code 2.  It never forks, and nothing but this program
 * loads the keystore's module.
 *
 * Data keys pass through the two frame buffers here, which are kept out of
 * swap where that is allowed and wiped after every request.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol.h"
#include "requests.h"
#include "wire.h"

#define EXIT_SETUP		1
#define EXIT_BAD_FRAME	2

#define CLOSING_SECONDS 3

static uint8_t request_frame[KS_MAX_FRAME];
static uint8_t reply_frame[4 + KS_MAX_FRAME];

/* A server ignores and blocks signals; a program it starts should not. */
static void
default_signals(void)
{
	sigset_t	none;

	for (int sig = 1; sig < NSIG; sig++)
	{
		if (sig != SIGKILL && sig != SIGSTOP)
			(void) signal(sig, SIG_DFL);
	}
	sigemptyset(&none);
	(void) sigprocmask(SIG_SETMASK, &none, NULL);
}

/*
 * Nothing but standard error and the socket stays open.  Standard input and
 * output become /dev/null, so that no module reads or writes there.
 */
static bool
tidy_descriptors(void)
{
	int			null = open("/dev/null", O_RDWR);

	if (null < 0)
		return false;
	while (null <= STDERR_FILENO)
	{
		null = dup(null);
		if (null < 0)
			return false;
	}
	if (dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0)
		return false;
	if (fcntl(STDERR_FILENO, F_GETFD) < 0 && dup2(null, STDERR_FILENO) < 0)
		return false;
	(void) fcntl(KS_HELPER_FD, F_SETFD, FD_CLOEXEC);
	if (close_range(KS_HELPER_FD + 1, ~0U, 0) != 0)
	{
		for (int fd = KS_HELPER_FD + 1; fd < sysconf(_SC_OPEN_MAX); fd++)
			(void) close(fd);
	}
	return true;
}

/*
 * Keep secrets out of swap and core dumps.  Locking everything, what will be
 * allocated later included, makes allocations fail at the limit, so it is
 * done only where there is none; the frames alone are small enough elsewhere.
 */
static void
protect_memory(void)
{
	const struct rlimit no_core = {0, 0};
	struct rlimit memlock;

	(void) setrlimit(RLIMIT_CORE, &no_core);
	(void) prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (getrlimit(RLIMIT_MEMLOCK, &memlock) == 0)
	{
		memlock.rlim_cur = memlock.rlim_max;
		(void) setrlimit(RLIMIT_MEMLOCK, &memlock);
		if (memlock.rlim_max == RLIM_INFINITY &&
			mlockall(MCL_CURRENT | MCL_FUTURE) == 0)
			return;
	}
	(void) mlock(request_frame, sizeof(request_frame));
	(void) mlock(reply_frame, sizeof(reply_frame));
}

/* Read exactly "len" bytes; fewer only at the end of the stream. */
static size_t
read_fully(uint8_t *buf, size_t len)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = recv(KS_HELPER_FD, buf + done, len - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t) n;
	}
	return done;
}

static bool
write_fully(const uint8_t *buf, size_t len)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = send(KS_HELPER_FD, buf + done, len - done, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t) n;
	}
	return true;
}

/* Answer one request.  False at the end of the conversation. */
static bool
serve_one(int *code)
{
	uint8_t		word[4];
	WireReader	r = {word, sizeof(word), 0, false};
	size_t		got = read_fully(word, sizeof(word));
	size_t		len;
	size_t		reply_len;
	bool		sent;

	*code = got == 0 ? EXIT_SUCCESS : EXIT_BAD_FRAME;
	if (got != sizeof(word))
		return false;
	len = (size_t) wire_get_uint(&r, 4);
	if (len < 8 + 1 || len > KS_MAX_FRAME || read_fully(request_frame, len) != len)
		return false;
	reply_len = request_run(request_frame, len, reply_frame);
	explicit_bzero(request_frame, len);
	if (reply_len == 0)
		return false;
	sent = write_fully(reply_frame, reply_len);
	explicit_bzero(reply_frame, reply_len);
	if (!sent)
		*code = EXIT_SUCCESS;
	return sent;
}

int
main(void)
{
	struct stat st;
	int			code = EXIT_SUCCESS;

	default_signals();
	(void) prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
	(void) umask(077);
	if (fstat(KS_HELPER_FD, &st) != 0 || !S_ISSOCK(st.st_mode) || !tidy_descriptors())
		return EXIT_SETUP;
	protect_memory();

	while (serve_one(&code))
		;

	/* A hardware token should see its session closed, but not for ever. */
	(void) alarm(CLOSING_SECONDS);
	request_shutdown();
	return code;
}
