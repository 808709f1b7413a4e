/*
 * kms_look.c
 *		Finds keys, and says so only where the keystore is surely ours.
 *
 * The canary is a key with a fixed label, one for each installation.  It
 * tells the account, and with it the serial.  That a key is absent or must
 * not be used is said only between two sightings of the canary; absence only
 * if the key was looked for several times, because what the service shows
 * lags behind what it did.
 *
 * Keys are found by a tag, which whoever may tag keys can change.  The same
 * label is a key's description, written when it was made, which no policy of
 * ours lets anybody change: it says whose the key is.  A key whose tag says
 * something else is a stray, and nobody's.  Where keys are destroyed, switched
 * or counted by their tag, one that has it wrongly is refused by its ARN; that
 * is about the keystore, and says nothing of a school or a value.
 *
 * No secrets here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kms.h"

#define LOOKS			3		/* before a key is called absent */
#define LOOK_PAUSE		0.5		/* seconds between them */

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

/* A key was made as something else than it is tagged as.  Logs have room for no more. */
static KsStatus
refuse_stray(const char *arn, const char *made_as, KsFailure *why)
{
	return ks_fail(why, KS_REFUSED, "%s was made as \"%s\", but its tag " TAG_LABEL " is another", arn, made_as);
}

/* If several keys may be meant, the tags of one are read again: some may be off by now. */
static KsStatus
tell_apart(Keystore *ks, KmsKeys *known, size_t i, KsFailure *why)
{
	KmsKey	   *key = &known->items[i];
	KsStatus	status = known->n > 1 ? directory_read(ks, key->arn, key, why) : KS_OK;

	if (status != KS_KEY_ABSENT)
		return status;
	key->label[0] = '\0';
	return KS_OK;
}

/* Ask for the canaries that are known, now; is there one?  Two are refused. */
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

		status = tell_apart(ks, &known, i, why);
		if (status == KS_OK && strcmp(known.items[i].label, label) != 0)
			continue;
		if (status == KS_OK)
			status = kms_describe(ks, known.items[i].arn, KMS_WRAPPING, &sight, why);
		if (status != KS_OK)
			break;
		if (!sight.found)
			directory_gone(ks->directory, known.items[i].arn);
		else if (strcmp(sight.made_as, label) != 0)
			refuse_stray(known.items[i].arn, sight.made_as, why);
		else if (sight.state == KS_STATE_PENDING)
		{
			format_date(sight.until, date);
			ks_fail(why, KS_OK, "the canary, %s, is scheduled for deletion on %s",
					known.items[i].arn, date);
		}
		else if ((*n)++ == 0)
			*out = known.items[i];
		else
			status = ks_fail(why, KS_REFUSED, "two keys are tagged as this installation's canary, "
							 "%s and %s: take the tag off one", out->arn, known.items[i].arn);
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
		found->key.label[0] = found->key.made_as[0] = '\0';
		return KS_OK;
	}
	if (status == KS_OK)
	{
		strcpy(found->key.made_as, found->sight.made_as);
		directory_described(ks->directory, found->key.arn, found->key.made_as);
	}
	return status;
}

static bool
is_label_of(const KmsQuery *query, const char *label)
{
	return strncmp(label, query->label, strlen(query->label) + (query->as_prefix ? 0 : 1)) == 0;
}

/* By its tag or by what it was made as. */
static bool
is_wanted(const KmsQuery *query, const KmsKey *key)
{
	return (is_label_of(query, key->label) || is_label_of(query, key->made_as)) &&
		(!query->provisional || key->provisional);
}

/*
 * Keep what is wanted; of the others, *stray is one that the tag says is.  One
 * that is pending deletion is left out: its tags cannot be put right any more.
 */
static void
sort_out(const KmsQuery *query, KmsFounds *founds, KmsKey *stray)
{
	size_t		kept = 0;

	for (size_t i = 0; i < founds->n; i++)
	{
		const KmsKey *key = &founds->items[i].key;

		if (!is_wanted(query, key))
			continue;
		if (strcmp(key->label, key->made_as) == 0)
			founds->items[kept++] = founds->items[i];
		else if (founds->items[i].sight.state == KS_STATE_PENDING)
			continue;
		else if (stray->arn[0] == '\0' || is_label_of(query, key->label))
			*stray = *key;
	}
	founds->n = kept;
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

/* Look for keys; *stray has an ARN if there is one that is not what its tag says. */
static KsStatus
look_for(Keystore *ks, const KmsQuery *query, KmsFounds *out, KmsKey *stray, KsFailure *why)
{
	Search		search = {query, out};
	KmsKey		canary;
	KsStatus	status = kms_canary(ks, query->inst, &canary, why);

	*out = (KmsFounds) {NULL, 0};
	memset(stray, 0, sizeof(*stray));
	if (status == KS_OK)
		status = directory_refresh(ks, why);
	if (status == KS_OK && !take_known(ks, query, out))
		status = ks_fail(why, KS_MODULE_ERROR, "out of memory");
	if (status == KS_OK)
		status = kms_each(ks, out->n, look_at, &search, why);
	if (status == KS_OK)
		status = kms_canary(ks, query->inst, &canary, why);
	if (status == KS_OK)
		sort_out(query, out, stray);
	else
		out->n = 0;
	return status;
}

/*
 * The keys that there are now, in order of label, each looked at, with the
 * canary seen before and after.  Refused if another key is tagged as one of
 * them; one of them that is tagged as another is left out, and can be looked
 * for by its name.  Free what is found, also after a failure.
 */
KsStatus
kms_look(Keystore *ks, const KmsQuery *query, KmsFounds *out, KsFailure *why)
{
	KmsKey		stray;
	KsStatus	status = look_for(ks, query, out, &stray, why);

	if (status == KS_OK && is_label_of(query, stray.label))
		status = refuse_stray(stray.arn, stray.made_as, why);
	return status;
}

/*
 * Find the one key of a label, as it is now, whatever else is tagged so.
 * KS_KEY_ABSENT is a verdict: canary seen before and after, and not for the
 * first time; not said of a key that is there and tagged as another.
 */
KsStatus
kms_find(Keystore *ks, const char *inst, const char *label, KmsKind kind, KmsFound *out,
		 KsFailure *why)
{
	const KmsQuery query = {inst, label, false, false, kind};
	KmsKey		stray = {0};

	for (int look = 0; look < LOOKS; look++)
	{
		KmsFounds	founds;
		KsStatus	status;
		size_t		n;

		if (look > 0 && !kms_pause(LOOK_PAUSE))
			return ks_fail(why, KS_NETWORK, "there was no time to make sure that the key \"%s\" is absent",
						   label);
		status = look_for(ks, &query, &founds, &stray, why);
		n = founds.n;
		if (status == KS_OK && n == 1)
			*out = founds.items[0];
		kms_free_founds(&founds);
		if (status != KS_OK || n == 1)
			return status;
		if (n > 1)
			return ks_fail(why, KS_REFUSED, "%zu keys have the label \"%s\": none is used", n, label);
	}
	if (stray.arn[0] != '\0')
		return refuse_stray(stray.arn, stray.made_as, why);
	return ks_fail(why, KS_KEY_ABSENT, "there is no key \"%s\"", label);
}

/* A key was found by its name: its tag may be right again since it was read. */
static KsStatus
learn_label(Keystore *ks, const char *arn, const char *made_as, KsFailure *why)
{
	KmsKey		key;
	KsStatus	status;

	directory_described(ks->directory, arn, made_as);
	if (!directory_get(ks->directory, arn, &key) || strcmp(key.label, made_as) == 0)
		return KS_OK;
	status = directory_read(ks, arn, &key, why);
	return status == KS_KEY_ABSENT ? KS_OK : status;
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
		if (status == KS_OK && sight.found)
			status = learn_label(ks, keys[i].reference, sight.made_as, why);
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
 * Make sure of a key that is known by its name: of the right kind, which label
 * it has, and what it was made as.  KS_KEY_ABSENT is no verdict.
 */
KsStatus
kms_meet_anew(Keystore *ks, const char *arn, KmsKey *out, KsFailure *why)
{
	const bool	known = directory_get(ks->directory, arn, out) && out->label[0] != '\0';
	KmsSight	sight;
	KsStatus	status = kms_describe(ks, arn, KMS_WRAPPING, &sight, why);

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
	strcpy(out->made_as, sight.made_as);
	directory_described(ks->directory, arn, out->made_as);
	return KS_OK;
}

/* The same, once in a helper's life. */
KsStatus
kms_meet(Keystore *ks, const char *arn, KmsKey *out, KsFailure *why)
{
	if (directory_get(ks->directory, arn, out) && out->label[0] != '\0' && out->described)
		return KS_OK;
	return kms_meet_anew(ks, arn, out, why);
}

/* What a key was made as, if that is not known; one of another kind is no KEK. */
static KsStatus
ask_made_as(Keystore *ks, size_t i, void *arg, KsFailure *why)
{
	const KmsKeys *known = arg;
	const KmsKey *key = &known->items[i];
	KmsSight	sight;
	KsStatus	status;

	if (key->described)
		return KS_OK;
	status = kms_describe(ks, key->arn, KMS_WRAPPING, &sight, why);
	if (status == KS_OK && sight.found)
		directory_described(ks->directory, key->arn, sight.made_as);
	return status == KS_MODULE_ERROR || status == KS_REGION ? KS_OK : status;
}

/*
 * No key is tagged with a label.  Was one made with it?  Then that is said,
 * and not that it is absent.  Asks for every key of the account, once.
 */
static KsStatus
look_by_description(Keystore *ks, const char *label, KsFailure *why)
{
	const KsFailure said = *why;
	KmsKeys		known;
	KsStatus	status;

	if (!directory_match(ks->directory, "", true, &known))
		return ks_fail(why, KS_MODULE_ERROR, "out of memory");
	status = kms_each(ks, known.n, ask_made_as, &known, why);
	directory_free_keys(&known);
	if (status == KS_OK && !directory_match(ks->directory, label, false, &known))
		return ks_fail(why, KS_MODULE_ERROR, "out of memory");
	/* it goes on from here the next time: no outage */
	if (status != KS_OK)
		return kms_time_left() > 0 ? status :
			ks_fail(why, KS_REFUSED, "there was no time to ask what all keys were made as; repeat the call");
	*why = said;
	status = known.n == 0 ? KS_KEY_ABSENT :
		refuse_stray(known.items[0].arn, known.items[0].made_as, why);
	directory_free_keys(&known);
	return status;
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
	if (status != KS_KEY_ABSENT &&
		(status != KS_OK || (strcmp(out->label, label->base) == 0 &&
							 strcmp(out->made_as, label->base) == 0)))
		return status;
	status = kms_find(ks, label->inst, label->base, KMS_WRAPPING, &found, why);
	if (status == KS_KEY_ABSENT)
		status = look_by_description(ks, label->base, why);
	if (status == KS_OK)
	{
		*out = found.key;
		out->described = true;
	}
	return status;
}

static const char *
name_of(const KmsKey *key)
{
	return key->made_as[0] != '\0' ? key->made_as : key->label;
}

/* May a key be used?  KS_KEY_DISABLED says why not. */
KsStatus
kms_judge(const KmsFound *found, KsFailure *why)
{
	char		date[32];

	if (found->sight.state == KS_STATE_USABLE)
		return KS_OK;
	if (found->sight.state == KS_STATE_DISABLED)
		return ks_fail(why, KS_KEY_DISABLED, "the key \"%s\", %s, is disabled", name_of(&found->key),
					   found->key.arn);
	format_date(found->sight.until, date);
	return ks_fail(why, KS_KEY_DISABLED, "the key \"%s\", %s, is scheduled for deletion on %s",
				   name_of(&found->key), found->key.arn, date);
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
	return ks_fail(why, KS_KEY_ABSENT, "the key \"%s\", %s, is not there", name_of(key), key->arn);
}
