/*
 * pkcs11_crypto.c
 *		Wraps and unwraps data keys with CKM_AES_GCM, inside the token.
 *
 * A wrapped key, 61 bytes:
 *
 *		0x01 | IV (12) | ciphertext (32) | tag (16)
 *
 * The IV is random and ours, unless the token writes one of its own into the
 * parameters, as hardware in approved mode must; then that one counts.  IVs of
 * zeros and IVs used before in this process are refused, and what was wrapped
 * is unwrapped at once: a token that says nothing about the IV it took would
 * lose the key.
 *
 * Modules do not agree on what a failed tag is called, some call it a general
 * error.  So it is believed only of a module that, asked right after, wraps
 * and unwraps with another key (p11_prove_healthy).
 *
 * Secrets: the data keys in the callers' structs, and the module's output
 * here, wiped before return.
 */
#include <string.h>
#include <sys/random.h>

#include "pkcs11.h"

#define WRAP_VERSION	0x01
#define IV_AT			1
#define DATA_AT			(IV_AT + IV_LEN)
#define SEALED_LEN		(KS_DEK_LEN + TAG_LEN)

/* Room for modules that ask for more than they write. */
#define OUT_ROOM		256

typedef struct Gcm
{
	CK_GCM_PARAMS params;
	CK_MECHANISM mechanism;
} Gcm;

bool
p11_random(void *buf, size_t len)
{
	/* up to 256 bytes come whole or not at all */
	return len <= 256 && getrandom(buf, len, 0) == (ssize_t) len;
}

static void
set_gcm(Gcm *gcm, uint8_t *iv, const KsBytes *aad)
{
	memset(gcm, 0, sizeof(*gcm));
	gcm->params.pIv = iv;
	gcm->params.ulIvLen = IV_LEN;
	gcm->params.ulIvBits = 8 * IV_LEN;
	gcm->params.pAAD = (unsigned char *) (uintptr_t) aad->data;
	gcm->params.ulAADLen = aad->len;
	gcm->params.ulTagBits = 8 * TAG_LEN;
	gcm->mechanism.mechanism = CKM_AES_GCM;
	gcm->mechanism.pParameter = &gcm->params;
	gcm->mechanism.ulParameterLen = sizeof(gcm->params);
}

static bool
equal(const uint8_t *a, const uint8_t *b, size_t len)
{
	uint8_t		diff = 0;

	for (size_t i = 0; i < len; i++)
		diff |= (uint8_t) (a[i] ^ b[i]);
	return diff == 0;
}

/* Is this IV fit for use?  Remembers it if so. */
static bool
accept_iv(Keystore *ks, const uint8_t iv[IV_LEN])
{
	static const uint8_t zeros[IV_LEN] = {0};
	size_t		known = ks->ivs_seen < IVS_REMEMBERED ? ks->ivs_seen : IVS_REMEMBERED;

	if (memcmp(iv, zeros, IV_LEN) == 0)
		return false;
	for (size_t i = 0; i < known; i++)
	{
		if (memcmp(iv, ks->ivs[i], IV_LEN) == 0)
			return false;
	}
	memcpy(ks->ivs[ks->ivs_seen++ % IVS_REMEMBERED], iv, IV_LEN);
	return true;
}

/* Encrypt 32 bytes to 48; "iv" holds the IV that was used afterwards. */
static KsStatus
seal(Keystore *ks, CK_OBJECT_HANDLE kek, const uint8_t in[KS_DEK_LEN],
	 const KsBytes *aad, uint8_t iv[IV_LEN], uint8_t out[SEALED_LEN])
{
	uint8_t		buf[OUT_ROOM];
	CK_ULONG	len = sizeof(buf);
	Gcm			gcm;
	CK_RV		rv;

	if (!p11_random(iv, IV_LEN))
		return p11_refuse(ks, KS_MODULE_ERROR, "no random bytes");
	set_gcm(&gcm, iv, aad);
	rv = ks->f->C_EncryptInit(ks->session, &gcm.mechanism, kek);
	if (rv != CKR_OK)
		return p11_failed(ks, "C_EncryptInit", rv);
	rv = ks->f->C_Encrypt(ks->session, (unsigned char *) (uintptr_t) in, KS_DEK_LEN,
						  buf, &len);
	if (rv != CKR_OK)
		return p11_failed(ks, "C_Encrypt", rv);
	if (len != SEALED_LEN || gcm.params.pIv != iv || gcm.params.ulIvLen != IV_LEN ||
		gcm.params.ulIvBits != 8 * IV_LEN || gcm.params.ulTagBits != 8 * TAG_LEN)
		return p11_refuse(ks, KS_MODULE_ERROR,
						  "C_Encrypt: output or IV of an unexpected length");
	if (!accept_iv(ks, iv))
		return p11_refuse(ks, KS_MODULE_ERROR,
						  "C_Encrypt: an IV of zeros, or one used before");
	memcpy(out, buf, SEALED_LEN);
	return KS_OK;
}

/* What does a failed decryption mean? */
static CryptResult
judge(Keystore *ks, const char *function, CK_RV rv)
{
	if (p11_stale_handle(rv))
		return CRYPT_STALE;
	(void) p11_failed(ks, function, rv);
	switch (rv)
	{
		case CKR_KEY_FUNCTION_NOT_PERMITTED:
		case CKR_KEY_TYPE_INCONSISTENT:
			return CRYPT_DENIED;
		case CKR_ENCRYPTED_DATA_INVALID:
		case CKR_ENCRYPTED_DATA_LEN_RANGE:
		case CKR_DATA_INVALID:
		case CKR_DATA_LEN_RANGE:
		case CKR_SIGNATURE_INVALID:
		case 0x42UL:			/* CKR_AEAD_DECRYPT_FAILED, PKCS#11 3.0 */
		case CKR_GENERAL_ERROR:
		case CKR_FUNCTION_FAILED:
			return CRYPT_SUSPECT;
		default:
			return CRYPT_FAILED;
	}
}

static CryptResult
open_sealed(Keystore *ks, CK_OBJECT_HANDLE kek, const uint8_t iv[IV_LEN],
			const uint8_t in[SEALED_LEN], const KsBytes *aad, uint8_t out[KS_DEK_LEN])
{
	uint8_t		iv_copy[IV_LEN];
	uint8_t		in_copy[SEALED_LEN];
	uint8_t		buf[OUT_ROOM];
	CK_ULONG	len = sizeof(buf);
	Gcm			gcm;
	CK_RV		rv;

	memcpy(iv_copy, iv, IV_LEN);
	memcpy(in_copy, in, SEALED_LEN);
	set_gcm(&gcm, iv_copy, aad);
	rv = ks->f->C_DecryptInit(ks->session, &gcm.mechanism, kek);
	if (rv != CKR_OK)
		return judge(ks, "C_DecryptInit", rv);
	rv = ks->f->C_Decrypt(ks->session, in_copy, SEALED_LEN, buf, &len);
	if (rv == CKR_OK && len == KS_DEK_LEN)
		memcpy(out, buf, KS_DEK_LEN);
	explicit_bzero(buf, sizeof(buf));
	if (rv != CKR_OK)
		return judge(ks, "C_Decrypt", rv);
	if (len == KS_DEK_LEN)
		return CRYPT_OK;
	(void) p11_refuse(ks, KS_MODULE_ERROR, "C_Decrypt: output of an unexpected length");
	return CRYPT_FAILED;
}

/* Seal 32 bytes and see that they come back. */
static KsStatus
seal_and_check(Keystore *ks, CK_OBJECT_HANDLE kek, const uint8_t key[KS_DEK_LEN],
			   const KsBytes *aad, uint8_t iv[IV_LEN], uint8_t sealed[SEALED_LEN])
{
	uint8_t		again[KS_DEK_LEN];
	KsStatus	status = seal(ks, kek, key, aad, iv, sealed);
	CryptResult result;

	if (status != KS_OK)
		return status;
	result = open_sealed(ks, kek, iv, sealed, aad, again);
	if (result == CRYPT_OK && !equal(key, again, KS_DEK_LEN))
	{
		(void) p11_refuse(ks, KS_MODULE_ERROR, "C_Decrypt: not what was encrypted");
		result = CRYPT_FAILED;
	}
	else if (result == CRYPT_STALE)
		(void) p11_refuse(ks, KS_MODULE_ERROR, "C_DecryptInit: the key is gone");
	explicit_bzero(again, sizeof(again));
	return result == CRYPT_OK ? KS_OK : KS_MODULE_ERROR;
}

/* Wrap a data key, after making it if it is to be a fresh one. */
KsStatus
p11_wrap(Keystore *ks, CK_OBJECT_HANDLE kek, bool fresh, KsNewKey *key)
{
	key->wrapped[0] = WRAP_VERSION;
	key->wrapped_len = WRAPPED_LEN;
	if (fresh && !p11_random(key->key, KS_DEK_LEN))
		return p11_refuse(ks, KS_MODULE_ERROR, "no random bytes");
	return seal_and_check(ks, kek, key->key, &key->aad, key->wrapped + IV_AT,
						  key->wrapped + DATA_AT);
}

/* Could this be something we wrapped at all? */
bool
p11_well_formed(const KsWrappedKey *key)
{
	return key->wrapped.len == WRAPPED_LEN && key->wrapped.data[0] == WRAP_VERSION;
}

CryptResult
p11_unwrap(Keystore *ks, CK_OBJECT_HANDLE kek, KsWrappedKey *key)
{
	return open_sealed(ks, kek, key->wrapped.data + IV_AT,
					   key->wrapped.data + DATA_AT, &key->aad, key->key);
}

/* Show that the module still works, with the canary's key. */
KsStatus
p11_prove_healthy(Keystore *ks, const char *inst)
{
	const KsBytes aad = {(const uint8_t *) "canary", 6};
	CK_OBJECT_HANDLE canary;
	uint8_t		data[KS_DEK_LEN];
	uint8_t		iv[IV_LEN];
	uint8_t		sealed[SEALED_LEN];
	KsStatus	status = p11_canary(ks, inst, &canary);

	if (status != KS_OK)
		return status;
	if (!p11_random(data, sizeof(data)))
		return p11_refuse(ks, KS_MODULE_ERROR, "no random bytes");
	return seal_and_check(ks, canary, data, &aad, iv, sealed);
}
