/*
 * scrub.h
 *		Overwrite the dead part of the stack after keys were worked with.
 *
 * Call from a frame above the one that handled the key, once that one has
 * returned: the work is done in functions that are not inlined.
 */
#ifndef NOMP_SCRUB_H
#define NOMP_SCRUB_H

#define NOINLINE		__attribute__((noinline))

/* As deep as OpenSSL goes for key derivation and digests. */
extern void scrub_stack(void);

/* As deep as keying a cipher goes. */
extern void scrub_shallow(void);

#endif							/* NOMP_SCRUB_H */
