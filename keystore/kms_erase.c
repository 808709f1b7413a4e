/*
 * kms_erase.c
 *		The operations that look for keys, disable and end them.
 *
 * Keys do not end at once: the service is asked for their deletion, waits for
 * a number of days in which anybody with the right can cancel it, and then
 * does not know them any more.  What counts is not what it answers to the
 * request but what it then says of the key.  Deletions are asked for with the
 * credentials that are set apart for it.  No secrets here.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kms.h"


static void
add_seen(KsSeen *seen, const KmsFound *found)
{
	KsSeenKey  *out = &seen->keys[seen->n++];
	KsLabel		label;

	memset(out, 0, sizeof(*out));
	strcpy(out->label, found->key.label);
	strcpy(out->reference, found->key.arn);
	out->state = found->sight.state;
	out->until = found->sight.until;
	out->provisional = found->key.provisional;
	out->created = found->key.created;
	if (out->provisional && label_parse(found->key.label, &label))
	{
		label_mark(&label, (time_t) out->created);
		strcpy(out->label, label.full);
	}
}

static KsStatus
look_for_tenant(Keystore *ks, const char *inst, const char *tenant, KmsFounds *out,
				KsFailure *why)
{
	char		prefix[KS_MAX_LABEL + 1];
	const KmsQuery query = {inst, prefix, true, false, KMS_WRAPPING};

	*out = (KmsFounds) {NULL, 0};
	if (!label_is_uuid(tenant))
		return ks_fail(why, KS_UNSUPPORTED, "a key service takes one school at a time");
	label_tenant_prefix(inst, tenant, prefix);
	return kms_look(ks, &query, out, why);
}

static KsStatus
look_for_kek(Keystore *ks, const KsLabel *label, KmsFounds *out, KsFailure *why)
{
	const KmsQuery query = {label->inst, label->base, false, false, KMS_WRAPPING};

	return kms_look(ks, &query, out, why);
}

KsStatus
kms_list(Keystore *ks, const char *inst, uint32_t offset, KsSeen *out, KsFailure *why)
{
	char		prefix[KS_MAX_LABEL + 1];
	const KmsQuery query = {inst, prefix, true, true, KMS_WRAPPING};
	KmsFounds	founds = {0};
	KsStatus	status = kms_begin(ks, inst, why);

	label_installation_prefix(inst, prefix);
	memset(out, 0, sizeof(*out));
	if (status == KS_OK)
		status = kms_look(ks, &query, &founds, why);
	for (size_t i = 0; status == KS_OK && i < founds.n; i++)
	{
		if (founds.items[i].sight.state == KS_STATE_PENDING)
			continue;
		if (out->total++ >= offset && out->n < KS_LIST_PAGE)
			add_seen(out, &founds.items[i]);
	}
	kms_free_founds(&founds);
	return status;
}

KsStatus
kms_see(Keystore *ks, const char *inst, const char *tenant, uint32_t offset, KsSeen *out,
		KsFailure *why)
{
	KmsFounds	founds = {0};
	KsStatus	status = kms_begin(ks, inst, why);

	memset(out, 0, sizeof(*out));
	if (status == KS_OK)
		status = look_for_tenant(ks, inst, tenant, &founds, why);
	for (size_t i = offset; status == KS_OK && i < founds.n && out->n < KS_LIST_PAGE; i++)
		add_seen(out, &founds.items[i]);
	out->total = founds.n;
	kms_serial(ks, out->serial);
	kms_free_founds(&founds);
	return status;
}

/* ---- changing states ---- */

/* Ask the service for a key until it says what it should, or is gone. */
static KsStatus
wait_for_state(Keystore *ks, const char *arn, KsKeyState wanted, KmsSight *sight,
			   KsFailure *why)
{
	double		pause = KMS_FIRST_PAUSE;

	for (;;)
	{
		KsStatus	status = kms_describe(ks, arn, KMS_WRAPPING, sight, why);

		if (status != KS_OK || !sight->found || sight->state == wanted ||
			sight->state == KS_STATE_PENDING)
			return status;
		if (!kms_pause(pause))
			return ks_fail(why, KS_NETWORK, "the service does not show the new state of %s in time", arn);
		pause = kms_longer(pause);
	}
}

typedef struct Deletion
{
	KmsFound   *items;
	unsigned	days;
	bool		asked[KS_LIST_PAGE];
} Deletion;

/* Ask for the deletion of one key, and see that it is pending. */
static KsStatus
schedule_one(Keystore *ks, size_t i, void *arg, KsFailure *why)
{
	Deletion   *d = arg;
	KmsFound   *found = &d->items[i];
	AwsReply	reply;
	KsStatus	status = kms_call(ks, AWS_DESTROYER, "ScheduleKeyDeletion",
								  json_pack("{s:s, s:i}", "KeyId", found->key.arn,
											"PendingWindowInDays", (int) d->days), &reply, why);

	d->asked[i] = status == KS_OK;
	if (status == KS_OK)
		status = kms_answers_for("ScheduleKeyDeletion", &reply, found->key.arn, why);
	/* somebody else asked first, or it is gone: what it is now is seen below */
	else if (status == KS_REFUSED && (kms_error_is(&reply, "KMSInvalidStateException") ||
									  kms_error_is(&reply, "NotFoundException")))
		status = KS_OK;
	else if (status == KS_REFUSED)
		status = kms_refused("ScheduleKeyDeletion", &reply, why);
	aws_reply_free(&reply);
	if (status == KS_OK)
		status = wait_for_state(ks, found->key.arn, KS_STATE_PENDING, &found->sight, why);
	/* it was not pending before: an answer was lost, and it was asked for twice */
	d->asked[i] |= status == KS_OK && found->sight.found;
	return status;
}

/*
 * Ask for the deletion of those that are not pending, as many as an answer has
 * room for; "out" lists those it was asked for.  *left were not.
 */
static KsStatus
schedule(Keystore *ks, KmsFounds *founds, unsigned days, KsSeen *out, size_t *left,
		 KsFailure *why)
{
	KmsFound	todo[KS_LIST_PAGE];
	Deletion	d = {todo, days, {false}};
	size_t		n = 0;
	KsStatus	status;

	*left = 0;
	for (size_t i = 0; i < founds->n; i++)
	{
		if (founds->items[i].sight.state == KS_STATE_PENDING)
			continue;
		if (n < KS_LIST_PAGE)
			todo[n++] = founds->items[i];
		else
			(*left)++;
	}
	status = kms_each(ks, n, schedule_one, &d, why);
	for (size_t i = 0; status == KS_OK && i < n; i++)
	{
		if (d.asked[i])
			add_seen(out, &todo[i]);
	}
	return status;
}

/* What is there afterwards must be pending, but for those that were left. */
static KsStatus
count_pending(const KmsFounds *after, size_t left, KsSeen *out, KsFailure *why)
{
	size_t		living = 0;

	for (size_t i = 0; i < after->n; i++)
	{
		const KmsSight *sight = &after->items[i].sight;

		if (sight->state != KS_STATE_PENDING)
		{
			living++;
			continue;
		}
		out->pending++;
		if (sight->until > out->until)
			out->until = sight->until;
	}
	return living <= left ? KS_OK :
		ks_fail(why, KS_MODULE_ERROR, "%zu keys are not pending deletion after it was asked for", living);
}

static KsStatus
check_deletion(Keystore *ks, const char *wanted, unsigned days, KsFailure *why)
{
	char		serial[KS_MAX_SERIAL + 1];

	kms_serial(ks, serial);
	if (strcmp(serial, wanted) != 0)
		return ks_fail(why, KS_TOKEN_WRONG, "the keystore is \"%s\", not the one expected", serial);
	if (days < KMS_MIN_DAYS || days > KMS_MAX_DAYS)
		return ks_fail(why, KS_REFUSED, "deletion can be asked for in %d to %d days, not in %u",
					   KMS_MIN_DAYS, KMS_MAX_DAYS, days);
	return KS_OK;
}

KsStatus
kms_destroy(Keystore *ks, const char *inst, const char *tenant, const char *serial,
			unsigned days, KsSeen *out, KsFailure *why)
{
	KmsFounds	founds = {0};
	KmsFounds	after = {0};
	size_t		left = 0;
	KsStatus	status = kms_begin(ks, inst, why);

	memset(out, 0, sizeof(*out));
	if (status == KS_OK)
		status = check_deletion(ks, serial, days, why);
	if (status == KS_OK)
		status = look_for_tenant(ks, inst, tenant, &founds, why);
	if (status == KS_OK)
		status = schedule(ks, &founds, days, out, &left, why);
	if (status == KS_OK)
		status = look_for_tenant(ks, inst, tenant, &after, why);
	if (status == KS_OK)
		status = count_pending(&after, left, out, why);
	kms_free_founds(&founds);
	kms_free_founds(&after);
	return status;
}

/* Ask for the end of a KEK's keys that were found, and look at what is left. */
static KsStatus
end_keks(Keystore *ks, const KsLabel *label, KmsFounds *founds, unsigned days, KsSeen *seen,
		 KsFailure *why)
{
	KmsFounds	after = {0};
	size_t		left = 0;
	KsStatus	status = schedule(ks, founds, days, seen, &left, why);

	if (status == KS_OK)
		status = look_for_kek(ks, label, &after, why);
	if (status == KS_OK)
		status = count_pending(&after, left, seen, why);
	kms_free_founds(&after);
	return status;
}

KsStatus
kms_destroy_kek(Keystore *ks, const KsLabel *label, const char *serial, unsigned days,
				bool *destroyed, uint64_t *until, KsFailure *why)
{
	KmsFounds	founds = {0};
	KsSeen		seen = {0};
	KsStatus	status = kms_begin(ks, label->inst, why);

	if (status == KS_OK)
		status = check_deletion(ks, serial, days, why);
	if (status == KS_OK)
		status = look_for_kek(ks, label, &founds, why);
	if (status == KS_OK)
		status = end_keks(ks, label, &founds, days, &seen, why);
	*destroyed = seen.n > 0;
	*until = seen.until;
	kms_free_founds(&founds);
	return status;
}

/* May this key be removed?  It must carry the mark, and long enough. */
static KsStatus
check_removable(const KsLabel *label, uint64_t seconds, const KmsFound *found, KsFailure *why)
{
	const uint64_t now = (uint64_t) time(NULL);
	const KmsKey *key = &found->key;

	if (!key->provisional || (label->provisional && label->created != key->created))
		return ks_fail(why, KS_REFUSED, "the key \"%s\" is not provisional", key->label);
	if (key->created > now || now - key->created < seconds)
		return ks_fail(why, KS_REFUSED, "the key \"%s\" is not old enough", key->label);
	return KS_OK;
}

KsStatus
kms_remove(Keystore *ks, const KsLabel *label, uint64_t seconds, bool *removed, KsFailure *why)
{
	KmsFounds	founds = {0};
	KsSeen		seen = {0};
	KsStatus	status = kms_begin(ks, label->inst, why);

	if (status == KS_OK)
		status = look_for_kek(ks, label, &founds, why);
	for (size_t i = 0; status == KS_OK && i < founds.n; i++)
	{
		if (founds.items[i].sight.state != KS_STATE_PENDING)
			status = check_removable(label, seconds, &founds.items[i], why);
	}
	if (status == KS_OK)
		status = end_keks(ks, label, &founds, KMS_MIN_DAYS, &seen, why);
	*removed = seen.n > 0;
	kms_free_founds(&founds);
	return status;
}

/* ---- disabling ---- */

typedef struct Switch
{
	KmsFound   *items;
	KsKeyState	wanted;
} Switch;

/* One that is pending deletion cannot be switched, and cannot be used either. */
static KsStatus
switch_one(Keystore *ks, size_t i, void *arg, KsFailure *why)
{
	const Switch *s = arg;
	KmsFound   *found = &s->items[i];
	const char *action = s->wanted == KS_STATE_USABLE ? "EnableKey" : "DisableKey";
	AwsReply	reply;
	KsStatus	status;

	if (found->sight.state == s->wanted || found->sight.state == KS_STATE_PENDING)
		return KS_OK;
	status = kms_call(ks, AWS_EVERYDAY, action, json_pack("{s:s}", "KeyId", found->key.arn),
					  &reply, why);
	if (status == KS_REFUSED)
		status = kms_error_is(&reply, "KMSInvalidStateException") ||
			kms_error_is(&reply, "NotFoundException") ? KS_OK :
			kms_refused(action, &reply, why);
	aws_reply_free(&reply);
	return status != KS_OK ? status :
		wait_for_state(ks, found->key.arn, s->wanted, &found->sight, why);
}

KsStatus
kms_enable(Keystore *ks, const char *inst, const char *tenant, bool on, size_t *found,
		   size_t *obeyed, KsFailure *why)
{
	KmsFounds	founds = {0};
	Switch		s = {.wanted = on ? KS_STATE_USABLE : KS_STATE_DISABLED};
	KsStatus	status = kms_begin(ks, inst, why);

	*found = *obeyed = 0;
	if (status == KS_OK)
		status = look_for_tenant(ks, inst, tenant, &founds, why);
	s.items = founds.items;
	if (status == KS_OK)
		status = kms_each(ks, founds.n, switch_one, &s, why);
	for (size_t i = 0; status == KS_OK && i < founds.n; i++)
	{
		const KmsSight *sight = &founds.items[i].sight;

		*found += sight->found;
		*obeyed += sight->found && (on ? sight->state == KS_STATE_USABLE :
									sight->state != KS_STATE_USABLE);
	}
	kms_free_founds(&founds);
	return status;
}
