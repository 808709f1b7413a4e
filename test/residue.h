/*
 * residue.h
 *		Looks for secrets in everything that this process can write.
 *
 * Not with the sanitizer's memory: then UNDER_ASAN is defined and nothing
 * else is here.
 */
#ifndef NOMP_TEST_RESIDUE_H
#define NOMP_TEST_RESIDUE_H

#include <inttypes.h>

#include "tap.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define UNDER_ASAN
#endif

#ifndef UNDER_ASAN

/* The needles are kept masked, so that the search does not find itself. */
#define MASK		0x5a
#define PIECE		8			/* bytes that are no accident */
#define DEAD_STACK	32768

static uint8_t needles[6][32];
static int	needle_count;

static inline void
add_needle(const uint8_t *secret)
{
	for (int i = 0; i < 32; i++)
		needles[needle_count][i] = secret[i] ^ MASK;
	needle_count++;
}

static bool
is_piece(const uint8_t *bytes, const uint8_t *masked)
{
	for (int i = 0; i < PIECE; i++)
	{
		if ((bytes[i] ^ MASK) != masked[i])
			return false;
	}
	return true;
}

/* Pieces of needles in one range of memory. */
static int
find_in(const uint8_t *start, const uint8_t *end)
{
	int			found = 0;

	for (const uint8_t *p = start; p + PIECE <= end; p++)
	{
		for (int n = 0; n < needle_count; n++)
		{
			for (int i = 0; i < 32; i += PIECE)
				found += is_piece(p, needles[n] + i);
		}
	}
	return found;
}

/* Pieces of needles in everything that this process can write. */
static inline int
find_everywhere(void)
{
	const uint8_t *here = __builtin_frame_address(0);
	FILE	   *maps;
	uintptr_t	start,
				end;
	char		mode[8];
	char		line[512];
	int			found;

	/* The dead part of the stack first, before anything else uses it. */
	found = find_in(here - DEAD_STACK, here);
	maps = fopen("/proc/self/maps", "r");
	if (maps == NULL)
		tap_bail("could not read the memory map");
	while (fgets(line, sizeof(line), maps) != NULL)
	{
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s", &start, &end, mode) == 3 &&
			mode[0] == 'r' && mode[1] == 'w')
			found += find_in((const uint8_t *) start, (const uint8_t *) end);
	}
	fclose(maps);
	return found;
}

#endif							/* UNDER_ASAN */

#endif							/* NOMP_TEST_RESIDUE_H */
