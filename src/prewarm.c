/*
 * prewarm.c
 *		Loads a school's keys into the keyring before anybody needs them.
 *
 * An internal SQL function; the definer functions of nomp_crypt--1.0.sql call
 * it, for nomp_crypt.prewarm and for the warmer.  The rows are read as for a
 * session that lacks a key; what is unwrapped goes to the keyring and stays
 * there, the copy that the broker hands out is wiped.
 */
#include "postgres.h"

#include "catalog.h"
#include "cipher.h"
#include "compat.h"
#include "errors.h"
#include "fmgr.h"
#include "request.h"
#include "utils/builtins.h"

NC_FUNCTION(nc_load_keys);

#define MAX_TRIES	3

/* What loading a school's keys came to. */
typedef enum Loaded
{
	LOADED,
	NOT_LOADED,					/* nothing to do, or nothing that can be done */
	NO_ROOM,
	CHANGED						/* keys were revoked meanwhile: look again */
} Loaded;

static Loaded
load(const pg_uuid_t *tenant, int *keys)
{
	uint64		epoch = keyring_epoch();	/* before the rows */
	char		reason[REQUEST_REASON_MAX];
	UnwrapRequest what = {0};
	TenantRow	row;
	KeyRow		key;
	WorkingKey	copy;
	KsStatus	status;

	if (!catalog_tenant_by_uuid(tenant, &row) || row.state != TENANT_ACTIVE ||
		!catalog_current_key(tenant, &key) || key.own_transaction ||
		!catalog_unwrap_request(&key, &what) || keyring_has(&what.keys[0]))
		return NOT_LOADED;
	*keys = what.nkeys;
	if (keyring_room() < what.nkeys)
		return NO_ROOM;
	status = request_ahead(&what, epoch, &copy, reason);
	cipher_wipe(&copy, sizeof(copy));
	switch (status)
	{
		case KS_OK:
			return LOADED;
		case KS_RETRY:
			return CHANGED;
		case KS_KEY_ABSENT:
		case KS_KEY_DISABLED:
		case KS_INTEGRITY:
		case KS_NOT_YET:
			return NOT_LOADED;	/* this school's trouble, for its sessions to tell */
		default:
			error_keystore(status, reason, row.id);
	}
}

/*
 * nomp_crypt._load_keys(tenant uuid) returns int
 *
 * The number of keys that are in the keyring now and were not before, 0 if
 * there are none to load, NULL if there is no room without evicting others.
 * Raises NC004.
 */
Datum
nc_load_keys(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *tenant = PG_GETARG_UUID_P(0);

	for (int try = 0; try < MAX_TRIES; try++)
	{
		int			keys = 0;

		switch (load(tenant, &keys))
		{
			case LOADED:
				PG_RETURN_INT32(keys);
			case NO_ROOM:
				PG_RETURN_NULL();
			case NOT_LOADED:
				PG_RETURN_INT32(0);
			case CHANGED:
				break;
		}
	}
	PG_RETURN_INT32(0);
}
