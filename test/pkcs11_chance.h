/*
 * pkcs11_chance.h
 *		Failures of a module by chance, from a seed.  For pkcs11_shim.c.
 */
#ifndef NOMP_PKCS11_CHANCE_H
#define NOMP_PKCS11_CHANCE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

/* What a sick module may do: errors, and in between something worse. */
static const char *const ailments[] = {
	"rv=0x2", "rv=0x3", "rv=0x5", "rv=0x6", "rv=0x30", "rv=0x31", "rv=0x32",
	"rv=0x54", "rv=0x60", "rv=0x82", "rv=0x90", "rv=0xb0", "rv=0xb1", "rv=0xb3",
	"rv=0xe0", "rv=0xe1", "rv=0x101", "rv=0x190",
	"delay=30", "delay=30", "delay=30", "hang", "crash", "crash",
};
#define AILMENTS	(sizeof(ailments) / sizeof(ailments[0]))
#define ERRORS		(AILMENTS - 6)

/* What the line "random ..." of the control file says: same seed, same place, same answer. */
static bool
chance(const char *control, off_t place, char *what, size_t size)
{
	const char *line = strstr(control, "random ");
	unsigned long seed;
	unsigned	percent;
	char		only[8] = "";
	uint64_t	x;

	if (line == NULL || sscanf(line, "random %lu %u %7s", &seed, &percent, only) < 2)
		return false;
	/* splitmix64 */
	x = seed * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t) place;
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	x ^= x >> 31;
	if (x % 100 >= percent)
		return false;
	snprintf(what, size, "%s",
			 ailments[(x >> 32) % (strcmp(only, "errors") == 0 ? ERRORS : AILMENTS)]);
	return true;
}

#endif							/* NOMP_PKCS11_CHANCE_H */
