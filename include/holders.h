/*
 * holders.h
 *		Which processes hold copies of keys, and how to make them forget.
 *
 * A process announces itself before its first copy and acknowledges every
 * epoch after wiping.  keyring_revoke + holders_poke + holders_await is the
 * whole of "wipe everywhere on this node".
 */
#ifndef NOMP_HOLDERS_H
#define NOMP_HOLDERS_H

#include "postgres.h"

extern void holders_shmem_request(void);
extern void holders_shmem_startup(void);

extern void holders_claim(uint64 epoch);
extern void holders_note(const uint8 tenant[16]);
extern void holders_release(void);
extern void holders_ack(uint64 epoch);
extern bool holders_must_wipe(void);
extern void holders_poke(const uint8 tenant[16]);
extern void holders_end_stragglers(void);
extern void holders_await(const uint8 tenant[16], uint64 epoch);

#endif							/* NOMP_HOLDERS_H */
