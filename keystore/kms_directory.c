/*
 * kms_directory.c
 *		Which key has which label: the service's tags, remembered.
 *
 * The service finds keys by their names only, so all of the account's and
 * region's are listed, and the tags of those read that are not known yet, or
 * had no label of ours when they were last read.  An entry is a hint, of
 * which nothing follows about absence; what is decided by a label is read
 * again by directory_read, and holds if the key's description says the same.
 * Entries stay for the life of the helper.  A key that AWS manages may refuse
 * to show its tags: it is none of ours, for ever.
 *
 * One mutex guards the entries, another the listing: those who want one
 * while it runs wait for the next, which serves them all.  No secrets here.
 */
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kms.h"

#define LIST_LIMIT		1000
#define MAX_PAGES		2000

typedef struct Entry
{
	KmsKey		key;
	bool		gone;			/* when its tags were read */
	bool		aws;			/* managed by AWS, for other services */
	double		made;			/* when this helper did, or 0 */
} Entry;

struct KmsDirectory
{
	pthread_mutex_t lock;
	void	   *by_arn;			/* tree of Entry */
	Entry	  **entries;
	size_t		n;
	size_t		room;

	pthread_mutex_t list_lock;
	pthread_cond_t listed;
	bool		listing;
	uint64_t	begun;			/* listings, so far */
	uint64_t	done;			/* the last that succeeded */
};

KmsDirectory *
directory_new(void)
{
	KmsDirectory *dir = calloc(1, sizeof(*dir));
	pthread_condattr_t attr;

	if (dir == NULL)
		return NULL;
	pthread_mutex_init(&dir->lock, NULL);
	pthread_mutex_init(&dir->list_lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&dir->listed, &attr);
	pthread_condattr_destroy(&attr);
	return dir;
}

static void
free_nothing(void *node)
{
}

void
directory_free(KmsDirectory *dir)
{
	if (dir == NULL)
		return;
	tdestroy(dir->by_arn, free_nothing);
	for (size_t i = 0; i < dir->n; i++)
		free(dir->entries[i]);
	free(dir->entries);
	pthread_cond_destroy(&dir->listed);
	pthread_mutex_destroy(&dir->list_lock);
	pthread_mutex_destroy(&dir->lock);
	free(dir);
}

/* ---- entries ---- */

static int
compare_entries(const void *a, const void *b)
{
	return strcmp(((const Entry *) a)->key.arn, ((const Entry *) b)->key.arn);
}

/* The caller holds the lock. */
static Entry *
find_entry(KmsDirectory *dir, const char *arn)
{
	Entry		probe;
	void	   *node;

	snprintf(probe.key.arn, sizeof(probe.key.arn), "%s", arn);
	node = tfind(&probe, &dir->by_arn, compare_entries);
	return node == NULL ? NULL : *(Entry **) node;
}

static Entry *
add_entry(KmsDirectory *dir, const char *arn)
{
	Entry	   *entry;

	if (dir->n == dir->room)
	{
		const size_t room = dir->room == 0 ? 256 : 2 * dir->room;
		Entry	  **more = realloc(dir->entries, room * sizeof(*more));

		if (more == NULL)
			return NULL;
		dir->entries = more;
		dir->room = room;
	}
	entry = calloc(1, sizeof(*entry));
	if (entry == NULL)
		return NULL;
	snprintf(entry->key.arn, sizeof(entry->key.arn), "%s", arn);
	if (tsearch(entry, &dir->by_arn, compare_entries) == NULL)
	{
		free(entry);
		return NULL;
	}
	dir->entries[dir->n++] = entry;
	return entry;
}

/* What is remembered of a key that is not gone. */
bool
directory_get(KmsDirectory *dir, const char *arn, KmsKey *out)
{
	Entry	   *entry;
	bool		found;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, arn);
	found = entry != NULL && !entry->gone;
	if (found)
		*out = entry->key;
	pthread_mutex_unlock(&dir->lock);
	return found;
}

/* Remember a key as its tags were just read. */
bool
directory_put(KmsDirectory *dir, const KmsKey *key)
{
	Entry	   *entry;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, key->arn);
	if (entry == NULL)
		entry = add_entry(dir, key->arn);
	if (entry != NULL)
	{
		const KmsKey was = entry->key;

		entry->key = *key;
		entry->key.described |= was.described && !entry->gone;
		strcpy(entry->key.made_as, was.made_as);
		entry->gone = false;
	}
	pthread_mutex_unlock(&dir->lock);
	return entry != NULL;
}

/* A key is of the right kind; what it was made as. */
void
directory_described(KmsDirectory *dir, const char *arn, const char *made_as)
{
	Entry	   *entry;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, arn);
	if (entry != NULL)
	{
		entry->key.described = true;
		snprintf(entry->key.made_as, sizeof(entry->key.made_as), "%s", made_as);
	}
	pthread_mutex_unlock(&dir->lock);
}

/* This helper has made a key, just now. */
void
directory_made(KmsDirectory *dir, const char *arn)
{
	Entry	   *entry;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, arn);
	if (entry != NULL)
		entry->made = kms_now();
	pthread_mutex_unlock(&dir->lock);
}

/* Did this helper make a key, and so lately that not everybody may know? */
static bool
is_new(const Entry *entry)
{
	return entry->made != 0 && kms_now() - entry->made < KMS_LAG;
}

/* Did this helper make a key so lately that policies may not know its tags? */
bool
directory_is_new(KmsDirectory *dir, const char *arn)
{
	Entry	   *entry;
	bool		new;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, arn);
	new = entry != NULL && is_new(entry);
	pthread_mutex_unlock(&dir->lock);
	return new;
}

/* Did this helper make the key of a label so lately that it may not show? */
bool
directory_made_lately(KmsDirectory *dir, const char *label)
{
	bool		lately = false;

	pthread_mutex_lock(&dir->lock);
	for (size_t i = 0; i < dir->n && !lately; i++)
	{
		const Entry *entry = dir->entries[i];

		lately = is_new(entry) && strcmp(entry->key.made_as, label) == 0;
	}
	pthread_mutex_unlock(&dir->lock);
	return lately;
}

/* Remember that AWS manages a key. */
static bool
put_aws_key(KmsDirectory *dir, const char *arn)
{
	Entry	   *entry;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, arn);
	if (entry == NULL)
		entry = add_entry(dir, arn);
	if (entry != NULL)
		entry->aws = true;
	pthread_mutex_unlock(&dir->lock);
	return entry != NULL;
}

/* The service does not know a key any more. */
void
directory_gone(KmsDirectory *dir, const char *arn)
{
	Entry	   *entry;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, arn);
	if (entry != NULL)
		entry->gone = true;
	pthread_mutex_unlock(&dir->lock);
}

static int
compare_keys(const void *a, const void *b)
{
	const KmsKey *x = a;
	const KmsKey *y = b;
	const int	by_label = strcmp(x->label, y->label);

	return by_label != 0 ? by_label : strcmp(x->arn, y->arn);
}

/*
 * Copies of the keys with a label, or with that beginning, by order of label;
 * those that were made with it among them, whatever they are tagged as.
 */
bool
directory_match(KmsDirectory *dir, const char *label, bool as_prefix, KmsKeys *out)
{
	const size_t len = strlen(label) + (as_prefix ? 0 : 1);
	size_t		room = 0;
	bool		ok = true;

	*out = (KmsKeys) {NULL, 0};
	pthread_mutex_lock(&dir->lock);
	for (size_t i = 0; ok && i < dir->n; i++)
	{
		const Entry *entry = dir->entries[i];

		if (entry->gone || (strncmp(entry->key.label, label, len) != 0 &&
							strncmp(entry->key.made_as, label, len) != 0))
			continue;
		if (out->n == room)
		{
			KmsKey	   *more;

			room = room == 0 ? 8 : 2 * room;
			more = realloc(out->items, room * sizeof(*more));
			ok = more != NULL;
			if (!ok)
				break;
			out->items = more;
		}
		out->items[out->n++] = entry->key;
	}
	pthread_mutex_unlock(&dir->lock);
	if (!ok)
		directory_free_keys(out);
	else if (out->n > 1)
		qsort(out->items, out->n, sizeof(out->items[0]), compare_keys);
	return ok;
}

void
directory_free_keys(KmsKeys *keys)
{
	free(keys->items);
	*keys = (KmsKeys) {NULL, 0};
}

/* ---- listing ---- */

typedef struct Arns
{
	char	  **items;
	size_t		n;
	size_t		room;
} Arns;

static bool
add_arn(Arns *arns, const char *arn)
{
	if (arns->n == arns->room)
	{
		const size_t room = arns->room == 0 ? LIST_LIMIT : 2 * arns->room;
		char	  **more = realloc(arns->items, room * sizeof(*more));

		if (more == NULL)
			return false;
		arns->items = more;
		arns->room = room;
	}
	arns->items[arns->n] = strdup(arn);
	return arns->items[arns->n] != NULL && ++arns->n > 0;
}

static void
free_arns(Arns *arns)
{
	for (size_t i = 0; i < arns->n; i++)
		free(arns->items[i]);
	free(arns->items);
}

/* Must a listed key's tags be read?  Those of one with a label need not. */
static bool
is_news(KmsDirectory *dir, const char *arn)
{
	Entry	   *entry;
	bool		news;

	pthread_mutex_lock(&dir->lock);
	entry = find_entry(dir, arn);
	news = entry == NULL || (!entry->aws && (entry->gone || entry->key.label[0] == '\0'));
	pthread_mutex_unlock(&dir->lock);
	return news;
}

/* The name of a key in a listing; those of several regions may be somebody's. */
static KsStatus
check_listed(Keystore *ks, const json_t *item, const char **arn, KsFailure *why)
{
	KmsArn		parsed;

	*arn = json_string_value(json_object_get(item, "KeyArn"));
	if (*arn == NULL || !kms_arn_parse(*arn, &parsed))
		return ks_fail(why, KS_MODULE_ERROR, "ListKeys: the answer has a key without a name");
	if (ks->account_given && !kms_account_is_ours(ks, &parsed))
		return ks_fail(why, KS_BAD_URI, "the credentials are of account %s, not of the one that the keystore's URI names",
					   parsed.account);
	parsed.multi_region = false;
	return kms_check_arn(ks, &parsed, why);
}

static KsStatus
take_page(Keystore *ks, const json_t *body, Arns *news, KsFailure *why)
{
	const json_t *keys = json_object_get(body, "Keys");
	const json_t *item;
	size_t		i;

	if (!json_is_array(keys))
		return ks_fail(why, KS_MODULE_ERROR, "ListKeys: the answer has no keys");
	json_array_foreach(keys, i, item)
	{
		const char *arn;
		KsStatus	status = check_listed(ks, item, &arn, why);

		if (status != KS_OK)
			return status;
		if (is_news(ks->directory, arn) && !add_arn(news, arn))
			return ks_fail(why, KS_MODULE_ERROR, "out of memory");
	}
	return KS_OK;
}

/* List all keys: those of which the tags must be read. */
static KsStatus
list_keys(Keystore *ks, Arns *news, KsFailure *why)
{
	json_t	   *request = json_pack("{s:i}", "Limit", LIST_LIMIT);

	for (int page = 0; page < MAX_PAGES; page++)
	{
		AwsReply	reply;
		const char *marker = NULL;
		bool		more;
		KsStatus	status = kms_call(ks, AWS_EVERYDAY, "ListKeys", request, &reply, why);

		request = NULL;
		if (status == KS_REFUSED)
			status = kms_refused("ListKeys", &reply, why);
		if (status == KS_OK)
			status = take_page(ks, reply.body, news, why);
		more = status == KS_OK && json_is_true(json_object_get(reply.body, "Truncated"));
		if (more)
			marker = json_string_value(json_object_get(reply.body, "NextMarker"));
		if (marker != NULL)
			request = json_pack("{s:i, s:s}", "Limit", LIST_LIMIT, "Marker", marker);
		aws_reply_free(&reply);
		if (status != KS_OK || !more)
			return status;
		if (marker == NULL)
			break;
	}
	json_decref(request);
	return ks_fail(why, KS_MODULE_ERROR, "ListKeys: the answer does not end");
}

/* A key that does not show its tags: one that AWS manages is none of ours. */
static KsStatus
skip_aws_key(Keystore *ks, const char *arn, KsFailure *why)
{
	const KsFailure said = *why;
	bool		aws;

	if (kms_see_manager(ks, arn, &aws, why) != KS_OK || !aws)
	{
		*why = said;
		return KS_ACCESS_DENIED;
	}
	return put_aws_key(ks->directory, arn) ? KS_OK : ks_fail(why, KS_MODULE_ERROR, "out of memory");
}

static KsStatus
read_news(Keystore *ks, size_t i, void *arg, KsFailure *why)
{
	Arns	   *news = arg;
	KmsKey		key;
	KsStatus	status = directory_read(ks, news->items[i], &key, why);

	if (status == KS_ACCESS_DENIED)
		return skip_aws_key(ks, news->items[i], why);
	/* its deletion came to its end, or its creation is not known everywhere */
	return status == KS_KEY_ABSENT ? KS_OK : status;
}

static KsStatus
list_once(Keystore *ks, KsFailure *why)
{
	Arns		news = {0};
	KsStatus	status = list_keys(ks, &news, why);

	if (status == KS_OK)
		status = kms_each(ks, news.n, read_news, &news, why);
	free_arns(&news);
	return status;
}

/* Wait for the listing that runs, as long as there is time.  Holds list_lock. */
static bool
wait_for_listing(KmsDirectory *dir)
{
	struct timespec until;
	const double left = kms_time_left();

	if (left <= 0)
		return false;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t) left;
	until.tv_nsec += (long) ((left - (double) (time_t) left) * 1e9);
	if (until.tv_nsec >= 1000000000)
	{
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	return pthread_cond_timedwait(&dir->listed, &dir->list_lock, &until) == 0;
}

/* Learn which keys there are, by a listing that begins after this was called. */
KsStatus
directory_refresh(Keystore *ks, KsFailure *why)
{
	KmsDirectory *dir = ks->directory;
	KsStatus	status = KS_OK;
	uint64_t	wanted;
	uint64_t	mine;

	pthread_mutex_lock(&dir->list_lock);
	wanted = dir->begun + 1;
	while (dir->done < wanted && dir->listing)
	{
		if (!wait_for_listing(dir))
		{
			pthread_mutex_unlock(&dir->list_lock);
			return ks_fail(why, KS_NETWORK, "the account's keys could not be listed in time");
		}
	}
	if (dir->done >= wanted)
	{
		pthread_mutex_unlock(&dir->list_lock);
		return KS_OK;
	}
	dir->listing = true;
	mine = ++dir->begun;
	pthread_mutex_unlock(&dir->list_lock);

	status = list_once(ks, why);

	pthread_mutex_lock(&dir->list_lock);
	dir->listing = false;
	if (status == KS_OK)
		dir->done = mine;
	pthread_cond_broadcast(&dir->listed);
	pthread_mutex_unlock(&dir->list_lock);
	return status;
}
