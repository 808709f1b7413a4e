/*
 * kms_register.c
 *		The key pair that signs the register, and the register's head.
 *
 * A key pair for each generation, found by its tag.  The head is a tag of the
 * canary, which is there for as long as the keystore is ours.  The service
 * may show an older head for a while, never one that was not written.  No
 * secrets here.
 */
#include <stdio.h>
#include <string.h>

#include "kms.h"

#define MAX_DER			80		/* of a signature on P-256 */
#define TAG_CHARS		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 +-=._:/@"

static bool
offers_es256(const json_t *body)
{
	const json_t *algorithms = json_object_get(body, "SigningAlgorithms");
	const json_t *algorithm;
	size_t		i;

	json_array_foreach(algorithms, i, algorithm)
	{
		const char *name = json_string_value(algorithm);

		if (name != NULL && strcmp(name, "ECDSA_SHA_256") == 0)
			return true;
	}
	return false;
}

static KsStatus
get_public_key(Keystore *ks, const char *arn, KsRegisterKey *out, KsFailure *why)
{
	AwsReply	reply;
	KsStatus	status = kms_call(ks, AWS_EVERYDAY, "GetPublicKey",
								  json_pack("{s:s}", "KeyId", arn), &reply, why);
	const char *text;

	if (status == KS_REFUSED)
		status = kms_refused("GetPublicKey", &reply, why);
	if (status == KS_OK)
		status = kms_answers_for("GetPublicKey", &reply, arn, why);
	text = json_string_value(json_object_get(reply.body, "PublicKey"));
	if (status == KS_OK &&
		(text == NULL || !kms_unbase64(text, out->public_key, sizeof(out->public_key),
									   &out->public_key_len) ||
		 !kms_is_p256(out->public_key, out->public_key_len) || !offers_es256(reply.body)))
		status = ks_fail(why, KS_MODULE_ERROR, "GetPublicKey: the answer is no key on P-256 for ECDSA with SHA-256");
	aws_reply_free(&reply);
	kms_serial(ks, out->serial);
	return status;
}

/* A key that was just made may not be known everywhere. */
static KsStatus
get_new_public_key(Keystore *ks, const char *arn, KsRegisterKey *out, KsFailure *why)
{
	double		pause = KMS_FIRST_PAUSE;
	KsStatus	status;

	while ((status = get_public_key(ks, arn, out, why)) == KS_MODULE_ERROR && kms_pause(pause))
		pause = kms_longer(pause);
	return status;
}

/* Find the key pair; one that must not be used is said to be disabled. */
static KsStatus
find_pair(Keystore *ks, const char *inst, uint32_t generation, KmsFound *out, KsFailure *why)
{
	char		label[KS_MAX_LABEL + 1];
	KsStatus	status;

	label_register(inst, generation, label);
	status = kms_find(ks, inst, label, KMS_SIGNING, out, why);
	return status == KS_OK ? kms_judge(out, why) : status;
}

KsStatus
kms_register_key(Keystore *ks, const char *inst, uint32_t generation, bool create,
				 KsRegisterKey *out, KsFailure *why)
{
	char		label[KS_MAX_LABEL + 1];
	KmsFound	found;
	KmsKey		key;
	KsStatus	status = kms_begin(ks, inst, why);

	memset(out, 0, sizeof(*out));
	if (status == KS_OK)
		status = find_pair(ks, inst, generation, &found, why);
	if (status == KS_OK)
		return get_public_key(ks, found.key.arn, out, why);
	if (status != KS_KEY_ABSENT || !create)
		return status;
	label_register(inst, generation, label);
	status = kms_make_key(ks, label, inst, "register", NULL, KMS_SIGNING, &key, why);
	if (status == KS_OK)
		status = get_new_public_key(ks, key.arn, out, why);
	if (status == KS_OK)
		status = find_pair(ks, inst, generation, &found, why);
	out->created = status == KS_OK;
	return status;
}

/* ---- signing ---- */

static KsStatus
ask_signature(Keystore *ks, const char *arn, const uint8_t digest[KS_DIGEST_LEN],
			  uint8_t der[MAX_DER], size_t *len, KsFailure *why)
{
	char		message[(KS_DIGEST_LEN + 2) / 3 * 4 + 1];
	json_t	   *body = NULL;
	const char *text;
	AwsReply	reply;
	KsStatus	status;

	if (kms_base64(digest, KS_DIGEST_LEN, message, sizeof(message)))
		body = json_pack("{s:s, s:s, s:s, s:s}", "KeyId", arn, "Message", message,
						 "MessageType", "DIGEST", "SigningAlgorithm", "ECDSA_SHA_256");
	status = kms_call(ks, AWS_EVERYDAY, "Sign", body, &reply, why);
	if (status == KS_REFUSED)
		status = kms_refused("Sign", &reply, why);
	if (status == KS_OK)
		status = kms_answers_for("Sign", &reply, arn, why);
	text = json_string_value(json_object_get(reply.body, "Signature"));
	if (status == KS_OK && (text == NULL || !kms_unbase64(text, der, MAX_DER, len)))
		status = ks_fail(why, KS_MODULE_ERROR, "Sign: the answer is no signature");
	aws_reply_free(&reply);
	return status;
}

/* Sign, and see that the signature holds under the key that is shown to all. */
KsStatus
kms_sign(Keystore *ks, const char *inst, uint32_t generation,
		 const uint8_t digest[KS_DIGEST_LEN], uint8_t signature[KS_SIGNATURE_LEN],
		 KsFailure *why)
{
	uint8_t		der[MAX_DER];
	size_t		len = 0;
	KsRegisterKey public;
	KmsFound	found;
	KsStatus	status = kms_begin(ks, inst, why);

	if (status == KS_OK)
		status = find_pair(ks, inst, generation, &found, why);
	if (status == KS_OK)
		status = get_public_key(ks, found.key.arn, &public, why);
	if (status == KS_OK)
		status = ask_signature(ks, found.key.arn, digest, der, &len, why);
	if (status == KS_OK &&
		(!kms_signature_holds(public.public_key, public.public_key_len, digest, der, len) ||
		 !kms_signature_raw(der, len, signature)))
		status = ks_fail(why, KS_MODULE_ERROR, "Sign: the answer is no signature by %s", found.key.arn);
	return status;
}

/* ---- the head ---- */

static KsStatus
set_head(Keystore *ks, const char *arn, const char *head, KsFailure *why)
{
	AwsReply	reply;
	KsStatus	status = kms_call(ks, AWS_EVERYDAY, "TagResource",
								  json_pack("{s:s, s:[{s:s, s:s}]}", "KeyId", arn, "Tags",
											"TagKey", TAG_HEAD, "TagValue", head), &reply, why);

	if (status == KS_REFUSED)
		status = kms_refused("TagResource", &reply, why);
	aws_reply_free(&reply);
	return status;
}

/* Wait until the service shows the head that was set. */
static KsStatus
wait_for_head(Keystore *ks, const char *head, KmsKey *canary, KsFailure *why)
{
	const KmsKey was = *canary;
	double		pause = KMS_FIRST_PAUSE;

	for (;;)
	{
		KsStatus	status = directory_read(ks, was.arn, canary, why);

		if (status != KS_OK || strcmp(canary->head, head) == 0)
			return status;
		if (!kms_pause(pause))
			return ks_fail(why, KS_NETWORK, "the service does not show the register's new head in time");
		pause = kms_longer(pause);
	}
}

KsStatus
kms_head(Keystore *ks, const char *inst, bool set, char *head, KsFailure *why)
{
	KmsKey		canary;
	KsStatus	status = kms_begin(ks, inst, why);

	if (status == KS_OK && set && head[strspn(head, TAG_CHARS)] != '\0')
		status = ks_fail(why, KS_REFUSED, "the register's head has characters that no tag can have");
	if (status == KS_OK)
		status = kms_canary(ks, inst, &canary, why);
	if (status == KS_OK && set)
		status = set_head(ks, canary.arn, head, why);
	if (status == KS_OK && set)
		status = wait_for_head(ks, head, &canary, why);
	else if (status == KS_OK)
		status = directory_read(ks, canary.arn, &canary, why);
	if (status == KS_KEY_ABSENT)
		status = KS_TOKEN_WRONG;	/* the canary went while it was looked at */
	if (status == KS_OK)
		strcpy(head, canary.head);
	return status;
}
