/*
 * stores.c
 *		The keystores that are configured, and the broker's hold on each.
 *
 * nomp_crypt.keystore is where new keys are made.  nomp_crypt.other_keystores
 * names those where keys may still be: while schools move from one keystore
 * to another, and as long as backups may need the old keys.  Each has a helper
 * of its own, so that one that hangs keeps nobody else waiting.
 *
 * A helper belongs to a URI, and to the regions that it was told, not to a
 * place in the settings: when a reload changes their order, helpers, and what they are working on, go along.
 *
 * Backends use stores_uri alone.  No secrets; the links have their own.
 */
#include "postgres.h"

#include "keystat.h"
#include "lease.h"
#include "stores.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#define START_RETRY_MS	10000	/* when nobody asks */
#define BLANKS			" \t\n\r"

static char *keystore_uri = NULL;
static char *other_uris = NULL;
static char *regions = NULL;

int			stores_count = 0;
Store	   *stores[MAX_KEYSTORES];
Store	   *stores_leaving[MAX_KEYSTORES];

static Store pool[3 * MAX_KEYSTORES];	/* those before and after a reload, those that leave */

/* ---- settings ---- */

static bool
refuse_pin(const char *value, const char *setting)
{
	if (value == NULL || strcasestr(value, "pin-value") == NULL)
		return true;
	GUC_check_errmsg("a PIN must not stand in \"%s\"", setting);
	GUC_check_errhint("Write it to a file that only the server's user can read, and name that with pin-source=file:/path.");
	/* do not let the message repeat it */
	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	return false;
}

static bool
check_keystore(char **newval, void **extra, GucSource source)
{
	return refuse_pin(*newval, "nomp_crypt.keystore");
}

/* The word with that number in a list; its length, 0 if there are fewer. */
static size_t
nth_word(const char *list, int n, const char **word)
{
	size_t		len = 0;

	for (int i = 0; i <= n; i++)
	{
		list += len;
		list += strspn(list, BLANKS);
		len = strcspn(list, BLANKS);
	}
	*word = list;
	return len;
}

static bool
check_others(char **newval, void **extra, GucSource source)
{
	const char *word;

	if (!refuse_pin(*newval, "nomp_crypt.other_keystores"))
		return false;
	if (*newval == NULL || nth_word(*newval, MAX_KEYSTORES - 1, &word) == 0)
		return true;
	GUC_check_errdetail("It names more than %d keystores.", MAX_KEYSTORES - 1);
	return false;
}

/* Is it a region's name, as in "eu-north-1"? */
static bool
is_region(const char *word, size_t len)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz";
	size_t		at = 0;
	int			parts = 0;

	for (; at < len && strchr(letters, word[at]) != NULL; parts++)
	{
		at += strspn(word + at, letters);
		if (at >= len || word[at++] != '-')
			return false;
	}
	return parts >= 2 && at < len && at + strspn(word + at, "0123456789") >= len;
}

static bool
check_regions(char **newval, void **extra, GucSource source)
{
	const char *word;
	size_t		len;

	if (*newval == NULL || strlen(*newval) >= 1000)
	{
		GUC_check_errdetail("It must be shorter than 1000 characters.");
		return false;
	}
	for (int i = 0; (len = nth_word(*newval, i, &word)) > 0; i++)
	{
		if (is_region(word, len))
			continue;
		GUC_check_errdetail("It must be names of regions, such as \"eu-north-1\", with blanks between them.");
		return false;
	}
	return true;
}

void
stores_init(void)
{
	DefineCustomStringVariable("nomp_crypt.keystore",
							   "URI of the HSM or key service where new keys are made.",
							   "For example pkcs11:token=nomp?module-path=/path/module.so&pin-source=file:/path/pin",
							   &keystore_uri, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_keystore, NULL, NULL);
	DefineCustomStringVariable("nomp_crypt.other_keystores",
							   "URIs of further keystores that hold keys, with blanks between them.",
							   "For schools that move from one keystore to another.",
							   &other_uris, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_others, NULL, NULL);
	DefineCustomStringVariable("nomp_crypt.keystore_regions",
							   "Regions of a key service where keys may be, with blanks between them.",
							   "By default those of AWS in the European Union.",
							   &regions,
							   "eu-central-1 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-3 eusc-de-east-1",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_regions, NULL, NULL);
}

/* The URI at that place, in memory of the caller's; NULL if there is none. */
const char *
stores_uri(int place)
{
	const char *word;
	size_t		len;

	if (place == 0)
		return pstrdup(keystore_uri != NULL ? keystore_uri : "");
	if (place < 0 || place >= MAX_KEYSTORES || other_uris == NULL)
		return NULL;
	len = nth_word(other_uris, place - 1, &word);
	return len > 0 ? pnstrdup(word, len) : NULL;
}

/* ---- the broker ---- */

/*
 * Of those before, the one with that URI, which is then no more among them;
 * its helper must have been told of the regions as they are now.
 */
static Store *
take_over(Store **before, int n, const char *uri)
{
	for (int i = 0; i < n; i++)
	{
		Store	   *store = before[i];

		if (store != NULL && strcmp(store->uri, uri) == 0 &&
			strcmp(store->regions, regions) == 0)
		{
			before[i] = NULL;
			return store;
		}
	}
	return NULL;
}

static Store *
unused_store(void)
{
	for (int i = 0; i < lengthof(pool); i++)
	{
		if (pool[i].uri == NULL)
			return &pool[i];
	}
	elog(ERROR, "no room for another keystore");
}

static Store *
new_store(const char *uri)
{
	Store	   *store = unused_store();

	memset(store, 0, sizeof(*store));
	store->link.fd = -1;
	store->uri = MemoryContextStrdup(TopMemoryContext, uri);
	store->regions = MemoryContextStrdup(TopMemoryContext, regions);
	store->max_in_flight = 1;
	return store;
}

static void
free_store(Store *store)
{
	pfree(store->uri);
	pfree(store->regions);
	store->uri = store->regions = NULL;
}

/* One that leaves, if "drop" says that it can go now. */
void
stores_try_drop(int i, bool (*drop) (Store *store))
{
	if (!drop(stores_leaving[i]))
		return;
	free_store(stores_leaving[i]);
	stores_leaving[i] = NULL;
}

/* It is not configured any more, but has something to bring to its end. */
static void
let_leave(Store *store)
{
	for (int i = 0; i < MAX_KEYSTORES; i++)
	{
		if (stores_leaving[i] == NULL)
		{
			stores_leaving[i] = store;
			return;
		}
	}
	elog(FATAL, "too many keystores have something to bring to its end");
}

/*
 * Follow the settings.  A keystore that is still named goes on with its
 * helper; "drop" must end the others' and free their jobs, or say that it
 * cannot do so yet.
 */
void
stores_arrange(bool (*drop) (Store *store))
{
	Store	   *before[MAX_KEYSTORES];
	const char *uris[MAX_KEYSTORES];
	const int	n_before = stores_count;

	memcpy(before, stores, sizeof(before));
	for (stores_count = 0; stores_count < MAX_KEYSTORES; stores_count++)
	{
		uris[stores_count] = stores_uri(stores_count);
		if (uris[stores_count] == NULL)
			break;
		stores[stores_count] = take_over(before, n_before, uris[stores_count]);
	}
	for (int i = 0; i < stores_count; i++)
	{
		if (stores[i] == NULL)
			stores[i] = new_store(uris[i]);
		stores[i]->place = i;
		stores[i]->next_start = 0;
		pfree((void *) (uintptr_t) uris[i]);
	}
	for (int i = 0; i < n_before; i++)
	{
		if (before[i] == NULL)
			continue;
		if (drop(before[i]))
			free_store(before[i]);
		else
			let_leave(before[i]);
	}
}

/* The keystore whose token has that serial, as far as is known. */
Store *
stores_holder(const char *serial)
{
	for (int i = 0; i < stores_count; i++)
	{
		if (stores[i]->serial[0] != '\0' && strcmp(stores[i]->serial, serial) == 0)
			return stores[i];
	}
	return NULL;
}

/* Start a helper if none runs.  KS_OK, or why there is none. */
KsStatus
store_ensure_helper(Store *store)
{
	if (store->uri[0] == '\0')
		return KS_NOT_CONFIGURED;
	if (helper_running(&store->link))
		return KS_OK;
	store->next_start = lease_boot_now() + START_RETRY_MS * INT64CONST(1000);
	if (!helper_start(&store->link, store->uri, store->pin_stamp, store->regions, store->canary))
		return KS_NO_HELPER;
	keystat_helper_started(store->place);
	return KS_OK;
}

/* End the helper: in peace, or at once.  The next one may find another token. */
static void
forget_helper(Store *store)
{
	store->serial[0] = '\0';
	store->max_in_flight = 1;	/* until the next one says more */
	store->n_given_up = 0;
}

void
store_stop(Store *store)
{
	helper_stop(&store->link);
	forget_helper(store);
}

void
store_kill(Store *store)
{
	helper_kill(&store->link);
	forget_helper(store);
}
