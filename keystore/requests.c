/*
 * requests.c
 *		Reads the bodies of protocol.h, asks the provider, writes the answers.
 *
 * Called by main.c and by the threads of workers.c, several of which may be in
 * here at once after the greeting.  Names are checked here: a provider gets
 * installations, schools and labels that follow the grammar of label.h and
 * belong together.  The structs with data keys belong to the thread and are wiped at the end of
 * every request.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "keystore.h"
#include "request_parts.h"
#include "requests.h"

typedef KsStatus (*Handler) (Request *rq);

static const KeystoreProvider *const providers[] = {
	&pkcs11_provider,
	&kms_provider,
};

static bool greeted = false;
const KeystoreProvider *provider = NULL;
Keystore   *keystore = NULL;

static _Thread_local KsNewKey new_keys[KS_MAX_KEYS];
static _Thread_local KsWrappedKey wrapped_keys[KS_MAX_KEYS];

KsStatus
ks_fail(KsFailure *why, KsStatus status, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	vsnprintf(why->reason, sizeof(why->reason), fmt, args);
	va_end(args);
	return status;
}

int
request_max_in_flight(void)
{
	return keystore != NULL ? provider->max_in_flight : 1;
}

static KsStatus
do_hello(Request *rq)
{
	static KsGreeting greeting;
	unsigned	version = (unsigned) wire_get_uint(&rq->in, 2);

	/* a second one must not touch what threads have in use */
	if (greeted)
		return malformed(rq);
	wire_get_cstr(&rq->in, greeting.uri, sizeof(greeting.uri));
	wire_get_cstr(&rq->in, greeting.pin_stamp, sizeof(greeting.pin_stamp));
	wire_get_cstr(&rq->in, greeting.regions, sizeof(greeting.regions));
	wire_get_cstr(&rq->in, greeting.canary, sizeof(greeting.canary));
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (version != KS_PROTOCOL_VERSION)
		return ks_fail(&rq->why, KS_REFUSED,
					   "the helper speaks protocol version %d", KS_PROTOCOL_VERSION);
	for (size_t i = 0; i < sizeof(providers) / sizeof(providers[0]); i++)
	{
		if (strncmp(greeting.uri, providers[i]->scheme, strlen(providers[i]->scheme)) == 0)
		{
			provider = providers[i];
			keystore = provider->create(&greeting);
		}
	}
	greeted = true;
	wire_put_uint(&rq->out, KS_PROTOCOL_VERSION, 2);
	wire_put_uint(&rq->out, (uint64_t) request_max_in_flight(), 2);
	wire_put_uint(&rq->out, keystore != NULL && provider->capabilities.forgets_keys, 1);
	return KS_OK;
}

/* The state of the token for an installation, which may be "". */
static KsStatus
get_status(Request *rq, KsTokenStatus *token)
{
	char		inst[UUID_TEXT_LEN + 1];

	wire_get_cstr(&rq->in, inst, sizeof(inst));
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (inst[0] != '\0' && !label_is_uuid(inst))
		return refuse_name(rq);
	return provider->status(keystore, inst, token, &rq->why);
}

static KsStatus
do_probe(Request *rq)
{
	KsTokenStatus token = {0};
	KsStatus	status = get_status(rq, &token);

	if (status != KS_OK)
		return status;
	put_text(&rq->out, token.serial);
	put_text(&rq->out, token.canary_name);
	return KS_OK;
}

static KsStatus
do_status(Request *rq)
{
	KsTokenStatus token = {0};
	KsStatus	status = get_status(rq, &token);

	if (status != KS_OK)
		return status;
	put_text(&rq->out, token.label);
	put_text(&rq->out, token.serial);
	put_text(&rq->out, token.manufacturer);
	put_text(&rq->out, token.model);
	wire_put_uint(&rq->out, token.software, 1);
	wire_put_uint(&rq->out, token.canary, 1);
	wire_put_uint(&rq->out, provider->capabilities.destroys_at_once, 1);
	put_text(&rq->out, token.credentials);
	wire_put_uint(&rq->out, token.lasting, 1);
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
	uint32_t	age;
	int			n;
	KsStatus	status;

	get_label(rq, &label, &ok);
	confirm = (unsigned) wire_get_uint(&rq->in, 1);
	age = (uint32_t) wire_get_uint(&rq->in, 4);
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
	status = provider->unwrap(keystore, &label, confirm == 1, age, wrapped_keys, n, &rq->why);
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
	[KS_OP_REGISTER_KEY] = do_register_key,
	[KS_OP_SIGN] = do_sign,
	[KS_OP_HEAD] = do_head,
	[KS_OP_LOOK] = do_look,
	[KS_OP_PROBE] = do_probe,
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
	uint32_t	patience;
	KsStatus	status;
	WireWriter	head = {reply, 4 + 8 + 1, 0, false};
	Handler		handler;

	rq.in = (WireReader) {frame, len, 0, false};
	rq.out = (WireWriter) {reply + 13, KS_MAX_FRAME - 9, 0, false};
	id = wire_get_uint(&rq.in, 8);
	op = (size_t) wire_get_uint(&rq.in, 1);
	wire_get_cstr(&rq.in, expected, sizeof(expected));
	patience = (uint32_t) wire_get_uint(&rq.in, 4);
	if (rq.in.bad || op < KS_OP_HELLO || op >= sizeof(handlers) / sizeof(handlers[0]) ||
		(op != KS_OP_HELLO && !greeted))
		return 0;
	handler = op != KS_OP_HELLO && keystore == NULL ? no_provider : handlers[op];

	if (keystore != NULL)
		provider->expect(keystore, expected, patience);
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
