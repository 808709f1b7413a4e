/*
 * tap.h
 *		What the C test programs share: TAP lines, hex, repeatable bytes.
 *
 * One program, one file: everything here is static.  tap_done() prints the
 * plan and returns the program's exit status.
 */
#ifndef NOMP_TAP_H
#define NOMP_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int	tap_count;
static int	tap_failed;

__attribute__((format(printf, 2, 3)))
static inline bool
tap_ok(bool passed, const char *name, ...)
{
	va_list		args;

	va_start(args, name);
	printf("%sok %d - ", passed ? "" : "not ", ++tap_count);
	vprintf(name, args);
	printf("\n");
	va_end(args);
	fflush(stdout);
	tap_failed += !passed;
	return passed;
}

/* A test that was not run; the reason stands in the output. */
static inline void
tap_skip(const char *name, const char *reason)
{
	printf("ok %d - %s # SKIP %s\n", ++tap_count, name, reason);
}

static inline int
tap_done(void)
{
	printf("1..%d\n", tap_count);
	return tap_failed == 0 ? 0 : 1;
}

/* Give up: the test itself cannot be run. */
__attribute__((format(printf, 1, 2), noreturn))
static inline void
tap_bail(const char *reason, ...)
{
	va_list		args;

	va_start(args, reason);
	printf("Bail out! ");
	vprintf(reason, args);
	printf("\n");
	va_end(args);
	exit(1);
}

/* Decode a whole hex string into at most size bytes; returns their number. */
static inline size_t
from_hex(const char *hex, uint8_t *out, size_t size)
{
	size_t		len = strlen(hex) / 2;

	if (strlen(hex) % 2 != 0 || len > size)
		tap_bail("bad length of hex %s", hex);
	for (size_t i = 0; i < len; i++)
	{
		unsigned	byte;

		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			tap_bail("bad hex %s", hex);
		out[i] = (uint8_t) byte;
	}
	return len;
}

static inline bool
equals_hex(const uint8_t *bytes, size_t len, const char *hex)
{
	uint8_t		expected[1024];

	return from_hex(hex, expected, sizeof(expected)) == len &&
		memcmp(bytes, expected, len) == 0;
}

/* The same bytes in every run (xorshift64*); no secret. */
static uint64_t tap_seed = 0x9e3779b97f4a7c15;

static inline uint8_t
next_byte(void)
{
	tap_seed ^= tap_seed >> 12;
	tap_seed ^= tap_seed << 25;
	tap_seed ^= tap_seed >> 27;
	return (uint8_t) (tap_seed * 0x2545f4914f6cdd1d >> 56);
}

static inline void
fill(uint8_t *out, size_t len)
{
	for (size_t i = 0; i < len; i++)
		out[i] = next_byte();
}

static inline bool
all_zero(const uint8_t *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		if (bytes[i] != 0)
			return false;
	}
	return true;
}

#endif							/* NOMP_TAP_H */
