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
 *		u32 patience (milliseconds until the broker gives up; 0: not said)
 *
 * A helper with another token answers with KS_OTHER_TOKEN; HELLO expects
 * none.  A helper that can tell answers before the patience is over.  In a
 * reply the code is a KsStatus.  The broker may send several
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

#include "ksstatus.h"

#define KS_PROTOCOL_VERSION		6
#define KS_MAX_FRAME			65536	/* after the length word */
#define KS_HELPER_FD			3	/* the helper's end of the socketpair */

#define KS_DEK_LEN				32
#define KS_MAX_LABEL			128	/* a ten-digit generation with its mark */
#define KS_MAX_WRAPPED			512 /* enough for a KMS ciphertext blob */
#define KS_MAX_REFERENCE		128 /* what the keystore itself calls a key */
#define KS_MAX_HEAD				128 /* of the register */
#define KS_MAX_PUBLIC_KEY		256 /* SubjectPublicKeyInfo, DER */
#define KS_DIGEST_LEN			32	/* SHA-256 */
#define KS_SIGNATURE_LEN		64	/* ES256: r, s */
#define KS_MAX_IN_FLIGHT		64	/* requests that a helper may be sent at once */
#define KS_MAX_KEYS				12	/* keys in one CREATE_KEK or UNWRAP */
#define KS_LIST_PAGE			20	/* entries in one reply of LIST, SEE, DESTROY */
#define KS_MAX_TENANTS			50	/* in one SEE, DESTROY or ENABLE */
#define KS_MAX_REFERENCES		12	/* in one LOOK */

/*
 * Bodies, request -> reply with KS_OK.  "inst" and "tenant" are uuids in
 * their 36-character lower-case form; "tenants" are up to KS_MAX_TENANTS of
 * them with a blank between each two, and what is said of the tenant then
 * holds for all of them: one look finds the keys of all.  A keystore that
 * takes one at a time answers to more with KS_UNSUPPORTED.
 *
 * HELLO       u16 version, str keystore uri, str pin_stamp, str regions (where
 *             keys may be, with blanks between them), str canary (as PROBE of
 *             the last helper said, or "": where to look first, and no more)
 *             -> u16 version, u16 requests that it works on at once, u8 forgets
 *             keys (it never has a KEK, and of a data key nothing is left in it
 *             once the request is answered: it need not be replaced after a
 *             DESTROY or DESTROY_KEK, and is sent those beside other requests)
 *             (opens nothing yet)
 * STATUS      str inst ("" = none yet) -> str token label, str serial,
 *             str manufacturer, str model, u8 software token, u8 canary found,
 *             u8 destroys at once, str credentials (where they come from; ""
 *             for a PIN), u8 credentials that do not expire
 *             (a key service without a key of ours has the serial "")
 * PROBE       str inst ("" = none yet) -> str serial, str canary (what the
 *             keystore itself calls it, an ARN, or "")
 *             which token it is, as STATUS says
 * SETUP       str inst -> u8 created, str serial
 *             creates the canary unless it is there
 * CREATE_KEK  str inst, str tenant, u32 generation, u8 n, n * str aad
 *             -> str serial, n * (str data key, str wrapped)
 *             makes a KEK marked provisional and n fresh data keys under it
 * WRAP        str inst, str label, str aad, str data key or "" -> str data key,
 *             str wrapped
 *             wraps a data key under a KEK that is there, provisional or not;
 *             "" stands for a fresh one
 * UNWRAP      str inst, str label, u8 confirm, u32 age, u8 n, n * (str aad,
 *             str wrapped)
 *             -> n * (u8 status, str data key or "")
 *             confirm: take the provisional mark off first, if it is there; a
 *             key service does that afterwards, and answers without it if
 *             that takes long
 *             age: seconds since the KEK was made, about; one of a few minutes
 *             that a key service does not know is KS_NOT_YET, not
 *             KS_KEY_ABSENT
 * CONFIRM     str inst, str label -> (empty)
 * LIST        str inst, u32 offset -> u32 total, u16 n, n * (str label, u64
 *             created): this installation's provisional keys, sorted by label
 * REMOVE      str inst, str label, u64 seconds -> u8 removed
 *             destroys one key that is provisional and at least that old;
 *             anything else is refused with KS_REFUSED
 * SEE         str inst, str tenants, u32 offset -> str serial, u16 n, n * (str
 *             label, u8 provisional, u8 KsKeyState, u64 until, str reference):
 *             the keys found for the tenant, sorted by label, canary found
 *             before and after; until: when one that is pending will be gone;
 *             reference: what the keystore itself calls it, an ARN, or ""
 * DESTROY     str inst, str tenants, str serial, u16 days -> u16 n, n * (str
 *             label), u16 pending, u64 until
 *             sees, destroys and no longer sees every key of the tenant,
 *             canary found before and after, on the token with that serial
 *             (KS_TOKEN_WRONG otherwise); n are the keys destroyed now.  In a
 *             keystore that destroys later, asks for that in so many days: n
 *             are those it was asked for now, so many are pending in all, and
 *             the last will be gone at "until"; both 0 if none is there
 * DESTROY_KEK str inst, str label, str serial, u16 days -> u8 destroyed, u64
 *             until: the same for that one key; 0 if it was not there any
 *             more; until is not 0 as long as it is pending
 * ENABLE      str inst, str tenants, u8 enable -> u16 n, u16 obeyed
 *             lets every key of the tenant be used, or not, and reads that
 *             back; n keys were found, of so many the token obeyed
 * REGISTER_KEY str inst, u32 generation, str known, u8 KsMake -> u8 created,
 *             str serial, str public key (SubjectPublicKeyInfo, DER)
 *             the key pair (P-256) that signs the register; known: its public
 *             key, "" if that is not known.  In a keystore that may have two of
 *             one generation it is the one, and no other
 * SIGN        str inst, u32 generation, str known, str digest -> str signature
 *             (r, s)
 *             ECDSA over a SHA-256 digest, with that key
 * HEAD        str inst, u8 set, str head -> str head ("" if there is none)
 *             the register's head, remembered in the keystore; set: replaces
 *             it, unless it came too late and a later one is there already
 * LOOK        str inst, u8 n, n * str reference -> u8 n, n * (u8 found, u8
 *             KsKeyState, u64 until), in the same order
 *             keys by what the keystore itself calls them, whatever label they
 *             have now; one that is not found was looked for several times,
 *             canary found before and after each; KS_UNSUPPORTED if the
 *             keystore has no such names
 *
 * SEE and DESTROY that answer with KS_LIST_PAGE entries may have left more, and
 * are asked again until they answer with fewer: SEE from an offset on, DESTROY
 * took the first of them in order of label.
 */
/* In REGISTER_KEY: what if there is none, or several and none is known? */
typedef enum KsMake
{
	KS_FIND,					/* then there is none; then none is used */
	KS_CHOOSE,					/* then there is none; then the oldest, for who
								 * would make one */
	KS_MAKE						/* then it is made; then the oldest */
} KsMake;

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
	KS_OP_ENABLE,
	KS_OP_REGISTER_KEY,
	KS_OP_SIGN,
	KS_OP_HEAD,
	KS_OP_LOOK,
	KS_OP_PROBE
} KsOp;

#endif							/* NOMP_PROTOCOL_H */
