/*
 * mykeys.c
 *		This backend's copies of working keys, for one transaction.
 *
 * Owns every key byte and every cipher context of a backend, in two places: a
 * static array of key bytes, which a signal handler can zero, and contexts on
 * the heap, which it cannot free.  A key gets its context when it is
 * first derived from.  Both go at transaction end, at PREPARE TRANSACTION,
 * when the epoch has moved (checked at each value), and when a catch-up
 * interrupt is processed.
 *
 * The handler may run between any two instructions.  It sets "zeroed" before
 * it zeroes; whoever copies key bytes looks at it afterwards and throws the
 * copy away if it is set, so that nothing is ever derived from a key that was
 * being wiped.
 *
 * Copies and contexts are direct-mapped: a school or a derived key that
 * collides takes the other's place, at the cost of another look-up.  A
 * school's two keys never collide: a searchable value needs both in turns.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "holders.h"
#include "miscadmin.h"
#include "mykeys.h"
#include "relchange.h"
#include "request.h"
#include "secret.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/guc.h"

#define NUM_BY_ID		1024	/* by two bytes of key_id, which is random */
#define NUM_KEYS		(2 * NUM_BY_ID) /* keys for values, then index keys */
#define NUM_OPENERS		256		/* by a byte of the nonce's prefix, which is random */
#define PATIENCE		64

typedef enum LibraryChoice
{
	LIBRARY_AUTO,
	LIBRARY_OPENSSL
} LibraryChoice;

static const struct config_enum_entry library_options[] = {
	{"auto", LIBRARY_AUTO, false},
	{"openssl", LIBRARY_OPENSSL, false},
	{NULL, 0, false}
};

static int	cipher_library_choice = LIBRARY_AUTO;

typedef struct MyKey
{
	bool		used;
	bool		listed;			/* in touched[] */
	uint8		key_id[VALUE_KEY_ID_LEN];
	KeyPlace	place;
	Lease		lease;
	int64		checked;		/* the lease, see lease_valid_coarse */
	CipherRoot *root;			/* a key for values, once derived from */
	CipherCtx  *sealer;
	uint8		nonce[CIPHER_NONCE_LEN];	/* the next one to use */
	uint32		sealed;			/* values under the sealer's derived key */
} MyKey;

typedef struct Opener
{
	uint8		key_id[VALUE_KEY_ID_LEN];
	uint8		prefix[CIPHER_PREFIX_LEN];
	uint8		passed_over;	/* so often since it was last of use */
	CipherCtx  *ctx;
} Opener;

static MyKey my_keys[NUM_KEYS];
static uint16 touched[NUM_KEYS];	/* those that there is something to wipe of */
static int	num_touched = 0;
/*
 * Contexts to open with.  Values written in one transaction share a prefix;
 * of a row that was written alone it is the only use.  Those must neither
 * push out the others nor spread over all the contexts' memory: a prefix
 * whose place is taken is opened in a place apart, the last, until the one
 * that holds it has been passed over a few times.
 */
static Opener openers[NUM_OPENERS + 1];
static bool any_opener = false;
static Opener *last_opener = NULL;	/* the last one used, and whose it is */
static MyKey *last_opened = NULL;
static volatile uint64 my_secrets[NUM_KEYS][WORKING_KEY_LEN / sizeof(uint64)] pg_attribute_aligned(SECRET_PAGE);
static volatile sig_atomic_t zeroed = false;

/* Which key the school last written for writes with; its index key. */
static struct
{
	bool		known;
	uint8		tenant[16];
	uint8		key_id[VALUE_KEY_ID_LEN];
}			current[2];

static Oid	watched = InvalidOid;
static bool holding = false;	/* have we announced ourselves? */
static uint64 my_epoch = 0;		/* under which the copies were made */
static pqsigfunc chained_handler = NULL;

/*
 * Runs before PostgreSQL's own SIGUSR1 handler: zero the key bytes if keys
 * were revoked.  Only stores to static memory and reads of shared memory.
 */
static void
handle_sigusr1(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (holding && holders_must_wipe())
	{
		zeroed = true;
		for (int i = 0; i < NUM_KEYS; i++)
			for (int j = 0; j < lengthof(my_secrets[i]); j++)
				my_secrets[i][j] = 0;
	}
	errno = save_errno;
	chained_handler(postgres_signal_arg);
}

/*
 * Wipe one copy and what holds it; not what was derived from it to open, which
 * is of use only while a copy is here.
 */
static void
wipe_key(MyKey *key)
{
	cipher_free(key->sealer);
	cipher_root_free(key->root);
	key->sealer = NULL;
	key->root = NULL;
	key->used = false;
	cipher_wipe((void *) my_secrets[key - my_keys], WORKING_KEY_LEN);
}

/* Wipe all copies and contexts, and acknowledge. */
static void
wipe_all(void)
{
	uint64		epoch = keyring_epoch();

	for (int i = 0; any_opener && i < lengthof(openers); i++)
	{
		cipher_free(openers[i].ctx);
		openers[i].ctx = NULL;
	}
	any_opener = false;
	last_opener = NULL;
	while (num_touched > 0)
	{
		MyKey	   *key = &my_keys[touched[--num_touched]];

		wipe_key(key);
		key->listed = false;
	}
	memset(current, 0, sizeof(current));
	zeroed = false;
	my_epoch = epoch;
	holders_ack(epoch);
}

/* End of transaction, or of the process: hold nothing. */
void
mykeys_forget(void)
{
	if (!holding)
		return;
	wipe_all();
	holding = false;
	holders_release();
}

static void
at_xact_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
		case XACT_EVENT_PREPARE:
			mykeys_forget();
			break;
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			break;
	}
}

static void
at_exit(int code, Datum arg)
{
	if (MyProc != NULL)
		mykeys_forget();
}

/*
 * Any invalidation is an occasion to look whether keys were revoked.  One of
 * the tenants' table says that a school's state may have changed: on a
 * standby, where nobody revokes, that is how the news comes.
 */
static void
at_invalidation(Oid relid)
{
	if (holding && (zeroed || keyring_epoch() != my_epoch ||
					relid == watched || !OidIsValid(relid)))
		wipe_all();
}

void
mykeys_watch(Oid relid)
{
	watched = relid;
}

/*
 * Choose what encrypts, in the postmaster: every process inherits it, and
 * what it has prepared.
 */
void
mykeys_init(void)
{
	DefineCustomEnumVariable("nomp_crypt.cipher_library",
							 "Which library does AES-256-GCM: auto takes the fastest that can be used here.",
							 "The bytes are the same.",
							 &cipher_library_choice, LIBRARY_AUTO, library_options,
							 PGC_POSTMASTER, 0, NULL, NULL, NULL);
	if (!cipher_use(cipher_library_choice == LIBRARY_OPENSSL ? "openssl" : NULL))
		ereport(FATAL,
				(errmsg("nomp_crypt: no library for AES-256-GCM can be used")));
	ereport(LOG,
			(errmsg("nomp_crypt: AES-256-GCM by %s, %s", cipher_library(),
					cipher_library_version())));
	RegisterXactCallback(at_xact_event, NULL);
}

/* Announce this process and arrange to be reached, once per transaction. */
static void
start_holding(void)
{
	if (chained_handler == NULL)
	{
		struct sigaction now;

		(void) secret_protect((void *) my_secrets, sizeof(my_secrets));
		relchange_listen(at_invalidation);
		before_shmem_exit(at_exit, 0);
		/* known before ours can be called: a signal may come at once */
		if (sigaction(SIGUSR1, NULL, &now) != 0 || now.sa_handler == SIG_DFL ||
			now.sa_handler == SIG_IGN)
			elog(FATAL, "nomp_crypt cannot be used in this kind of process");
		chained_handler = now.sa_handler;
		(void) pqsignal(SIGUSR1, handle_sigusr1);
	}
	my_epoch = keyring_epoch();
	holders_claim(my_epoch);
	holding = true;
}

static inline bool
is_current(void)
{
	return holding && !zeroed && keyring_epoch() == my_epoch;
}

/* Where that key's copy goes; a school's two keys never collide. */
static inline int
place_for(const uint8 key_id[VALUE_KEY_ID_LEN], bool is_index)
{
	return (key_id[0] | key_id[1] << 8) % NUM_BY_ID + (is_index ? NUM_BY_ID : 0);
}

/* The copy for that key_id, or -1.  The check of epoch and lease at each use. */
int
mykeys_find(const uint8 key_id[VALUE_KEY_ID_LEN])
{
	if (!holding)
		return -1;
	if (!is_current())
	{
		wipe_all();
		return -1;
	}
	for (int i = place_for(key_id, false); i < NUM_KEYS; i += NUM_BY_ID)
	{
		MyKey	   *key = &my_keys[i];

		if (key->used && memcmp(key->key_id, key_id, VALUE_KEY_ID_LEN) == 0 &&
			lease_valid_coarse(&key->lease, &key->checked))
			return i;
	}
	return -1;
}

/* Before a key is copied: this process is a holder, and of that school's. */
static void
prepare_to_hold(const KeyPlace *place)
{
	if (!holding)
		start_holding();
	else if (!is_current())
		wipe_all();
	holders_note(place->tenant);
}

/* Take a key in; wipes the caller's. */
static KsStatus
keep_key(const KeyPlace *place, const uint8 *key_check, uint64 epoch, WorkingKey *from)
{
	int			i = place_for(key_check, place->is_index);
	MyKey	   *key = &my_keys[i];

	if (!is_current() || epoch != my_epoch)
	{
		cipher_wipe(from, sizeof(*from));
		wipe_all();
		return KS_RETRY;
	}
	/* what was derived from the one before to open with may be used again */
	wipe_key(key);
	last_opener = NULL;
	memcpy(key->key_id, key_check, VALUE_KEY_ID_LEN);
	key->place = *place;
	key->lease = from->lease;
	key->checked = 0;
	if (!key->listed)
		touched[num_touched++] = (uint16) i;
	key->listed = true;
	memcpy((void *) my_secrets[i], from->bytes, WORKING_KEY_LEN);
	key->used = true;
	cipher_wipe(from, sizeof(*from));
	return zeroed ? KS_RETRY : KS_OK;
}

/*
 * Get the first of the keys asked for, from the keyring or through the
 * broker, which puts all of them there.  "epoch" is the one read before the
 * key's rows were.  KS_OK: mykeys_find will find it, unless keys have been
 * revoked since, as KS_RETRY says too: then the rows must be read again.
 */
KsStatus
mykeys_load(const UnwrapRequest *what, uint64 epoch, char *reason)
{
	const KeySpec *spec = &what->keys[0];
	KsStatus	status = mykeys_load_cached(&spec->place, spec->key_check,
											what->own_transaction, epoch);
	WorkingKey	key;

	reason[0] = '\0';
	if (status != KS_KEY_ABSENT)
		return status;
	status = request_key(what, epoch, &key, reason);
	if (status != KS_OK)
		return status;
	holders_note(spec->place.tenant);	/* waiting may have wiped it */
	return keep_key(&spec->place, spec->key_check, epoch, &key);
}

KsStatus
mykeys_load_cached(const KeyPlace *place, const uint8 key_check[KEY_CHECK_LEN],
				   bool own_transaction, uint64 epoch)
{
	WorkingKey	key;

	prepare_to_hold(place);
	if (!keyring_lookup(place, key_check, own_transaction, &key))
		return KS_KEY_ABSENT;
	return keep_key(place, key_check, epoch, &key);
}

/*
 * The copy that a school's new values are written with, or -1.  Remembered
 * for the last school only: a transaction rarely writes for two in turns.
 */
int
mykeys_current(const uint8 tenant[16], bool is_index)
{
	if (!current[is_index].known || memcmp(current[is_index].tenant, tenant, 16) != 0)
		return -1;
	return mykeys_find(current[is_index].key_id);
}

void
mykeys_set_current(const uint8 tenant[16], bool is_index,
				   const uint8 key_id[VALUE_KEY_ID_LEN])
{
	memcpy(current[is_index].tenant, tenant, 16);
	memcpy(current[is_index].key_id, key_id, VALUE_KEY_ID_LEN);
	current[is_index].known = true;
}

const KeyPlace *
mykeys_place(int key)
{
	return &my_keys[key].place;
}

const uint8 *
mykeys_id(int key)
{
	return my_keys[key].key_id;
}

/* Copy key bytes out, never ones that are being zeroed.  The caller wipes. */
static inline bool
copy_secret(const MyKey *key, uint8 bytes[WORKING_KEY_LEN])
{
	memcpy(bytes, (const void *) my_secrets[key - my_keys], WORKING_KEY_LEN);
	pg_compiler_barrier();
	return !zeroed;
}

/* Key a context with a copy. */
static bool
get_ready(MyKey *key)
{
	uint8		bytes[WORKING_KEY_LEN];

	if (key->root != NULL)
		return true;
	if (copy_secret(key, bytes))
		key->root = cipher_root(bytes);
	cipher_wipe(bytes, sizeof(bytes));
	return key->root != NULL;
}

bool
mykeys_fingerprint(int key, const uint8 *data, size_t len, uint8 out[CIPHER_MAC_LEN])
{
	uint8		bytes[WORKING_KEY_LEN];
	bool		ok = my_keys[key].place.is_index && copy_secret(&my_keys[key], bytes) &&
		cipher_hmac(bytes, data, len, out);

	cipher_wipe(bytes, sizeof(bytes));
	return ok;
}

/* Derive, in the place of an older context if there is one; NULL: failed. */
static CipherCtx *
derive(MyKey *key, CipherCtx *old, const uint8 prefix[CIPHER_PREFIX_LEN])
{
	if (!key->place.is_index && get_ready(key))
	{
		if (old == NULL)
			return cipher_derive(key->root, prefix);
		if (cipher_derive_again(old, key->root, prefix))
			return old;
	}
	cipher_free(old);
	return NULL;
}

static inline bool
opens(const Opener *opener, const uint8 *key_id, const uint8 *prefix)
{
	return opener->ctx != NULL &&
		memcmp(opener->prefix, prefix, CIPHER_PREFIX_LEN) == 0 &&
		memcmp(opener->key_id, key_id, VALUE_KEY_ID_LEN) == 0;
}

/*
 * The context that was last given out, if it opens values of that key and
 * prefix too, with all the checks of mykeys_find.  NULL: take the long way.
 */
CipherCtx *
mykeys_opener_again(const uint8 key_id[VALUE_KEY_ID_LEN],
					const uint8 prefix[CIPHER_PREFIX_LEN], const KeyPlace **place)
{
	if (!is_current() || last_opener == NULL || !opens(last_opener, key_id, prefix) ||
		!lease_valid_coarse(&last_opened->lease, &last_opened->checked))
		return NULL;
	*place = &last_opened->place;
	return last_opener->ctx;
}

/* A context that opens values of that nonce prefix. */
CipherCtx *
mykeys_opener(int key, const uint8 prefix[CIPHER_PREFIX_LEN])
{
	MyKey	   *mine = &my_keys[key];
	Opener	   *opener = &openers[(prefix[0] ^ mine->key_id[2]) % NUM_OPENERS];
	bool		found = opens(opener, mine->key_id, prefix);

	if (!found && opener->ctx != NULL && ++opener->passed_over < PATIENCE)
	{
		opener = &openers[NUM_OPENERS];
		found = opens(opener, mine->key_id, prefix);
	}
	opener->passed_over = 0;
	if (!found)
	{
		any_opener = true;
		opener->ctx = derive(mine, opener->ctx, prefix);
		memcpy(opener->prefix, prefix, CIPHER_PREFIX_LEN);
		memcpy(opener->key_id, mine->key_id, VALUE_KEY_ID_LEN);
	}
	last_opener = opener;
	last_opened = mine;
	return opener->ctx;
}

/* Count the last 12 bytes of a nonce up, big-endian, modulo 2^96. */
static void
count_up(uint8 nonce[CIPHER_NONCE_LEN])
{
	for (int i = CIPHER_NONCE_LEN - 1; i >= CIPHER_PREFIX_LEN; i--)
	{
		if (++nonce[i] != 0)
			break;
	}
}

/*
 * A context to seal one value with, and its nonce.  24 random bytes per
 * process, key and transaction; the first 12 stay, the last 12 count up.
 * After 2^32 values, NIST SP 800-38D's limit for one key, they are drawn anew.
 */
CipherCtx *
mykeys_sealer(int key, uint8 nonce[CIPHER_NONCE_LEN])
{
	MyKey	   *mine = &my_keys[key];

	if (mine->sealer == NULL || mine->sealed == PG_UINT32_MAX)
	{
		CipherCtx  *old = mine->sealer;

		mine->sealer = NULL;
		if (cipher_random(mine->nonce, CIPHER_NONCE_LEN))
			mine->sealer = derive(mine, old, mine->nonce);
		else
			cipher_free(old);
		if (mine->sealer == NULL)
			return NULL;
		mine->sealed = 0;
	}
	memcpy(nonce, mine->nonce, CIPHER_NONCE_LEN);
	count_up(mine->nonce);
	mine->sealed++;
	return mine->sealer;
}
