/*
 * keyspec.h
 *		What a backend asks of the broker about a school's keys.
 */
#ifndef NOMP_KEYSPEC_H
#define NOMP_KEYSPEC_H

#include "postgres.h"

#include "keyplace.h"
#include "protocol.h"

/* A wrapped key and what its unwrapped form must derive to. */
typedef struct KeySpec
{
	KeyPlace	place;
	uint8		key_check[KEY_CHECK_LEN];
	uint16		wrapped_len;
	uint8		wrapped[KS_MAX_WRAPPED];
} KeySpec;

/* A school's keys under one KEK, the wanted one first. */
typedef struct UnwrapRequest
{
	char		installation[37];
	char		label[KS_MAX_LABEL];	/* of the KEK */
	bool		own_transaction;	/* the rows are not committed yet: leave the
									 * KEK provisional */
	bool		ahead;			/* nobody needs them yet */
	uint8		nkeys;
	KeySpec		keys[KS_MAX_KEYS];
} UnwrapRequest;

#define KEYSPEC_SERIAL_MAX		64

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
	char		serial[KEYSPEC_SERIAL_MAX];
	uint8		nkeys;
	KeySpec		keys[KS_MAX_KEYS];
} CreateAnswer;

#endif							/* NOMP_KEYSPEC_H */
