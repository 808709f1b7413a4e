/*
 * request_parts.h
 *		Shared by the files that read requests, and only by them.
 */
#ifndef NOMP_REQUEST_PARTS_H
#define NOMP_REQUEST_PARTS_H

#include "keystore.h"
#include "wire.h"

typedef struct Request
{
	WireReader	in;
	WireWriter	out;
	KsFailure	why;
} Request;

extern const KeystoreProvider *provider;
extern Keystore *keystore;

/* requests_manage.c */
extern KsStatus do_list(Request *rq);
extern KsStatus do_remove(Request *rq);
extern KsStatus do_see(Request *rq);
extern KsStatus do_destroy(Request *rq);
extern KsStatus do_destroy_kek(Request *rq);
extern KsStatus do_enable(Request *rq);
extern KsStatus do_register_key(Request *rq);
extern KsStatus do_sign(Request *rq);
extern KsStatus do_head(Request *rq);
extern KsStatus do_look(Request *rq);

static inline void
put_text(WireWriter *w, const char *s)
{
	wire_put_str(w, s, strlen(s));
}

static inline KsStatus
malformed(Request *rq)
{
	rq->in.bad = true;
	return KS_REFUSED;
}

/* Read an installation; *ok is cleared if it is not a uuid. */
static inline void
get_uuid(Request *rq, char out[UUID_TEXT_LEN + 1], bool *ok)
{
	wire_get_cstr(&rq->in, out, UUID_TEXT_LEN + 1);
	if (!label_is_uuid(out))
		*ok = false;
}

#define TENANTS_TEXT_MAX	(KS_MAX_TENANTS * (UUID_TEXT_LEN + 1))

/* Read one school or several; *ok is cleared if they are not uuids. */
static inline void
get_tenants(Request *rq, char out[TENANTS_TEXT_MAX], bool *ok)
{
	wire_get_cstr(&rq->in, out, TENANTS_TEXT_MAX);
	if (!label_are_uuids(out))
		*ok = false;
}

static inline KsStatus
refuse_name(Request *rq)
{
	return ks_fail(&rq->why, KS_REFUSED,
				   "the request names no key of this installation");
}

/* Read an installation and a label that must be of one of its KEKs. */
static inline void
get_label(Request *rq, KsLabel *label, bool *ok)
{
	char		inst[UUID_TEXT_LEN + 1];
	char		text[KS_MAX_LABEL + 1];

	get_uuid(rq, inst, ok);
	wire_get_cstr(&rq->in, text, sizeof(text));
	if (!label_parse(text, label) || strcmp(label->inst, inst) != 0)
		*ok = false;
}

static inline void
get_bytes(Request *rq, KsBytes *out)
{
	out->len = wire_get_str(&rq->in, &out->data);
}

#endif							/* NOMP_REQUEST_PARTS_H */
