/*
 * pkcs11_erase.c
 *		The operations that look for keys and destroy them.
 *
 * All of them look at the token anew, with the canary seen before and after,
 * and never at what pkcs11_objects.c remembers.  No secrets here.
 */
#include <stdlib.h>
#include <string.h>

#include "pkcs11.h"

static int
compare_found(const void *a, const void *b)
{
	return strcmp(((const FoundKey *) a)->label, ((const FoundKey *) b)->label);
}

static void
add_seen(KsSeen *seen, const FoundKey *key)
{
	KsSeenKey  *out = &seen->keys[seen->n++];
	size_t		len = strlen(key->label);
	KsLabel		label;

	memset(out, 0, sizeof(*out));
	p11_text((const unsigned char *) key->label,
			 len < KS_MAX_LABEL ? len : KS_MAX_LABEL, out->label);
	out->provisional = label_parse(key->label, &label) && label.provisional;
	out->created = out->provisional ? label.created : 0;
}

/*
 * What the token holds under a prefix, now, by order of label; canary seen
 * before and after, on the same token.
 */
static KsStatus
look(Keystore *ks, const char *inst, const char *prefix, FoundKeys *found)
{
	CK_OBJECT_HANDLE canary;
	KsStatus	status = p11_canary(ks, inst, &canary);

	if (status == KS_OK)
		status = p11_search(ks, NULL, 0, prefix, found);
	if (status == KS_OK)
		status = p11_canary(ks, inst, &canary);
	if (status == KS_OK)
		status = p11_same_token(ks);
	if (status == KS_OK && found->n > 1)
		qsort(found->items, found->n, sizeof(found->items[0]), compare_found);
	return status;
}

/* The same for one school or several, in one look. */
static KsStatus
look_for_tenants(Keystore *ks, const char *inst, const char *tenants, FoundKeys *found)
{
	char		prefix[KS_MAX_LABEL + 1];
	size_t		kept = 0;
	KsStatus	status;

	label_tenants_prefix(inst, tenants, prefix);
	status = look(ks, inst, prefix, found);
	for (size_t i = 0; i < found->n; i++)
	{
		if (label_is_of(found->items[i].label, inst, tenants))
			found->items[kept++] = found->items[i];
	}
	found->n = kept;
	return status;
}

typedef struct SeeWork
{
	const char *inst;
	const char *tenants;		/* see, destroy */
	const char *serial;			/* destroy: the token it must be */
	uint32_t	offset;			/* list, see: keys to skip */
	KsSeen	   *out;
} SeeWork;

static KsStatus
list_work(Keystore *ks, void *arg)
{
	SeeWork    *w = arg;
	FoundKeys	found = {0};
	char		prefix[KS_MAX_LABEL + 1];
	KsLabel		label;
	KsStatus	status;

	memset(w->out, 0, sizeof(*w->out));
	label_installation_prefix(w->inst, prefix);
	status = look(ks, w->inst, prefix, &found);
	for (size_t i = 0; status == KS_OK && i < found.n; i++)
	{
		if (!label_parse(found.items[i].label, &label) || !label.provisional)
			continue;
		if (w->out->total++ >= w->offset && w->out->n < KS_LIST_PAGE)
			add_seen(w->out, &found.items[i]);
	}
	p11_free_found(&found);
	return status;
}

KsStatus
p11_list(Keystore *ks, const char *inst, uint32_t offset, KsSeen *out, KsFailure *why)
{
	SeeWork		w = {inst, NULL, NULL, offset, out};

	return p11_run(ks, list_work, &w, why);
}

static KsStatus
see_work(Keystore *ks, void *arg)
{
	SeeWork    *w = arg;
	FoundKeys	found = {0};
	KsStatus	status;

	memset(w->out, 0, sizeof(*w->out));
	p11_serial(ks, w->out->serial);
	status = look_for_tenants(ks, w->inst, w->tenants, &found);
	for (size_t i = w->offset; status == KS_OK && i < found.n && w->out->n < KS_LIST_PAGE; i++)
		add_seen(w->out, &found.items[i]);
	w->out->total = found.n;
	p11_free_found(&found);
	return status;
}

KsStatus
p11_see(Keystore *ks, const char *inst, const char *tenants, uint32_t offset, KsSeen *out,
		KsFailure *why)
{
	SeeWork		w = {inst, tenants, NULL, offset, out};

	return p11_run(ks, see_work, &w, why);
}

/* Destroy keys, as many as the answer has room for; "out" lists them. */
static KsStatus
destroy_found(Keystore *ks, const FoundKeys *found, KsSeen *out, size_t *left)
{
	KsStatus	status = KS_OK;

	*left = found->n;
	for (size_t i = 0; i < found->n && out->n < KS_LIST_PAGE; i++)
	{
		bool		destroyed;
		KsLabel		label;

		status = p11_destroy(ks, found->items[i].handle, &destroyed);
		if (status != KS_OK)
			return status;
		(*left)--;
		if (destroyed)
			add_seen(out, &found->items[i]);
		if (label_parse(found->items[i].label, &label))
			p11_forget(ks, label.base);
	}
	return status;
}

static KsStatus
check_serial(Keystore *ks, const char *wanted)
{
	char		serial[KS_MAX_SERIAL + 1];

	p11_serial(ks, serial);
	if (strcmp(serial, wanted) == 0)
		return KS_OK;
	return p11_refuse(ks, KS_TOKEN_WRONG,
					  "the token's serial number is \"%s\", not the one expected", serial);
}

static KsStatus
destroy_work(Keystore *ks, void *arg)
{
	SeeWork    *w = arg;
	FoundKeys	found = {0};
	FoundKeys	after = {0};
	size_t		left = 0;
	KsStatus	status = check_serial(ks, w->serial);

	if (status == KS_OK)
		status = look_for_tenants(ks, w->inst, w->tenants, &found);
	if (status == KS_OK)
		status = destroy_found(ks, &found, w->out, &left);
	if (status == KS_OK)
		status = look_for_tenants(ks, w->inst, w->tenants, &after);
	if (status == KS_OK && after.n > left)
		status = p11_refuse(ks, KS_MODULE_ERROR,
							"%zu keys are still there after they were destroyed", after.n);
	p11_free_found(&found);
	p11_free_found(&after);
	return status;
}

KsStatus
p11_destroy_tenants(Keystore *ks, const char *inst, const char *tenants, const char *serial,
					unsigned days, KsSeen *out, KsFailure *why)
{
	SeeWork		w = {inst, tenants, serial, 0, out};

	return p11_run(ks, destroy_work, &w, why);
}

typedef struct KekWork
{
	const KsLabel *label;
	const char *serial;			/* the token it must be */
	bool	   *destroyed;
} KekWork;

/* What the token holds for one KEK, now, canary seen before and after. */
static KsStatus
look_for_kek(Keystore *ks, const KsLabel *label, FoundKeys *found)
{
	CK_OBJECT_HANDLE canary;
	KsStatus	status = p11_canary(ks, label->inst, &canary);

	if (status == KS_OK)
		status = p11_search_kek(ks, label, found);
	if (status == KS_OK)
		status = p11_canary(ks, label->inst, &canary);
	if (status == KS_OK)
		status = p11_same_token(ks);
	return status;
}

static KsStatus
destroy_kek_work(Keystore *ks, void *arg)
{
	KekWork    *w = arg;
	FoundKeys	found = {0};
	FoundKeys	after = {0};
	KsStatus	status = check_serial(ks, w->serial);

	if (status == KS_OK)
		status = look_for_kek(ks, w->label, &found);
	for (size_t i = 0; status == KS_OK && i < found.n; i++)
	{
		bool		destroyed;

		status = p11_destroy(ks, found.items[i].handle, &destroyed);
		*w->destroyed |= destroyed;
	}
	p11_forget(ks, w->label->base);
	if (status == KS_OK)
		status = look_for_kek(ks, w->label, &after);
	if (status == KS_OK && after.n > 0)
		status = p11_refuse(ks, KS_MODULE_ERROR, "the key is still there after it was destroyed");
	p11_free_found(&found);
	p11_free_found(&after);
	return status;
}

KsStatus
p11_destroy_kek(Keystore *ks, const KsLabel *label, const char *serial, unsigned days,
				bool *destroyed, uint64_t *until, KsFailure *why)
{
	KekWork		w = {label, serial, destroyed};

	return p11_run(ks, destroy_kek_work, &w, why);
}

typedef struct EnableWork
{
	const char *inst;
	const char *tenants;
	bool		on;
	size_t	   *found;
	size_t	   *obeyed;
} EnableWork;

static KsStatus
enable_work(Keystore *ks, void *arg)
{
	EnableWork *w = arg;
	FoundKeys	found = {0};
	KsStatus	status = look_for_tenants(ks, w->inst, w->tenants, &found);

	*w->obeyed = 0;
	*w->found = found.n;
	for (size_t i = 0; status == KS_OK && i < found.n; i++)
	{
		bool		obeyed = false;

		status = p11_enable(ks, found.items[i].handle, w->on, &obeyed);
		*w->obeyed += obeyed;
	}
	p11_free_found(&found);
	return status;
}

KsStatus
p11_enable_tenants(Keystore *ks, const char *inst, const char *tenants, bool on,
				   size_t *found, size_t *obeyed, KsFailure *why)
{
	EnableWork	w = {inst, tenants, on, found, obeyed};

	return p11_run(ks, enable_work, &w, why);
}

typedef struct RemoveWork
{
	const KsLabel *label;
	uint64_t	seconds;
	bool	   *removed;
} RemoveWork;

/* May this object be removed?  It must carry the mark, and long enough. */
static KsStatus
check_removable(Keystore *ks, const RemoveWork *w, const FoundKey *key)
{
	uint64_t	now = (uint64_t) time(NULL);
	KsLabel		label;

	if (!label_parse(key->label, &label) || !label.provisional ||
		(w->label->provisional && strcmp(label.full, w->label->full) != 0))
		return p11_refuse(ks, KS_REFUSED, "the key \"%s\" is not provisional", key->label);
	if (label.created > now || now - label.created < w->seconds)
		return p11_refuse(ks, KS_REFUSED, "the key \"%s\" is not old enough", key->label);
	return KS_OK;
}

/* Destroy a removable key, unless it was confirmed since it was found. */
static KsStatus
remove_one(Keystore *ks, const RemoveWork *w, const FoundKey *key)
{
	FoundKey	now = *key;
	bool		destroyed = false;
	KsStatus	status = p11_read_label(ks, key->handle, now.label);

	if (status == KS_OK && now.label[0] == '\0')
		return KS_OK;
	if (status == KS_OK)
		status = check_removable(ks, w, &now);
	if (status == KS_OK)
		status = p11_destroy(ks, key->handle, &destroyed);
	*w->removed |= destroyed;
	return status;
}

static KsStatus
remove_work(Keystore *ks, void *arg)
{
	RemoveWork *w = arg;
	CK_OBJECT_HANDLE canary;
	FoundKeys	found = {0};
	KsStatus	status = p11_canary(ks, w->label->inst, &canary);

	if (status == KS_OK)
		status = p11_search_kek(ks, w->label, &found);
	for (size_t i = 0; status == KS_OK && i < found.n; i++)
		status = check_removable(ks, w, &found.items[i]);
	for (size_t i = 0; status == KS_OK && i < found.n; i++)
		status = remove_one(ks, w, &found.items[i]);
	p11_free_found(&found);
	p11_forget(ks, w->label->base);
	if (status == KS_OK)
		status = p11_canary(ks, w->label->inst, &canary);
	if (status == KS_OK)
		status = p11_same_token(ks);
	return status;
}

KsStatus
p11_remove(Keystore *ks, const KsLabel *label, uint64_t seconds, bool *removed,
		   KsFailure *why)
{
	RemoveWork	w = {label, seconds, removed};

	return p11_run(ks, remove_work, &w, why);
}
