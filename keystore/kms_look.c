/*
 * kms_look.c
 *		Finds keys, and says so only where the keystore is surely ours.
 *
 * The canary is a key with a fixed label, one for each installation.  It
 * tells the account, and with it the serial.  That a key is absent or must
 * not be used is said only between two sightings of the canary; absence only
 * if the key was looked for several times, because what the service shows
 * lags behind what it did.  No secrets here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kms.h"

#define LOOKS			3		/* before a key is called absent */
#define LOOK_PAUSE		0.5		/* seconds between them */

static _Thread_local char expected[KS_MAX_SERIAL + 1];

/* The account that this thread's next operation is for. */
void
kms_expect(const char *serial)
{
	snprintf(expected, sizeof(expected), "%s", serial);
}

/* What stands in for a token's serial number; "" as long as it is not known. */
void
kms_serial(Keystore *ks, char out[KS_MAX_SERIAL + 1])
{
	pthread_mutex_lock(&ks->lock);
	out[0] = '\0';
	if (ks->account[0] != '\0')
		snprintf(out, KS_MAX_SERIAL + 1, "arn:%.12s:kms:%.24s:%s", ks->partition,
				 ks->options.region, ks->account);
	pthread_mutex_unlock(&ks->lock);
}

KsStatus
kms_check_expected(Keystore *ks, KsFailure *why)
{
	char		serial[KS_MAX_SERIAL + 1];

	kms_serial(ks, serial);
	if (expected[0] == '\0' || strcmp(serial, expected) == 0)
		return KS_OK;
	return ks_fail(why, KS_OTHER_TOKEN, "the keystore is \"%s\", not the one expected", serial);
}

/* Begin an operation: can the service be asked, and is it the one expected? */
KsStatus
kms_begin(Keystore *ks, const char *inst, KsFailure *why)
{
	char		serial[KS_MAX_SERIAL + 1];
	KmsKey		canary;
	KsStatus	status = ks->bad;

	*why = ks->bad_why;
	kms_serial(ks, serial);
	if (status == KS_OK && serial[0] == '\0' && inst[0] != '\0')
		status = kms_canary(ks, inst, &canary, why);
	return status == KS_OK ? kms_check_expected(ks, why) : status;
}

/* ---- the canary ---- */

static void
format_date(uint64_t t, char out[32])
{
	time_t		when = (time_t) t;
	struct tm	tm;

	if (gmtime_r(&when, &tm) == NULL || strftime(out, 32, "%Y-%m-%d %H:%M UTC", &tm) == 0)
		strcpy(out, "an unknown date");
}

/* The account is the canary's, from the first time that it is seen. */
static KsStatus
learn_account(Keystore *ks, const char *arn, KsFailure *why)
{
	KmsArn		parsed;

	if (!kms_arn_parse(arn, &parsed))
		return ks_fail(why, KS_MODULE_ERROR, "%s is no name of a key", arn);
	pthread_mutex_lock(&ks->lock);
	if (ks->account[0] == '\0')
		strcpy(ks->account, parsed.account);
	pthread_mutex_unlock(&ks->lock);
	return kms_check_arn(ks, &parsed, why);
}

/* Ask for the canaries that are known, now; how many there are. */
static KsStatus
see_canaries(Keystore *ks, const char *inst, KmsKey *out, size_t *n, KsFailure *why)
{
	char		label[KS_MAX_LABEL + 1];
	KmsKeys		known;
	KsStatus	status = KS_OK;

	*n = 0;
	label_canary(inst, label);
	why->reason[0] = '\0';
	if (!directory_match(ks->directory, label, false, &known))
		return ks_fail(why, KS_MODULE_ERROR, "out of memory");
	for (size_t i = 0; status == KS_OK && i < known.n; i++)
	{
		KmsSight	sight;
		char		date[32];

		status = kms_describe(ks, known.items[i].arn, KMS_WRAPPING, &sight, why);
		if (status != KS_OK)
			break;
		if (!sight.found)
			directory_gone(ks->directory, known.items[i].arn);
		else if (sight.state == KS_STATE_PENDING)
		{
			format_date(sight.until, date);
			ks_fail(why, KS_OK, "the canary, %s, is scheduled for deletion on %s",
					known.items[i].arn, date);
		}
		else
		{
			*out = known.items[i];
			(*n)++;
		}
	}
	directory_free_keys(&known);
	return status;
}

/* Is a canary known, if only one that cannot be used? */
bool
kms_knows_canary(Keystore *ks, const char *inst)
{
	char		label[KS_MAX_LABEL + 1];
	KmsKeys		known;
	bool		knows;

	label_canary(inst, label);
	knows = !directory_match(ks->directory, label, false, &known) || known.n > 0;
	directory_free_keys(&known);
	return knows;
}

/* Ask the service, now, for the installation's canary. */
KsStatus
kms_canary(Keystore *ks, const char *inst, KmsKey *out, KsFailure *why)
{
	size_t		n = 0;
	KsStatus	status = see_canaries(ks, inst, out, &n, why);

	if (status == KS_OK && n == 0)
	{
		status = directory_refresh(ks, why);
		if (status == KS_OK)
			status = see_canaries(ks, inst, out, &n, why);
	}
	if (status != KS_OK)
		return status;
	if (n > 1)
		return ks_fail(why, KS_REFUSED, "%zu keys are tagged as this installation's canary: take the tag off all but one",
					   n);
	if (n == 1)
		return learn_account(ks, out->arn, why);
	if (why->reason[0] != '\0')
		return KS_TOKEN_WRONG;
	return ks_fail(why, KS_TOKEN_WRONG, "this account has no canary of this installation in this region");
}

/* ---- looking ---- */

void
kms_free_founds(KmsFounds *founds)
{
	free(founds->items);
	*founds = (KmsFounds) {NULL, 0};
}

typedef struct Search
{
	const KmsQuery *query;
	KmsFounds  *founds;
} Search;

/* What is remembered of a key is read again; one that is gone loses its label. */
static KsStatus
look_at(Keystore *ks, size_t i, void *arg, KsFailure *why)
{
	Search	   *search = arg;
	KmsFound   *found = &search->founds->items[i];
	KsStatus	status = directory_read(ks, found->key.arn, &found->key, why);

	if (status == KS_OK)
		status = kms_describe(ks, found->key.arn, search->query->kind, &found->sight, why);
	if (status == KS_KEY_ABSENT || (status == KS_OK && !found->sight.found))
	{
		directory_gone(ks->directory, found->key.arn);
		found->key.label[0] = '\0';
		return KS_OK;
	}
	return status;
}

static bool
is_wanted(const KmsQuery *query, const KmsKey *key)
{
	const size_t len = strlen(query->label) + (query->as_prefix ? 0 : 1);

	return strncmp(key->label, query->label, len) == 0 &&
		(!query->provisional || key->provisional);
}

/* Take what the directory has for a query, without looking at it. */
static bool
take_known(Keystore *ks, const KmsQuery *query, KmsFounds *out)
{
	KmsKeys		known;

	if (!directory_match(ks->directory, query->label, query->as_prefix, &known))
		return false;
	out->items = calloc(known.n + 1, sizeof(*out->items));
	for (size_t i = 0; out->items != NULL && i < known.n; i++)
	{
		if (is_wanted(query, &known.items[i]))
			out->items[out->n++].key = known.items[i];
	}
	directory_free_keys(&known);
	return out->items != NULL;
}

/*
 * The keys that there are now, in order of label, each looked at, with the
 * canary seen before and after.  Free what is found, also after a failure.
 */
KsStatus
kms_look(Keystore *ks, const KmsQuery *query, KmsFounds *out, KsFailure *why)
{
	Search		search = {query, out};
	KmsKey		canary;
	size_t		kept = 0;
	KsStatus	status = kms_canary(ks, query->inst, &canary, why);

	*out = (KmsFounds) {NULL, 0};
	if (status == KS_OK)
		status = directory_refresh(ks, why);
	if (status == KS_OK && !take_known(ks, query, out))
		status = ks_fail(why, KS_MODULE_ERROR, "out of memory");
	if (status == KS_OK)
		status = kms_each(ks, out->n, look_at, &search, why);
	if (status == KS_OK)
		status = kms_canary(ks, query->inst, &canary, why);
	for (size_t i = 0; status == KS_OK && i < out->n; i++)
	{
		if (is_wanted(query, &out->items[i].key))
			out->items[kept++] = out->items[i];
	}
	out->n = kept;
	return status;
}

/*
 * Find the one key of a label, as it is now.  KS_KEY_ABSENT is a verdict:
 * canary seen before and after, and not for the first time.
 */
KsStatus
kms_find(Keystore *ks, const char *inst, const char *label, KmsKind kind, KmsFound *out,
		 KsFailure *why)
{
	const KmsQuery query = {inst, label, false, false, kind};

	for (int look = 0; look < LOOKS; look++)
	{
		KmsFounds	founds;
		KsStatus	status;
		size_t		n;

		if (look > 0 && !kms_pause(LOOK_PAUSE))
			return ks_fail(why, KS_NETWORK, "there was no time to make sure that the key \"%s\" is absent",
						   label);
		status = kms_look(ks, &query, &founds, why);
		n = founds.n;
		if (status == KS_OK && n == 1)
			*out = founds.items[0];
		kms_free_founds(&founds);
		if (status != KS_OK || n == 1)
			return status;
		if (n > 1)
			return ks_fail(why, KS_REFUSED, "%zu keys have the label \"%s\": none is used", n, label);
	}
	return ks_fail(why, KS_KEY_ABSENT, "there is no key \"%s\"", label);
}

/* Ask for those that were not found yet; how many are left. */
static KsStatus
look_again(Keystore *ks, KsLooked *keys, int n, int *left, KsFailure *why)
{
	*left = 0;
	for (int i = 0; i < n; i++)
	{
		KmsSight	sight;
		KmsArn		arn;
		KsStatus	status = KS_OK;

		if (keys[i].found)
			continue;
		if (!kms_arn_parse(keys[i].reference, &arn))
			return ks_fail(why, KS_REFUSED, "\"%s\" is no name of a key", keys[i].reference);
		status = kms_check_arn(ks, &arn, why);
		if (status == KS_OK)
			status = kms_describe(ks, keys[i].reference, KMS_WRAPPING, &sight, why);
		if (status != KS_OK)
			return status;
		keys[i].found = sight.found;
		keys[i].state = sight.state;
		keys[i].until = sight.until;
		*left += !sight.found;
	}
	return KS_OK;
}

/*
 * Look for keys by their ARNs, whatever tags they have.  That one is not
 * found is a verdict: looked for as often as by a label, the canary seen.
 */
KsStatus
kms_look_by_name(Keystore *ks, const char *inst, KsLooked *keys, int n, KsFailure *why)
{
	int			left = n;
	KmsKey		canary;
	KsStatus	status = kms_begin(ks, inst, why);

	for (int look = 0; status == KS_OK && left > 0 && look < LOOKS; look++)
	{
		if (look > 0 && !kms_pause(LOOK_PAUSE))
			return ks_fail(why, KS_NETWORK, "there was no time to make sure that keys are absent");
		status = kms_canary(ks, inst, &canary, why);
		if (status == KS_OK)
			status = look_again(ks, keys, n, &left, why);
		if (status == KS_OK)
			status = kms_canary(ks, inst, &canary, why);
	}
	return status;
}

/*
 * Make sure of a key that is known by its name: of the right kind, and which
 * label it has.  Done once in a helper's life.  KS_KEY_ABSENT is no verdict.
 */
KsStatus
kms_meet(Keystore *ks, const char *arn, KmsKey *out, KsFailure *why)
{
	const bool	known = directory_get(ks->directory, arn, out) && out->label[0] != '\0';
	KmsSight	sight;
	KsStatus	status;

	if (known && out->described)
		return KS_OK;
	status = kms_describe(ks, arn, KMS_WRAPPING, &sight, why);
	if (status == KS_OK && !sight.found)
	{
		directory_gone(ks->directory, arn);
		return ks_fail(why, KS_KEY_ABSENT, "the service does not know %s", arn);
	}
	if (status == KS_OK && !known)
		status = directory_read(ks, arn, out, why);
	if (status != KS_OK)
		return status;
	out->described = true;
	directory_described(ks->directory, arn);
	return KS_OK;
}

/* Find a KEK by its label; one that is known is asked for its label only. */
KsStatus
kms_find_surely(Keystore *ks, const KsLabel *label, KmsKey *out, KsFailure *why)
{
	KmsKeys		known;
	KmsFound	found;
	KsStatus	status = KS_KEY_ABSENT;

	if (!directory_match(ks->directory, label->base, false, &known))
		return ks_fail(why, KS_MODULE_ERROR, "out of memory");
	if (known.n == 1)
		status = kms_meet(ks, known.items[0].arn, out, why);
	if (known.n == 1 && status == KS_OK)
		status = directory_read(ks, known.items[0].arn, out, why);
	directory_free_keys(&known);
	if (status != KS_KEY_ABSENT && (status != KS_OK || strcmp(out->label, label->base) == 0))
		return status;
	status = kms_find(ks, label->inst, label->base, KMS_WRAPPING, &found, why);
	if (status == KS_OK)
	{
		*out = found.key;
		out->described = true;
		directory_described(ks->directory, out->arn);
	}
	return status;
}

/* May a key be used?  KS_KEY_DISABLED says why not. */
KsStatus
kms_judge(const KmsFound *found, KsFailure *why)
{
	char		date[32];

	if (found->sight.state == KS_STATE_USABLE)
		return KS_OK;
	if (found->sight.state == KS_STATE_DISABLED)
		return ks_fail(why, KS_KEY_DISABLED, "the key \"%s\", %s, is disabled", found->key.label,
					   found->key.arn);
	format_date(found->sight.until, date);
	return ks_fail(why, KS_KEY_DISABLED, "the key \"%s\", %s, is scheduled for deletion on %s",
				   found->key.label, found->key.arn, date);
}

/*
 * The service would not use a key.  KS_KEY_ABSENT and KS_KEY_DISABLED are
 * verdicts, KS_OK means that it should be usable.
 */
KsStatus
kms_explain(Keystore *ks, const char *inst, const KmsKey *key, KmsKind kind, KsFailure *why)
{
	for (int look = 0; look < LOOKS; look++)
	{
		KmsFound	found = {.key = *key};
		KmsKey		canary;
		KsStatus	status;

		if (look > 0 && !kms_pause(LOOK_PAUSE))
			return ks_fail(why, KS_NETWORK, "there was no time to make sure that %s is absent", key->arn);
		status = kms_canary(ks, inst, &canary, why);
		if (status == KS_OK)
			status = kms_describe(ks, key->arn, kind, &found.sight, why);
		if (status == KS_OK)
			status = kms_canary(ks, inst, &canary, why);
		if (status != KS_OK || found.sight.found)
			return status == KS_OK ? kms_judge(&found, why) : status;
	}
	directory_gone(ks->directory, key->arn);
	return ks_fail(why, KS_KEY_ABSENT, "the key \"%s\", %s, is not there", key->label, key->arn);
}
