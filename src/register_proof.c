/*
 * register_proof.c
 *		Was a school erased?  The register says so, or nobody.
 *
 * nomp_crypt.tenant says 'erased' to whoever may write to it.  So the error
 * NC001 is raised only where the table nomp_crypt.register has a record, signed
 * by a trusted key, that the keys of this school of this installation were
 * destroyed; a school without one has keys that are not known.  One signature is verified for each school and session, then it
 * is remembered: such a record does not become untrue.
 *
 * No secrets here.
 */
#include "postgres.h"

#include "compat.h"
#include "errors.h"
#include "fmgr.h"
#include "register_keys.h"
#include "register_proof.h"
#include "request.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

NC_FUNCTION(nc_raise_erased);

#define MAX_PROVED	16384

static HTAB *proved = NULL;

typedef struct Search
{
	char		installation[37];
	char		school[37];
	bool		found;
	KsStatus	trouble;		/* with the keystore, if it had to be asked */
	char		reason[REQUEST_REASON_MAX];
} Search;

/* Is a member of an object that text? */
static bool
member_is(Datum object, const char *name, const char *wanted)
{
	LOCAL_FCINFO(fcinfo, 2);
	Datum		value;

	InitFunctionCallInfoData(*fcinfo, NULL, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = object;
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = CStringGetTextDatum(name);
	fcinfo->args[1].isnull = false;
	value = jsonb_object_field_text(fcinfo);
	return !fcinfo->isnull && strcmp(TextDatumGetCString(value), wanted) == 0;
}

/* What a trusted key signed is well-formed: it was made by this extension. */
static bool
says_so(const char *payload, const Search *search)
{
	Datum		record = DirectFunctionCall1(jsonb_in, CStringGetDatum(payload));
	LOCAL_FCINFO(fcinfo, 2);
	Datum		data;

	InitFunctionCallInfoData(*fcinfo, NULL, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = record;
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = CStringGetTextDatum("data");
	fcinfo->args[1].isnull = false;
	data = jsonb_object_field(fcinfo);
	return !fcinfo->isnull &&
		member_is(record, "type", "destroyed") &&
		member_is(record, "installation", search->installation) &&
		member_is(data, "school", search->school);
}

static void
look_at(const char *jws, void *arg)
{
	Search	   *search = arg;
	KsStatus	status;
	char	   *payload;

	if (search->found)
		return;
	payload = register_open(jws, &status, search->reason);
	if (payload == NULL && status != KS_OK)
		search->trouble = status;
	search->found = payload != NULL && says_so(payload, search);
}

static bool
is_proved(const pg_uuid_t *tenant, bool remember)
{
	if (proved == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = UUID_LEN;
		ctl.entrysize = UUID_LEN;
		ctl.hcxt = TopMemoryContext;
		proved = hash_create("nomp_crypt erased schools", 64, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (remember && hash_get_num_entries(proved) < MAX_PROVED)
		(void) hash_search(proved, tenant, HASH_ENTER, NULL);
	return hash_search(proved, tenant, HASH_FIND, NULL) != NULL;
}

bool
register_proves_erased(const TenantRow *tenant)
{
	Search		search = {0};
	pg_uuid_t	installation;

	if (is_proved(&tenant->uuid, false))
		return true;
	if (!catalog_installation(&installation))
		return false;
	uuid_text(&installation, search.installation);
	uuid_text(&tenant->uuid, search.school);
	catalog_records(&tenant->uuid, look_at, &search);
	if (!search.found && search.trouble != KS_OK)
		error_register_key(search.trouble, search.reason);
	if (search.found)
		(void) is_proved(&tenant->uuid, true);
	return search.found;
}

void
register_require_erased(const TenantRow *tenant)
{
	if (!register_proves_erased(tenant))
		error_not_erased(tenant->id);
}

void
register_raise_erased(const TenantRow *tenant)
{
	register_require_erased(tenant);
	error_erased(tenant->id);
}

/*
 * nomp_crypt._raise_erased(tenant uuid) returns void
 *
 * Raises NC001, or NC003 or NC004 if it is not proved.
 */
Datum
nc_raise_erased(PG_FUNCTION_ARGS)
{
	TenantRow	row;

	if (!catalog_tenant_by_uuid(PG_GETARG_UUID_P(0), &row))
		error_key_unknown(NULL);
	register_raise_erased(&row);
	PG_RETURN_VOID();
}
