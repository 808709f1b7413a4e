/*
 * clock_shim.c
 *		A wall clock that jumps to the next hour, for tests.
 *
 * Preloaded into a server, it adds an hour to what gettimeofday() says as
 * soon as the file exists that NOMP_CLOCK_JUMP names.
 */
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

__attribute__((visibility("default"))) int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	const char *jump = getenv("NOMP_CLOCK_JUMP");
	struct timespec time;

	if (clock_gettime(CLOCK_REALTIME, &time) != 0)
		return -1;
	now->tv_sec = time.tv_sec;
	now->tv_usec = time.tv_nsec / 1000;
	if (jump != NULL && access(jump, F_OK) == 0)
		now->tv_sec += 3600;
	return 0;
}
