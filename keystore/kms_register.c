/*
 * kms_register.c
 *		The key pair that signs the register, and the register's head.
 *
 * A key pair for each generation, found by its tag.  The head is a tag of the
 * canary, which is there for as long as the keystore is ours.  The service
 * may show an older head for a while, never one that was not written.
 *
 * A head begins with a number.  The broker has one set at a time, in order;
 * what comes too late nevertheless, from another helper, or again after a
 * crash, has a smaller number and changes nothing.  Smaller on purpose is what
 * follows records that were lost, and only after the head that goes was read.
 *
 * No secrets here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kms.h"

#define MAX_DER			80		/* of a signature on P-256 */
#define TAG_CHARS		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 +-=._:/@"

static pthread_mutex_t setting = PTHREAD_MUTEX_INITIALIZER;	/* the head */

/* Which one was read last. */
static pthread_mutex_t noting = PTHREAD_MUTEX_INITIALIZER;
static char head_read[KS_MAX_REFERENCE + KS_MAX_HEAD + 2];	/* canary and head */

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

/* A key that was made lately may not be known to policies; one just made, anywhere. */
static KsStatus
wait_for_public_key(Keystore *ks, const char *arn, bool just_made, KsRegisterKey *out,
					KsFailure *why)
{
	KmsAgain	again = {0};
	KsStatus	status;

	do
		status = get_public_key(ks, arn, out, why);
	while (kms_again(&again, (status == KS_MODULE_ERROR && just_made) ||
					 (status == KS_ACCESS_DENIED && directory_is_new(ks->directory, arn)),
					 &status, why));
	return status;
}

/* ---- which key it is ---- */

/* The key pair that is wanted. */
typedef struct Pair
{
	const char *inst;
	uint32_t	generation;
	KsBytes		known;			/* its public key, or nothing */
	bool		choose;			/* the oldest will do if nothing is known */
} Pair;

/* None of several is used: say which they are. */
static KsStatus
refuse_all(const KmsFounds *founds, const char *what, KsFailure *why)
{
	char		arns[250] = "";
	size_t		len = 0;

	for (size_t i = 0; i < founds->n && len < sizeof(arns); i++)
		len += (size_t) snprintf(arns + len, sizeof(arns) - len, "%s%s", i > 0 ? ", " : "",
								 founds->items[i].key.arn);
	return ks_fail(why, KS_REFUSED, "%zu keys are tagged as the register's, %s: %s", founds->n,
				   what, arns);
}

/*
 * The one with the public key that is known.  What cannot be asked for it, or
 * must not be used, is not it if another one is.
 */
static KsStatus
pick_known(Keystore *ks, const Pair *pair, const KmsFounds *founds, KmsFound *out,
		   KsFailure *why)
{
	KsStatus	trouble = KS_OK;

	for (size_t i = 0; i < founds->n; i++)
	{
		const KmsFound *found = &founds->items[i];
		KsRegisterKey public = {0};
		KsFailure	reason = {0};
		KsStatus	status = kms_judge(found, &reason);

		if (status == KS_OK)
			status = get_public_key(ks, found->key.arn, &public, &reason);
		if (status == KS_OK && public.public_key_len == pair->known.len &&
			memcmp(public.public_key, pair->known.data, pair->known.len) == 0)
		{
			*out = *found;
			return KS_OK;
		}
		if (status != KS_OK && trouble == KS_OK)
		{
			trouble = status;
			*why = reason;
		}
	}
	return trouble != KS_OK ? trouble :
		refuse_all(founds, "and none of them is the one that signed before", why);
}

/* The one that was made first, of those that may be used; everybody's choice. */
static KsStatus
pick_oldest(const KmsFounds *founds, KmsFound *out, KsFailure *why)
{
	const KmsFound *oldest = NULL;

	for (size_t i = 0; i < founds->n; i++)
	{
		const KmsFound *found = &founds->items[i];

		if (found->sight.created <= 0)
			return refuse_all(founds, "and when they were made is not said", why);
		if (found->sight.state != KS_STATE_USABLE)
			continue;
		/* they are in order of ARN */
		if (oldest == NULL || found->sight.created < oldest->sight.created)
			oldest = found;
	}
	*out = oldest != NULL ? *oldest : founds->items[0];
	return KS_OK;
}

/* Several keys have the label, or one that was made as something else; "why" says so. */
static KsStatus
pick_pair(Keystore *ks, const Pair *pair, const char *label, KmsFound *out, KsFailure *why)
{
	const KmsQuery query = {pair->inst, label, false, false, KMS_SIGNING};
	const KsFailure said = *why;
	KmsFounds	founds;
	KsStatus	status = kms_look(ks, &query, &founds, why);

	if (status == KS_OK && founds.n == 0)
	{
		*why = said;
		status = KS_REFUSED;
	}
	else if (status == KS_OK && pair->known.len > 0)
		status = pick_known(ks, pair, &founds, out, why);
	else if (status == KS_OK && pair->choose)
		status = pick_oldest(&founds, out, why);
	else if (status == KS_OK)
		status = refuse_all(&founds, "and which of them signed is not known here; take the tag "
							TAG_LABEL " off the others", why);
	kms_free_founds(&founds);
	return status;
}

/*
 * Find the key pair; one that must not be used is said to be disabled.  Two
 * nodes, or two attempts, may have made one each: one that is known is it,
 * whatever else has its label.
 */
static KsStatus
find_pair(Keystore *ks, const Pair *pair, KmsFound *out, KsFailure *why)
{
	char		label[KS_MAX_LABEL + 1];
	KsStatus	status;

	label_register(pair->inst, pair->generation, label);
	status = kms_find(ks, pair->inst, label, KMS_SIGNING, out, why);
	if (status == KS_REFUSED)
		status = pick_pair(ks, pair, label, out, why);
	return status == KS_OK ? kms_judge(out, why) : status;
}

KsStatus
kms_register_key(Keystore *ks, const char *inst, uint32_t generation, KsBytes known,
				 KsMake make, KsRegisterKey *out, KsFailure *why)
{
	const Pair	pair = {inst, generation, known, make != KS_FIND};
	char		label[KS_MAX_LABEL + 1];
	KmsFound	found;
	KmsKey		key;
	KsStatus	status = kms_begin(ks, inst, why);

	memset(out, 0, sizeof(*out));
	if (status == KS_OK)
		status = find_pair(ks, &pair, &found, why);
	if (status == KS_OK)
		return wait_for_public_key(ks, found.key.arn, false, out, why);
	if (status != KS_KEY_ABSENT || make != KS_MAKE)
		return status;
	label_register(inst, generation, label);
	status = kms_make_key(ks, label, inst, "register", NULL, KMS_SIGNING, &key, why);
	if (status == KS_OK)
		status = find_pair(ks, &pair, &found, why);
	if (status == KS_OK)
		status = wait_for_public_key(ks, found.key.arn, true, out, why);
	out->created = status == KS_OK && strcmp(found.key.arn, key.arn) == 0;
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
kms_sign(Keystore *ks, const char *inst, uint32_t generation, KsBytes known,
		 const uint8_t digest[KS_DIGEST_LEN], uint8_t signature[KS_SIGNATURE_LEN],
		 KsFailure *why)
{
	const Pair	pair = {inst, generation, known, false};
	uint8_t		der[MAX_DER];
	size_t		len = 0;
	KsRegisterKey public;
	KmsFound	found;
	KmsAgain	again = {0};
	KsStatus	status = kms_begin(ks, inst, why);

	if (status == KS_OK)
		status = find_pair(ks, &pair, &found, why);
	if (status == KS_OK)
		status = wait_for_public_key(ks, found.key.arn, false, &public, why);
	if (status == KS_OK)
	{
		do
			status = ask_signature(ks, found.key.arn, digest, der, &len, why);
		while (kms_again(&again, status == KS_ACCESS_DENIED &&
						 directory_is_new(ks->directory, found.key.arn), &status, why));
	}
	if (status == KS_OK &&
		(!kms_signature_holds(public.public_key, public.public_key_len, digest, der, len) ||
		 !kms_signature_raw(der, len, signature)))
		status = ks_fail(why, KS_MODULE_ERROR, "Sign: the answer is no signature by %s", found.key.arn);
	return status;
}

/* ---- the head ---- */

/* The number that a head begins with; 0 if it does not. */
static unsigned long long
head_number(const char *head)
{
	return *head >= '1' && *head <= '9' ? strtoull(head, NULL, 10) : 0;
}

/* Remember which head was read, or compare with it. */
static bool
was_read(const KmsKey *canary, bool now)
{
	char		text[sizeof(head_read)];
	bool		same;

	snprintf(text, sizeof(text), "%s %s", canary->arn, canary->head);
	pthread_mutex_lock(&noting);
	if (now)
		memcpy(head_read, text, sizeof(head_read));
	same = strcmp(head_read, text) == 0;
	pthread_mutex_unlock(&noting);
	return same;
}

/* Is a head that is to be set what is there, or did it come too late? */
static bool
is_there(const KmsKey *canary, const char *head)
{
	return strcmp(canary->head, head) == 0 ||
		(head_number(head) < head_number(canary->head) && !was_read(canary, false));
}

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

/* Wait until the service shows the head that was set, or somebody's later one. */
static KsStatus
wait_for_head(Keystore *ks, const char *head, KmsKey *canary, KsFailure *why)
{
	const KmsKey was = *canary;
	double		pause = KMS_FIRST_PAUSE;

	for (;;)
	{
		KsStatus	status = directory_read(ks, was.arn, canary, why);

		if (status != KS_OK || strcmp(canary->head, head) == 0 ||
			(head_number(canary->head) > head_number(head) && strcmp(canary->head, was.head) != 0))
			return status;
		if (!kms_pause(pause))
			return ks_fail(why, KS_NETWORK, "the service does not show the register's new head in time");
		pause = kms_longer(pause);
	}
}

/* Set the head, unless a later one is there; "canary" is as it was just read. */
static KsStatus
replace_head(Keystore *ks, const char *head, KmsKey *canary, KsFailure *why)
{
	KmsAgain	again = {0};
	KsStatus	status;

	if (is_there(canary, head))
		return KS_OK;
	do
		status = set_head(ks, canary->arn, head, why);
	while (kms_again(&again, status == KS_ACCESS_DENIED && directory_is_new(ks->directory, canary->arn),
					 &status, why));
	return status == KS_OK ? wait_for_head(ks, head, canary, why) : status;
}

KsStatus
kms_head(Keystore *ks, const char *inst, bool set, char *head, KsFailure *why)
{
	KmsKey		canary;
	KsStatus	status;

	if (set)
		pthread_mutex_lock(&setting);
	status = kms_begin(ks, inst, why);
	if (status == KS_OK && set && head[strspn(head, TAG_CHARS)] != '\0')
		status = ks_fail(why, KS_REFUSED, "the register's head has characters that no tag can have");
	if (status == KS_OK)
		status = kms_canary(ks, inst, &canary, why);
	if (status == KS_OK)
		status = directory_read(ks, canary.arn, &canary, why);
	if (status == KS_OK && set)
		status = replace_head(ks, head, &canary, why);
	else if (status == KS_OK)
		(void) was_read(&canary, true);
	if (status == KS_KEY_ABSENT)
		status = KS_TOKEN_WRONG;	/* the canary went while it was looked at */
	if (status == KS_OK)
		strcpy(head, canary.head);
	if (set)
		pthread_mutex_unlock(&setting);
	return status;
}
