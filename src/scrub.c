/*
 * scrub.c
 *		Overwrite the dead part of the stack after keys were worked with.
 *
 * Called by the cipher files, nobody else.  Both functions call nothing: a
 * function bound at its first call has the dynamic linker save registers,
 * and what is left of a key in them, below this frame.  In blocks of the size
 * of a register, because this is paid at each derived key.
 */
#include <stddef.h>
#include <stdint.h>

#include "scrub.h"

#define SCRUB_DEEP		8192
#define SCRUB_SHALLOW	1536

/* On return, leave nothing in the registers that a caller does not expect. */
#ifdef __has_attribute
#if __has_attribute(zero_call_used_regs)
#define CLEAR_REGISTERS __attribute__((zero_call_used_regs("all")))
#endif
#endif
#ifndef CLEAR_REGISTERS
#define CLEAR_REGISTERS
#endif

typedef uint64_t Chunk __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) void
overwrite(volatile Chunk *dead, size_t len)
{
#pragma GCC unroll 8
	for (size_t i = 0; i < len / sizeof(Chunk); i++)
		dead[i] = (Chunk)
		{
			0, 0
		};
}

NOINLINE CLEAR_REGISTERS void
scrub_stack(void)
{
	Chunk		dead[SCRUB_DEEP / sizeof(Chunk)];

	overwrite(dead, sizeof(dead));
}

NOINLINE CLEAR_REGISTERS void
scrub_shallow(void)
{
	Chunk		dead[SCRUB_SHALLOW / sizeof(Chunk)];

	overwrite(dead, sizeof(dead));
}
