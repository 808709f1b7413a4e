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
#define KS_MAX_REGIONS		1000

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
	bool		forgets_keys;	/* no KEK was ever in this process, and no data
								 * key is once its request was answered */
} KsCapabilities;

typedef struct KsTokenStatus
{
	char		label[KS_MAX_SERIAL + 1];
	char		serial[KS_MAX_SERIAL + 1];
	char		manufacturer[33];
	char		model[33];
	bool		software;
	bool		canary;
	char		canary_name[KS_MAX_REFERENCE + 1];	/* what the keystore calls it, or "" */
	char		credentials[40];	/* where they come from; "" for a PIN */
	bool		lasting;		/* credentials that do not expire */
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
	char		reference[KS_MAX_REFERENCE + 1];	/* what the keystore calls it, or "" */
	KsKeyState	state;
	bool		provisional;
	uint64_t	created;		/* seconds since 1970, if provisional */
	uint64_t	until;			/* if pending: when it will be gone */
} KsSeenKey;

typedef struct KsSeen
{
	char		serial[KS_MAX_SERIAL + 1];
	size_t		total;
	size_t		n;
	size_t		pending;		/* destroy: will be gone at "until" */
	uint64_t	until;
	KsSeenKey	keys[KS_LIST_PAGE];
} KsSeen;

/* A key that was asked for by the keystore's own name for it. */
typedef struct KsLooked
{
	char		reference[KS_MAX_REFERENCE + 1];
	bool		found;
	KsKeyState	state;
	uint64_t	until;			/* if pending: when it will be gone */
} KsLooked;

/* The key pair that signs the register. */
typedef struct KsRegisterKey
{
	char		serial[KS_MAX_SERIAL + 1];	/* of the token that has it */
	uint8_t		public_key[KS_MAX_PUBLIC_KEY];	/* SubjectPublicKeyInfo, DER */
	size_t		public_key_len;
	bool		created;
} KsRegisterKey;

/* What the broker says to every helper. */
typedef struct KsGreeting
{
	char		uri[KS_MAX_URI + 1];
	char		pin_stamp[KS_MAX_PIN_STAMP + 1];
	char		regions[KS_MAX_REGIONS + 1];	/* with blanks between them */
	char		canary[KS_MAX_REFERENCE + 1];	/* as the last helper called it, or "" */
} KsGreeting;

/*
 * See protocol.h for what each operation promises.  If max_in_flight is more
 * than 1, operations run in as many threads at once; "expect" is said in the
 * thread of the operation that follows.
 */
typedef struct KeystoreProvider
{
	const char *scheme;
	KsCapabilities capabilities;
	int			max_in_flight;

	Keystore   *(*create) (const KsGreeting *greeting);
	void		(*close) (Keystore *ks);
	/* the token that the next operation is for, by its serial, "" for any; and
	 * how long the broker will wait, in milliseconds, 0 if that is not known */
	void		(*expect) (Keystore *ks, const char *serial, uint32_t patience);
	KsStatus	(*status) (Keystore *ks, const char *inst, KsTokenStatus *out,
						   KsFailure *why);
	KsStatus	(*setup) (Keystore *ks, const char *inst, bool *created,
						  char *serial, KsFailure *why);
	KsStatus	(*create_kek) (Keystore *ks, const KsLabel *label, KsNewKey *keys,
							   int n, char *serial, KsFailure *why);
	KsStatus	(*wrap) (Keystore *ks, const KsLabel *label, bool fresh,
						 KsNewKey *key, KsFailure *why);
	KsStatus	(*unwrap) (Keystore *ks, const KsLabel *label, bool confirm,
						   uint32_t age, KsWrappedKey *keys, int n, KsFailure *why);
	KsStatus	(*confirm) (Keystore *ks, const KsLabel *label, KsFailure *why);
	KsStatus	(*list) (Keystore *ks, const char *inst, uint32_t offset,
						 KsSeen *out, KsFailure *why);
	KsStatus	(*remove) (Keystore *ks, const KsLabel *label, uint64_t seconds,
						   bool *removed, KsFailure *why);
	/* "tenants" as in protocol.h */
	KsStatus	(*see) (Keystore *ks, const char *inst, const char *tenants,
						uint32_t offset, KsSeen *out, KsFailure *why);
	KsStatus	(*destroy) (Keystore *ks, const char *inst, const char *tenants,
							const char *serial, unsigned days, KsSeen *out,
							KsFailure *why);
	KsStatus	(*destroy_kek) (Keystore *ks, const KsLabel *label, const char *serial,
								unsigned days, bool *destroyed, uint64_t *until,
								KsFailure *why);
	KsStatus	(*enable) (Keystore *ks, const char *inst, const char *tenants, bool on,
						   size_t *found, size_t *obeyed, KsFailure *why);

	/* these may be NULL: KS_UNSUPPORTED */
	KsStatus	(*register_key) (Keystore *ks, const char *inst, uint32_t generation,
								 KsBytes known, KsMake make, KsRegisterKey *out,
								 KsFailure *why);
	KsStatus	(*sign) (Keystore *ks, const char *inst, uint32_t generation,
						 KsBytes known, const uint8_t digest[KS_DIGEST_LEN],
						 uint8_t signature[KS_SIGNATURE_LEN], KsFailure *why);
	/* head has room for KS_MAX_HEAD + 1 bytes */
	KsStatus	(*head) (Keystore *ks, const char *inst, bool set, char *head,
						 KsFailure *why);
	KsStatus	(*look) (Keystore *ks, const char *inst, KsLooked *keys, int n,
						 KsFailure *why);
} KeystoreProvider;

extern const KeystoreProvider pkcs11_provider;
extern const KeystoreProvider kms_provider;

extern KsStatus ks_fail(KsFailure *why, KsStatus status, const char *fmt,...)
			__attribute__((format(printf, 3, 4)));

#endif							/* NOMP_KEYSTORE_H */
