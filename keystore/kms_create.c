/*
 * kms_create.c
 *		Makes keys, and makes provisional ones lasting.
 *
 * A key is made with its tags, in one call, and used when the service shows
 * it with them: it is not known everywhere at once.  Policies that go by tags
 * may know them minutes later only, so access that is denied to a new key is
 * asked for again, as long as there is time.  CreateKey is not repeated
 * if it may have succeeded, so a failure can leave a provisional key, which is
 * found by its tags.
 *
 * Secrets: data keys, in the callers' structs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kms.h"

#define CREATE_PAUSE	0.2		/* five a second is the account's quota */
#define SETUP_LOOKS		2
#define MARK_LEN		20

/* Wait for this thread's turn to make a key. */
static KsStatus
wait_for_turn(Keystore *ks, KsFailure *why)
{
	const double now = kms_now();
	double		turn;

	pthread_mutex_lock(&ks->lock);
	turn = ks->next_create > now ? ks->next_create : now;
	if (turn - now < kms_time_left() / 2)
		ks->next_create = turn + CREATE_PAUSE;
	pthread_mutex_unlock(&ks->lock);
	if (turn - now < kms_time_left() / 2 && (turn <= now || kms_pause(turn - now)))
		return KS_OK;
	return ks_fail(why, KS_THROTTLED, "more keys are being made than the five a second that the service allows");
}

static bool
add_tag(json_t *tags, const char *name, const char *value)
{
	return json_array_append_new(tags, json_pack("{s:s, s:s}", "TagKey", name,
												 "TagValue", value)) == 0;
}

/* The request for a key with its tags; "mark" is NULL or a provisional one's time. */
static json_t *
create_request(const KmsKey *key, const char *inst, const char *school, const char *mark,
			   KmsKind kind, const char *policy)
{
	const bool	wrapping = kind == KMS_WRAPPING;
	json_t	   *tags = json_array();
	json_t	   *body = json_pack("{s:s, s:s, s:s, s:s, s:b}",
								 "Description", key->label,
								 "KeySpec", wrapping ? "SYMMETRIC_DEFAULT" : "ECC_NIST_P256",
								 "KeyUsage", wrapping ? "ENCRYPT_DECRYPT" : "SIGN_VERIFY",
								 "Origin", "AWS_KMS", "MultiRegion", false);
	bool		ok = body != NULL && tags != NULL && add_tag(tags, TAG_LABEL, key->label) &&
		add_tag(tags, TAG_INSTALLATION, inst) && add_tag(tags, TAG_SCHOOL, school) &&
		(mark == NULL || add_tag(tags, TAG_PROVISIONAL, mark)) &&
		(policy == NULL || json_object_set_new(body, "Policy", json_string(policy)) == 0) &&
		json_object_set(body, "Tags", tags) == 0;

	json_decref(tags);
	if (ok)
		return body;
	json_decref(body);
	return NULL;
}

/* Wait until the service shows a new key with its label. */
static KsStatus
wait_until_seen(Keystore *ks, KmsKind kind, KmsKey *key, KsFailure *why)
{
	const KmsKey made = *key;
	KmsAgain	again = {0};
	KmsSight	sight;
	KsStatus	status;

	do
	{
		status = kms_describe(ks, made.arn, kind, &sight, why);
		if (status == KS_OK && sight.found && sight.state == KS_STATE_USABLE)
			status = directory_read(ks, made.arn, key, why);
		else if (status == KS_OK || sight.creating)
			status = KS_KEY_ABSENT;
		if (status == KS_OK && strcmp(key->label, made.label) == 0 &&
			key->provisional == made.provisional)
		{
			key->described = true;
			strcpy(key->made_as, sight.made_as);
			directory_described(ks->directory, key->arn, key->made_as);
			directory_made(ks->directory, key->arn);
			return KS_OK;
		}
	} while (kms_again(&again, status == KS_OK || status == KS_KEY_ABSENT || status == KS_ACCESS_DENIED,
					   &status, why));
	if (status != KS_OK && status != KS_KEY_ABSENT)
		return status;
	return ks_fail(why, KS_NETWORK, "the service does not show the new key %s in time", made.arn);
}

/* Have the service make a key; sets its ARN. */
static KsStatus
create_key(Keystore *ks, KmsKey *key, const char *inst, const char *school, const char *mark,
		   KmsKind kind, KsFailure *why)
{
	char	   *policy = NULL;
	KmsSight	sight;
	KmsArn		arn;
	AwsReply	reply = {0};
	KsStatus	status = kms_policy(ks, inst, school, &policy, why);

	if (status == KS_OK)
		status = wait_for_turn(ks, why);
	if (status == KS_OK)
		status = kms_call(ks, AWS_EVERYDAY, "CreateKey",
						  create_request(key, inst, school, mark, kind, policy), &reply, why);
	free(policy);
	if (status == KS_REFUSED && reply.error[0] != '\0')
		status = kms_refused("CreateKey", &reply, why);
	if (status == KS_OK)
		status = kms_read_description(ks, json_object_get(reply.body, "KeyMetadata"), kind,
									  &arn, &sight, why);
	aws_reply_free(&reply);
	if (status == KS_OK)
		strcpy(key->arn, arn.text);
	return status;
}

/* Was a key with that label made lately, and has not shown yet? */
static bool
get_unseen(Keystore *ks, KmsKey *key)
{
	bool		found;

	pthread_mutex_lock(&ks->lock);
	found = strcmp(ks->unseen.label, key->label) == 0 && kms_now() - ks->unseen.made < KMS_LAG;
	if (found)
		strcpy(key->arn, ks->unseen.arn);
	pthread_mutex_unlock(&ks->lock);
	return found;
}

static void
set_unseen(Keystore *ks, const KmsKey *key, bool unseen)
{
	pthread_mutex_lock(&ks->lock);
	if (unseen)
	{
		strcpy(ks->unseen.label, key->label);
		strcpy(ks->unseen.arn, key->arn);
		ks->unseen.made = kms_now();
	}
	else if (strcmp(ks->unseen.arn, key->arn) == 0)
		ks->unseen.label[0] = '\0';
	pthread_mutex_unlock(&ks->lock);
}

/*
 * Make a key that is usable when this returns.  One that is to last has its
 * label alone: if it was made by an earlier request, for which it did not show
 * in time, it is waited for and not made again.
 */
KsStatus
kms_make_key(Keystore *ks, const char *label, const char *inst, const char *school,
			 const char *mark, KmsKind kind, KmsKey *out, KsFailure *why)
{
	KmsKey		key = {.provisional = mark != NULL};
	KsStatus	status = KS_OK;

	snprintf(key.label, sizeof(key.label), "%s", label);
	if (mark != NULL || !get_unseen(ks, &key))
	{
		status = create_key(ks, &key, inst, school, mark, kind, why);
		if (status == KS_OK && mark == NULL)
			set_unseen(ks, &key, true);
	}
	if (status == KS_OK)
		status = wait_until_seen(ks, kind, &key, why);
	if (status == KS_OK && mark == NULL)
		set_unseen(ks, &key, false);
	*out = key;
	return status;
}

/* ---- the canary ---- */

/* A canary that was just made works after a while. */
static KsStatus
wait_until_healthy(Keystore *ks, const char *inst, KsFailure *why)
{
	KmsAgain	again = {0};
	KsStatus	status;

	do
		status = kms_prove_healthy(ks, inst, why);
	while (kms_again(&again, status == KS_MODULE_ERROR || status == KS_ACCESS_DENIED, &status, why));
	return status;
}

KsStatus
kms_setup(Keystore *ks, const char *inst, bool *created, char *serial, KsFailure *why)
{
	char		label[KS_MAX_LABEL + 1];
	KmsKey		canary;
	KsStatus	status = ks->bad;

	*why = ks->bad_why;
	label_canary(inst, label);
	for (int look = 0; status == KS_OK && look < SETUP_LOOKS; look++)
	{
		status = kms_canary(ks, inst, &canary, why);
		if (status != KS_TOKEN_WRONG || kms_knows_canary(ks, inst))
			break;
		status = look + 1 < SETUP_LOOKS && !kms_pause(0.5) ? KS_TOKEN_WRONG : KS_OK;
		*created = status == KS_OK && look + 1 == SETUP_LOOKS;
	}
	if (status == KS_OK)
		status = kms_check_expected(ks, why);
	if (status == KS_OK && *created)
		status = kms_make_key(ks, label, inst, "canary", NULL, KMS_WRAPPING, &canary, why);
	/* one that is there may be all that an earlier call could do */
	if (status == KS_OK)
		status = wait_until_healthy(ks, inst, why);
	if (status == KS_OK && *created)
	{
		status = directory_refresh(ks, why);
		if (status == KS_OK)
			status = kms_canary(ks, inst, &canary, why);
	}
	kms_serial(ks, serial);
	return status;
}

/* ---- KEKs ---- */

/* How many keys have the label, in any state. */
static KsStatus
count_keys(Keystore *ks, const KsLabel *label, size_t *n, KsFailure *why)
{
	const KmsQuery query = {label->inst, label->base, false, false, KMS_WRAPPING};
	KmsFounds	founds;
	KsStatus	status = kms_look(ks, &query, &founds, why);

	*n = founds.n;
	kms_free_founds(&founds);
	return status;
}

/* Wrap under a key that was just made, which may still be unknown somewhere. */
static KsStatus
wrap_new(Keystore *ks, const KmsKey *kek, const KsLabel *label, KsNewKey *key, KsFailure *why)
{
	const KmsPlace place = {label->inst, label->tenant, key->aad};
	KmsAgain	again = {0};
	KsStatus	status;

	do
		status = kms_wrap_key(ks, kek, &place, true, key, why);
	while (kms_again(&again, status == KS_KEY_ABSENT || status == KS_KEY_DISABLED ||
					 status == KS_ACCESS_DENIED, &status, why));
	if (status == KS_KEY_ABSENT || status == KS_KEY_DISABLED)
		return ks_fail(why, KS_NETWORK, "the service does not use the new key %s in time", kek->arn);
	return status;
}

KsStatus
kms_create_kek(Keystore *ks, const KsLabel *label, KsNewKey *keys, int n, char *serial,
			   KsFailure *why)
{
	KsLabel		marked = *label;
	KmsKey		kek;
	size_t		there = 0;
	KsStatus	status = kms_begin(ks, label->inst, why);

	if (status == KS_OK)
		status = count_keys(ks, label, &there, why);
	if (status == KS_OK && there > 0)
		status = ks_fail(why, KS_EXISTS, "a key \"%s\" is there already", label->base);
	label_mark(&marked, time(NULL));
	if (status == KS_OK)
		status = kms_make_key(ks, label->base, label->inst, label->tenant,
							  marked.full + strlen(marked.full) - MARK_LEN, KMS_WRAPPING,
							  &kek, why);
	for (int i = 0; status == KS_OK && i < n; i++)
		status = wrap_new(ks, &kek, label, &keys[i], why);
	if (status == KS_OK)
		status = count_keys(ks, label, &there, why);
	if (status == KS_OK && there != 1)
		status = ks_fail(why, KS_REFUSED, "%zu keys have the label \"%s\" after one was made",
						 there, label->base);
	kms_serial(ks, serial);
	return status;
}

/* Read a key's tags.  That it is absent is a verdict here. */
static KsStatus
read_surely(Keystore *ks, const char *inst, const KmsKey *was, KmsKey *key, KsFailure *why)
{
	KmsAgain	again = {0};
	KsStatus	status;
	bool		shown;

	do
	{
		status = directory_read(ks, was->arn, key, why);
		if (status != KS_KEY_ABSENT)
			return status;
		status = kms_explain(ks, inst, was, KMS_WRAPPING, why);
		shown = status == KS_OK;
		if (shown)
			status = ks_fail(why, KS_NETWORK, "the service shows %s, and not its tags", was->arn);
	} while (kms_again(&again, shown, &status, why));
	return status;
}

/* Take a key's provisional mark off, and see that it is off. */
KsStatus
kms_take_off_mark(Keystore *ks, const char *inst, KmsKey *key, KsFailure *why)
{
	const KmsKey was = *key;
	double		pause = KMS_FIRST_PAUSE;
	AwsReply	reply;
	KsStatus	status = read_surely(ks, inst, &was, key, why);

	if (status != KS_OK || !key->provisional)
		return status;
	status = kms_call(ks, AWS_EVERYDAY, "UntagResource",
					  json_pack("{s:s, s:[s]}", "KeyId", was.arn, "TagKeys", TAG_PROVISIONAL),
					  &reply, why);
	if (status == KS_REFUSED)
	{
		status = kms_refused("UntagResource", &reply, why);
		if (kms_error_is(&reply, "KMSInvalidStateException") ||
			kms_error_is(&reply, "NotFoundException"))
		{
			const KsStatus reason = kms_explain(ks, inst, &was, KMS_WRAPPING, why);

			status = reason == KS_OK ? status : reason;
		}
	}
	aws_reply_free(&reply);
	while (status == KS_OK)
	{
		status = read_surely(ks, inst, &was, key, why);
		if (status != KS_OK || !key->provisional)
			return status;
		pause = kms_longer(pause);
		if (!kms_pause(pause))
			return ks_fail(why, KS_NETWORK, "the service does not show in time that %s is lasting", was.arn);
	}
	return status;
}

KsStatus
kms_confirm(Keystore *ks, const KsLabel *label, KsFailure *why)
{
	KmsKey		key;
	KmsAgain	again = {0};
	KsStatus	status = kms_begin(ks, label->inst, why);

	if (status == KS_OK)
		status = kms_find_surely(ks, label, &key, why);
	if (status != KS_OK || !key.provisional)
		return status;
	do
		status = kms_take_off_mark(ks, label->inst, &key, why);
	while (kms_again(&again, status == KS_ACCESS_DENIED && directory_is_new(ks->directory, key.arn),
					 &status, why));
	return status;
}
