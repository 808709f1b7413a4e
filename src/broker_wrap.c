/*
 * broker_wrap.c
 *		KS_OP_WRAP: the frames that wrapping a data key takes, in order.
 *
 *		UNWRAP_OLD   under the KEK that wraps it now; not for a key to be made
 *		WRAP_NEW     under the KEK that shall
 *		UNWRAP_NEW   the proof: as everybody will have to open it from now on
 *
 * The two KEKs may be in different keystores: each frame is a request of its
 * own, which goes where its KEK is.  Between the first two the data key stays
 * in the job, wiped as soon as it has been wrapped, or with the job; it is
 * compared with its key_check each time.  A frame that is repeated is the same.
 */
#include "postgres.h"

#include "broker_codec.h"
#include "broker_wrap.h"
#include "cipher.h"

typedef enum WrapStep
{
	UNWRAP_OLD,
	WRAP_NEW,
	UNWRAP_NEW
} WrapStep;

static KsOp
put_unwrap(const WrapRequest *what, const char *label, bool leave_provisional,
		   WireWriter *w)
{
	static UnwrapRequest unwrap;

	strlcpy(unwrap.installation, what->installation, sizeof(unwrap.installation));
	strlcpy(unwrap.label, label, sizeof(unwrap.label));
	unwrap.own_transaction = leave_provisional;
	unwrap.nkeys = 1;
	unwrap.keys[0] = what->key;
	codec_put_unwrap(w, &unwrap);
	return KS_OP_UNWRAP;
}

/* The next frame's operation and body. */
KsOp
wrap_put(Job *job, WireWriter *w)
{
	const WrapRequest *what = &job->body.wrap;

	/* a key to be made needs no unwrapping; the request names one keystore */
	if (what->from[0] == '\0' && job->step == UNWRAP_OLD)
		job->step = WRAP_NEW;
	switch (job->step)
	{
		case UNWRAP_OLD:
			return put_unwrap(what, what->from, what->from_own_transaction, w);
		case WRAP_NEW:
			codec_put_wrap(w, what, what->from[0] != '\0' ? job->dek : NULL);
			return KS_OP_WRAP;
		default:
			return put_unwrap(what, what->label, true, w);
	}
}

/* The key in an answer to UNWRAP, if it is the right one. */
static KsStatus
take_unwrapped(const WrapRequest *what, WireReader *r, const uint8 **dek)
{
	KsStatus	status = (KsStatus) wire_get_uint(r, 1);
	size_t		len = wire_get_str(r, dek);

	if (!wire_done(r))
		return KS_MODULE_ERROR;
	if (status == KS_OK && !codec_is_key(&what->key, *dek, len))
		return KS_INTEGRITY;
	return status;
}

/* The new wrapped form; of a key that was made, its key_check too. */
static KsStatus
take_wrapped(WrapRequest *what, WireReader *r)
{
	uint8		check[KEY_CHECK_LEN];

	if (!codec_get_wrap(r, &what->key, check))
		return KS_MODULE_ERROR;
	if (what->from[0] == '\0')
		memcpy(what->key.key_check, check, KEY_CHECK_LEN);
	return cipher_equal(check, what->key.key_check, KEY_CHECK_LEN) ? KS_OK : KS_MODULE_ERROR;
}

/* Take a frame's answer; if that is KS_OK and all is not done, the next frame is due. */
KsStatus
wrap_answered(Job *job, WireReader *r)
{
	WrapRequest *what = &job->body.wrap;
	const uint8 *dek;
	KsStatus	status;

	switch (job->step++)
	{
		case UNWRAP_OLD:
			status = take_unwrapped(what, r, &dek);
			if (status == KS_OK)
				memcpy(job->dek, dek, KS_DEK_LEN);
			jobs_redirect(job, what->serial);
			return status;
		case WRAP_NEW:
			cipher_wipe(job->dek, KS_DEK_LEN);
			return take_wrapped(what, r);
		default:
			status = take_unwrapped(what, r, &dek);
			/* it was opened a moment ago: what changed is no row */
			return status == KS_INTEGRITY ? KS_MODULE_ERROR : status;
	}
}

bool
wrap_done(const Job *job)
{
	return job->step > UNWRAP_NEW;
}
