/*
 * keystore.h
 *		What the helper asks of a keystore: one const table per kind.
 *
 * A provider keeps its state in a struct of its own that only it can see.
 * Its callbacks answer with a status of protocol.h and, if that is not KS_OK,
 * say why in a KsFailure; they open the keystore when they need it.  Buffers
 * with data keys belong to the caller, who wipes them.
 */
#ifndef NOMP_KEYSTORE_H
#define NOMP_KEYSTORE_H

#include "label.h"
#include "protocol.h"

#define KS_MAX_SERIAL		64
#define KS_MAX_PIN_STAMP	120
#define KS_MAX_URI			8000

typedef struct Keystore Keystore;

/* Why a request failed, for the server log; never a secret. */
typedef struct KsFailure
{
	char		reason[400];
	char		pin_stamp[KS_MAX_PIN_STAMP + 1];
} KsFailure;

typedef struct KsBytes
{
	const uint8_t *data;
	size_t		len;
} KsBytes;

typedef struct KsCapabilities
{
	bool		destroys_at_once;	/* or after a window */
	bool		can_disable;
} KsCapabilities;

typedef struct KsTokenStatus
{
	char		label[33];
	char		serial[KS_MAX_SERIAL + 1];
	char		manufacturer[33];
	char		model[33];
	bool		software;
	bool		canary;
} KsTokenStatus;

typedef struct KsNewKey
{
	KsBytes		aad;
	uint8_t		key[KS_DEK_LEN];	/* secret */
	uint8_t		wrapped[KS_MAX_WRAPPED];
	size_t		wrapped_len;
} KsNewKey;

typedef struct KsWrappedKey
{
	KsBytes		aad;
	KsBytes		wrapped;
	KsStatus	status;
	uint8_t		key[KS_DEK_LEN];	/* secret */
} KsWrappedKey;

typedef struct KsSeenKey
{
	char		label[KS_MAX_LABEL + 1];
	bool		provisional;
	uint64_t	created;		/* seconds since 1970, if provisional */
} KsSeenKey;

typedef struct KsSeen
{
	char		serial[KS_MAX_SERIAL + 1];
	size_t		total;
	size_t		n;
	KsSeenKey	keys[KS_LIST_PAGE];
} KsSeen;

/* See protocol.h for what each operation promises. */
typedef struct KeystoreProvider
{
	const char *scheme;
	KsCapabilities capabilities;

	Keystore   *(*create) (const char *uri, const char *pin_stamp);
	void		(*close) (Keystore *ks);
	/* the token that the next operation is for, by its serial; "" for any */
	void		(*expect) (Keystore *ks, const char *serial);
	KsStatus	(*status) (Keystore *ks, const char *inst, KsTokenStatus *out,
						   KsFailure *why);
	KsStatus	(*setup) (Keystore *ks, const char *inst, bool *created,
						  char *serial, KsFailure *why);
	KsStatus	(*create_kek) (Keystore *ks, const KsLabel *label, KsNewKey *keys,
							   int n, char *serial, KsFailure *why);
	KsStatus	(*wrap) (Keystore *ks, const KsLabel *label, bool fresh,
						 KsNewKey *key, KsFailure *why);
	KsStatus	(*unwrap) (Keystore *ks, const KsLabel *label, bool confirm,
						   KsWrappedKey *keys, int n, KsFailure *why);
	KsStatus	(*confirm) (Keystore *ks, const KsLabel *label, KsFailure *why);
	KsStatus	(*list) (Keystore *ks, const char *inst, uint32_t offset,
						 KsSeen *out, KsFailure *why);
	KsStatus	(*remove) (Keystore *ks, const KsLabel *label, uint64_t seconds,
						   bool *removed, KsFailure *why);
	KsStatus	(*see) (Keystore *ks, const char *inst, const char *tenant,
						uint32_t offset, KsSeen *out, KsFailure *why);
	KsStatus	(*destroy) (Keystore *ks, const char *inst, const char *tenant,
							const char *serial, KsSeen *out, KsFailure *why);
	KsStatus	(*destroy_kek) (Keystore *ks, const KsLabel *label, const char *serial,
								bool *destroyed, KsFailure *why);
	KsStatus	(*enable) (Keystore *ks, const char *inst, const char *tenant, bool on,
						   size_t *found, size_t *obeyed, KsFailure *why);
} KeystoreProvider;

extern const KeystoreProvider pkcs11_provider;

extern KsStatus ks_fail(KsFailure *why, KsStatus status, const char *fmt,...)
			__attribute__((format(printf, 3, 4)));

#endif							/* NOMP_KEYSTORE_H */
