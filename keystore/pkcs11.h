/*
 * pkcs11.h
 *		Shared by the files of the PKCS#11 provider, and only by them.
 *
 * Layers, from the bottom: pkcs11_uri.c (the setting, the PIN file),
 * pkcs11_token.c (module, slot, session, login), pkcs11_objects.c (finding
 * keys), pkcs11_crypto.c (AES-GCM), pkcs11_keys.c (making, naming and
 * destroying keys), pkcs11_erase.c, pkcs11_register.c and pkcs11.c (the
 * operations).
 *
 * A module's answers are not trusted: lengths are checked before use, labels
 * by label.h's grammar.
 */
#ifndef NOMP_PKCS11_H
#define NOMP_PKCS11_H

#include <p11-kit/p11-kit.h>
#include <p11-kit/uri.h>

#include "keystore.h"

#define MAX_PIN			4096
#define IV_LEN			12
#define TAG_LEN			16
#define WRAPPED_LEN		(1 + IV_LEN + KS_DEK_LEN + TAG_LEN)
#define IVS_REMEMBERED	4096

/* An object's label, longer than any of ours. */
#define LABEL_ROOM		256

struct Keystore
{
	/* from the URI; uri is NULL if it did not parse, with the reason */
	P11KitUri  *uri;
	char		bad_uri[200];
	const char *module_path;
	const char *pin_path;
	const char *init_reserved;

	/* the open token */
	CK_FUNCTION_LIST *f;
	bool		initialized;
	bool		open;
	bool		lost;			/* the session is of no more use */
	bool		fresh;			/* so new that opening again would tell no more */
	struct timespec opened_at;
	CK_SLOT_ID	slot;
	CK_SESSION_HANDLE session;
	CK_TOKEN_INFO token;
	char		expected[KS_MAX_SERIAL + 1];	/* serial it must have, or "" */

	void	   *keys;			/* tree of KnownKey, by base label */
	CK_OBJECT_HANDLE canary;	/* where it was last seen */
	CK_OBJECT_HANDLE signer;	/* the register's key that was last used */
	CK_OBJECT_HANDLE head;		/* where its head was last seen */
	char		refused_pin[KS_MAX_PIN_STAMP + 1];
	uint8_t		ivs[IVS_REMEMBERED][IV_LEN];
	size_t		ivs_seen;

	KsFailure  *why;			/* of the request under way */
};

/* What is known of the keys with one base label. */
typedef struct KnownKey
{
	KsLabel		label;			/* the first one's */
	CK_OBJECT_HANDLE handle;
	int			objects;		/* more than one: not usable */
} KnownKey;

typedef struct FoundKey
{
	CK_OBJECT_HANDLE handle;
	char		label[LABEL_ROOM];
} FoundKey;

typedef struct FoundKeys
{
	FoundKey   *items;
	size_t		n;
	size_t		room;
} FoundKeys;

typedef enum CryptResult
{
	CRYPT_OK,
	CRYPT_STALE,				/* the handle is none any more */
	CRYPT_DENIED,				/* the key may be disabled */
	CRYPT_SUSPECT,				/* the data may not authenticate */
	CRYPT_FAILED				/* reported */
} CryptResult;

/* An operation, given an open token. */
typedef KsStatus (*P11Work) (Keystore *ks, void *arg);

/* Fail with the reason given. */
#define p11_refuse(ks, status, ...) ks_fail((ks)->why, (status), __VA_ARGS__)

/* pkcs11_uri.c */
extern void p11_configure(Keystore *ks, const char *text);
extern KsStatus p11_read_pin(Keystore *ks, uint8_t pin[MAX_PIN], size_t *len,
							 char stamp[KS_MAX_PIN_STAMP + 1]);

/* pkcs11_token.c */
extern KsStatus p11_open(Keystore *ks);
extern void p11_close(Keystore *ks);
extern bool p11_is_new(const Keystore *ks);
extern KsStatus p11_failed(Keystore *ks, const char *function, CK_RV rv);
extern bool p11_stale_handle(CK_RV rv);
extern void p11_text(const unsigned char *field, size_t len, char *out);
extern void p11_serial(const Keystore *ks, char *out);
extern KsStatus p11_same_token(Keystore *ks);

/* pkcs11_objects.c */
extern KsStatus p11_search(Keystore *ks, CK_ATTRIBUTE *extra, CK_ULONG n_extra,
						   const char *prefix, FoundKeys *found);
extern KsStatus p11_search_label(Keystore *ks, const char *label, FoundKeys *found);
extern KsStatus p11_search_kek(Keystore *ks, const KsLabel *label, FoundKeys *found);
extern void p11_free_found(FoundKeys *found);
extern KsStatus p11_read_label(Keystore *ks, CK_OBJECT_HANDLE handle,
							   char out[LABEL_ROOM]);
extern KsStatus p11_canary(Keystore *ks, const char *inst, CK_OBJECT_HANDLE *handle);
extern KsStatus p11_canary_still(Keystore *ks, const char *inst);
extern KsStatus p11_know_all(Keystore *ks);
extern void p11_know(Keystore *ks, const KsLabel *label, CK_OBJECT_HANDLE handle);
extern void p11_forget(Keystore *ks, const char *base);
extern void p11_forget_all(Keystore *ks);
extern KsStatus p11_find(Keystore *ks, const KsLabel *label, KnownKey **key);
extern KnownKey *p11_known_still(Keystore *ks, const KsLabel *label);
extern bool p11_is_known(Keystore *ks, const KsLabel *label);
extern KsStatus p11_find_again(Keystore *ks, const KsLabel *label, KnownKey **key);

/* pkcs11_crypto.c */
extern bool p11_random(void *buf, size_t len);
extern KsStatus p11_wrap(Keystore *ks, CK_OBJECT_HANDLE kek, bool fresh, KsNewKey *key);
extern bool p11_well_formed(const KsWrappedKey *key);
extern CryptResult p11_unwrap(Keystore *ks, CK_OBJECT_HANDLE kek, KsWrappedKey *key);
extern KsStatus p11_prove_healthy(Keystore *ks, const char *inst);

/* pkcs11_keys.c */
extern KsStatus p11_generate(Keystore *ks, const char *label, const uint8_t *id,
							 size_t id_len, CK_OBJECT_HANDLE *handle);
extern KsStatus p11_check_promises(Keystore *ks, CK_OBJECT_HANDLE handle);
extern KsStatus p11_take_off_mark(Keystore *ks, KnownKey *key);
extern KsStatus p11_enable(Keystore *ks, CK_OBJECT_HANDLE handle, bool on, bool *obeyed);
extern KsStatus p11_is_enabled(Keystore *ks, CK_OBJECT_HANDLE handle, bool *enabled);
extern KsStatus p11_destroy(Keystore *ks, CK_OBJECT_HANDLE handle, bool *destroyed);

/* pkcs11_erase.c */
extern KsStatus p11_list(Keystore *ks, const char *inst, uint32_t offset,
						 KsSeen *out, KsFailure *why);
extern KsStatus p11_see(Keystore *ks, const char *inst, const char *tenants,
						uint32_t offset, KsSeen *out, KsFailure *why);
extern KsStatus p11_remove(Keystore *ks, const KsLabel *label, uint64_t seconds,
						   bool *removed, KsFailure *why);
extern KsStatus p11_destroy_tenants(Keystore *ks, const char *inst, const char *tenants,
									const char *serial, unsigned days, KsSeen *out,
									KsFailure *why);
extern KsStatus p11_destroy_kek(Keystore *ks, const KsLabel *label, const char *serial,
								unsigned days, bool *destroyed, uint64_t *until,
								KsFailure *why);
extern KsStatus p11_enable_tenants(Keystore *ks, const char *inst, const char *tenants, bool on,
								   size_t *found, size_t *obeyed, KsFailure *why);

/* pkcs11_register.c */
extern KsStatus p11_register_key(Keystore *ks, const char *inst, uint32_t generation,
								 KsBytes known, KsMake make, KsRegisterKey *out,
								 KsFailure *why);
extern KsStatus p11_sign(Keystore *ks, const char *inst, uint32_t generation,
						 KsBytes known, const uint8_t digest[KS_DIGEST_LEN],
						 uint8_t signature[KS_SIGNATURE_LEN], KsFailure *why);
extern KsStatus p11_head(Keystore *ks, const char *inst, bool set, char *head,
						 KsFailure *why);

/* pkcs11.c */
extern KsStatus p11_run(Keystore *ks, P11Work work, void *arg, KsFailure *why);

#endif							/* NOMP_PKCS11_H */
