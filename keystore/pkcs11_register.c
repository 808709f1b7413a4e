/*
 * pkcs11_register.c
 *		The key pair that signs the register, and the register's head.
 *
 * The private key can sign and nothing else, and never leaves the token.  What
 * the token says of the public key is shaped into a SubjectPublicKeyInfo here
 * and believed by nobody before a signature was verified with it (jws.c).
 *
 * The head is a data object with a text of the server's, which begins with a
 * number.  It is changed in place, so that no crash leaves a token without it;
 * where a token refuses that, as SoftHSM does, the new one is there before the
 * old one goes.  A crash in between leaves two: the one with the higher number
 * counts, so that a second one can never hide that the register was longer.  Of
 * two different ones with one number none is believed: somebody must look.
 *
 * No secrets here.
 */
#include <stdlib.h>
#include <string.h>

#include "pkcs11.h"

#define POINT_LEN	65			/* 4, x, y */
#define VALUE_ROOM	(KS_MAX_HEAD + 1)

static CK_BBOOL yes = CK_TRUE;
static CK_BBOOL no = CK_FALSE;

/* The object identifier of P-256, as CKA_EC_PARAMS has it (RFC 5480). */
static uint8_t p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};

/* A SubjectPublicKeyInfo of P-256, up to the point (RFC 5280, RFC 5480). */
static const uint8_t spki_head[] = {
	0x30, 0x59,
	0x30, 0x13,
	0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
	0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
	0x03, 0x42, 0x00
};

static KsStatus
unsupported(Keystore *ks, const char *what)
{
	return p11_refuse(ks, KS_UNSUPPORTED, "the token does not support %s", what);
}

/* The objects of a class with exactly that label. */
static KsStatus
search_object(Keystore *ks, CK_OBJECT_CLASS class, const char *label, FoundKeys *found)
{
	CK_ATTRIBUTE attrs[] = {
		{CKA_CLASS, &class, sizeof(class)},
		{CKA_LABEL, (void *) (uintptr_t) label, strlen(label)},
	};

	return p11_search(ks, attrs, 2, label, found);
}

/*
 * The one object of a class with that label.  KS_KEY_ABSENT only between two
 * sightings of the canary, on the same token; KS_REFUSED for more than one.
 */
static KsStatus
find_object(Keystore *ks, const char *inst, CK_OBJECT_CLASS class, const char *label,
			CK_OBJECT_HANDLE *handle)
{
	FoundKeys	found = {0};
	CK_OBJECT_HANDLE canary;
	KsStatus	status = p11_canary(ks, inst, &canary);

	if (status == KS_OK)
		status = search_object(ks, class, label, &found);
	if (status == KS_OK && found.n == 0)
	{
		status = p11_canary(ks, inst, &canary);
		if (status == KS_OK)
			status = p11_same_token(ks);
		if (status == KS_OK)
			status = p11_refuse(ks, KS_KEY_ABSENT, "the token holds no \"%s\"", label);
	}
	else if (status == KS_OK && found.n > 1)
		status = p11_refuse(ks, KS_REFUSED, "%zu objects have the label \"%s\": none is used",
							found.n, label);
	else if (status == KS_OK)
		*handle = found.items[0].handle;
	p11_free_found(&found);
	return status;
}

/* Is that label still where it was last seen?  Cheaper than a search. */
static bool
is_still(Keystore *ks, CK_OBJECT_HANDLE handle, const char *label)
{
	char		now[LABEL_ROOM];

	return handle != CK_INVALID_HANDLE &&
		p11_read_label(ks, handle, now) == KS_OK && strcmp(now, label) == 0;
}

/* ---- the key pair ---- */

/* The point of CKA_EC_POINT: in an OCTET STRING, or, with some modules, bare. */
static const uint8_t *
point_of(const uint8_t *value, CK_ULONG len)
{
	if (len == POINT_LEN + 2 && value[0] == 0x04 && value[1] == POINT_LEN && value[2] == 0x04)
		return value + 2;
	if (len == POINT_LEN && value[0] == 0x04)
		return value;
	return NULL;
}

/* Read the public key from one of its two objects; *have: it is there. */
static KsStatus
read_point(Keystore *ks, CK_OBJECT_HANDLE handle, KsRegisterKey *out, bool *have)
{
	uint8_t		params[64];
	uint8_t		value[256];		/* of larger curves, too, to refuse them */
	CK_ATTRIBUTE attrs[] = {
		{CKA_EC_PARAMS, params, sizeof(params)},
		{CKA_EC_POINT, value, sizeof(value)},
	};
	CK_RV		rv = ks->f->C_GetAttributeValue(ks->session, handle, attrs, 2);
	const uint8_t *point;

	*have = false;
	if (rv == CKR_ATTRIBUTE_TYPE_INVALID || rv == CKR_ATTRIBUTE_SENSITIVE)
		return KS_OK;
	if (rv != CKR_OK && rv != CKR_BUFFER_TOO_SMALL)
		return p11_failed(ks, "C_GetAttributeValue", rv);
	if (rv == CKR_OK && attrs[1].ulValueLen == 0)
		return KS_OK;
	point = rv == CKR_OK && attrs[1].ulValueLen <= sizeof(value) ?
		point_of(value, attrs[1].ulValueLen) : NULL;
	if (attrs[0].ulValueLen != sizeof(p256) || memcmp(params, p256, sizeof(p256)) != 0 ||
		point == NULL)
		return p11_refuse(ks, KS_REFUSED, "the register's public key is no point of P-256");
	memcpy(out->public_key, spki_head, sizeof(spki_head));
	memcpy(out->public_key + sizeof(spki_head), point, POINT_LEN);
	out->public_key_len = sizeof(spki_head) + POINT_LEN;
	*have = true;
	return KS_OK;
}

/* Make the pair; what the token made of the request is read back. */
static KsStatus
generate_pair(Keystore *ks, const char *label)
{
	CK_KEY_TYPE type = CKK_EC;
	CK_ATTRIBUTE public_template[] = {
		{CKA_KEY_TYPE, &type, sizeof(type)},
		{CKA_EC_PARAMS, p256, sizeof(p256)},
		{CKA_LABEL, (void *) (uintptr_t) label, strlen(label)},
		{CKA_TOKEN, &yes, sizeof(yes)},
		{CKA_VERIFY, &yes, sizeof(yes)},
		{CKA_ENCRYPT, &no, sizeof(no)},
		{CKA_WRAP, &no, sizeof(no)},
	};
	CK_ATTRIBUTE private_template[] = {
		{CKA_KEY_TYPE, &type, sizeof(type)},
		{CKA_LABEL, (void *) (uintptr_t) label, strlen(label)},
		{CKA_TOKEN, &yes, sizeof(yes)},
		{CKA_PRIVATE, &yes, sizeof(yes)},
		{CKA_SENSITIVE, &yes, sizeof(yes)},
		{CKA_EXTRACTABLE, &no, sizeof(no)},
		{CKA_SIGN, &yes, sizeof(yes)},
		{CKA_DECRYPT, &no, sizeof(no)},
		{CKA_UNWRAP, &no, sizeof(no)},
		{CKA_DERIVE, &no, sizeof(no)},
	};
	CK_MECHANISM mechanism = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
	CK_OBJECT_HANDLE public_key;
	CK_OBJECT_HANDLE private_key;
	KsStatus	status;
	CK_RV		rv;

	if (ks->f->C_GenerateKeyPair == NULL || ks->f->C_SignInit == NULL || ks->f->C_Sign == NULL)
		return unsupported(ks, "C_GenerateKeyPair and C_Sign");
	rv = ks->f->C_GenerateKeyPair(ks->session, &mechanism,
								  public_template, sizeof(public_template) / sizeof(CK_ATTRIBUTE),
								  private_template, sizeof(private_template) / sizeof(CK_ATTRIBUTE),
								  &public_key, &private_key);
	if (rv == CKR_MECHANISM_INVALID || rv == CKR_FUNCTION_NOT_SUPPORTED ||
		rv == CKR_CURVE_NOT_SUPPORTED || rv == CKR_DOMAIN_PARAMS_INVALID)
		return unsupported(ks, "CKM_EC_KEY_PAIR_GEN with P-256");
	if (rv != CKR_OK)
		return p11_failed(ks, "C_GenerateKeyPair", rv);
	status = p11_check_promises(ks, private_key);
	if (status != KS_OK)
	{
		(void) ks->f->C_DestroyObject(ks->session, private_key);
		(void) ks->f->C_DestroyObject(ks->session, public_key);
	}
	return status;
}

/*
 * Before a pair is made: a public key without its private one is what an
 * attempt that was interrupted has left.
 */
static KsStatus
clear_public(Keystore *ks, const char *label)
{
	FoundKeys	found = {0};
	bool		destroyed;
	KsStatus	status = search_object(ks, CKO_PUBLIC_KEY, label, &found);

	for (size_t i = 0; status == KS_OK && i < found.n; i++)
		status = p11_destroy(ks, found.items[i].handle, &destroyed);
	p11_free_found(&found);
	return status;
}

typedef struct RegisterWork
{
	const char *inst;
	uint32_t	generation;
	bool		create;
	KsRegisterKey *out;
	const uint8_t *digest;
	uint8_t    *signature;
	bool		set;
	char	   *head;
} RegisterWork;

static KsStatus
register_key_work(Keystore *ks, void *arg)
{
	RegisterWork *w = arg;
	char		label[KS_MAX_LABEL + 1];
	CK_OBJECT_HANDLE private_key;
	CK_OBJECT_HANDLE public_key;
	bool		have = false;
	KsStatus	status;

	label_register(w->inst, w->generation, label);
	status = find_object(ks, w->inst, CKO_PRIVATE_KEY, label, &private_key);
	if (status == KS_KEY_ABSENT && w->create)
	{
		status = clear_public(ks, label);
		if (status == KS_OK)
			status = generate_pair(ks, label);
		/* of two that were made at once none is used */
		if (status == KS_OK)
			status = find_object(ks, w->inst, CKO_PRIVATE_KEY, label, &private_key);
		w->out->created |= status == KS_OK;
	}
	if (status != KS_OK)
		return status;
	status = find_object(ks, w->inst, CKO_PUBLIC_KEY, label, &public_key);
	if (status == KS_OK)
		status = read_point(ks, public_key, w->out, &have);
	else if (status == KS_KEY_ABSENT)
		status = KS_OK;
	if (status == KS_OK && !have)
		status = read_point(ks, private_key, w->out, &have);
	p11_serial(ks, w->out->serial);
	if (status == KS_OK && !have)
		status = p11_refuse(ks, KS_REFUSED, "the token does not show the public key of \"%s\"", label);
	return status;
}

KsStatus
p11_register_key(Keystore *ks, const char *inst, uint32_t generation, KsBytes known,
				 KsMake make, KsRegisterKey *out, KsFailure *why)
{
	RegisterWork w = {.inst = inst, .generation = generation, .create = make == KS_MAKE,
		.out = out};

	return p11_run(ks, register_key_work, &w, why);
}

/* ---- signing ---- */

static CK_RV
sign_digest(Keystore *ks, RegisterWork *w, CK_ULONG *len)
{
	CK_MECHANISM mechanism = {CKM_ECDSA, NULL, 0};
	CK_RV		rv = ks->f->C_SignInit(ks->session, &mechanism, ks->signer);

	*len = KS_SIGNATURE_LEN;
	if (rv != CKR_OK)
		return rv;
	return ks->f->C_Sign(ks->session, (CK_BYTE *) (uintptr_t) w->digest, KS_DIGEST_LEN,
						 w->signature, len);
}

static KsStatus
sign_work(Keystore *ks, void *arg)
{
	RegisterWork *w = arg;
	char		label[KS_MAX_LABEL + 1];
	CK_ULONG	len;
	CK_RV		rv;

	if (ks->f->C_SignInit == NULL || ks->f->C_Sign == NULL)
		return unsupported(ks, "C_Sign");
	label_register(w->inst, w->generation, label);
	for (int attempt = 0;; attempt++)
	{
		if (attempt > 0 || !is_still(ks, ks->signer, label))
		{
			KsStatus	status = find_object(ks, w->inst, CKO_PRIVATE_KEY, label, &ks->signer);

			if (status != KS_OK)
				return status;
		}
		rv = sign_digest(ks, w, &len);
		if (rv == CKR_OK)
			break;
		ks->signer = CK_INVALID_HANDLE;
		if (attempt > 0 || !p11_stale_handle(rv))
			return rv == CKR_MECHANISM_INVALID ? unsupported(ks, "CKM_ECDSA") :
				p11_failed(ks, "C_Sign", rv);
	}
	if (len != KS_SIGNATURE_LEN)
		return p11_refuse(ks, KS_MODULE_ERROR, "C_Sign: a signature of %lu bytes", len);
	return KS_OK;
}

KsStatus
p11_sign(Keystore *ks, const char *inst, uint32_t generation, KsBytes known,
		 const uint8_t digest[KS_DIGEST_LEN], uint8_t signature[KS_SIGNATURE_LEN],
		 KsFailure *why)
{
	RegisterWork w = {.inst = inst, .generation = generation, .digest = digest,
		.signature = signature};

	return p11_run(ks, sign_work, &w, why);
}

/* ---- the head ---- */

static KsStatus
read_head(Keystore *ks, CK_OBJECT_HANDLE handle, char out[VALUE_ROOM])
{
	CK_ATTRIBUTE attr = {CKA_VALUE, out, KS_MAX_HEAD};
	CK_RV		rv;

	memset(out, 0, VALUE_ROOM);
	rv = ks->f->C_GetAttributeValue(ks->session, handle, &attr, 1);
	if (rv != CKR_OK && rv != CKR_BUFFER_TOO_SMALL)
		return p11_failed(ks, "C_GetAttributeValue", rv);
	if (rv != CKR_OK || attr.ulValueLen > KS_MAX_HEAD || strlen(out) != attr.ulValueLen)
		return p11_refuse(ks, KS_REFUSED, "the register's head in the token is malformed");
	return KS_OK;
}

static KsStatus
create_head(Keystore *ks, const char *label, const char *head)
{
	CK_OBJECT_CLASS class = CKO_DATA;
	CK_ATTRIBUTE template[] = {
		{CKA_CLASS, &class, sizeof(class)},
		{CKA_LABEL, (void *) (uintptr_t) label, strlen(label)},
		{CKA_APPLICATION, (void *) (uintptr_t) "nomp_crypt", strlen("nomp_crypt")},
		{CKA_TOKEN, &yes, sizeof(yes)},
		{CKA_PRIVATE, &yes, sizeof(yes)},
		{CKA_MODIFIABLE, &yes, sizeof(yes)},
		{CKA_VALUE, (void *) (uintptr_t) head, strlen(head)},
	};
	CK_OBJECT_HANDLE handle;
	CK_RV		rv;

	if (ks->f->C_CreateObject == NULL)
		return unsupported(ks, "C_CreateObject");
	rv = ks->f->C_CreateObject(ks->session, template, sizeof(template) / sizeof(CK_ATTRIBUTE),
							   &handle);
	if (rv == CKR_OK)
		ks->head = handle;
	if (rv == CKR_ATTRIBUTE_VALUE_INVALID || rv == CKR_TEMPLATE_INCONSISTENT ||
		rv == CKR_FUNCTION_NOT_SUPPORTED || rv == CKR_ATTRIBUTE_TYPE_INVALID)
		return unsupported(ks, "private data objects");
	return rv == CKR_OK ? KS_OK : p11_failed(ks, "C_CreateObject", rv);
}

/* Change the head in place, or put the new one beside it first. */
static KsStatus
change_head(Keystore *ks, CK_OBJECT_HANDLE handle, const char *label, const char *head)
{
	CK_ATTRIBUTE attr = {CKA_VALUE, (void *) (uintptr_t) head, strlen(head)};
	CK_RV		rv = ks->f->C_SetAttributeValue(ks->session, handle, &attr, 1);
	bool		destroyed;
	KsStatus	status;

	if (rv == CKR_OK)
		return KS_OK;
	if (rv != CKR_ATTRIBUTE_READ_ONLY && rv != CKR_ACTION_PROHIBITED &&
		rv != CKR_FUNCTION_NOT_SUPPORTED && rv != CKR_TEMPLATE_INCONSISTENT)
		return p11_failed(ks, "C_SetAttributeValue", rv);
	status = create_head(ks, label, head);
	if (status == KS_OK)
		status = p11_destroy(ks, handle, &destroyed);
	return status;
}

/* The number that a head begins with; 0 if it does not. */
static unsigned long long
head_number(const char *head)
{
	return *head >= '1' && *head <= '9' && strlen(head) < KS_MAX_HEAD ? strtoull(head, NULL, 10) : 0;
}

/* Of several heads, the one that is furthest; the others go if "set". */
static KsStatus
choose_head(Keystore *ks, const FoundKeys *found, bool set)
{
	char		best[VALUE_ROOM] = "";
	KsStatus	status = KS_OK;

	for (size_t i = 0; status == KS_OK && i < found->n; i++)
	{
		char		head[VALUE_ROOM];

		status = read_head(ks, found->items[i].handle, head);
		if (status == KS_OK && found->n > 1 &&
			(head_number(head) == 0 ||
			 (head_number(head) == head_number(best) && strcmp(head, best) != 0)))
			status = p11_refuse(ks, KS_REFUSED, "the token has several heads of the register, and none counts");
		if (status != KS_OK || (i > 0 && head_number(head) <= head_number(best)))
			continue;
		ks->head = found->items[i].handle;
		memcpy(best, head, sizeof(best));
	}
	for (size_t i = 0; status == KS_OK && set && i < found->n; i++)
	{
		bool		destroyed;

		if (found->items[i].handle != ks->head)
			status = p11_destroy(ks, found->items[i].handle, &destroyed);
	}
	return status;
}

/*
 * Find the head.  Searched for each time, though it takes long on a token with
 * thousands of keys: some tokens go on showing an object that another process
 * has replaced, and what another site has appended must be seen.
 */
static KsStatus
find_head(Keystore *ks, const char *inst, const char *label, bool set)
{
	FoundKeys	found = {0};
	KsStatus	status = p11_canary_still(ks, inst);

	ks->head = CK_INVALID_HANDLE;
	if (status == KS_OK)
		status = search_object(ks, CKO_DATA, label, &found);
	if (status == KS_OK && found.n == 0)
		status = find_object(ks, inst, CKO_DATA, label, &ks->head);
	else if (status == KS_OK)
		status = choose_head(ks, &found, set);
	if (status != KS_OK)
		ks->head = CK_INVALID_HANDLE;
	p11_free_found(&found);
	return status;
}

static KsStatus
head_work(Keystore *ks, void *arg)
{
	RegisterWork *w = arg;
	char		label[KS_MAX_LABEL + 1];
	char		now[VALUE_ROOM];
	KsStatus	status;

	label_head(w->inst, label);
	status = find_head(ks, w->inst, label, w->set);
	if (!w->set && status == KS_KEY_ABSENT)
	{
		w->head[0] = '\0';
		return KS_OK;
	}
	if (!w->set)
		return status == KS_OK ? read_head(ks, ks->head, w->head) : status;
	if (status == KS_KEY_ABSENT)
		status = create_head(ks, label, w->head);
	else if (status == KS_OK)
		status = change_head(ks, ks->head, label, w->head);
	if (status == KS_OK)
		status = read_head(ks, ks->head, now);
	if (status == KS_OK && strcmp(now, w->head) != 0)
		status = p11_refuse(ks, KS_MODULE_ERROR, "the token did not take the register's head");
	return status;
}

KsStatus
p11_head(Keystore *ks, const char *inst, bool set, char *head, KsFailure *why)
{
	RegisterWork w = {.inst = inst, .set = set, .head = head};

	return p11_run(ks, head_work, &w, why);
}
