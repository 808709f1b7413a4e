/*
 * session.h
 *		Which school this session is inside, and what that means.
 */
#ifndef NOMP_SESSION_H
#define NOMP_SESSION_H

#include "catalog.h"

extern void session_init(void);

/* What to call when another tenant, or none, may be in force. */
extern void session_on_change(void (*callback) (void));
extern void session_shmem_request(void);
extern void session_shmem_startup(void);

/* The tenant in force, or NULL: plaintext inside, ciphertext outside. */
extern const char *session_tenant(void);

/* The same, looked up; raises if it does not exist.  NULL outside. */
extern const TenantRow *session_tenant_row(void);

/* Is a tenant named at all, in force or not?  For the log guard. */
extern bool session_names_tenant(void);

/*
 * Does what this session sees go over a network without encryption?  For a
 * parallel worker: what its leader's session sees.
 */
extern bool session_in_clear(void);

/* Show other schools' values as ciphertext instead of raising? */
extern bool session_shows_others(void);

#endif							/* NOMP_SESSION_H */
