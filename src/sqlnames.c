/*
 * sqlnames.c
 *		Our own SQL functions that plans are rewritten to call, by OID.
 *
 * Looked up by name in our schema, once for as long as the type has the same
 * OID: an extension that is dropped and created again has another.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "sqlnames.h"

#define OURS	InvalidOid		/* stands for the type below */

static const struct
{
	const char *name;
	int			nargs;
	Oid			args[3];
}			functions[SQL_FUNCTION_COUNT] =
{
		[SQL_LITERAL] = {"_literal", 2, {OURS, BOOLOID}},
	[SQL_PLAIN] = {"_plain", 3, {OURS, ANYELEMENTOID, BOOLOID}},
	[SQL_PROBE] = {"_probe", 2, {ANYELEMENTOID, INT4OID}},
	[SQL_STORE] = {"_store", 2, {OURS, INT4OID}},
	[SQL_COMPARE] = {"_compare", 2, {OURS, OURS}},
	[SQL_LARGER] = {"_larger", 2, {OURS, OURS}},
	[SQL_SMALLER] = {"_smaller", 2, {OURS, OURS}},
	[SQL_SEARCH_VALUES] = {"search_values", 1, {TEXTOID}},
	[SQL_SEARCH_VALUES_AS] = {"_search_values", 2, {TEXTOID, INT4OID}},
	[SQL_ENFORCE_TENANT] = {"enforce_tenant", 0, {InvalidOid}},
};

static Oid	known_for = InvalidOid; /* the type's OID when we looked */
static Oid	known[SQL_FUNCTION_COUNT];

Oid
sql_function(SqlFunction which)
{
	Oid			type = catalog_type();
	Oid			args[lengthof(functions[0].args)];

	if (!OidIsValid(type))
		return InvalidOid;
	if (known_for != type)
	{
		memset(known, 0, sizeof(known));
		known_for = type;
	}
	if (OidIsValid(known[which]))
		return known[which];
	for (int i = 0; i < functions[which].nargs; i++)
		args[i] = functions[which].args[i] == OURS ? type : functions[which].args[i];
	known[which] = LookupFuncName(list_make2(makeString("nomp_crypt"),
											 makeString(pstrdup(functions[which].name))),
								  functions[which].nargs, args, true);
	return known[which];
}
