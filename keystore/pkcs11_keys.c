/*
 * pkcs11_keys.c
 *		Makes, names and destroys keys on the token.
 *
 * Keys are made inside the token and never leave it: after making one, what
 * the token made of the request is read back, and a key that could leave is
 * destroyed again.  No secrets here.
 */
#include <string.h>

#include "pkcs11.h"

static CK_BBOOL yes = CK_TRUE;
static CK_BBOOL no = CK_FALSE;

static const struct
{
	CK_ATTRIBUTE_TYPE type;
	CK_BBOOL	wanted;
	const char *name;
}			promises[] =
{
	{CKA_TOKEN, CK_TRUE, "CKA_TOKEN"},
	{CKA_PRIVATE, CK_TRUE, "CKA_PRIVATE"},
	{CKA_SENSITIVE, CK_TRUE, "CKA_SENSITIVE"},
	{CKA_EXTRACTABLE, CK_FALSE, "CKA_EXTRACTABLE"},
	{CKA_ALWAYS_SENSITIVE, CK_TRUE, "CKA_ALWAYS_SENSITIVE"},
	{CKA_NEVER_EXTRACTABLE, CK_TRUE, "CKA_NEVER_EXTRACTABLE"},
};

/* Did the token make the key as asked? */
KsStatus
p11_check_promises(Keystore *ks, CK_OBJECT_HANDLE handle)
{
	for (size_t i = 0; i < sizeof(promises) / sizeof(promises[0]); i++)
	{
		CK_BBOOL	value = !promises[i].wanted;
		CK_ATTRIBUTE attr = {promises[i].type, &value, sizeof(value)};
		CK_RV		rv = ks->f->C_GetAttributeValue(ks->session, handle, &attr, 1);

		if (rv != CKR_OK)
			return p11_failed(ks, "C_GetAttributeValue", rv);
		if (attr.ulValueLen != sizeof(value) || value != promises[i].wanted)
			return p11_refuse(ks, KS_REFUSED,
							  "the token did not make the key with %s %s",
							  promises[i].name, promises[i].wanted ? "true" : "false");
	}
	return KS_OK;
}

/* Make an AES-256 key that encrypts and decrypts and does nothing else. */
KsStatus
p11_generate(Keystore *ks, const char *label, const uint8_t *id, size_t id_len,
			 CK_OBJECT_HANDLE *handle)
{
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE type = CKK_AES;
	CK_ULONG	value_len = 32;
	CK_ATTRIBUTE template[] = {
		{CKA_CLASS, &class, sizeof(class)},
		{CKA_KEY_TYPE, &type, sizeof(type)},
		{CKA_VALUE_LEN, &value_len, sizeof(value_len)},
		{CKA_LABEL, (void *) (uintptr_t) label, strlen(label)},
		{CKA_ID, (void *) (uintptr_t) id, id_len},
		{CKA_TOKEN, &yes, sizeof(yes)},
		{CKA_PRIVATE, &yes, sizeof(yes)},
		{CKA_SENSITIVE, &yes, sizeof(yes)},
		{CKA_EXTRACTABLE, &no, sizeof(no)},
		{CKA_MODIFIABLE, &yes, sizeof(yes)},
		{CKA_ENCRYPT, &yes, sizeof(yes)},
		{CKA_DECRYPT, &yes, sizeof(yes)},
		{CKA_WRAP, &no, sizeof(no)},
		{CKA_UNWRAP, &no, sizeof(no)},
		{CKA_SIGN, &no, sizeof(no)},
		{CKA_VERIFY, &no, sizeof(no)},
		{CKA_DERIVE, &no, sizeof(no)},
	};
	CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};
	CK_RV		rv = ks->f->C_GenerateKey(ks->session, &mechanism, template,
										  sizeof(template) / sizeof(template[0]), handle);
	KsStatus	status;

	if (rv != CKR_OK)
		return p11_failed(ks, "C_GenerateKey", rv);
	status = p11_check_promises(ks, *handle);
	if (status != KS_OK)
		(void) ks->f->C_DestroyObject(ks->session, *handle);
	return status;
}

/* Make a provisional key a lasting one. */
KsStatus
p11_take_off_mark(Keystore *ks, KnownKey *key)
{
	char	   *base = key->label.base;
	char		now[LABEL_ROOM];
	CK_ATTRIBUTE attr = {CKA_LABEL, base, strlen(base)};
	CK_RV		rv = ks->f->C_SetAttributeValue(ks->session, key->handle, &attr, 1);
	KsStatus	status;

	if (rv != CKR_OK)
		return p11_failed(ks, "C_SetAttributeValue", rv);
	status = p11_read_label(ks, key->handle, now);
	if (status != KS_OK)
		return status;
	if (strcmp(now, base) != 0)
		return p11_refuse(ks, KS_MODULE_ERROR, "the token did not change the key's label");
	key->label.provisional = false;
	memcpy(key->label.full, base, sizeof(key->label.full));
	return KS_OK;
}

/* May a key be used, as the token says now? */
KsStatus
p11_is_enabled(Keystore *ks, CK_OBJECT_HANDLE handle, bool *enabled)
{
	CK_BBOOL	can[2] = {CK_FALSE, CK_FALSE};
	CK_ATTRIBUTE attrs[] = {
		{CKA_ENCRYPT, &can[0], sizeof(can[0])},
		{CKA_DECRYPT, &can[1], sizeof(can[1])},
	};
	CK_RV		rv = ks->f->C_GetAttributeValue(ks->session, handle, attrs, 2);

	if (rv != CKR_OK)
		return p11_failed(ks, "C_GetAttributeValue", rv);
	*enabled = can[0] && can[1];
	return can[0] == can[1] ? KS_OK :
		p11_refuse(ks, KS_MODULE_ERROR, "a key can only encrypt, or only decrypt");
}

/* Let a key be used, or not.  A token may refuse; what counts is what it says then. */
KsStatus
p11_enable(Keystore *ks, CK_OBJECT_HANDLE handle, bool on, bool *obeyed)
{
	CK_ATTRIBUTE attrs[] = {
		{CKA_ENCRYPT, on ? &yes : &no, sizeof(yes)},
		{CKA_DECRYPT, on ? &yes : &no, sizeof(yes)},
	};
	CK_RV		rv = ks->f->C_SetAttributeValue(ks->session, handle, attrs, 2);
	bool		enabled;
	KsStatus	status;

	if (rv != CKR_OK && rv != CKR_ATTRIBUTE_READ_ONLY && rv != CKR_ATTRIBUTE_VALUE_INVALID &&
		rv != CKR_ATTRIBUTE_TYPE_INVALID && rv != CKR_TEMPLATE_INCONSISTENT &&
		rv != CKR_ACTION_PROHIBITED && rv != CKR_FUNCTION_NOT_SUPPORTED)
		return p11_failed(ks, "C_SetAttributeValue", rv);
	status = p11_is_enabled(ks, handle, &enabled);
	*obeyed = status == KS_OK && enabled == on;
	return status;
}

/* Destroy a key; one that somebody else destroyed meanwhile is fine too. */
KsStatus
p11_destroy(Keystore *ks, CK_OBJECT_HANDLE handle, bool *destroyed)
{
	CK_RV		rv = ks->f->C_DestroyObject(ks->session, handle);

	*destroyed = rv == CKR_OK;
	if (rv != CKR_OK && !p11_stale_handle(rv))
		return p11_failed(ks, "C_DestroyObject", rv);
	return KS_OK;
}
