/*
 * admin.c
 *		Small internal SQL functions that administration is built from.
 *
 * EXECUTE on all of them but current_tenant is revoked from everybody; the definer functions of
 * nomp_crypt--1.0.sql call them.
 */
#include "postgres.h"

#include "catalog.h"
#include "compat.h"
#include "holders.h"
#include "keyring.h"
#include "miscadmin.h"
#include "mykeys.h"
#include "session.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"

NC_FUNCTION(nc_acting_role);
NC_FUNCTION(nc_lock_keystore);
NC_FUNCTION(nc_lock_register);
NC_FUNCTION(nc_wipe);
NC_FUNCTION(nc_log_act);
NC_FUNCTION(nc_current_tenant);

/* A lock of the whole server, not of one database: any fixed pair will do. */
#define LOCK_CLASS	0x6e6f6d70		/* "nomp" */

/*
 * nomp_crypt._acting_role() returns name
 *
 * Whoever called, from inside a definer function.
 */
Datum
nc_acting_role(PG_FUNCTION_ARGS)
{
	return DirectFunctionCall1(namein, CStringGetDatum(GetUserNameFromId(GetOuterUserId(), false)));
}

/*
 * nomp_crypt._lock_keystore(exclusive boolean) returns void
 *
 * Until the end of the transaction.  Shared while a key may be provisional,
 * exclusive to remove leftovers: so nobody removes a key whose transaction is
 * still under way in any database.
 */
Datum
nc_lock_keystore(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, LOCK_CLASS, 1, 0);
	(void) LockAcquire(&tag, PG_GETARG_BOOL(0) ? ExclusiveLock : ShareLock, false, false);
	PG_RETURN_VOID();
}

/*
 * nomp_crypt._lock_register() returns void
 *
 * Until the end of the transaction: one chain, appended to by one session of
 * this server at a time.  Taken last of all locks.
 */
Datum
nc_lock_register(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, LOCK_CLASS, 2, 0);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	PG_RETURN_VOID();
}

/*
 * nomp_crypt._wipe(tenant uuid) returns void
 *
 * Wipe a tenant's keys from this node: keyring, every backend.  Returns when
 * no process holds any of their bytes.  Raises 55006 if one cannot be made
 * to forget.
 */
Datum
nc_wipe(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *tenant = PG_GETARG_UUID_P(0);
	uint64		epoch = keyring_revoke(tenant->data);

	mykeys_forget();
	holders_poke(tenant->data);
	holders_await(tenant->data, epoch);
	PG_RETURN_VOID();
}

static char *
text_or(FunctionCallInfo fcinfo, int i, char *otherwise)
{
	return PG_ARGISNULL(i) ? otherwise : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/*
 * nomp_crypt._log_act(act text, tenant text, detail text) returns void
 *
 * One line of the server log, which the client does not see.  Written when
 * the act is done, not when its transaction commits: what happened in the
 * keystore is not undone by a rollback.
 */
Datum
nc_log_act(PG_FUNCTION_ARGS)
{
	char	   *tenant = text_or(fcinfo, 1, NULL);

	ereport(LOG_SERVER_ONLY,
			(errmsg("nomp_crypt: %s%s%s%s by role \"%s\", session of \"%s\", %s",
					text_or(fcinfo, 0, "?"),
					tenant != NULL ? " tenant \"" : "",
					tenant != NULL ? tenant : "",
					tenant != NULL ? "\"" : "",
					GetUserNameFromId(GetOuterUserId(), false),
					GetUserNameFromId(GetSessionUserId(), false),
					text_or(fcinfo, 2, "{}")),
			 errhidestmt(true), errhidecontext(true)));
	PG_RETURN_VOID();
}

/*
 * nomp_crypt.current_tenant() returns text
 *
 * The tenant in force, NULL outside: what row-level security asks for.  The
 * setting alone may be left over from another transaction, which does not
 * count under nomp_crypt.tenant_scope = transaction.
 */
Datum
nc_current_tenant(PG_FUNCTION_ARGS)
{
	const char *tenant = session_tenant();

	if (tenant == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(tenant));
}
