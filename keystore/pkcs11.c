/*
 * pkcs11.c
 *		The operations that make and use keys of a PKCS#11 keystore; its table.
 *
 * Each operation is a function that p11_run() calls with an open token, and once
 * more with a newly opened one if the session was lost on the way or the
 * canary was not seen: so each may be begun again from its start.
 *
 * Secrets: only the data keys in the callers' structs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pkcs11.h"

static void
expect(Keystore *ks, const char *serial, uint32_t patience)
{
	snprintf(ks->expected, sizeof(ks->expected), "%s", serial);
}

/* Is the token that was opened the one that the request is for? */
static KsStatus
check_expected(Keystore *ks)
{
	char		serial[KS_MAX_SERIAL + 1];

	p11_serial(ks, serial);
	if (ks->expected[0] == '\0' || strcmp(serial, ks->expected) == 0)
		return KS_OK;
	return p11_refuse(ks, KS_OTHER_TOKEN,
					  "the token's serial number is \"%s\", not the one expected", serial);
}

/* Run an operation, if need be twice. */
KsStatus
p11_run(Keystore *ks, P11Work work, void *arg, KsFailure *why)
{
	KsStatus	status;

	ks->why = why;
	for (int attempt = 0;; attempt++)
	{
		memset(why, 0, sizeof(*why));
		ks->lost = false;
		ks->fresh = p11_is_new(ks);
		status = p11_open(ks);
		if (status == KS_OK)
			status = check_expected(ks);
		if (status == KS_OK)
			status = work(ks, arg);
		if ((status == KS_TOKEN_WRONG || status == KS_OTHER_TOKEN) && !ks->fresh)
			ks->lost = true;
		if (status == KS_OK || !ks->lost)
			return status;
		p11_close(ks);
		if (attempt > 0)
			return status;
	}
}

/* ---- status, setup ---- */

/* Makers of tokens that keep their keys in ordinary files or memory. */
static const char *const software_makers[] = {
	"SoftHSM project",
	"Mozilla Foundation",
	"Kryoptic Project",
};

typedef struct StatusWork
{
	const char *inst;
	KsTokenStatus *out;
} StatusWork;

static KsStatus
status_work(Keystore *ks, void *arg)
{
	StatusWork *w = arg;
	KsTokenStatus *out = w->out;
	CK_OBJECT_HANDLE canary;
	KsStatus	status = KS_TOKEN_WRONG;

	memset(out, 0, sizeof(*out));
	p11_text(ks->token.label, sizeof(ks->token.label), out->label);
	p11_text(ks->token.manufacturerID, sizeof(ks->token.manufacturerID), out->manufacturer);
	p11_text(ks->token.model, sizeof(ks->token.model), out->model);
	p11_serial(ks, out->serial);
	for (size_t i = 0; i < sizeof(software_makers) / sizeof(software_makers[0]); i++)
		out->software |= strcmp(out->manufacturer, software_makers[i]) == 0;

	if (w->inst[0] == '\0')
		return p11_same_token(ks);
	status = p11_canary(ks, w->inst, &canary);
	out->canary = status == KS_OK;
	if (status == KS_TOKEN_WRONG && ks->fresh)
		return KS_OK;
	return status;
}

static KsStatus
token_status(Keystore *ks, const char *inst, KsTokenStatus *out, KsFailure *why)
{
	StatusWork	w = {inst, out};

	return p11_run(ks, status_work, &w, why);
}

typedef struct SetupWork
{
	const char *inst;
	bool	   *created;
	char	   *serial;
} SetupWork;

static KsStatus
setup_work(Keystore *ks, void *arg)
{
	SetupWork  *w = arg;
	char		label[KS_MAX_LABEL + 1];
	uint8_t		id[KEY_ID_LEN];
	CK_OBJECT_HANDLE canary;
	KsStatus	status = p11_canary(ks, w->inst, &canary);

	p11_serial(ks, w->serial);
	if (status != KS_TOKEN_WRONG || !ks->fresh)
		return status;
	label_canary(w->inst, label);
	label_key_id(w->inst, 0, id);
	status = p11_generate(ks, label, id, sizeof(id), &canary);
	if (status != KS_OK)
		return status;
	*w->created = true;
	return p11_prove_healthy(ks, w->inst);
}

static KsStatus
setup(Keystore *ks, const char *inst, bool *created, char *serial, KsFailure *why)
{
	SetupWork	w = {inst, created, serial};

	return p11_run(ks, setup_work, &w, why);
}

/* ---- create ---- */

typedef struct CreateWork
{
	KsLabel		label;			/* with its mark */
	KsNewKey   *keys;
	int			n;
	char	   *serial;
	bool		begun;			/* an earlier attempt may have left a key */
} CreateWork;

/* Destroy what an attempt that lost its session made under our mark. */
static KsStatus
destroy_leftovers(Keystore *ks, CreateWork *w)
{
	FoundKeys	found = {0};
	bool		destroyed;
	KsStatus	status = p11_search_label(ks, w->label.full, &found);

	for (size_t i = 0; status == KS_OK && i < found.n; i++)
		status = p11_destroy(ks, found.items[i].handle, &destroyed);
	p11_forget(ks, w->label.base);
	p11_free_found(&found);
	return status;
}

/* Refuse unless the token holds this many keys for the KEK's label. */
static KsStatus
expect_keys(Keystore *ks, const KsLabel *label, size_t wanted)
{
	FoundKeys	found = {0};
	KsStatus	status = p11_search_kek(ks, label, &found);

	if (status == KS_OK && found.n != wanted)
		status = p11_refuse(ks, KS_EXISTS, "the token holds a key \"%s\" already",
							label->base);
	p11_free_found(&found);
	return status;
}

/*
 * May somebody else have made a key for that label?  A tenant's first one is
 * for a random uuid that nobody else has: then what is known is enough, and
 * creating thousands does not search the token for each.  A later generation's
 * number may have been used before, on another site or in a transaction that
 * failed.
 */
static bool
must_search(Keystore *ks, const CreateWork *w)
{
	return w->begun || w->label.generation > 1 || p11_is_known(ks, &w->label);
}

static KsStatus
create_work(Keystore *ks, void *arg)
{
	CreateWork *w = arg;
	CK_OBJECT_HANDLE handle;
	uint8_t		id[KEY_ID_LEN];
	bool		destroyed;
	const bool	search = must_search(ks, w);
	KsStatus	status = p11_canary_still(ks, w->label.inst);

	p11_serial(ks, w->serial);
	if (status == KS_OK && w->begun)
		status = destroy_leftovers(ks, w);
	if (status == KS_OK && search)
		status = expect_keys(ks, &w->label, 0);
	if (status != KS_OK)
		return status;

	w->begun = true;
	label_key_id(w->label.tenant, w->label.generation, id);
	status = p11_generate(ks, w->label.full, id, sizeof(id), &handle);
	if (status != KS_OK)
		return status;
	if (search)
		status = expect_keys(ks, &w->label, 1);
	for (int i = 0; status == KS_OK && i < w->n; i++)
		status = p11_wrap(ks, handle, true, &w->keys[i]);
	if (status == KS_OK)
	{
		p11_forget(ks, w->label.base);
		p11_know(ks, &w->label, handle);
	}
	else if (!ks->lost)
	{
		KsFailure	why = *ks->why;

		(void) p11_destroy(ks, handle, &destroyed);
		*ks->why = why;
	}
	return status;
}

static KsStatus
create_kek(Keystore *ks, const KsLabel *label, KsNewKey *keys, int n, char *serial,
		   KsFailure *why)
{
	CreateWork	w = {*label, keys, n, serial, false};

	label_mark(&w.label, time(NULL));
	return p11_run(ks, create_work, &w, why);
}

/* ---- wrap, unwrap, confirm ---- */

/*
 * Find a KEK whose handle is certain to be its own.  The one that was made
 * here a moment ago need not be searched for.
 */
static KsStatus
find_surely(Keystore *ks, const KsLabel *label, KnownKey **key)
{
	*key = p11_known_still(ks, label);
	return *key != NULL ? KS_OK : p11_find_again(ks, label, key);
}

/*
 * The token would not use a KEK that was just found.  KS_KEY_DISABLED if it is
 * disabled, with the canary in its place before and after; else as it was.
 */
static KsStatus
explain_refusal(Keystore *ks, const KnownKey *kek, KsStatus status)
{
	const KsFailure why = *ks->why;
	CK_OBJECT_HANDLE canary;
	bool		enabled = true;

	if (p11_canary(ks, kek->label.inst, &canary) != KS_OK ||
		p11_is_enabled(ks, kek->handle, &enabled) != KS_OK || enabled ||
		p11_canary(ks, kek->label.inst, &canary) != KS_OK ||
		p11_same_token(ks) != KS_OK)
	{
		*ks->why = why;
		return status;
	}
	return p11_refuse(ks, KS_KEY_DISABLED, "the key \"%s\" is disabled", kek->label.base);
}

typedef struct WrapWork
{
	const KsLabel *label;
	bool		fresh;
	KsNewKey   *key;
} WrapWork;

static KsStatus
wrap_work(Keystore *ks, void *arg)
{
	WrapWork   *w = arg;
	KnownKey   *kek;
	KsStatus	status = find_surely(ks, w->label, &kek);

	/* under another key it would never be found to be wrong, until it is needed */
	if (status == KS_OK)
		status = p11_wrap(ks, kek->handle, w->fresh, w->key);
	if (status == KS_MODULE_ERROR && !ks->lost)
		status = explain_refusal(ks, kek, status);
	return status;
}

static KsStatus
wrap(Keystore *ks, const KsLabel *label, bool fresh, KsNewKey *key, KsFailure *why)
{
	WrapWork	w = {label, fresh, key};

	return p11_run(ks, wrap_work, &w, why);
}

/* Make sure that a key carries no provisional mark, on the token. */
static KsStatus
confirm_key(Keystore *ks, const KsLabel *label, KnownKey **key)
{
	KsStatus	status = find_surely(ks, label, key);

	if (status == KS_OK && (*key)->label.provisional)
		status = p11_take_off_mark(ks, *key);
	return status;
}

static KsStatus
confirm_work(Keystore *ks, void *arg)
{
	KnownKey   *key;

	return confirm_key(ks, arg, &key);
}

static KsStatus
confirm(Keystore *ks, const KsLabel *label, KsFailure *why)
{
	KsLabel		copy = *label;

	return p11_run(ks, confirm_work, &copy, why);
}

typedef struct UnwrapWork
{
	const KsLabel *label;
	bool		confirm;
	KsWrappedKey *keys;
	int			n;

	/* of the attempt under way */
	KnownKey   *kek;
	bool		looked_again;	/* kek is what the token says now */
	bool		proven;			/* the module works */
} UnwrapWork;

/*
 * A wrapped key did not open.  Look the KEK up again: its handle may be stale
 * or, worse, another key's by now.  If it is the right one, prove that the
 * module works.  KS_OK: try once more; if that was after the proof, the
 * wrapped key is bad.
 */
static KsStatus
doubt(Keystore *ks, UnwrapWork *w, CryptResult result)
{
	CK_OBJECT_HANDLE old = w->kek->handle;
	KsStatus	status = KS_OK;

	if (!w->looked_again)
	{
		status = p11_find_again(ks, w->label, &w->kek);
		if (status != KS_OK)
			return status;
		w->looked_again = true;
		if (result == CRYPT_STALE || w->kek->handle != old)
			return KS_OK;
	}
	if (result == CRYPT_DENIED)
		return explain_refusal(ks, w->kek, KS_MODULE_ERROR);
	if (result == CRYPT_STALE)
	{
		ks->lost = !ks->fresh;
		return p11_refuse(ks, KS_MODULE_ERROR, "C_DecryptInit: refuses the handle it gave");
	}
	status = p11_prove_healthy(ks, w->label->inst);
	if (status == KS_MODULE_ERROR && !ks->fresh)
		ks->lost = true;
	w->proven = status == KS_OK;
	return status;
}

static KsStatus
unwrap_one(Keystore *ks, UnwrapWork *w, KsWrappedKey *key)
{
	KsStatus	status = KS_OK;

	key->status = KS_INTEGRITY;
	if (!p11_well_formed(key))
		return KS_OK;
	while (status == KS_OK)
	{
		const bool	proven = w->proven;
		CryptResult result = p11_unwrap(ks, w->kek->handle, key);

		if (result == CRYPT_OK)
			key->status = KS_OK;
		if (result == CRYPT_OK || (result == CRYPT_SUSPECT && proven))
			return KS_OK;
		if (result == CRYPT_FAILED)
			return KS_MODULE_ERROR;
		status = doubt(ks, w, result);
	}
	return status;
}

static KsStatus
unwrap_work(Keystore *ks, void *arg)
{
	UnwrapWork *w = arg;
	KsStatus	status = p11_find(ks, w->label, &w->kek);

	w->looked_again = false;
	w->proven = false;
	if (status == KS_OK && w->confirm && w->kek->label.provisional)
		status = confirm_key(ks, w->label, &w->kek);
	for (int i = 0; status == KS_OK && i < w->n; i++)
		status = unwrap_one(ks, w, &w->keys[i]);
	return status;
}

static KsStatus
unwrap(Keystore *ks, const KsLabel *label, bool confirm_first, uint32_t age,
	   KsWrappedKey *keys, int n, KsFailure *why)
{
	UnwrapWork	w = {label, confirm_first, keys, n, NULL, false, false};

	return p11_run(ks, unwrap_work, &w, why);
}

/* ---- the table ---- */

static Keystore *
create(const KsGreeting *greeting)
{
	Keystore   *ks = calloc(1, sizeof(*ks));

	if (ks == NULL)
		return NULL;
	memcpy(ks->refused_pin, greeting->pin_stamp, sizeof(greeting->pin_stamp));
	p11_configure(ks, greeting->uri);
	return ks;
}

static void
close_keystore(Keystore *ks)
{
	p11_close(ks);
	if (ks->uri != NULL)
		p11_kit_uri_free(ks->uri);
	free(ks);
}

const KeystoreProvider pkcs11_provider = {
	.scheme = "pkcs11:",
	.capabilities = {
		.destroys_at_once = true,
		.can_disable = true,	/* unless the token refuses */
		.forgets_keys = false,	/* nobody knows what a module remembers */
	},
	.max_in_flight = 1,
	.create = create,
	.close = close_keystore,
	.expect = expect,
	.status = token_status,
	.setup = setup,
	.create_kek = create_kek,
	.wrap = wrap,
	.unwrap = unwrap,
	.confirm = confirm,
	.list = p11_list,
	.remove = p11_remove,
	.see = p11_see,
	.destroy = p11_destroy_tenants,
	.destroy_kek = p11_destroy_kek,
	.enable = p11_enable_tenants,
	.register_key = p11_register_key,
	.sign = p11_sign,
	.head = p11_head,
};
