/*
 * broker.h
 *		The background worker between backends and keystore.
 */
#ifndef NOMP_BROKER_H
#define NOMP_BROKER_H

#include "keyring.h"
#include "request.h"

#define BROKER_NAME_MAX		64	/* of a token, a serial */

/*
 * KS_OP_CREATE_KEK between backend and broker: the broker turns data keys
 * into key_checks, so that no data key ever reaches a backend.
 */
typedef struct CreateRequest
{
	char		installation[37];
	char		tenant[37];
	uint32		generation;
	uint8		nkeys;
	KeyPlace	places[KS_MAX_KEYS];
} CreateRequest;

typedef struct CreateAnswer
{
	char		serial[BROKER_NAME_MAX];
	uint8		nkeys;
	KeySpec		keys[KS_MAX_KEYS];
} CreateAnswer;

extern void broker_init(void);
extern const char *broker_keystore(void);
extern PGDLLEXPORT void nomp_crypt_broker_main(Datum arg);

#endif							/* NOMP_BROKER_H */
