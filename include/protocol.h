/*
 * protocol.h
 *		What the broker and the keystore helper say to each other.
 *
 * One socketpair, one frame per message, numbers big-endian:
 *
 *		frame    := u32 length of what follows | u64 request id | u8 code | body
 *		str      := u16 length | bytes
 *
 * In a request the code is a KsOp, and the body begins with
 *
 *		str expected (the serial number of the token that it is for, "" for any)
 *
 * which a helper with another token answers with KS_OTHER_TOKEN; HELLO gives
 * none.  In a reply the code is a KsStatus.  The broker may send several
 * requests before it reads a reply; the helper may answer in any order.  A
 * frame that does not parse ends the conversation: the broker kills the
 * helper, the helper exits.
 *
 * Every reply whose status is not KS_OK has the body
 *
 *		str reason (for the server log: names a function and a return value of
 *		            the module, never a secret) | str pin_stamp
 *
 * where pin_stamp is empty unless the status is KS_PIN_INCORRECT: then it
 * identifies the PIN file that was refused (device, inode, size, mtime).  The
 * broker hands it to the next helper in KS_OP_HELLO, so that a wrong PIN is
 * tried once and not until the token locks.
 *
 * This file and wire.h are shared by server code and helper: no PostgreSQL
 * header here.
 */
#ifndef NOMP_PROTOCOL_H
#define NOMP_PROTOCOL_H

#define KS_PROTOCOL_VERSION		2
#define KS_MAX_FRAME			65536	/* after the length word */
#define KS_HELPER_FD			3	/* the helper's end of the socketpair */

#define KS_DEK_LEN				32
#define KS_MAX_LABEL			128	/* a ten-digit generation with its mark */
#define KS_MAX_WRAPPED			512 /* enough for a KMS ciphertext blob */
#define KS_MAX_KEYS				12	/* keys in one CREATE_KEK or UNWRAP */
#define KS_LIST_PAGE			40	/* entries in one reply of LIST, SEE, DESTROY */

/*
 * Bodies, request -> reply with KS_OK.  "inst" and "tenant" are uuids in
 * their 36-character lower-case form.
 *
 * HELLO       u16 version, str keystore uri, str pin_stamp -> u16 version
 *             (opens nothing yet)
 * STATUS      str inst ("" = none yet) -> str token label, str serial,
 *             str manufacturer, str model, u8 software token, u8 canary found
 * SETUP       str inst -> u8 created, str serial
 *             creates the canary unless it is there
 * CREATE_KEK  str inst, str tenant, u32 generation, u8 n, n * str aad
 *             -> str serial, n * (str data key, str wrapped)
 *             makes a KEK marked provisional and n fresh data keys under it
 * WRAP        str inst, str label, str aad, str data key or "" -> str data key,
 *             str wrapped
 *             wraps a data key under a KEK that is there, provisional or not;
 *             "" stands for a fresh one
 * UNWRAP      str inst, str label, u8 confirm, u8 n, n * (str aad, str wrapped)
 *             -> n * (u8 status, str data key or "")
 *             confirm: take the provisional mark off first, if it is there
 * CONFIRM     str inst, str label -> (empty)
 * LIST        str inst, u32 offset -> u32 total, u16 n, n * (str label, u64
 *             created): this installation's provisional keys, sorted by label
 * REMOVE      str inst, str label, u64 seconds -> u8 removed
 *             destroys one key that is provisional and at least that old;
 *             anything else is refused with KS_REFUSED
 * SEE         str inst, str tenant, u32 offset -> str serial, u16 n, n * (str
 *             label, u8 provisional): the keys found for the tenant, sorted by
 *             label, canary found before and after
 * DESTROY     str inst, str tenant, str serial -> u16 n, n * (str label)
 *             sees, destroys and no longer sees every key of the tenant,
 *             canary found before and after, on the token with that serial
 *             (KS_TOKEN_WRONG otherwise); n are the keys destroyed now
 * DESTROY_KEK str inst, str label, str serial -> u8 destroyed
 *             the same for that one key; 0 if it was not there any more
 * ENABLE      str inst, str tenant, u8 enable -> u16 n, u16 obeyed
 *             lets every key of the tenant be used, or not, and reads that
 *             back; n keys were found, of so many the token obeyed
 *
 * SEE and DESTROY that answer with KS_LIST_PAGE entries may have left more, and
 * are asked again until they answer with fewer: SEE from an offset on, DESTROY
 * took the first of them in order of label.
 */
typedef enum KsOp
{
	KS_OP_HELLO = 1,
	KS_OP_STATUS,
	KS_OP_SETUP,
	KS_OP_CREATE_KEK,
	KS_OP_UNWRAP,
	KS_OP_CONFIRM,
	KS_OP_LIST,
	KS_OP_REMOVE,
	KS_OP_SEE,
	KS_OP_DESTROY,
	KS_OP_WRAP,
	KS_OP_DESTROY_KEK,
	KS_OP_ENABLE
} KsOp;

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
	/* the following are made up by the broker, never sent by a helper */
	KS_TIMEOUT,					/* no answer in nomp_crypt.keystore_timeout */
	KS_CRASHED,					/* the helper died twice over this request */
	KS_NOT_CONFIGURED,			/* nomp_crypt.keystore is empty */
	KS_NO_HELPER,				/* the helper cannot be started */
	KS_RETRY,					/* keys were revoked meanwhile: read the rows again */
	KS_NO_BROKER				/* no broker is running */
} KsStatus;

#endif							/* NOMP_PROTOCOL_H */
