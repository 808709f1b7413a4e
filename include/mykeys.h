/*
 * mykeys.h
 *		This backend's copies of working keys, for one transaction.
 *
 * A number below names a copy.  It is good until the next call into this
 * file, the catalogs, or anything else that may process an invalidation: get
 * it, use it, forget it.
 */
#ifndef NOMP_MYKEYS_H
#define NOMP_MYKEYS_H

#include "cipher.h"
#include "keyring.h"
#include "value.h"

extern void mykeys_init(void);

extern int	mykeys_find(const uint8 key_id[VALUE_KEY_ID_LEN]);
extern KsStatus mykeys_load(const UnwrapRequest *what, uint64 epoch,
							char *reason);

/* From the keyring alone: KS_KEY_ABSENT if the broker would have to be asked. */
extern KsStatus mykeys_load_cached(const KeyPlace *place,
								   const uint8 key_check[KEY_CHECK_LEN],
								   bool own_transaction, uint64 epoch);

/* The key that a school's new values, or fingerprints, are made with. */
extern int	mykeys_current(const uint8 tenant[16], bool is_index);
extern void mykeys_set_current(const uint8 tenant[16], bool is_index,
							   const uint8 key_id[VALUE_KEY_ID_LEN]);
extern const KeyPlace *mykeys_place(int key);
extern const uint8 *mykeys_id(int key);

/* NULL when the keys were wiped meanwhile (load again) or OpenSSL fails. */
extern CipherCtx *mykeys_opener(int key, const uint8 prefix[CIPHER_PREFIX_LEN]);
extern CipherCtx *mykeys_sealer(int key, uint8 nonce[CIPHER_NONCE_LEN]);

/* The same, found and checked, if it is the one used last. */
extern CipherCtx *mykeys_opener_again(const uint8 key_id[VALUE_KEY_ID_LEN],
									  const uint8 prefix[CIPHER_PREFIX_LEN],
									  const KeyPlace **place);

/* The same with false; key is an index key's. */
extern bool mykeys_fingerprint(int key, const uint8 *data, size_t len,
							   uint8 out[CIPHER_MAC_LEN]);

extern void mykeys_forget(void);

/* Forget all when this relation's rows are said to have changed. */
extern void mykeys_watch(Oid relid);

#endif							/* NOMP_MYKEYS_H */
