/*
 * kms.h
 *		Shared by the files of the AWS KMS provider, and only by them.
 *
 * Layers, from the bottom: kms_encode.c (base64, keys, signatures),
 * kms_arn.c (names of keys, the wrapped form), kms_uri.c (the setting),
 * kms_call.c (one call of the service, its answer checked), kms_directory.c
 * and kms_tags.c (which key has which label), kms_look.c (canary, finding
 * keys, verdicts of absence), kms_crypto.c (data keys), kms_create.c (making
 * keys), kms_erase.c, kms_register.c and kms.c (the operations).
 *
 * Operations run in several threads at once.  A Keystore's settings do not
 * change after it was made; the rest of it is guarded by "lock", the
 * directory by its own.  Keys are handed around as copies.  The service's
 * answers are not trusted: each must name the key that was asked for.
 */
#ifndef NOMP_KMS_H
#define NOMP_KMS_H

#include <pthread.h>

#include "aws.h"
#include "keystore.h"

#define ACCOUNT_LEN			12
#define KMS_MAX_THREADS		16	/* that one request starts for its calls */
#define KMS_MAX_BLOB		(KS_MAX_WRAPPED - 3)
#define KMS_FIRST_PAUSE		0.05	/* seconds, then kms_longer */
#define KMS_LAG				300 /* seconds until a new key shows everywhere, and policies know its tags */
#define KMS_MIN_DAYS		7
#define KMS_MAX_DAYS		30

#define TAG_LABEL			"nomp_crypt:label"
#define TAG_INSTALLATION	"nomp_crypt:installation"
#define TAG_SCHOOL			"nomp_crypt:school"
#define TAG_PROVISIONAL		"nomp_crypt:provisional"
#define TAG_HEAD			"nomp_crypt:head"

typedef struct KmsArn
{
	char		text[KS_MAX_REFERENCE + 1];
	char		partition[16];
	char		region[64];
	char		account[ACCOUNT_LEN + 1];
	char		id[48];
	bool		multi_region;
} KmsArn;

typedef struct KmsDirectory KmsDirectory;

/* The last canary or register's key that was made and has not shown yet. */
typedef struct KmsUnseen
{
	char		label[KS_MAX_LABEL + 1];	/* "" for none */
	char		arn[KS_MAX_REFERENCE + 1];
	double		made;
} KmsUnseen;

struct Keystore
{
	/* from the URI; "bad" is not KS_OK if it cannot be used, with the reason */
	KsStatus	bad;
	KsFailure	bad_why;
	AwsOptions	options;
	char		key_policy[512];
	bool		account_given;
	bool		settled;		/* what is made shows everywhere at once */
	char		partition[16];
	char		regions[KS_MAX_REGIONS + 1];
	char		last_canary[KS_MAX_REFERENCE + 1];	/* another helper's, to be looked at first */
	AwsClient  *client;
	KmsDirectory *directory;

	pthread_mutex_t lock;
	char		account[ACCOUNT_LEN + 1];	/* "" until it is known */
	double		next_create;	/* when CreateKey may be called again */
	double		next_mark;		/* when an unwrap may take off a mark again */
	KmsUnseen	unseen;
};

/* What is known of a key, by its tags and its description. */
typedef struct KmsKey
{
	char		arn[KS_MAX_REFERENCE + 1];
	char		label[KS_MAX_LABEL + 1];	/* without mark; "" for none of ours */
	char		made_as[KS_MAX_LABEL + 1];	/* what it says itself; "" if not asked yet */
	bool		provisional;
	uint64_t	created;		/* the mark's time */
	bool		described;		/* is of the right kind */
	char		head[KS_MAX_HEAD + 1];	/* canary: the register's */
} KmsKey;

typedef struct KmsKeys
{
	KmsKey	   *items;
	size_t		n;
} KmsKeys;

/* What DescribeKey says. */
typedef struct KmsSight
{
	bool		found;
	bool		creating;		/* not usable yet, and not "found" */
	KsKeyState	state;
	uint64_t	until;			/* if pending */
	char		made_as[KS_MAX_LABEL + 1];	/* the description: its label, from the beginning */
	double		created;		/* seconds since 1970; 0: not said */
} KmsSight;

typedef enum KmsKind
{
	KMS_WRAPPING,				/* KEK, canary */
	KMS_SIGNING
} KmsKind;

/* A key that was looked for, with its tags and state as of now. */
typedef struct KmsFound
{
	KmsKey		key;
	KmsSight	sight;
} KmsFound;

typedef struct KmsFounds
{
	KmsFound   *items;
	size_t		n;
} KmsFounds;

typedef struct KmsQuery
{
	const char *inst;
	const char *label;
	bool		as_prefix;		/* what labels begin with */
	bool		provisional;	/* only KEKs that are */
	KmsKind		kind;
} KmsQuery;

typedef struct KmsWrapped
{
	KmsArn		arn;
	const uint8_t *blob;
	size_t		blob_len;
} KmsWrapped;

/* The context of a wrap. */
typedef struct KmsPlace
{
	const char *inst;
	const char *school;
	KsBytes		aad;
} KmsPlace;

/* Asking again, as long as there is time: begin with {0}. */
typedef struct KmsAgain
{
	double		pause;
	bool		denied;			/* once, with these words */
	KsFailure	said;
} KmsAgain;

typedef KsStatus (*KmsTask) (Keystore *ks, size_t i, void *arg, KsFailure *why);

/* kms_encode.c */
extern bool kms_base64(const uint8_t *data, size_t len, char *out, size_t size);
extern bool kms_unbase64(const char *text, uint8_t *out, size_t size, size_t *len);
extern bool kms_is_p256(const uint8_t *spki, size_t len);
extern bool kms_signature_raw(const uint8_t *der, size_t len, uint8_t out[KS_SIGNATURE_LEN]);
extern bool kms_signature_holds(const uint8_t *spki, size_t spki_len,
								const uint8_t digest[KS_DIGEST_LEN],
								const uint8_t *der, size_t len);

/* kms_arn.c */
extern bool kms_arn_parse(const char *text, KmsArn *out);
extern bool kms_region_allowed(const Keystore *ks, const char *region);
extern bool kms_account_is_ours(Keystore *ks, const KmsArn *arn);
extern KsStatus kms_check_arn(Keystore *ks, const KmsArn *arn, KsFailure *why);
extern bool kms_wrapped_parse(KsBytes wrapped, KmsWrapped *out);
extern bool kms_wrapped_make(const char *arn, const uint8_t *blob, size_t blob_len,
							 KsNewKey *key);

/* kms_uri.c */
extern KsStatus kms_configure(Keystore *ks, const char *text, KsFailure *why);

/* kms_call.c */
extern void kms_expect(const char *serial);
extern KsStatus kms_check_expected(Keystore *ks, KsFailure *why);
extern void kms_serial(Keystore *ks, char out[KS_MAX_SERIAL + 1]);
extern void kms_set_patience(uint32_t milliseconds);
extern double kms_now(void);
extern double kms_time_left(void);
extern bool kms_pause(double seconds);
extern double kms_longer(double pause);
extern bool kms_again(KmsAgain *again, bool not_yet, KsStatus *status, KsFailure *why);
extern KsStatus kms_call(Keystore *ks, AwsRole role, const char *action, json_t *body,
						 AwsReply *reply, KsFailure *why);
extern bool kms_error_is(const AwsReply *reply, const char *name);
extern KsStatus kms_refused(const char *action, const AwsReply *reply, KsFailure *why);
extern KsStatus kms_answers_for(const char *action, const AwsReply *reply, const char *arn,
								KsFailure *why);
extern KsStatus kms_read_description(Keystore *ks, const json_t *metadata, KmsKind kind,
									 KmsArn *arn, KmsSight *sight, KsFailure *why);
extern KsStatus kms_describe(Keystore *ks, const char *arn, KmsKind kind, KmsSight *sight,
							 KsFailure *why);
extern void kms_copy_printable(char *out, size_t size, const char *text);
extern KsStatus kms_see_manager(Keystore *ks, const char *arn, bool *aws, KsFailure *why);
extern KsStatus kms_each(Keystore *ks, size_t n, KmsTask task, void *arg, KsFailure *why);

/* kms_directory.c */
extern KmsDirectory *directory_new(void);
extern void directory_free(KmsDirectory *dir);
extern bool directory_get(KmsDirectory *dir, const char *arn, KmsKey *out);
extern bool directory_put(KmsDirectory *dir, const KmsKey *key);
extern void directory_described(KmsDirectory *dir, const char *arn, const char *made_as);
extern void directory_made(KmsDirectory *dir, const char *arn);
extern bool directory_is_new(KmsDirectory *dir, const char *arn);
extern bool directory_made_lately(KmsDirectory *dir, const char *label);
extern void directory_gone(KmsDirectory *dir, const char *arn);
extern bool directory_match(KmsDirectory *dir, const char *label, bool as_prefix, KmsKeys *out);
extern void directory_free_keys(KmsKeys *keys);
extern KsStatus directory_refresh(Keystore *ks, KsFailure *why);

/* kms_tags.c */
extern KsStatus directory_read(Keystore *ks, const char *arn, KmsKey *out, KsFailure *why);

/* kms_look.c */
extern KsStatus kms_begin(Keystore *ks, const char *inst, KsFailure *why);
extern bool kms_knows_canary(Keystore *ks, const char *inst);
extern KsStatus kms_canary(Keystore *ks, const char *inst, KmsKey *out, KsFailure *why);
extern KsStatus kms_look(Keystore *ks, const KmsQuery *query, KmsFounds *out, KsFailure *why);
extern void kms_free_founds(KmsFounds *founds);
extern KsStatus kms_find(Keystore *ks, const char *inst, const char *label, KmsKind kind,
						 KmsFound *out, KsFailure *why);
extern KsStatus kms_find_surely(Keystore *ks, const KsLabel *label, KmsKey *out, KsFailure *why);
extern KsStatus kms_look_by_name(Keystore *ks, const char *inst, KsLooked *keys, int n,
								 KsFailure *why);
extern KsStatus kms_meet(Keystore *ks, const char *arn, KmsKey *out, KsFailure *why);
extern KsStatus kms_meet_anew(Keystore *ks, const char *arn, KmsKey *out, KsFailure *why);
extern KsStatus kms_judge(const KmsFound *found, KsFailure *why);
extern KsStatus kms_explain(Keystore *ks, const char *inst, const KmsKey *key, KmsKind kind,
							KsFailure *why);

/* kms_crypto.c */
extern KsStatus kms_wrap_key(Keystore *ks, const KmsKey *kek, const KmsPlace *place, bool fresh,
							 KsNewKey *key, KsFailure *why);
extern KsStatus kms_prove_healthy(Keystore *ks, const char *inst, KsFailure *why);
extern KsStatus kms_wrap(Keystore *ks, const KsLabel *label, bool fresh, KsNewKey *key,
						 KsFailure *why);
extern KsStatus kms_unwrap(Keystore *ks, const KsLabel *label, bool confirm,
						   uint32_t age, KsWrappedKey *keys, int n, KsFailure *why);

/* kms_policy.c */
extern KsStatus kms_policy(Keystore *ks, const char *inst, const char *school, char **out,
						   KsFailure *why);

/* kms_create.c */
extern KsStatus kms_setup(Keystore *ks, const char *inst, bool *created, char *serial,
						  KsFailure *why);
extern KsStatus kms_create_kek(Keystore *ks, const KsLabel *label, KsNewKey *keys, int n,
							   char *serial, KsFailure *why);
extern KsStatus kms_make_key(Keystore *ks, const char *label, const char *inst,
							 const char *school, const char *mark, KmsKind kind, KmsKey *out,
							 KsFailure *why);
extern KsStatus kms_take_off_mark(Keystore *ks, const char *inst, KmsKey *key,
								  KsFailure *why);
extern KsStatus kms_confirm(Keystore *ks, const KsLabel *label, KsFailure *why);

/* kms_erase.c */
extern KsStatus kms_list(Keystore *ks, const char *inst, uint32_t offset, KsSeen *out,
						 KsFailure *why);
extern KsStatus kms_see(Keystore *ks, const char *inst, const char *tenant, uint32_t offset,
						KsSeen *out, KsFailure *why);
extern KsStatus kms_remove(Keystore *ks, const KsLabel *label, uint64_t seconds, bool *removed,
						   KsFailure *why);
extern KsStatus kms_destroy(Keystore *ks, const char *inst, const char *tenant,
							const char *serial, unsigned days, KsSeen *out, KsFailure *why);
extern KsStatus kms_destroy_kek(Keystore *ks, const KsLabel *label, const char *serial,
								unsigned days, bool *destroyed, uint64_t *until,
								KsFailure *why);
extern KsStatus kms_enable(Keystore *ks, const char *inst, const char *tenant, bool on,
						   size_t *found, size_t *obeyed, KsFailure *why);

/* kms_register.c */
extern KsStatus kms_register_key(Keystore *ks, const char *inst, uint32_t generation,
								 KsBytes known, KsMake make, KsRegisterKey *out,
								 KsFailure *why);
extern KsStatus kms_sign(Keystore *ks, const char *inst, uint32_t generation,
						 KsBytes known, const uint8_t digest[KS_DIGEST_LEN],
						 uint8_t signature[KS_SIGNATURE_LEN], KsFailure *why);
extern KsStatus kms_head(Keystore *ks, const char *inst, bool set, char *head, KsFailure *why);

#endif							/* NOMP_KMS_H */
