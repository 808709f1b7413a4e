/*
 * errors.c
 *		The seven things that can be wrong with a value's key, in words.
 */
#include "postgres.h"

#include "errors.h"

typedef struct StatusText
{
	const char *what;			/* after "the keystore is unavailable: " */
	const char *hint;
} StatusText;

static const StatusText status_texts[] = {
	[KS_OK] = {"no error", ""},
	[KS_KEY_ABSENT] = {"it has no such key", "Look for the key in the keystore's backups, or restore the right one."},
	[KS_INTEGRITY] = {"the wrapped key does not authenticate", "The row in nomp_crypt.tenant_key was changed."},
	[KS_EXISTS] = {"a key of that name is there already", "Run nomp_crypt.reconcile_keystore()."},
	[KS_REFUSED] = {"it refused the request", "The server log says why."},
	[KS_BAD_URI] = {"the keystore setting is not valid", "Check nomp_crypt.keystore; the server log says what is wrong with it."},
	[KS_MODULE_LOAD] = {"the PKCS#11 module cannot be loaded", "Check module-path in nomp_crypt.keystore, and the server log."},
	[KS_MODULE_ERROR] = {"the PKCS#11 module or the key service reported an error", "The server log has its code, or the service's own words."},
	[KS_MECHANISM_MISSING] = {"the token lacks AES key generation or AES-GCM", "Choose a token that has both; the server log names what is missing."},
	[KS_TOKEN_MISSING] = {"the token is not there", "Check that it is plugged in or reachable, and the token named in nomp_crypt.keystore."},
	[KS_TOKEN_WRONG] = {"the token is not this installation's", "The token lacks this installation's canary. Point nomp_crypt.keystore at the right one, or see nomp_crypt.adopt_keystore()."},
	[KS_OTHER_TOKEN] = {"the one that holds the key is not configured", "nomp_crypt.keystore_status() shows its serial number. Name it in nomp_crypt.other_keystores."},
	[KS_PIN_FILE] = {"the PIN file cannot be used", "It must exist, belong to the server's user, and be readable by nobody else (chmod 600)."},
	[KS_PIN_INCORRECT] = {"the PIN is wrong", "Correct the PIN file; the same PIN is not tried again, so that the token does not lock."},
	[KS_PIN_LOCKED] = {"the PIN is locked", "The token's security officer must unlock it."},
	[KS_KEY_DISABLED] = {"the key is disabled, or will be destroyed", "See nomp_crypt.resume_tenant(). A destruction that is pending in a key service can be cancelled there."},
	[KS_NETWORK] = {"it cannot be reached, or does not prove who it is", "Check the network, the endpoint and its certificate; the server log says what failed."},
	[KS_CREDENTIALS] = {"there are no credentials that it accepts", "They are missing, expired or unknown to the service; the server log says where they were looked for."},
	[KS_ACCESS_DENIED] = {"it does not allow this to the credentials in use", "Compare the IAM policy and the key's policy with docs/aws-kms.md; the server log names the action."},
	[KS_CLOCK_SKEW] = {"this machine's clock differs too much from its own", "Set the clock (NTP)."},
	[KS_THROTTLED] = {"it asks to come back later", "Requests of this account exceed the service's quota: see docs/aws-kms.md."},
	[KS_REGION] = {"it is not in a region that is allowed", "See nomp_crypt.keystore_regions; the server log names what offends."},
	[KS_NOT_YET] = {"it does not show the key yet", "The key was made a short time ago: a key service may need some minutes until it knows it everywhere. Repeat the statement."},
	[KS_UNSUPPORTED] = {"this kind of keystore cannot do that", "See the README's table of keystores."},
	[KS_TIMEOUT] = {"it did not answer in time", "Check the token or its network; the time limit is nomp_crypt.keystore_timeout."},
	[KS_CRASHED] = {"the keystore helper ended unexpectedly", "It has been replaced. If this repeats, the module crashes: see the server log."},
	[KS_NOT_CONFIGURED] = {"none is configured", "Set nomp_crypt.keystore."},
	[KS_NO_HELPER] = {"the keystore helper cannot be started", "Check that nomp_crypt-keystore is installed in the server's library folder."},
	[KS_RETRY] = {"keys were revoked while this was under way", "Repeat the statement."},
	[KS_NO_BROKER] = {"the broker is not running", "nomp_crypt must be in shared_preload_libraries; otherwise the server log says why the broker stopped."},
};

void
error_erased(const char *tenant)
{
	ereport(ERROR,
			(errcode(ERRCODE_NC_ERASED),
			 errmsg("tenant \"%s\" has been erased", tenant),
			 errhint("Its keys were destroyed; nothing can read its values again.")));
}

void
error_suspended(const char *tenant, bool fenced)
{
	ereport(ERROR,
			(errcode(ERRCODE_NC_SUSPENDED),
			 errmsg("tenant \"%s\" is suspended", tenant),
			 fenced ? errhint("Its erasure is under way and cannot be withdrawn.") :
			 errhint("It was suspended, or its erasure has been requested; see nomp_crypt.tenants and nomp_crypt.erasure.")));
}

void
error_key_unknown(const char *tenant)
{
	if (tenant == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NC_KEY_UNKNOWN),
				 errmsg("the key of this value is not known in this database"),
				 errhint("Its row in nomp_crypt.tenant_key is missing: restore the tables of schema nomp_crypt together with the data.")));
	ereport(ERROR,
			(errcode(ERRCODE_NC_KEY_UNKNOWN),
			 errmsg("the keystore has no key for tenant \"%s\"", tenant),
			 errhint("The keystore was reached and is this installation's. If the tenant was erased after this database's backup was taken, that is final.")));
}

/* The same for a school that is said to be erased, and nothing proves it. */
void
error_not_erased(const char *tenant)
{
	ereport(ERROR,
			(errcode(ERRCODE_NC_KEY_UNKNOWN),
			 errmsg("tenant \"%s\" is said to be erased, but no record of the register proves it", tenant),
			 errhint("Somebody changed nomp_crypt.tenant or nomp_crypt.register: see nomp_crypt.register_status().")));
}

/* One message for every integrity failure. */
void
error_integrity(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_NC_INTEGRITY),
			 errmsg("encrypted value is damaged or was not written here"),
			 errhint("It, or its key's row, was changed after it was written. Restore it from a backup.")));
}

/* The same, for a value that is whole but not what the column holds. */
void
error_misfit(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_NC_INTEGRITY),
			 errmsg("encrypted value is damaged or was not written here"),
			 errhint("Its type, or whether it is searchable, is not as the column says. An explicit cast converts a value, for roles with the rights \"decrypt\" and \"encrypt\": value::encrypted(...).")));
}

void
error_no_tenant(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_NC_NO_TENANT),
			 errmsg("no tenant is set: %s", what),
			 errhint("SET LOCAL nomp_crypt.tenant = '...' first, in the same transaction.")));
}

void
error_right_missing(const char *right, const char *tenant)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("right \"%s\" missing for tenant \"%s\"", right, tenant),
			 errhint("SELECT nomp_crypt.grant_tenant('%s', '<role>', '{%s}');", tenant, right)));
}

const char *
keystore_status_text(KsStatus status)
{
	if ((size_t) status >= lengthof(status_texts) || status_texts[status].what == NULL)
		return "it answered with an unknown status";
	return status_texts[status].what;
}

/*
 * Map a keystore's status; tenant is the school the key belongs to, or NULL: a
 * key that is no school's suspends none.
 */
void
error_keystore(KsStatus status, const char *reason, const char *tenant)
{
	bool		known = (size_t) status < lengthof(status_texts) &&
		status_texts[status].hint != NULL;

	if (status == KS_KEY_ABSENT && tenant != NULL)
		error_key_unknown(tenant);
	if (status == KS_KEY_ABSENT)
		ereport(ERROR,
				(errcode(ERRCODE_NC_KEY_UNKNOWN),
				 errmsg("the keystore has no such key"),
				 reason[0] != '\0' ? errdetail_log("%s", reason) : 0,
				 errhint("%s", status_texts[status].hint)));
	if (status == KS_INTEGRITY)
		error_integrity();
	if (status == KS_KEY_DISABLED && tenant != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NC_SUSPENDED),
				 errmsg("tenant \"%s\" is suspended", tenant),
				 errhint("Its keys are disabled in the keystore, or will be destroyed there, whatever nomp_crypt.tenants says here; see nomp_crypt.resume_tenant().")));
	ereport(ERROR,
			(errcode(ERRCODE_NC_UNAVAILABLE),
			 errmsg("the keystore is unavailable: %s", keystore_status_text(status)),
			 reason[0] != '\0' ? errdetail_log("%s", reason) : 0,
			 known ? errhint("%s", status_texts[status].hint) : 0));
}

/* The same, of the register's key. */
void
error_register_key(KsStatus status, const char *reason)
{
	if (status == KS_KEY_ABSENT)
		error_keystore(KS_OTHER_TOKEN, reason, NULL);
	if (status != KS_KEY_DISABLED)
		error_keystore(status, reason, NULL);
	ereport(ERROR,
			(errcode(ERRCODE_NC_UNAVAILABLE),
			 errmsg("the register's key is disabled, or will be destroyed"),
			 errdetail_log("%s", reason),
			 errhint("Enable it in the keystore, or cancel its deletion there: the server log names it. If it cannot be saved, see \"The register\" in docs/operations.md.")));
}
