/*
 * register_pins.h
 *		The register's public keys that this node has been shown.
 */
#ifndef NOMP_REGISTER_PINS_H
#define NOMP_REGISTER_PINS_H

#include "postgres.h"

typedef void (*PinnedKey) (uint32 generation, const uint8 *spki, size_t len);

/* Each of them; none if there is no file, or it is another installation's. */
extern void register_pinned_keys(PinnedKey callback);

#endif							/* NOMP_REGISTER_PINS_H */
