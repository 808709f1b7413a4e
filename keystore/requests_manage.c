/*
 * requests_manage.c
 *		Requests that look for keys, end them, and sign the register.
 *
 * As requests.c, for the operations in which no data key passes through.
 */
#include <string.h>

#include "request_parts.h"

KsStatus
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

KsStatus
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

KsStatus
do_see(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		tenants[TENANTS_TEXT_MAX];
	KsSeen		seen = {0};
	uint32_t	offset;
	bool		ok = true;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	get_tenants(rq, tenants, &ok);
	offset = (uint32_t) wire_get_uint(&rq->in, 4);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->see(keystore, inst, tenants, offset, &seen, &rq->why);
	if (status != KS_OK)
		return status;
	put_text(&rq->out, seen.serial);
	wire_put_uint(&rq->out, seen.n, 2);
	for (size_t i = 0; i < seen.n; i++)
	{
		put_text(&rq->out, seen.keys[i].label);
		wire_put_uint(&rq->out, seen.keys[i].provisional, 1);
		wire_put_uint(&rq->out, seen.keys[i].state, 1);
		wire_put_uint(&rq->out, seen.keys[i].until, 8);
		put_text(&rq->out, seen.keys[i].reference);
	}
	return KS_OK;
}

KsStatus
do_destroy(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		tenants[TENANTS_TEXT_MAX];
	char		serial[KS_MAX_SERIAL + 1];
	KsSeen		seen = {0};
	bool		ok = true;
	unsigned	days;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	get_tenants(rq, tenants, &ok);
	wire_get_cstr(&rq->in, serial, sizeof(serial));
	days = (unsigned) wire_get_uint(&rq->in, 2);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->destroy(keystore, inst, tenants, serial, days, &seen, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, seen.n, 2);
	for (size_t i = 0; i < seen.n; i++)
		put_text(&rq->out, seen.keys[i].label);
	wire_put_uint(&rq->out, seen.pending, 2);
	wire_put_uint(&rq->out, seen.until, 8);
	return KS_OK;
}

KsStatus
do_destroy_kek(Request *rq)
{
	char		serial[KS_MAX_SERIAL + 1];
	KsLabel		label;
	bool		ok = true;
	bool		destroyed = false;
	uint64_t	until = 0;
	unsigned	days;
	KsStatus	status;

	get_label(rq, &label, &ok);
	wire_get_cstr(&rq->in, serial, sizeof(serial));
	days = (unsigned) wire_get_uint(&rq->in, 2);
	if (!wire_done(&rq->in))
		return malformed(rq);
	if (!ok || label.provisional)
		return refuse_name(rq);
	status = provider->destroy_kek(keystore, &label, serial, days, &destroyed, &until, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, destroyed, 1);
	wire_put_uint(&rq->out, until, 8);
	return KS_OK;
}

KsStatus
do_look(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	KsLooked	keys[KS_MAX_REFERENCES] = {0};
	bool		ok = true;
	int			n;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	n = (int) wire_get_uint(&rq->in, 1);
	for (int i = 0; i < n && n <= KS_MAX_REFERENCES; i++)
		wire_get_cstr(&rq->in, keys[i].reference, sizeof(keys[i].reference));
	if (n < 1 || n > KS_MAX_REFERENCES || !wire_done(&rq->in))
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	if (provider->look == NULL)
		return ks_fail(&rq->why, KS_UNSUPPORTED, "the keystore has no names of its own for keys");
	status = provider->look(keystore, inst, keys, n, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, (uint64_t) n, 1);
	for (int i = 0; i < n; i++)
	{
		wire_put_uint(&rq->out, keys[i].found, 1);
		wire_put_uint(&rq->out, keys[i].state, 1);
		wire_put_uint(&rq->out, keys[i].until, 8);
	}
	return KS_OK;
}

KsStatus
do_enable(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		tenants[TENANTS_TEXT_MAX];
	size_t		found = 0;
	size_t		obeyed = 0;
	bool		ok = true;
	unsigned	on;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	get_tenants(rq, tenants, &ok);
	on = (unsigned) wire_get_uint(&rq->in, 1);
	if (!wire_done(&rq->in) || on > 1)
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	status = provider->enable(keystore, inst, tenants, on == 1, &found, &obeyed, &rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, found, 2);
	wire_put_uint(&rq->out, obeyed, 2);
	return KS_OK;
}

static KsStatus
unsupported(Request *rq)
{
	return ks_fail(&rq->why, KS_UNSUPPORTED, "this kind of keystore has no key for the register");
}

KsStatus
do_register_key(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	KsRegisterKey key = {0};
	bool		ok = true;
	uint32_t	generation;
	KsBytes		known;
	unsigned	make;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	generation = (uint32_t) wire_get_uint(&rq->in, 4);
	get_bytes(rq, &known);
	make = (unsigned) wire_get_uint(&rq->in, 1);
	if (!wire_done(&rq->in) || make > KS_MAKE)
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	if (provider->register_key == NULL)
		return unsupported(rq);
	status = provider->register_key(keystore, inst, generation, known, (KsMake) make, &key,
									&rq->why);
	if (status != KS_OK)
		return status;
	wire_put_uint(&rq->out, key.created, 1);
	put_text(&rq->out, key.serial);
	wire_put_str(&rq->out, key.public_key, key.public_key_len);
	return KS_OK;
}

KsStatus
do_sign(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	KsBytes		known;
	KsBytes		digest;
	uint8_t		signature[KS_SIGNATURE_LEN];
	bool		ok = true;
	uint32_t	generation;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	generation = (uint32_t) wire_get_uint(&rq->in, 4);
	get_bytes(rq, &known);
	get_bytes(rq, &digest);
	if (!wire_done(&rq->in) || digest.len != KS_DIGEST_LEN)
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	if (provider->sign == NULL)
		return unsupported(rq);
	status = provider->sign(keystore, inst, generation, known, digest.data, signature, &rq->why);
	if (status == KS_OK)
		wire_put_str(&rq->out, signature, sizeof(signature));
	return status;
}

KsStatus
do_head(Request *rq)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		head[KS_MAX_HEAD + 1];
	bool		ok = true;
	unsigned	set;
	KsStatus	status;

	get_uuid(rq, inst, &ok);
	set = (unsigned) wire_get_uint(&rq->in, 1);
	wire_get_cstr(&rq->in, head, sizeof(head));
	if (!wire_done(&rq->in) || set > 1)
		return malformed(rq);
	if (!ok)
		return refuse_name(rq);
	if (provider->head == NULL)
		return unsupported(rq);
	status = provider->head(keystore, inst, set == 1, head, &rq->why);
	if (status == KS_OK)
		put_text(&rq->out, head);
	return status;
}
