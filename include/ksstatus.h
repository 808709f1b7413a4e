/*
 * ksstatus.h
 *		What a keystore's answer means, and the state of a key in it.
 *
 * Shared by server code and helper: no PostgreSQL header here.
 */
#ifndef NOMP_KSSTATUS_H
#define NOMP_KSSTATUS_H

/* What a keystore says of a key. */
typedef enum KsKeyState
{
	KS_STATE_USABLE,
	KS_STATE_DISABLED,
	KS_STATE_PENDING			/* will be destroyed, can still be saved */
} KsKeyState;

/*
 * Statuses.  KS_KEY_ABSENT and KS_KEY_DISABLED are said only if the canary was
 * found just before and just after, on the same token serial; KS_INTEGRITY only if the module
 * proved healthy by a round trip with another key.
 */
typedef enum KsStatus
{
	KS_OK = 0,
	KS_KEY_ABSENT,				/* the keystore is ours and has no such key */
	KS_INTEGRITY,				/* the wrapped key does not authenticate */
	KS_EXISTS,					/* a key of that label is there already */
	KS_REFUSED,					/* the request breaks a rule of its operation */
	KS_BAD_URI,					/* the keystore setting does not parse */
	KS_MODULE_LOAD,				/* the module cannot be loaded or initialised */
	KS_MODULE_ERROR,			/* the module answered with an error */
	KS_MECHANISM_MISSING,		/* the token lacks AES key generation or AES-GCM */
	KS_TOKEN_MISSING,			/* no token matches the URI */
	KS_TOKEN_WRONG,				/* a token matches, but the canary is not in it
								 * or its serial changed */
	KS_OTHER_TOKEN,				/* not the token that the request is for; from the
								 * broker: no keystore that is configured is it */
	KS_PIN_FILE,				/* PIN file missing, unreadable, or readable by
								 * group or others */
	KS_PIN_INCORRECT,
	KS_PIN_LOCKED,
	KS_KEY_DISABLED,			/* the key is there and must not be used */
	KS_NETWORK,					/* no connection, or TLS does not prove the host */
	KS_CREDENTIALS,				/* none found, expired, or not recognised */
	KS_ACCESS_DENIED,			/* known, but not allowed to do this */
	KS_CLOCK_SKEW,				/* this machine's clock is wrong */
	KS_THROTTLED,				/* the service asks to come back later */
	KS_REGION,					/* not a key, or an endpoint, of the regions allowed */
	KS_UNSUPPORTED,				/* this kind of keystore cannot do that */
	KS_NOT_YET,					/* a key that was just made does not show, or not
								 * always */
	/* the following are made up by the broker, never sent by a helper */
	KS_TIMEOUT,					/* no answer in nomp_crypt.keystore_timeout */
	KS_CRASHED,					/* the helper died twice over this request */
	KS_NOT_CONFIGURED,			/* nomp_crypt.keystore is empty */
	KS_NO_HELPER,				/* the helper cannot be started */
	KS_RETRY,					/* keys were revoked meanwhile: read the rows again */
	KS_NO_BROKER				/* no broker is running */
} KsStatus;

#endif							/* NOMP_KSSTATUS_H */
