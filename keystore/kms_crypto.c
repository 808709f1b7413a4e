/*
 * kms_crypto.c
 *		Data keys: made, wrapped and unwrapped by the service.
 *
 * A wrap is bound to its place by the encryption context, which shows in the
 * account's audit log and holds opaque ids only.  The key is always named.
 *
 * Secrets: data keys, in the callers' structs and in the answers' JSON, of
 * which the allocator wipes what it frees.
 */
#include <string.h>
#include <sys/random.h>

#include "kms.h"

#define CANARY_PLACE	"canary"
#define B64_ROOM(n)		(((n) + 2) / 3 * 4 + 1)
#define MAX_AAD			256
#define TRIES			6		/* of a key that should be usable */
#define FIRST_PAUSE		0.1		/* seconds, then twice as long */
#define MARK_PATIENCE	1000	/* milliseconds that an opened key waits for its mark */
#define MARK_REST		10.0	/* seconds after one that could not be taken off */

static json_t *
context(const KmsPlace *place)
{
	char		aad[B64_ROOM(MAX_AAD)];

	if (!kms_base64(place->aad.data, place->aad.len, aad, sizeof(aad)))
		return NULL;
	return json_pack("{s:s, s:s, s:s}", TAG_INSTALLATION, place->inst,
					 TAG_SCHOOL, place->school, "nomp_crypt:key", aad);
}

/* What a refusal to use a key may mean; a verdict takes more. */
static KsStatus
key_refused(const char *action, const AwsReply *reply, KsFailure *why)
{
	KsStatus	status = kms_refused(action, reply, why);

	if (kms_error_is(reply, "NotFoundException"))
		status = KS_KEY_ABSENT;
	if (kms_error_is(reply, "DisabledException") ||
		kms_error_is(reply, "KMSInvalidStateException"))
		status = KS_KEY_DISABLED;
	if (kms_error_is(reply, "InvalidCiphertextException") ||
		kms_error_is(reply, "IncorrectKeyException"))
		status = KS_INTEGRITY;
	return status;
}

/* Call with a key; the answer must be about it. */
static KsStatus
use_key(Keystore *ks, const char *action, const char *arn, json_t *body, AwsReply *reply,
		KsFailure *why)
{
	KsStatus	status = kms_call(ks, AWS_EVERYDAY, action, body, reply, why);

	if (status == KS_REFUSED)
		return key_refused(action, reply, why);
	return status == KS_OK ? kms_answers_for(action, reply, arn, why) : status;
}

static bool
take_bytes(const AwsReply *reply, const char *name, uint8_t *out, size_t size, size_t *len)
{
	const char *text = json_string_value(json_object_get(reply->body, name));

	return text != NULL && kms_unbase64(text, out, size, len);
}

static bool
take_data_key(const AwsReply *reply, uint8_t key[KS_DEK_LEN])
{
	size_t		len;

	return take_bytes(reply, "Plaintext", key, KS_DEK_LEN, &len) && len == KS_DEK_LEN;
}

static json_t *
wrap_request(const KmsKey *kek, const KmsPlace *place, bool fresh, const KsNewKey *key)
{
	char		plain[B64_ROOM(KS_DEK_LEN)];
	json_t	   *body;

	if (fresh)
		return json_pack("{s:s, s:s, s:o}", "KeyId", kek->arn, "KeySpec", "AES_256",
						 "EncryptionContext", context(place));
	if (!kms_base64(key->key, KS_DEK_LEN, plain, sizeof(plain)))
		return NULL;
	body = json_pack("{s:s, s:s, s:s, s:o}", "KeyId", kek->arn, "Plaintext", plain,
					 "EncryptionAlgorithm", "SYMMETRIC_DEFAULT",
					 "EncryptionContext", context(place));
	explicit_bzero(plain, sizeof(plain));
	return body;
}

/* Wrap a data key, fresh or given, once.  Refusals are no verdicts. */
KsStatus
kms_wrap_key(Keystore *ks, const KmsKey *kek, const KmsPlace *place, bool fresh,
			 KsNewKey *key, KsFailure *why)
{
	const char *action = fresh ? "GenerateDataKey" : "Encrypt";
	uint8_t		blob[KMS_MAX_BLOB];
	size_t		blob_len = 0;
	AwsReply	reply;
	KsStatus	status = use_key(ks, action, kek->arn, wrap_request(kek, place, fresh, key),
								 &reply, why);

	if (status == KS_OK &&
		(!take_bytes(&reply, "CiphertextBlob", blob, sizeof(blob), &blob_len) ||
		 (fresh && !take_data_key(&reply, key->key)) ||
		 !kms_wrapped_make(kek->arn, blob, blob_len, key)))
		status = ks_fail(why, KS_MODULE_ERROR, "%s: the answer is no wrapped key", action);
	aws_reply_free(&reply);
	return status;
}

static KsStatus
decrypt(Keystore *ks, const KmsWrapped *wrapped, const KmsPlace *place,
		uint8_t key[KS_DEK_LEN], KsFailure *why)
{
	char		blob[B64_ROOM(KMS_MAX_BLOB)];
	json_t	   *body = NULL;
	AwsReply	reply;
	KsStatus	status;

	if (kms_base64(wrapped->blob, wrapped->blob_len, blob, sizeof(blob)))
		body = json_pack("{s:s, s:s, s:s, s:o}", "KeyId", wrapped->arn.text,
						 "CiphertextBlob", blob, "EncryptionAlgorithm", "SYMMETRIC_DEFAULT",
						 "EncryptionContext", context(place));
	status = use_key(ks, "Decrypt", wrapped->arn.text, body, &reply, why);
	if (status == KS_OK && !take_data_key(&reply, key))
		status = ks_fail(why, KS_MODULE_ERROR, "Decrypt: the answer is no data key");
	aws_reply_free(&reply);
	return status;
}

/*
 * A key's use was denied.  The service says so of some keys that are disabled,
 * will be deleted or are gone, too: those are verdicts.  Otherwise it stays
 * as the service said it.
 */
static KsStatus
denied(Keystore *ks, const char *inst, const KmsKey *kek, KsFailure *why)
{
	const KsFailure said = *why;
	const KsStatus status = kms_explain(ks, inst, kek, KMS_WRAPPING, why);

	if (status == KS_KEY_ABSENT || status == KS_KEY_DISABLED)
		return status;
	*why = said;
	return KS_ACCESS_DENIED;
}

/* ---- the canary's round trip ---- */

static KsStatus
round_trip(Keystore *ks, const KmsKey *canary, const KmsPlace *place, KsNewKey *key,
		   KsFailure *why)
{
	uint8_t		opened[KS_DEK_LEN] = {0};
	KmsWrapped	wrapped;
	KsStatus	status = kms_wrap_key(ks, canary, place, false, key, why);

	if (status == KS_OK &&
		!kms_wrapped_parse((KsBytes) {key->wrapped, key->wrapped_len}, &wrapped))
		status = ks_fail(why, KS_MODULE_ERROR, "Encrypt: the answer is no wrapped key");
	if (status == KS_OK)
		status = decrypt(ks, &wrapped, place, opened, why);
	if (status == KS_OK && memcmp(opened, key->key, KS_DEK_LEN) != 0)
		status = ks_fail(why, KS_MODULE_ERROR, "Decrypt: the answer is another key than was encrypted");
	explicit_bzero(opened, sizeof(opened));
	return status;
}

/* Prove that the service works, by a key that has nothing to do with schools. */
KsStatus
kms_prove_healthy(Keystore *ks, const char *inst, KsFailure *why)
{
	uint8_t		chance[16];
	const KmsPlace place = {inst, CANARY_PLACE, {chance, sizeof(chance)}};
	KsNewKey	key = {0};
	KmsKey		canary;
	KsStatus	status = kms_canary(ks, inst, &canary, why);

	if (status == KS_OK &&
		(getrandom(chance, sizeof(chance), 0) != (ssize_t) sizeof(chance) ||
		 getrandom(key.key, sizeof(key.key), 0) != (ssize_t) sizeof(key.key)))
		status = ks_fail(why, KS_MODULE_ERROR, "the system gives no random bytes");
	if (status == KS_OK)
		status = round_trip(ks, &canary, &place, &key, why);
	explicit_bzero(&key, sizeof(key));
	if (status == KS_KEY_ABSENT || status == KS_KEY_DISABLED || status == KS_INTEGRITY)
	{
		const KsFailure said = *why;

		status = ks_fail(why, KS_MODULE_ERROR, "the canary does not work: %.300s", said.reason);
	}
	if (status == KS_ACCESS_DENIED)
	{
		const KsFailure said = *why;

		status = ks_fail(why, status, "kms:Encrypt and kms:Decrypt are needed for the canary, with " TAG_SCHOOL
						 " \"" CANARY_PLACE "\" in the context, to prove that the service works: %.250s",
						 said.reason);
	}
	return status;
}

/* ---- wrapping ---- */

/* Asked only where a key does not show: it goes through all that are known. */
static bool
made_lately(Keystore *ks, const KsLabel *label)
{
	return !ks->settled && directory_made_lately(ks->directory, label->base);
}

static KsStatus
not_yet(const KsLabel *label, KsFailure *why)
{
	return ks_fail(why, KS_NOT_YET, "the key \"%s\" was made a short time ago, and the service does not show it yet",
				   label->base);
}

static KsStatus
wrap(Keystore *ks, const KsLabel *label, bool fresh, KsNewKey *key, KsFailure *why)
{
	const KmsPlace place = {label->inst, label->tenant, key->aad};
	double		pause = FIRST_PAUSE;
	KmsKey		kek;
	KsStatus	status = kms_begin(ks, label->inst, why);

	if (status == KS_OK)
		status = kms_find_surely(ks, label, &kek, why);
	for (int i = 0; status == KS_OK && i < TRIES; i++, pause *= 2)
	{
		status = kms_wrap_key(ks, &kek, &place, fresh, key, why);
		if (status == KS_ACCESS_DENIED)
			return denied(ks, label->inst, &kek, why);
		if (status != KS_KEY_ABSENT && status != KS_KEY_DISABLED)
			return status;
		status = kms_explain(ks, label->inst, &kek, KMS_WRAPPING, why);
		if (status == KS_OK && !kms_pause(pause))
			break;
	}
	return status != KS_OK ? status :
		ks_fail(why, KS_MODULE_ERROR, "the service does not use %s, which is enabled", kek.arn);
}

/* Wrap under a KEK of which only the name is certain. */
KsStatus
kms_wrap(Keystore *ks, const KsLabel *label, bool fresh, KsNewKey *key, KsFailure *why)
{
	KsStatus	status = wrap(ks, label, fresh, key, why);

	if (status == KS_KEY_ABSENT && made_lately(ks, label))
		return not_yet(label, why);
	return status;
}

/* ---- unwrapping ---- */

typedef struct Unwrap
{
	const KsLabel *label;
	bool		confirm;
	bool		young;			/* the service may not know the KEK yet */
	bool		missed;			/* a KEK was not known by its name */
	bool		proven;			/* the service works */
	char		placed[KS_MAX_REFERENCE + 1];	/* the label's key, which may be used */
	KmsKey		marked;			/* it has a mark that must go; no ARN: none */
} Unwrap;

static KsStatus
prove(Keystore *ks, Unwrap *u, KsFailure *why)
{
	KsStatus	status = u->proven ? KS_OK : kms_prove_healthy(ks, u->label->inst, why);

	u->proven = status == KS_OK;
	return status;
}

/* Find the label's key, which may be used; once. */
static KsStatus
find_placed(Keystore *ks, Unwrap *u, KsFailure *why)
{
	KmsFound	found;
	KsStatus	status = KS_OK;

	if (u->placed[0] != '\0')
		return KS_OK;
	status = kms_find(ks, u->label->inst, u->label->base, KMS_WRAPPING, &found, why);
	if (status == KS_OK)
		status = kms_judge(&found, why);
	if (status == KS_OK)
		strcpy(u->placed, found.key.arn);
	return status;
}

/*
 * A wrapped key is not one of the KEK that was asked for.  If that KEK is
 * there and may be used, and the service works, the wrapped key is bad.
 */
static KsStatus
misplaced(Keystore *ks, Unwrap *u, KsFailure *why)
{
	KsStatus	status = find_placed(ks, u, why);

	return status == KS_OK ? prove(ks, u, why) : status;
}

/*
 * Is the wrapped key's KEK the one with the label?  As remembered, else as it
 * is.  What it was made as tells, whatever it is tagged as by now.
 */
static KsStatus
meet_kek(Keystore *ks, const Unwrap *u, const KmsArn *arn, KmsKey *kek, bool *right,
		 KsFailure *why)
{
	KsStatus	status = kms_meet(ks, arn->text, kek, why);

	*right = status == KS_OK && strcmp(kek->made_as, u->label->base) == 0;
	if (status != KS_OK || *right)
		return status;
	status = kms_meet_anew(ks, arn->text, kek, why);
	*right = status == KS_OK && strcmp(kek->made_as, u->label->base) == 0;
	return status;
}

/* Unwrap with the right KEK.  KS_KEY_ABSENT is what kms_explain found. */
static KsStatus
open_wrapped(Keystore *ks, Unwrap *u, const KmsWrapped *wrapped, const KmsKey *kek,
			 KsWrappedKey *key, KsFailure *why)
{
	const KmsPlace place = {u->label->inst, u->label->tenant, key->aad};
	double		pause = FIRST_PAUSE;

	for (int i = 0; i < TRIES; i++)
	{
		const bool	proven = u->proven;
		KsStatus	status = decrypt(ks, wrapped, &place, key->key, why);

		if (status == KS_OK || (status == KS_INTEGRITY && proven))
		{
			key->status = status;
			return KS_OK;
		}
		if (status == KS_INTEGRITY)
		{
			status = prove(ks, u, why);
			if (status != KS_OK)
				return status;
			continue;
		}
		if (status == KS_ACCESS_DENIED)
			status = denied(ks, u->label->inst, kek, why);
		else if (status == KS_KEY_ABSENT || status == KS_KEY_DISABLED)
			status = kms_explain(ks, u->label->inst, kek, KMS_WRAPPING, why);
		if (status != KS_OK)
			return status;
		if (!kms_pause(pause))
			break;
		pause *= 2;
	}
	return ks_fail(why, KS_MODULE_ERROR, "the service does not use %s, which is enabled", kek->arn);
}

/*
 * Unwrap if the wrapped key's KEK is the one with the label.  KS_KEY_ABSENT:
 * it does not show; *other: it shows with another label.
 */
static KsStatus
open_if_right(Keystore *ks, Unwrap *u, const KmsWrapped *wrapped, KsWrappedKey *key,
			  bool *other, KsFailure *why)
{
	KmsKey		kek;
	bool		right;
	KsStatus	status = meet_kek(ks, u, &wrapped->arn, &kek, &right, why);

	*other = status == KS_OK && !right && kek.label[0] != '\0';
	if (status != KS_OK)
		return status;
	if (!right)
		return ks_fail(why, KS_KEY_ABSENT, "the service shows %s without its label",
					   wrapped->arn.text);
	if (u->confirm && kek.provisional)
		u->marked = kek;
	return open_wrapped(ks, u, wrapped, &kek, key, why);
}

/*
 * Unwrap one key.  Its KEK may not be found although it is the label's: the
 * service shows one that was just made here and not there, or without its
 * tags.  Then it is asked again, as long as there is time.  For half of it
 * that goes by the KEK's name alone, if it is young.
 */
static KsStatus
unwrap_one(Keystore *ks, Unwrap *u, KsWrappedKey *key, KsFailure *why)
{
	const double half = kms_time_left() / 2;
	double		pause = KMS_FIRST_PAUSE;
	KmsWrapped	wrapped;
	KsStatus	status;
	bool		other;

	key->status = KS_INTEGRITY;
	if (!kms_wrapped_parse(key->wrapped, &wrapped) ||
		kms_check_arn(ks, &wrapped.arn, why) != KS_OK)
		return misplaced(ks, u, why);
	for (;; pause = kms_longer(pause))
	{
		status = open_if_right(ks, u, &wrapped, key, &other, why);
		if (status != KS_KEY_ABSENT)
			return status;
		u->missed = true;
		u->young = u->young || made_lately(ks, u->label);
		if (!u->young || other || kms_time_left() < half)
		{
			status = find_placed(ks, u, why);
			if (status != KS_OK || strcmp(u->placed, wrapped.arn.text) != 0)
				return status == KS_OK ? prove(ks, u, why) : status;
			status = ks_fail(why, KS_NOT_YET, "the service shows %s by its label, and not always by its name",
							 wrapped.arn.text);
		}
		if (!kms_pause(pause))
			return status;
	}
}

/* Marks are left alone for a while after one could not be taken off. */
static bool
may_take_off_mark(Keystore *ks)
{
	bool		may;

	pthread_mutex_lock(&ks->lock);
	may = kms_now() >= ks->next_mark;
	pthread_mutex_unlock(&ks->lock);
	return may;
}

/*
 * Take the mark off a key that came into use.  That must keep nobody from
 * reading: it is tried for a short time, after the keys were opened.  A mark
 * that stays on is taken off by a later use, or by KS_OP_CONFIRM, which says
 * how it went.
 */
static void
try_to_take_off_mark(Keystore *ks, Unwrap *u)
{
	const double left = kms_time_left() * 1e3;
	KsFailure	ignored;

	if (u->marked.arn[0] == '\0' || left < 1 || !may_take_off_mark(ks))
		return;
	kms_set_patience(left < MARK_PATIENCE ? (uint32_t) left : MARK_PATIENCE);
	if (kms_take_off_mark(ks, u->label->inst, &u->marked, &ignored) == KS_OK)
		return;
	pthread_mutex_lock(&ks->lock);
	ks->next_mark = kms_now() + MARK_REST;
	pthread_mutex_unlock(&ks->lock);
}

KsStatus
kms_unwrap(Keystore *ks, const KsLabel *label, bool confirm, uint32_t age, KsWrappedKey *keys,
		   int n, KsFailure *why)
{
	Unwrap		u = {.label = label, .confirm = confirm, .young = age < KMS_LAG && !ks->settled};
	KsStatus	status = kms_begin(ks, label->inst, why);

	if (status == KS_OK && n == 0)
		status = confirm ? kms_confirm(ks, label, why) : misplaced(ks, &u, why);
	for (int i = 0; status == KS_OK && i < n; i++)
		status = unwrap_one(ks, &u, &keys[i], why);
	if (status == KS_OK)
		try_to_take_off_mark(ks, &u);
	if (status == KS_KEY_ABSENT && !u.young)
		u.young = made_lately(ks, label);
	/* that the time was up while it was looked for by its label is no outage */
	if (u.young && (status == KS_KEY_ABSENT || (status == KS_NETWORK && u.missed)))
		return not_yet(label, why);
	return status;
}
