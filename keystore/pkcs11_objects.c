/*
 * pkcs11_objects.c
 *		Finds keys on the token, and remembers their handles.
 *
 * Looking for an object takes a token time in proportion to the objects it
 * holds, so all labels are read once when it is opened; later a key that is
 * not known is looked for by label and by id (a provisional key's label ends
 * in a time that the caller does not know).
 *
 * "Absent" is a verdict that people act upon.  An empty token, a wrong one
 * and a session that was logged out all answer "no such key", so it counts
 * only between two sightings of the installation's canary, on the same token.
 *
 * No secrets here.  The tree of known keys belongs to the Keystore.
 */
#define _GNU_SOURCE 1

#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "pkcs11.h"

#define FIND_BATCH	256
#define MAX_OBJECTS 1000000

/* ---- searching ---- */

void
p11_free_found(FoundKeys *found)
{
	free(found->items);
	memset(found, 0, sizeof(*found));
}

static bool
add_found(FoundKeys *found, CK_OBJECT_HANDLE handle, const char *label)
{
	if (found->n == found->room)
	{
		size_t		room = found->room == 0 ? 16 : 2 * found->room;
		FoundKey   *items = realloc(found->items, room * sizeof(*items));

		if (items == NULL)
			return false;
		found->items = items;
		found->room = room;
	}
	found->items[found->n].handle = handle;
	memcpy(found->items[found->n].label, label, LABEL_ROOM);
	found->n++;
	return true;
}

/*
 * Read an object's label; "" if it has none, or one that cannot be ours, or
 * the object is gone.
 */
static KsStatus
read_label(Keystore *ks, CK_OBJECT_HANDLE handle, char out[LABEL_ROOM], bool *gone)
{
	CK_ATTRIBUTE attr = {CKA_LABEL, out, LABEL_ROOM - 1};
	CK_RV		rv;

	memset(out, 0, LABEL_ROOM);
	rv = ks->f->C_GetAttributeValue(ks->session, handle, &attr, 1);
	out[LABEL_ROOM - 1] = '\0';
	if (rv == CKR_OK && attr.ulValueLen < LABEL_ROOM)
	{
		out[attr.ulValueLen] = '\0';
		if (strlen(out) == attr.ulValueLen)
			return KS_OK;
	}
	out[0] = '\0';
	*gone = p11_stale_handle(rv);
	if (rv == CKR_OK || rv == CKR_BUFFER_TOO_SMALL || rv == CKR_ATTRIBUTE_SENSITIVE ||
		rv == CKR_ATTRIBUTE_TYPE_INVALID || *gone)
		return KS_OK;
	return p11_failed(ks, "C_GetAttributeValue", rv);
}

KsStatus
p11_read_label(Keystore *ks, CK_OBJECT_HANDLE handle, char out[LABEL_ROOM])
{
	bool		gone;

	return read_label(ks, handle, out, &gone);
}

/* Collect the handles of a search that has begun. */
static KsStatus
collect_handles(Keystore *ks, CK_OBJECT_HANDLE **handles, size_t *n)
{
	size_t		room = 0;

	for (;;)
	{
		CK_ULONG	got = 0;
		CK_RV		rv;

		if (room - *n < FIND_BATCH)
		{
			CK_OBJECT_HANDLE *bigger;

			room = 2 * room + FIND_BATCH;
			bigger = realloc(*handles, room * sizeof(*bigger));
			if (bigger == NULL || room > MAX_OBJECTS)
			{
				*handles = bigger != NULL ? bigger : *handles;
				return p11_refuse(ks, KS_MODULE_ERROR, "the token holds too many objects");
			}
			*handles = bigger;
		}
		rv = ks->f->C_FindObjects(ks->session, *handles + *n, FIND_BATCH, &got);
		if (rv != CKR_OK)
			return p11_failed(ks, "C_FindObjects", rv);
		if (got > FIND_BATCH)
			return p11_refuse(ks, KS_MODULE_ERROR,
							  "C_FindObjects: more handles than asked for");
		if (got == 0)
			return KS_OK;
		*n += got;
	}
}

static bool
has_handle(const FoundKeys *found, CK_OBJECT_HANDLE handle)
{
	for (size_t i = 0; i < found->n; i++)
	{
		if (found->items[i].handle == handle)
			return true;
	}
	return false;
}

/*
 * Add to "found" those of the objects whose labels start with the prefix.
 * "gone": one of the objects is not there any more.
 */
static KsStatus
read_labels(Keystore *ks, const CK_OBJECT_HANDLE *handles, size_t n,
			const char *prefix, FoundKeys *found, bool *gone)
{
	const bool	fresh = found->n == 0;

	for (size_t i = 0; i < n; i++)
	{
		char		label[LABEL_ROOM];
		bool		this_one = false;
		KsStatus	status = read_label(ks, handles[i], label, &this_one);

		if (status != KS_OK)
			return status;
		*gone = *gone || this_one;
		if (strncmp(label, prefix, strlen(prefix)) != 0 ||
			(!fresh && has_handle(found, handles[i])))
			continue;
		if (!add_found(found, handles[i], label))
			return p11_refuse(ks, KS_MODULE_ERROR, "out of memory");
	}
	return KS_OK;
}

static KsStatus
search_once(Keystore *ks, CK_ATTRIBUTE *extra, CK_ULONG n_extra, const char *prefix,
			FoundKeys *found, bool *gone)
{
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_ATTRIBUTE template[3] = {{CKA_CLASS, &class, sizeof(class)}};
	const CK_ULONG first = n_extra > 0 && extra[0].type == CKA_CLASS ? 0 : 1;
	CK_OBJECT_HANDLE *handles = NULL;
	size_t		n = 0;
	CK_RV		rv;
	CK_RV		final_rv;
	KsStatus	status;

	for (CK_ULONG i = 0; i < n_extra; i++)
		template[first + i] = extra[i];
	rv = ks->f->C_FindObjectsInit(ks->session, template, first + n_extra);
	if (rv != CKR_OK)
		return p11_failed(ks, "C_FindObjectsInit", rv);
	status = collect_handles(ks, &handles, &n);
	final_rv = ks->f->C_FindObjectsFinal(ks->session);
	if (status == KS_OK && final_rv != CKR_OK)
		status = p11_failed(ks, "C_FindObjectsFinal", final_rv);
	if (final_rv != CKR_OK)
		ks->lost = true;		/* the session may still be searching */
	if (status == KS_OK)
		status = read_labels(ks, handles, n, prefix, found, gone);
	free(handles);
	return status;
}

/*
 * Ask the token, now, for the secret keys that have the extra attributes and
 * a label with this prefix, and add those not yet in "found" to it.  A class,
 * as the first of the attributes, stands in for that of secret keys.  An object
 * that is found and then not there is looked for once more: somebody may have
 * deleted it just now, but a module that only says so must not make a key look
 * absent.
 */
KsStatus
p11_search(Keystore *ks, CK_ATTRIBUTE *extra, CK_ULONG n_extra, const char *prefix,
		   FoundKeys *found)
{
	for (int attempt = 0; attempt < 3; attempt++)
	{
		bool		gone = false;
		KsStatus	status = search_once(ks, extra, n_extra, prefix, found, &gone);

		if (status != KS_OK || !gone)
			return status;
	}
	return p11_refuse(ks, KS_MODULE_ERROR,
					  "C_GetAttributeValue: refuses the handles that C_FindObjects gave");
}

KsStatus
p11_search_label(Keystore *ks, const char *label, FoundKeys *found)
{
	CK_ATTRIBUTE attr = {CKA_LABEL, (void *) (uintptr_t) label, strlen(label)};

	return p11_search(ks, &attr, 1, label, found);
}

/* Search a KEK under its base label or any provisional one. */
KsStatus
p11_search_kek(Keystore *ks, const KsLabel *label, FoundKeys *found)
{
	uint8_t		id[KEY_ID_LEN];
	CK_ATTRIBUTE attr = {CKA_ID, id, sizeof(id)};
	FoundKeys	all = {0};
	KsStatus	status;

	label_key_id(label->tenant, label->generation, id);
	status = p11_search_label(ks, label->base, &all);
	if (status == KS_OK)
		status = p11_search(ks, &attr, 1, label->base, &all);
	for (size_t i = 0; status == KS_OK && i < all.n; i++)
	{
		KsLabel		parsed;

		if (!label_parse(all.items[i].label, &parsed) ||
			strcmp(parsed.base, label->base) != 0)
			continue;
		if (!add_found(found, all.items[i].handle, all.items[i].label))
			status = p11_refuse(ks, KS_MODULE_ERROR, "out of memory");
	}
	p11_free_found(&all);
	return status;
}

/* Ask the token, now, for the installation's canary. */
KsStatus
p11_canary(Keystore *ks, const char *inst, CK_OBJECT_HANDLE *handle)
{
	char		label[KS_MAX_LABEL + 1];
	FoundKeys	found = {0};
	KsStatus	status;

	label_canary(inst, label);
	status = p11_search_label(ks, label, &found);
	if (status == KS_OK && found.n == 0)
		status = p11_refuse(ks, KS_TOKEN_WRONG,
							"the token does not hold this installation's canary");
	if (status == KS_OK)
		*handle = ks->canary = found.items[0].handle;
	p11_free_found(&found);
	return status;
}

/*
 * Ask the token, now, whether the canary is where it was.  As good a sighting
 * as p11_canary, at no search's cost; but a verdict of absence takes two of
 * those.
 */
KsStatus
p11_canary_still(Keystore *ks, const char *inst)
{
	char		label[KS_MAX_LABEL + 1];
	char		now[LABEL_ROOM];
	CK_OBJECT_HANDLE handle;

	label_canary(inst, label);
	if (ks->canary != CK_INVALID_HANDLE)
	{
		KsStatus	status = p11_read_label(ks, ks->canary, now);

		if (status != KS_OK)
			return status;
		if (strcmp(now, label) == 0)
			return KS_OK;
	}
	return p11_canary(ks, inst, &handle);
}

/* ---- known keys ---- */

static int
compare_known(const void *a, const void *b)
{
	return strcmp(((const KnownKey *) a)->label.base, ((const KnownKey *) b)->label.base);
}

static KnownKey *
lookup_known(Keystore *ks, const char *base)
{
	KnownKey	probe;
	void	   *node;

	strcpy(probe.label.base, base);
	node = tfind(&probe, &ks->keys, compare_known);
	return node == NULL ? NULL : *(KnownKey **) node;
}

/* Remember a key, or that a known one's label is there once more. */
void
p11_know(Keystore *ks, const KsLabel *label, CK_OBJECT_HANDLE handle)
{
	KnownKey   *key = lookup_known(ks, label->base);

	if (key != NULL)
	{
		key->objects++;
		return;
	}
	key = calloc(1, sizeof(*key));
	if (key == NULL)
		return;
	key->label = *label;
	key->handle = handle;
	key->objects = 1;
	if (tsearch(key, &ks->keys, compare_known) == NULL)
		free(key);
}

void
p11_forget(Keystore *ks, const char *base)
{
	KnownKey   *key = lookup_known(ks, base);

	if (key == NULL)
		return;
	tdelete(key, &ks->keys, compare_known);
	free(key);
}

void
p11_forget_all(Keystore *ks)
{
	tdestroy(ks->keys, free);
	ks->keys = NULL;
	ks->canary = CK_INVALID_HANDLE;
	ks->signer = ks->head = CK_INVALID_HANDLE;
}

static void
know_found(Keystore *ks, const FoundKeys *found)
{
	for (size_t i = 0; i < found->n; i++)
	{
		KsLabel		label;

		if (label_parse(found->items[i].label, &label))
			p11_know(ks, &label, found->items[i].handle);
	}
}

/* Learn all keys of a token that was just opened. */
KsStatus
p11_know_all(Keystore *ks)
{
	FoundKeys	found = {0};
	KsStatus	status = p11_search(ks, NULL, 0, "nomp_crypt:", &found);

	if (status == KS_OK)
		know_found(ks, &found);
	p11_free_found(&found);
	return status;
}

/* Replace what is known of a KEK by what the token says now. */
static KsStatus
learn_again(Keystore *ks, const KsLabel *label)
{
	FoundKeys	found = {0};
	KsStatus	status = p11_search_kek(ks, label, &found);

	p11_forget(ks, label->base);
	if (status == KS_OK)
		know_found(ks, &found);
	p11_free_found(&found);
	return status;
}

static KsStatus
check_single(Keystore *ks, const KnownKey *key)
{
	if (key->objects == 1)
		return KS_OK;
	return p11_refuse(ks, KS_REFUSED, "%d keys have the label \"%s\": none is used",
					  key->objects, key->label.base);
}

/*
 * Ask the token for a KEK that was not known, or is not what it was.  A key
 * that is there is used, canary or not; one that is not is absent only if the
 * canary was there before and after, and the token is the same.
 */
KsStatus
p11_find_again(Keystore *ks, const KsLabel *label, KnownKey **key)
{
	CK_OBJECT_HANDLE canary;
	KsStatus	before = p11_canary(ks, label->inst, &canary);
	KsFailure	why = *ks->why;
	KsStatus	status;

	if (before != KS_OK && before != KS_TOKEN_WRONG)
		return before;
	status = learn_again(ks, label);
	if (status != KS_OK)
		return status;
	*key = lookup_known(ks, label->base);
	if (*key != NULL)
		return check_single(ks, *key);
	if (before != KS_OK)
	{
		*ks->why = why;
		return before;
	}
	status = p11_canary(ks, label->inst, &canary);
	if (status == KS_OK)
		status = p11_same_token(ks);
	if (status != KS_OK)
		return status;
	return p11_refuse(ks, KS_KEY_ABSENT, "the token holds no key \"%s\"", label->base);
}

/* The one key known by that label, if its label is still that, on the token. */
KnownKey *
p11_known_still(Keystore *ks, const KsLabel *label)
{
	KnownKey   *key = lookup_known(ks, label->base);
	char		now[LABEL_ROOM];

	if (key == NULL || key->objects != 1 ||
		p11_read_label(ks, key->handle, now) != KS_OK || strcmp(now, key->label.full) != 0)
		return NULL;
	return key;
}

/* Is any key known by that label? */
bool
p11_is_known(Keystore *ks, const KsLabel *label)
{
	return lookup_known(ks, label->base) != NULL;
}

/* Find a KEK, asking the token only if it is not known. */
KsStatus
p11_find(Keystore *ks, const KsLabel *label, KnownKey **key)
{
	*key = lookup_known(ks, label->base);
	if (*key != NULL && (*key)->objects == 1)
		return KS_OK;
	return p11_find_again(ks, label, key);
}
