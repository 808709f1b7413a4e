/*
 * keyspec.h
 *		What a backend asks of the broker about a school's keys.
 */
#ifndef NOMP_KEYSPEC_H
#define NOMP_KEYSPEC_H

#include "postgres.h"

#include "datatype/timestamp.h"
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

#define KEYSPEC_SERIAL_MAX		64

/* Which of the configured keystores: by its token, or by its place. */
typedef struct KeystoreRef
{
	char		serial[KEYSPEC_SERIAL_MAX]; /* "": the one at "place" */
	int			place;			/* 0: where new keys are made */
} KeystoreRef;

/* A school's keys under one KEK, the wanted one first. */
typedef struct UnwrapRequest
{
	char		installation[37];
	char		label[KS_MAX_LABEL];	/* of the KEK */
	char		serial[KEYSPEC_SERIAL_MAX]; /* of the token that has it */
	bool		own_transaction;	/* the rows are not committed yet: leave the
									 * KEK provisional */
	bool		ahead;			/* nobody needs them yet */
	TimestampTz made;			/* when the KEK was, as its row says */
	uint8		nkeys;
	KeySpec		keys[KS_MAX_KEYS];
} UnwrapRequest;

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

/*
 * KS_OP_WRAP between backend and broker, which unwraps the key first and
 * unwraps the result again: the answer is a KeySpec, of a key that has proved
 * to open.
 */
typedef struct WrapRequest
{
	char		installation[37];
	char		label[KS_MAX_LABEL];	/* of the KEK that shall wrap it */
	char		serial[KEYSPEC_SERIAL_MAX]; /* of the token that has that one */
	char		from[KS_MAX_LABEL]; /* of the KEK that wraps it; "": make it */
	bool		from_own_transaction;	/* leave that one provisional */
	KeySpec		key;			/* of a key to be made: its place */
} WrapRequest;

#endif							/* NOMP_KEYSPEC_H */
