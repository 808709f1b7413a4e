/*
 * typemod.c
 *		The modifier of type "encrypted": which type is inside.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "errors.h"
#include "inner.h"
#include "compat.h"
#include "typemod.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "value.h"

NC_FUNCTION(nc_typmod_in);
NC_FUNCTION(nc_typmod_out);

/* What a later version will take; named so that nobody wonders. */
#define LATER "varchar(n), char(n), bytea, bool, integer and floating types, numeric, money, date and time types, interval, uuid, inet, json, jsonb, ranges, arrays, and the flag \"searchable\""

/* The type code a modifier asks for; a missing one means text. */
uint8
typemod_type_code(int32 typmod)
{
	return typmod < 0 ? VALUE_TYPE_TEXT : (uint8) (typmod & 0xff);
}

const char *
inner_name(uint8 code)
{
	return code == VALUE_TYPE_TEXT ? "text" : "unknown";
}

/*
 * encrypted_typmod_in(cstring[]) returns int4: encrypted(text).
 * Raises 0A000 (feature_not_supported) for any other modifier.
 */
Datum
nc_typmod_in(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	Datum	   *items;
	int			n;

	deconstruct_array(array, CSTRINGOID, -2, false, TYPALIGN_CHAR, &items, NULL, &n);
	if (n == 1 && pg_strcasecmp(DatumGetCString(items[0]), "text") == 0)
		PG_RETURN_INT32(VALUE_TYPE_TEXT);
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 n > 0 ?
			 errmsg("encrypted(%s) is not supported by this version",
					n > 1 ? "..." : DatumGetCString(items[0])) :
			 errmsg("type encrypted needs a modifier"),
			 errdetail("This version knows encrypted(text); later ones will know %s.", LATER),
			 errhint("Use encrypted(text) and cast.")));
}

/* encrypted_typmod_out(int4) returns cstring. */
Datum
nc_typmod_out(PG_FUNCTION_ARGS)
{
	int32		typmod = PG_GETARG_INT32(0);

	if (typmod < 0)
		PG_RETURN_CSTRING(pstrdup(""));
	PG_RETURN_CSTRING(psprintf("(%s)", inner_name(typemod_type_code(typmod))));
}
