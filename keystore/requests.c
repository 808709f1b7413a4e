/*
 * requests.c
 *		Reads the bodies of protocol.h, asks the provider, writes the answers.
 *
 * Called by main.c, one request at a time.  Names are checked here: a
 * provider gets installations, schools and labels that follow the grammar of
 * label.h and belong together.  The structs with data keys are static and
 * wiped at the end of every request.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "keystore.h"
#include "requests.h"
#include "wire.h"

typedef struct Request
{
	WireReader	in;
	WireWriter	out;
	KsFailure	why;
} Request;

typedef KsStatus (*Handler) (Request *rq);

static const KeystoreProvider *const providers[] = {
	&pkcs11_provider,
};

static bool greeted = false;
static const KeystoreProvider *provider = NULL;
static Keystore *keystore = NULL;

static KsNewKey new_keys[KS_MAX_KEYS];
static KsWrappedKey wrapped_keys[KS_MAX_KEYS];

KsStatus
ks_fail(KsFailure *why, KsStatus status, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	vsnprintf(why->reason, sizeof(why->reason), fmt, args);
	va_end(args);
	return status;
}

static void
put_text(WireWriter *w, const char *s)
{
	wire_put_str(w, s, strlen(s));
}

static KsStatus
malformed(Request *rq)
{
	rq->in.bad = true;
	return KS_REFUSED;
}

/* Read an installation; *ok is cleared if it is not a uuid. */
static void
get_uuid(Request *rq, char out[UUID_TEXT_LEN + 1], bool *ok)
{
	wire_get_cstr(&rq->in, out, UUID_TEXT_LEN + 1);
	if (!label_is_uuid(out))
		*ok = false;
}

static KsStatus
refuse_name(Request *rq)
{
	return ks_fail(&rq->why, KS_REFUSED,
				   "the request names no key of this installation");
}

/* Read an installation and a label that must be of one of its KEKs. */
static void
get_label(Request *rq, KsLabel *label, bool *ok)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		text[KS_MAX_LABEL + 1];

	get_uuid(rq, inst, ok);
	wire_get_cstr(&rq->in, text, sizeof(text));
	if (!label_parse(text, label) || strcmp(label->inst, inst) != 0)
		*ok = false;
}

static void
get_bytes(Request *rq, KsBytes *out)
{
	out->len = wire_get_str(&rq->in, &out->data);
}

static KsStatus
do_hello(Request *rq)
{
	char		uri[KS_MAX_URI + 1];
	char		stamp[KS_MAX_PIN_STAMP + 1];
	unsigned	version = (unsigned) wire_get_uint(&rq->in, 2);

	wire_get_cstr(&rq->in, uri, sizeof(uri));
	wire_get_cstr(&rq->in, stamp, sizeof(stamp));
	if (!wire_done(&rq->in) || greeted)
		return malformed(rq);
	if (version != KS_PROTOCOL_VERSION)
		return ks_fail(&rq->why, KS_REFUSED,
					   "the helper speaks protocol version %d", KS_PROTOCOL_VERSION);
	for (size_t i = 0; i < sizeof(providers) / sizeof(providers[0]); i++)
	{
		if (strncmp(uri, providers[i]->scheme, strlen(providers[i]->scheme)) == 0)
		{
			provider = providers[i];
			keystore = provider->create(uri, stamp);
		}
	}
	greeted = true;
	wire_put_uint(&rq->out, KS_PROTOCOL_VERSION, 2);
	return KS_OK;
}

static KsStatus
do_status(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	KsTokenStatus token = {0};
	KsStatus	status;

	wire_get_cstr(&rq->in, inst, sizeof(inst));
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (inst[0] != '\0' && !label_is_uuid(inst))
		return refuse_name(rq);
	status = provider->status(keystore, inst, &token, &rq->why);
	if (status != KS_OK)
		return status;
	put_text(&rq->out, token.label);
	put_text(&rq->out, token.serial);
	put_text(&rq->out, token.manufacturer);
	put_text(&rq->out, token.model);
	wire_put_uint(&rq->out, token.software, 1);
	wire_put_uint(&rq->out, token.canary, 1);
	return KS_OK;
}

static KsStatus
do_setup(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		serial[KS_MAX_SERIAL + 1] = "";
	bool		created = false;
	bool		ok = true;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->setup(keystore, inst, &created, serial, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, created, 1);
	put_text(&rq->out, serial);
	return KS_OK;
}

static KsStatus
do_create_kek(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		tenant[UUID_TEXT_LEN + 1];
	char		serial[KS_MAX_SERIAL + 1] = "";
	KsLabel		label;
	uint32_t	generation;
	bool		ok = true;
	int			n;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	get_uuid(rq, tenant, &ok);
	generation = (uint32_t) wire_get_uint(&rq->in, 4);
	n = (int) wire_get_uint(&rq->in, 1);
	if (n > KS_MAX_KEYS)
		return malformed(rq);
	for (int i = 0; i < n; i++)
		get_bytes(rq, &new_keys[i].aad);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok || !label_make(inst, tenant, generation, &label))
		return refuse_name(rq);
	status = provider->create_kek(keystore, &label, new_keys, n, serial, &rq->why);
	if (status != KS_OK)
		return status;
	put_text(&rq->out, serial);
	for (int i = 0; i < n; i++)
	{
		wire_put_str(&rq->out, new_keys[i].key, KS_DEK_LEN);
		wire_put_str(&rq->out, new_keys[i].wrapped, new_keys[i].wrapped_len);
	}
	return KS_OK;
}

static KsStatus
do_wrap(Request *rq)
{
	KsNewKey   *key = &new_keys[0];
	KsLabel		label;
	KsBytes		given;
	bool		ok = true;
	KsStatus	status;

	get_label(rq, &label, &ok);
	get_bytes(rq, &key->aad);
	get_bytes(rq, &given);
	if (!wire_done(&rq->in) || (given.len != 0 && given.len != KS_DEK_LEN))
		return malformed(rq);
	if (!ok || label.provisional)
		return refuse_name(rq);
	if (given.len != 0)
		memcpy(key->key, given.data, KS_DEK_LEN);
	status = provider->wrap(keystore, &label, given.len == 0, key, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_str(&rq->out, key->key, KS_DEK_LEN);
	wire_put_str(&rq->out, key->wrapped, key->wrapped_len);
	return KS_OK;
}

static KsStatus
do_unwrap(Request *rq)
{
	KsLabel		label;
	bool		ok = true;
	unsigned	confirm;
	int			n;
	KsStatus	status;

	get_label(rq, &label, &ok);
	confirm = (unsigned) wire_get_uint(&rq->in, 1);
	n = (int) wire_get_uint(&rq->in, 1);
	if (confirm > 1 || n > KS_MAX_KEYS)
		return malformed(rq);
	for (int i = 0; i < n; i++)
	{
		get_bytes(rq, &wrapped_keys[i].aad);
		get_bytes(rq, &wrapped_keys[i].wrapped);
		wrapped_keys[i].status = KS_INTEGRITY;
	}
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok || label.provisional)
		return refuse_name(rq);
	status = provider->unwrap(keystore, &label, confirm == 1, wrapped_keys, n, &rq->why);
	if (status != KS_OK)
		return status;
	for (int i = 0; i < n; i++)
	{
		bool		have = wrapped_keys[i].status == KS_OK;

		wire_put_uint(&rq->out, wrapped_keys[i].status, 1);
		wire_put_str(&rq->out, wrapped_keys[i].key, have ? KS_DEK_LEN : 0);
	}
	return KS_OK;
}

static KsStatus
do_confirm(Request *rq)
{
	KsLabel		label;
	bool		ok = true;

	get_label(rq, &label, &ok);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	return provider->confirm(keystore, &label, &rq->why);
}

static KsStatus
do_list(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	KsSeen		seen = {0};
	uint32_t	offset;
	bool		ok = true;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	offset = (uint32_t) wire_get_uint(&rq->in, 4);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->list(keystore, inst, offset, &seen, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, seen.total, 4);
	wire_put_uint(&rq->out, seen.n, 2);
	for (size_t i = 0; i < seen.n; i++)
	{
		put_text(&rq->out, seen.keys[i].label);
		wire_put_uint(&rq->out, seen.keys[i].created, 8);
	}
	return KS_OK;
}

static KsStatus
do_remove(Request *rq)
{
	KsLabel		label;
	uint64_t	seconds;
	bool		ok = true;
	bool		removed = false;
	KsStatus	status;

	get_label(rq, &label, &ok);
	seconds = wire_get_uint(&rq->in, 8);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->remove(keystore, &label, seconds, &removed, &rq->why);
	if (status == KS_OK)
		wire_put_uint(&rq->out, removed, 1);
	return status;
}

static KsStatus
do_see(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		tenant[UUID_TEXT_LEN + 1];
	KsSeen		seen = {0};
	uint32_t	offset;
	bool		ok = true;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	get_uuid(rq, tenant, &ok);
	offset = (uint32_t) wire_get_uint(&rq->in, 4);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->see(keystore, inst, tenant, offset, &seen, &rq->why);
	if (status != KS_OK)
		return status;
	put_text(&rq->out, seen.serial);
	wire_put_uint(&rq->out, seen.n, 2);
	for (size_t i = 0; i < seen.n; i++)
	{
		put_text(&rq->out, seen.keys[i].label);
		wire_put_uint(&rq->out, seen.keys[i].provisional, 1);
	}
	return KS_OK;
}

static KsStatus
do_destroy(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		tenant[UUID_TEXT_LEN + 1];
	char		serial[KS_MAX_SERIAL + 1];
	KsSeen		seen = {0};
	bool		ok = true;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	get_uuid(rq, tenant, &ok);
	wire_get_cstr(&rq->in, serial, sizeof(serial));
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->destroy(keystore, inst, tenant, serial, &seen, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, seen.n, 2);
	for (size_t i = 0; i < seen.n; i++)
		put_text(&rq->out, seen.keys[i].label);
	return KS_OK;
}

static KsStatus
do_destroy_kek(Request *rq)
{
	char		serial[KS_MAX_SERIAL + 1];
	KsLabel		label;
	bool		ok = true;
	bool		destroyed = false;
	KsStatus	status;

	get_label(rq, &label, &ok);
	wire_get_cstr(&rq->in, serial, sizeof(serial));
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok || label.provisional)
		return refuse_name(rq);
	status = provider->destroy_kek(keystore, &label, serial, &destroyed, &rq->why);
	if (status == KS_OK)
		wire_put_uint(&rq->out, destroyed, 1);
	return status;
}

static KsStatus
do_enable(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		tenant[UUID_TEXT_LEN + 1];
	size_t		found = 0;
	size_t		obeyed = 0;
	bool		ok = true;
	unsigned	on;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	get_uuid(rq, tenant, &ok);
	on = (unsigned) wire_get_uint(&rq->in, 1);
	if (!wire_done(&rq->in) || on > 1)
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->enable(keystore, inst, tenant, on == 1, &found, &obeyed, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, found, 2);
	wire_put_uint(&rq->out, obeyed, 2);
	return KS_OK;
}

static const Handler handlers[] = {
	[KS_OP_HELLO] = do_hello,
	[KS_OP_STATUS] = do_status,
	[KS_OP_SETUP] = do_setup,
	[KS_OP_CREATE_KEK] = do_create_kek,
	[KS_OP_UNWRAP] = do_unwrap,
	[KS_OP_CONFIRM] = do_confirm,
	[KS_OP_LIST] = do_list,
	[KS_OP_REMOVE] = do_remove,
	[KS_OP_SEE] = do_see,
	[KS_OP_DESTROY] = do_destroy,
	[KS_OP_WRAP] = do_wrap,
	[KS_OP_DESTROY_KEK] = do_destroy_kek,
	[KS_OP_ENABLE] = do_enable,
};

/* Stands in for every operation while there is no provider to ask. */
static KsStatus
no_provider(Request *rq)
{
	rq->in.pos = rq->in.len;
	return ks_fail(&rq->why, KS_BAD_URI,
				   "the keystore's URI names no kind of keystore that is supported");
}

size_t
request_run(const uint8_t *frame, size_t len, uint8_t *reply)
{
	Request		rq = {0};
	char		expected[KS_MAX_SERIAL + 1];
	uint64_t	id;
	size_t		op;
	KsStatus	status;
	WireWriter	head = {reply, 4 + 8 + 1, 0, false};
	Handler		handler;

	rq.in = (WireReader) {frame, len, 0, false};
	rq.out = (WireWriter) {reply + 13, KS_MAX_FRAME - 9, 0, false};
	id = wire_get_uint(&rq.in, 8);
	op = (size_t) wire_get_uint(&rq.in, 1);
	wire_get_cstr(&rq.in, expected, sizeof(expected));
	if (rq.in.bad || op < KS_OP_HELLO || op >= sizeof(handlers) / sizeof(handlers[0]) ||
		(op != KS_OP_HELLO && !greeted))
		return 0;
	handler = op != KS_OP_HELLO && keystore == NULL ? no_provider : handlers[op];

	if (keystore != NULL)
		provider->expect(keystore, expected);
	status = handler(&rq);
	explicit_bzero(new_keys, sizeof(new_keys));
	explicit_bzero(wrapped_keys, sizeof(wrapped_keys));
	if (!wire_done(&rq.in) || rq.out.bad)
	{
		explicit_bzero(reply + 13, rq.out.len);
		return 0;
	}

	if (status != KS_OK)
	{
		explicit_bzero(reply + 13, rq.out.len);
		rq.out.len = 0;
		put_text(&rq.out, rq.why.reason);
		put_text(&rq.out, status == KS_PIN_INCORRECT ? rq.why.pin_stamp : "");
	}
	wire_put_uint(&head, 8 + 1 + rq.out.len, 4);
	wire_put_uint(&head, id, 8);
	wire_put_uint(&head, status, 1);
	return head.len + rq.out.len;
}

void
request_shutdown(void)
{
	if (keystore != NULL)
		provider->close(keystore);
	keystore = NULL;
}
