/*
 * register_keys.h
 *		The public keys by which records of the register are believed.
 */
#ifndef NOMP_REGISTER_KEYS_H
#define NOMP_REGISTER_KEYS_H

#include "jws.h"
#include "keyspec.h"

typedef struct RegisterKey
{
	uint32		generation;
	JwsKey		key;
	KeystoreRef store;			/* where it is, if is_placed */
	bool		is_placed;
} RegisterKey;

/*
 * The trusted key of that thumbprint, or NULL: it is none, and *status is
 * KS_OK, or that cannot be known now, and *status says why not.
 */
extern RegisterKey *register_key_named(const char *kid, KsStatus *status, char *reason);

/* The payload of a record that a trusted key signed, or NULL, the same way. */
extern char *register_open(const char *jws, KsStatus *status, char *reason);

#endif							/* NOMP_REGISTER_KEYS_H */
