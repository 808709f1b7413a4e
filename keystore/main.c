/*
 * main.c
 *		The keystore helper: the one process that talks to a keystore.
 *
 * Started by the broker with a socket on KS_HELPER_FD and nothing in argv; it
 * shares no memory with PostgreSQL.  It answers one request after another, in
 * this thread, or several at once in the threads of workers.c if the kind of
 * keystore can do that; and ends when the socket does, or with the broker.
 * What it cannot parse ends it with exit code 2.  It never forks, and nothing
 * but this program loads the keystore's module.
 *
 * Data keys pass through the frame buffers, which are kept out of swap where
 * that is allowed and wiped after every request.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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
#include "workers.h"

#define EXIT_SETUP		1
#define EXIT_BAD_FRAME	2

#define CLOSING_SECONDS 3
#define WORKERS_SECONDS 1		/* for calls under way, when nobody listens */

static Frames own_frames;
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

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
	(void) mlock(&own_frames, sizeof(own_frames));
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

/* Nobody is to be answered any more. */
void
stop_reading(void)
{
	(void) shutdown(KS_HELPER_FD, SHUT_RD);
}

/* Run one request, and send its answer whole; false to end. */
bool
serve(Frames *frames, size_t len, bool *bad_frame)
{
	const size_t reply_len = request_run(frames->request, len, frames->reply);
	bool		sent;

	explicit_bzero(frames->request, len);
	*bad_frame = reply_len == 0;
	if (reply_len == 0)
		return false;
	pthread_mutex_lock(&writing);
	sent = write_fully(frames->reply, reply_len);
	pthread_mutex_unlock(&writing);
	explicit_bzero(frames->reply, reply_len);
	return sent;
}

/* Take one request, and answer it or have it answered. */
static bool
serve_next(int *code)
{
	uint8_t		word[4];
	WireReader	r = {word, sizeof(word), 0, false};
	size_t		got = read_fully(word, sizeof(word));
	const int	in_flight = request_max_in_flight();
	Worker	   *worker = NULL;
	Frames	   *frames = &own_frames;
	size_t		len;
	bool		bad_frame = false;
	bool		go_on = true;

	*code = got == 0 ? EXIT_SUCCESS : EXIT_BAD_FRAME;
	if (got != sizeof(word))
		return false;
	len = (size_t) wire_get_uint(&r, 4);
	if (len < 8 + 1 || len > KS_MAX_FRAME)
		return false;
	if (in_flight > 1)
	{
		worker = workers_take(in_flight);
		*code = EXIT_SETUP;
		if (worker == NULL)
			return false;
		frames = worker_frames(worker);
	}
	*code = EXIT_BAD_FRAME;
	if (read_fully(frames->request, len) != len)
		return false;
	if (worker != NULL)
		worker_start(worker, len);
	else
		go_on = serve(frames, len, &bad_frame);
	*code = bad_frame ? EXIT_BAD_FRAME : EXIT_SUCCESS;
	return go_on;
}

int
main(void)
{
	struct stat st;
	int			code = EXIT_SUCCESS;
	bool		finished;

	default_signals();
	(void) prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
	(void) umask(077);
	if (fstat(KS_HELPER_FD, &st) != 0 || !S_ISSOCK(st.st_mode) || !tidy_descriptors())
		return EXIT_SETUP;
	protect_memory();

	while (serve_next(&code))
		;

	/* A hardware token should see its session closed, but not for ever. */
	(void) alarm(CLOSING_SECONDS);
	finished = workers_end(WORKERS_SECONDS);
	if (workers_met_bad_frame())
		code = EXIT_BAD_FRAME;
	if (!finished)
		_exit(code);			/* they wait for a service, in the middle of things */
	request_shutdown();
	return code;
}
