/*
 * typemod.c
 *		The modifier of type "encrypted": what is inside, and how it is found.
 *
 *		encrypted(<type> [, searchable [, nocase | digits] [, force]])
 *
 * The layout of the int4 is in typemod.h.  What is printed for a modifier
 * gives the same modifier when it is read again: pg_dump relies on it.
 */
#include "postgres.h"

#include "canonical.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "inner.h"
#include "parser/parse_type.h"
#include "typemod.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "value.h"

NC_FUNCTION(nc_typmod_in);
NC_FUNCTION(nc_typmod_out);

#define CODE_MASK		0xff
#define SEARCH_SHIFT	8
#define SEARCH_MASK		0x3
#define INNER_SHIFT		10
#define INNER_MAX		0x1fffff	/* 21 bits */

/* numeric: precision above, scale in 11 bits, two's complement */
#define SCALE_BITS		11
#define SCALE_MASK		0x7ff

/* interval: range above, precision below, 7 for none */
#define PRECISION_BITS	3
#define PRECISION_NONE	7

/* A searchable char(n) up to this long has too few values to be secret. */
#define TINY_LENGTH		2

static uint8
element_code(int32 typmod)
{
	return typemod_type_code(typmod) & ~VALUE_TYPE_ARRAY;
}

uint8
typemod_type_code(int32 typmod)
{
	return typmod < 0 ? VALUE_TYPE_TEXT : (uint8) (typmod & CODE_MASK);
}

bool
typemod_searchable(int32 typmod)
{
	return typmod >= 0 && ((typmod >> SEARCH_SHIFT) & SEARCH_MASK) != 0;
}

Normal
typemod_normal(int32 typmod)
{
	return (Normal) (((typmod >> SEARCH_SHIFT) & SEARCH_MASK) - 1);
}

/* ---- the inner type's modifier, packed ---- */

static uint32
pack_length(int32 modifier)
{
	int32		length = modifier - VARHDRSZ;

	if (length > INNER_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("length of an encrypted varchar or char cannot exceed %d", INNER_MAX),
				 errhint("Use encrypted(text), which has no limit.")));
	return (uint32) length;
}

static uint32
pack_interval(int32 modifier)
{
	uint32		precision = INTERVAL_PRECISION(modifier);

	if (precision > MAX_INTERVAL_PRECISION)
		precision = PRECISION_NONE;
	return (uint32) INTERVAL_RANGE(modifier) << PRECISION_BITS | precision;
}

/* 0 for a type without a modifier. */
static uint32
pack_inner(uint8 element, int32 modifier)
{
	if (modifier < 0)
		return 0;
	switch (element)
	{
		case VALUE_TYPE_VARCHAR:
		case VALUE_TYPE_BPCHAR:
			return pack_length(modifier);
		case VALUE_TYPE_NUMERIC:
			modifier -= VARHDRSZ;
			return (uint32) ((modifier >> 16) & 0xffff) << SCALE_BITS | (modifier & SCALE_MASK);
		case VALUE_TYPE_TIME:
		case VALUE_TYPE_TIMETZ:
		case VALUE_TYPE_TIMESTAMP:
		case VALUE_TYPE_TIMESTAMPTZ:
			return (uint32) modifier + 1;
		case VALUE_TYPE_INTERVAL:
			return pack_interval(modifier);
		default:
			elog(ERROR, "type code %d has a modifier", element);
	}
}

int32
typemod_inner(int32 typmod)
{
	uint32		packed = typmod < 0 ? 0 : (uint32) typmod >> INNER_SHIFT;
	uint32		precision;

	if (packed == 0)
		return -1;
	switch (element_code(typmod))
	{
		case VALUE_TYPE_VARCHAR:
		case VALUE_TYPE_BPCHAR:
			return (int32) packed + VARHDRSZ;
		case VALUE_TYPE_NUMERIC:
			return (int32) ((packed >> SCALE_BITS) << 16 | (packed & SCALE_MASK)) + VARHDRSZ;
		case VALUE_TYPE_INTERVAL:
			precision = packed & PRECISION_NONE;
			if (precision == PRECISION_NONE)
				precision = INTERVAL_FULL_PRECISION;
			return INTERVAL_TYPMOD(precision, packed >> PRECISION_BITS);
		default:
			return (int32) packed - 1;
	}
}

/* ---- reading ---- */

typedef struct Flags
{
	bool		searchable;
	bool		nocase;
	bool		digits;
	bool		force;
} Flags;

static void
refuse_flags(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s", what),
			 errhint("Write encrypted(<type>), encrypted(<type>, searchable), or for texts encrypted(<type>, searchable, nocase) or encrypted(<type>, searchable, digits).")));
}

/* One word after the type. */
static void
read_flag(const char *word, Flags *flags)
{
	bool	   *flag;

	if (pg_strcasecmp(word, "searchable") == 0)
		flag = &flags->searchable;
	else if (pg_strcasecmp(word, "nocase") == 0)
		flag = &flags->nocase;
	else if (pg_strcasecmp(word, "digits") == 0)
		flag = &flags->digits;
	else if (pg_strcasecmp(word, "force") == 0)
		flag = &flags->force;
	else
		refuse_flags(psprintf("unknown flag \"%s\" of an encrypted type", word));
	if (*flag)
		refuse_flags(psprintf("flag \"%s\" is given twice", word));
	*flag = true;
}

static void
read_flags(Datum *items, int n, Flags *flags)
{
	memset(flags, 0, sizeof(*flags));
	for (int i = 1; i < n; i++)
	{
		char	   *rest = NULL;

		for (char *word = strtok_r(DatumGetCString(items[i]), " \t\n", &rest);
			 word != NULL;
			 word = strtok_r(NULL, " \t\n", &rest))
			read_flag(word, flags);
	}
	if (!flags->searchable && (flags->nocase || flags->digits || flags->force))
		refuse_flags("\"nocase\", \"digits\" and \"force\" need \"searchable\"");
	if (flags->nocase && flags->digits)
		refuse_flags("\"nocase\" and \"digits\" exclude each other");
}

/* The type that the first item names.  Raises 0A000 if it is not ours. */
static uint8
read_type(const char *name, int32 *modifier)
{
	Oid			type;
	uint8		code;

	parseTypeString(name, &type, modifier, false);
	code = inner_code(type);
	if (code == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("values of type %s cannot be encrypted", format_type_be(type)),
				 errhint("Declare the column encrypted(text) or encrypted(bytea), and cast values to that.")));
	return code;
}

/* So few values that equal fingerprints give them away? */
static bool
is_tiny(uint8 code, int32 modifier)
{
	if (code == VALUE_TYPE_BOOL)
		return true;
	return (code == VALUE_TYPE_VARCHAR || code == VALUE_TYPE_BPCHAR) &&
		modifier >= 0 && modifier - VARHDRSZ <= TINY_LENGTH;
}

static void
check_searchable(uint8 code, int32 modifier, const Flags *flags)
{
	const char *type = format_type_with_typemod(inner_type(code), modifier);

	if (!canonical_exists(code))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("encrypted values of type %s cannot be searchable", type),
				 errhint("Equal values of it have no single canonical text. Leave \"searchable\" out; inside a tenant, comparisons decrypt.")));
	if ((flags->nocase || flags->digits) && code != VALUE_TYPE_TEXT &&
		code != VALUE_TYPE_VARCHAR && code != VALUE_TYPE_BPCHAR)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"nocase\" and \"digits\" are for text, varchar and char, not for %s",
						type)));
	if (is_tiny(code, modifier) && !flags->force)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("encrypted values of type %s should not be searchable", type),
				 errdetail("It has so few values that their fingerprints give them away: whoever knows one row knows all that are equal."),
				 errhint("Leave \"searchable\" out, or insist: encrypted(..., searchable, force).")));
}

/*
 * encrypted_typmod_in(cstring[]) returns int4.
 *
 * Raises 0A000 for a type that cannot be inside or cannot be searched, 22023
 * for wrong flags, and what the type's own modifier raises.
 */
Datum
nc_typmod_in(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	Flags		flags;
	Datum	   *items;
	int			n;
	int32		modifier;
	uint8		code;
	uint32		search = 0;

	deconstruct_array(array, CSTRINGOID, -2, false, TYPALIGN_CHAR, &items, NULL, &n);
	if (n == 0)
		refuse_flags("type encrypted needs a type inside");
	code = read_type(DatumGetCString(items[0]), &modifier);
	read_flags(items, n, &flags);
	if (flags.searchable)
	{
		check_searchable(code, modifier, &flags);
		search = 1 + (flags.nocase ? NORMAL_NOCASE : flags.digits ? NORMAL_DIGITS : NORMAL_EXACT);
	}
	PG_RETURN_INT32((int32) (code | search << SEARCH_SHIFT |
							 pack_inner(code & ~VALUE_TYPE_ARRAY, modifier) << INNER_SHIFT));
}

/* encrypted_typmod_out(int4) returns cstring. */
Datum
nc_typmod_out(PG_FUNCTION_ARGS)
{
	static const char *const normals[] = {
		[NORMAL_EXACT] = "",
		[NORMAL_NOCASE] = ", nocase",
		[NORMAL_DIGITS] = ", digits"
	};
	int32		typmod = PG_GETARG_INT32(0);
	uint8		code = typemod_type_code(typmod);
	int32		modifier = typemod_inner(typmod);
	const char *type;

	if (typmod < 0)
		PG_RETURN_CSTRING(pstrdup(""));
	if (modifier >= 0)
		type = psprintf("'%s'", format_type_with_typemod(inner_type(code), modifier));
	else
		type = psprintf(code & VALUE_TYPE_ARRAY ? "'%s'" : "%s", inner_name(code));
	if (!typemod_searchable(typmod))
		PG_RETURN_CSTRING(psprintf("(%s)", type));
	PG_RETURN_CSTRING(psprintf("(%s, searchable%s%s)", type,
							   normals[typemod_normal(typmod)],
							   is_tiny(code, modifier) ? ", force" : ""));
}
