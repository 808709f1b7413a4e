/*
 * inner.c
 *		The built-in types that can be inside an encrypted value: names, text
 *		form, conversion.  Their encrypted form is inner_payload.c's.
 *
 * Conversion follows PostgreSQL's own casts, with one exception: a text
 * becomes anything by the type's input function, because every literal and
 * parameter comes as text.
 *
 * Holds no key and keeps no value.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "inner.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "value.h"

#define INNER(type, name)                          \
	{                                              \
		type##OID, type##ARRAYOID, name, name "[]" \
	}

/*
 * Names are those that encrypted(...) takes unquoted: no two-word types.
 */
static const struct
{
	Oid			type;
	Oid			array;
	const char *name;
	const char *array_name;
}			types[VALUE_TYPE_LAST + 1] =
{
	[VALUE_TYPE_TEXT] = INNER(TEXT, "text"),
	[VALUE_TYPE_VARCHAR] = INNER(VARCHAR, "varchar"),
	[VALUE_TYPE_BPCHAR] = INNER(BPCHAR, "bpchar"),
	[VALUE_TYPE_BYTEA] = INNER(BYTEA, "bytea"),
	[VALUE_TYPE_BOOL] = INNER(BOOL, "bool"),
	[VALUE_TYPE_INT2] = INNER(INT2, "int2"),
	[VALUE_TYPE_INT4] = INNER(INT4, "int4"),
	[VALUE_TYPE_INT8] = INNER(INT8, "int8"),
	[VALUE_TYPE_FLOAT4] = INNER(FLOAT4, "float4"),
	[VALUE_TYPE_FLOAT8] = INNER(FLOAT8, "float8"),
	[VALUE_TYPE_NUMERIC] = INNER(NUMERIC, "numeric"),
	[VALUE_TYPE_MONEY] = INNER(MONEY, "money"),
	[VALUE_TYPE_DATE] = INNER(DATE, "date"),
	[VALUE_TYPE_TIME] = INNER(TIME, "time"),
	[VALUE_TYPE_TIMETZ] = INNER(TIMETZ, "timetz"),
	[VALUE_TYPE_TIMESTAMP] = INNER(TIMESTAMP, "timestamp"),
	[VALUE_TYPE_TIMESTAMPTZ] = INNER(TIMESTAMPTZ, "timestamptz"),
	[VALUE_TYPE_INTERVAL] = INNER(INTERVAL, "interval"),
	[VALUE_TYPE_UUID] = INNER(UUID, "uuid"),
	[VALUE_TYPE_INET] = INNER(INET, "inet"),
	[VALUE_TYPE_JSON] = INNER(JSON, "json"),
	[VALUE_TYPE_JSONB] = INNER(JSONB, "jsonb"),
	[VALUE_TYPE_INT4RANGE] = INNER(INT4RANGE, "int4range"),
	[VALUE_TYPE_INT8RANGE] = INNER(INT8RANGE, "int8range"),
	[VALUE_TYPE_NUMRANGE] = INNER(NUMRANGE, "numrange"),
	[VALUE_TYPE_DATERANGE] = INNER(DATERANGE, "daterange"),
	[VALUE_TYPE_TSRANGE] = INNER(TSRANGE, "tsrange"),
	[VALUE_TYPE_TSTZRANGE] = INNER(TSTZRANGE, "tstzrange"),
};

uint8
inner_code(Oid type)
{
	for (uint8 code = VALUE_TYPE_TEXT; code <= VALUE_TYPE_LAST; code++)
	{
		if (types[code].type == type)
			return code;
		if (types[code].array == type)
			return code | VALUE_TYPE_ARRAY;
	}
	return 0;
}

static uint8
element_of(uint8 code)
{
	uint8		element = code & ~VALUE_TYPE_ARRAY;

	if (element < VALUE_TYPE_TEXT || element > VALUE_TYPE_LAST)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown type code %d", code)));
	return element;
}

Oid
inner_type(uint8 code)
{
	uint8		element = element_of(code);

	return code & VALUE_TYPE_ARRAY ? types[element].array : types[element].type;
}

const char *
inner_name(uint8 code)
{
	uint8		element = element_of(code);

	return code & VALUE_TYPE_ARRAY ? types[element].array_name : types[element].name;
}

/* ---- text ---- */

typedef struct InnerIo
{
	bool		ready;
	FmgrInfo	input;
	FmgrInfo	output;
	Oid			io_param;
} InnerIo;

/* A type's input and output functions, looked up once per process. */
static InnerIo *
text_functions(uint8 code)
{
	static InnerIo known[VALUE_TYPE_LAST + 1][2];
	InnerIo    *io = &known[element_of(code)][(code & VALUE_TYPE_ARRAY) != 0];
	Oid			input;
	Oid			output;
	bool		varlena;

	if (io->ready)
		return io;
	getTypeInputInfo(inner_type(code), &input, &io->io_param);
	getTypeOutputInfo(inner_type(code), &output, &varlena);
	fmgr_info_cxt(input, &io->input, TopMemoryContext);
	fmgr_info_cxt(output, &io->output, TopMemoryContext);
	io->ready = true;
	return io;
}

Datum
inner_from_text(uint8 code, int32 modifier, char *text)
{
	InnerIo    *io = text_functions(code);

	return InputFunctionCall(&io->input, text, io->io_param, modifier);
}

char *
inner_to_text(uint8 code, Datum value)
{
	return OutputFunctionCall(&text_functions(code)->output, value);
}

/* ---- conversion ---- */

typedef enum Route
{
	ROUTE_NONE,
	ROUTE_AS_IS,				/* the same bytes */
	ROUTE_FUNCTION,				/* a cast's function */
	ROUTE_TEXT					/* output function, then input function */
} Route;

/* How to convert one value, or each element of an array. */
typedef struct Step
{
	Route		route;
	Oid			function;
	Oid			from;
	uint8		code;			/* of the scalar result */
	int32		modifier;
	bool		explicit;
} Step;

static bool
is_string(Oid type)
{
	return type == TEXTOID || type == VARCHAROID || type == BPCHAROID;
}

static Route
find_route(Oid from, Oid target, bool explicit, Oid *function)
{
	if (from == target)
		return ROUTE_AS_IS;
	if ((from == TEXTOID || from == VARCHAROID) && !is_string(target))
		return ROUTE_TEXT;
	switch (find_coercion_pathway(target, from,
								  explicit ? COERCION_EXPLICIT : COERCION_ASSIGNMENT,
								  function))
	{
		case COERCION_PATH_FUNC:
			return ROUTE_FUNCTION;
		case COERCION_PATH_RELABELTYPE:
			return ROUTE_AS_IS;
		case COERCION_PATH_COERCEVIAIO:
			return ROUTE_TEXT;
		default:
			return ROUTE_NONE;
	}
}

static Datum
call_cast(const Step *step, Datum value)
{
	Datum		modifier = Int32GetDatum(step->modifier);
	Datum		explicit = BoolGetDatum(step->explicit);

	switch (get_func_nargs(step->function))
	{
		case 1:
			return OidFunctionCall1Coll(step->function, DEFAULT_COLLATION_OID, value);
		case 2:
			return OidFunctionCall2Coll(step->function, DEFAULT_COLLATION_OID, value,
										modifier);
		default:
			return OidFunctionCall3Coll(step->function, DEFAULT_COLLATION_OID, value,
										modifier, explicit);
	}
}

static char *
text_of(Oid type, Datum value)
{
	uint8		code = inner_code(type);
	Oid			output;
	bool		varlena;

	if (is_string(type))
		return TextDatumGetCString(value);
	if (code != 0)
		return inner_to_text(code, value);
	getTypeOutputInfo(type, &output, &varlena);
	return OidOutputFunctionCall(output, value);
}

/*
 * Like PostgreSQL for a literal: the modifier is for the length coercion,
 * which follows, but an interval's says which field a bare number is.
 */
static Datum
convert_by_text(const Step *step, Datum value)
{
	char	   *text = text_of(step->from, value);
	Datum		result = inner_from_text(step->code,
										 step->code == VALUE_TYPE_INTERVAL ?
										 step->modifier : -1, text);

	explicit_bzero(text, strlen(text));
	pfree(text);
	return result;
}

static Datum
take_step(const Step *step, Datum value)
{
	switch (step->route)
	{
		case ROUTE_FUNCTION:
			return call_cast(step, value);
		case ROUTE_TEXT:
			return convert_by_text(step, value);
		case ROUTE_AS_IS:
			return value;
		case ROUTE_NONE:
			break;
	}
	elog(ERROR, "no route from type %u to type code %d", step->from, step->code);
}

/* Take the step with each element; NULLs and bounds stay. */
static Datum
take_step_each(const Step *step, Datum array)
{
	ArrayType  *old = DatumGetArrayTypeP(array);
	Oid			target = inner_type(step->code);
	int16		len;
	bool		byval;
	char		align;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	get_typlenbyvalalign(step->from, &len, &byval, &align);
	deconstruct_array(old, step->from, len, byval, align, &elements, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			elements[i] = take_step(step, elements[i]);
	}
	if (n == 0)
		return PointerGetDatum(construct_empty_array(target));
	get_typlenbyvalalign(target, &len, &byval, &align);
	return PointerGetDatum(construct_md_array(elements, nulls, ARR_NDIM(old),
											  ARR_DIMS(old), ARR_LBOUND(old),
											  target, len, byval, align));
}

static void
refuse_cast(Oid from, Oid target)
{
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_COERCE),
			 errmsg("cannot cast type %s to %s", format_type_be(from),
					format_type_be(target)),
			 errhint("Cast to text in between, or name both types.")));
}

/* To another type; whatever its modifier says comes after. */
static Datum
change_type(Datum value, Oid from, uint8 code, int32 modifier, bool explicit)
{
	uint8		from_code = inner_code(from);
	bool		each = (code & VALUE_TYPE_ARRAY) && (from_code & VALUE_TYPE_ARRAY);
	Step		step = {
		.from = from,.code = code,.modifier = modifier,.explicit = explicit
	};

	if (each)
	{
		step.from = inner_type(element_of(from_code));
		step.code = element_of(code);
	}
	step.route = find_route(step.from, inner_type(step.code), explicit, &step.function);
	if (step.route == ROUTE_NONE)
		refuse_cast(from, inner_type(code));
	return each ? take_step_each(&step, value) : take_step(&step, value);
}

/* Length, precision or scale, as PostgreSQL does it to a column's value. */
static Datum
apply_modifier(Datum value, uint8 code, int32 modifier, bool explicit)
{
	uint8		element = element_of(code);
	Step		step = {
		.route = ROUTE_FUNCTION,.from = inner_type(element),.code = element,
		.modifier = modifier,.explicit = explicit
	};

	if (find_typmod_coercion_function(step.from, &step.function) != COERCION_PATH_FUNC)
		return value;
	return code & VALUE_TYPE_ARRAY ? take_step_each(&step, value) : take_step(&step, value);
}

Datum
inner_convert(Datum value, Oid from, uint8 code, int32 modifier, bool explicit)
{
	if (from != inner_type(code))
		value = change_type(value, from, code, modifier, explicit);
	return modifier < 0 ? value : apply_modifier(value, code, modifier, explicit);
}
