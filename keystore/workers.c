/*
 * workers.c
 *		Threads that answer requests, for a keystore that answers several.
 *
 * A service at a distance needs milliseconds for each call, in which a thread
 * waits.  Threads are started when they are first needed and stay.  Each has
 * frames of its own, kept out of swap where that is allowed and out of core
 * dumps, and wiped after every request.
 *
 * One mutex guards who is at work.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "workers.h"

struct Worker
{
	pthread_t	thread;
	pthread_cond_t wake;
	Frames	   *frames;
	size_t		len;			/* of the request; 0 if there is none */
	bool		taken;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER;
static Worker workers[KS_MAX_IN_FLIGHT];
static int	n_workers;
static bool bad_frame;
static bool ending;

static void *
work(void *arg)
{
	Worker	   *w = arg;

	pthread_mutex_lock(&lock);
	for (;;)
	{
		bool		bad = false;
		bool		go_on;

		while (w->len == 0 && !ending)
			pthread_cond_wait(&w->wake, &lock);
		if (w->len == 0)
			break;
		pthread_mutex_unlock(&lock);
		go_on = serve(w->frames, w->len, &bad);
		pthread_mutex_lock(&lock);
		bad_frame |= bad;
		w->len = 0;
		w->taken = false;
		pthread_cond_broadcast(&idle);
		if (!go_on)
			stop_reading();
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

/* Start one more.  The caller holds the lock. */
static Worker *
add_worker(void)
{
	Worker	   *w = &workers[n_workers];
	pthread_attr_t attr;
	bool		ok;

	w->frames = mmap(NULL, sizeof(*w->frames), PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (w->frames == MAP_FAILED)
		return NULL;
	(void) mlock(w->frames, sizeof(*w->frames));
	(void) madvise(w->frames, sizeof(*w->frames), MADV_DONTDUMP);
	pthread_cond_init(&w->wake, NULL);
	pthread_attr_init(&attr);
	(void) pthread_attr_setstacksize(&attr, KS_STACK_SIZE);
	ok = pthread_create(&w->thread, &attr, work, w) == 0;
	pthread_attr_destroy(&attr);
	if (!ok)
	{
		pthread_cond_destroy(&w->wake);
		(void) munmap(w->frames, sizeof(*w->frames));
		return NULL;
	}
	n_workers++;
	return w;
}

static Worker *
find_idle(void)
{
	for (int i = 0; i < n_workers; i++)
	{
		if (!workers[i].taken)
			return &workers[i];
	}
	return NULL;
}

Worker *
workers_take(int max)
{
	Worker	   *w;

	pthread_mutex_lock(&lock);
	while ((w = find_idle()) == NULL)
	{
		if (n_workers < max && n_workers < KS_MAX_IN_FLIGHT)
			w = add_worker();
		if (w != NULL || n_workers == 0)
			break;
		pthread_cond_wait(&idle, &lock);
	}
	if (w != NULL)
		w->taken = true;
	pthread_mutex_unlock(&lock);
	return w;
}

Frames *
worker_frames(Worker *worker)
{
	return worker->frames;
}

void
worker_start(Worker *worker, size_t len)
{
	pthread_mutex_lock(&lock);
	worker->len = len;
	pthread_cond_signal(&worker->wake);
	pthread_mutex_unlock(&lock);
}

bool
workers_met_bad_frame(void)
{
	bool		met;

	pthread_mutex_lock(&lock);
	met = bad_frame;
	pthread_mutex_unlock(&lock);
	return met;
}

static bool
any_at_work(void)
{
	for (int i = 0; i < n_workers; i++)
	{
		if (workers[i].len != 0)
			return true;
	}
	return false;
}

bool
workers_end(unsigned seconds)
{
	struct timespec until;
	bool		done;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += seconds;
	pthread_mutex_lock(&lock);
	ending = true;
	for (int i = 0; i < n_workers; i++)
		pthread_cond_signal(&workers[i].wake);
	while (any_at_work() && pthread_cond_timedwait(&idle, &lock, &until) == 0)
		;
	done = !any_at_work();
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < n_workers; i++)
	{
		if (done)
			(void) pthread_join(workers[i].thread, NULL);
		explicit_bzero(workers[i].frames, sizeof(*workers[i].frames));
	}
	return done;
}
