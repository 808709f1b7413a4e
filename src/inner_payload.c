/*
 * inner_payload.c
 *		Values of built-in types as the bytes that are encrypted, and back.
 *
 * text, varchar, char, json   the text in UTF-8
 * jsonb                       a byte 1, then its text in UTF-8
 * arrays                      array_send's layout, with our own elements
 * all others                  what the type's send function gives
 *
 * PostgreSQL's send functions for texts, and so those for jsonb and arrays,
 * convert to the client's encoding: stored bytes must not depend on it, so
 * those three are written by hand.
 *
 * Payloads are plaintext: a temporary one is wiped here, the result belongs
 * to the caller.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "envelope.h"
#include "errors.h"
#include "fmgr.h"
#include "inner.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "value.h"

#define JSONB_VERSION	1

static bool
is_text_like(uint8 code)
{
	return code == VALUE_TYPE_TEXT || code == VALUE_TYPE_VARCHAR ||
		code == VALUE_TYPE_BPCHAR || code == VALUE_TYPE_JSON;
}

static void
wipe(char *bytes, size_t len)
{
	explicit_bzero(bytes, len);
	pfree(bytes);
}

/* ---- text ---- */

/* Server-encoded text as UTF-8, with room for "before" bytes in front. */
static char *
to_utf8(const char *text, size_t text_len, size_t before, size_t *len)
{
	char	   *utf8 = pg_server_to_any(text, (int) text_len, PG_UTF8);
	size_t		utf8_len = utf8 == text ? text_len : strlen(utf8);
	char	   *payload = palloc(before + utf8_len + 1);

	memcpy(payload + before, utf8, utf8_len);
	*len = before + utf8_len;
	if (utf8 != text)
		wipe(utf8, utf8_len);
	return payload;
}

static text *
from_utf8(const char *payload, size_t len)
{
	char	   *plain;

	if (len > MaxAllocSize || memchr(payload, 0, len) != NULL)
		error_integrity();
	plain = pg_any_to_server(payload, (int) len, PG_UTF8);
	return cstring_to_text_with_len(plain,
									(int) (plain == payload ? len : strlen(plain)));
}

/* ---- jsonb ---- */

static char *
jsonb_payload(Datum value, size_t *len)
{
	Jsonb	   *jsonb = DatumGetJsonbP(value);
	StringInfoData plain;
	char	   *payload;

	initStringInfo(&plain);
	(void) JsonbToCString(&plain, &jsonb->root, VARSIZE(jsonb));
	payload = to_utf8(plain.data, plain.len, 1, len);
	payload[0] = JSONB_VERSION;
	wipe(plain.data, plain.len);
	return payload;
}

static Datum
jsonb_from_payload(const char *payload, size_t len)
{
	char	   *plain;

	if (len < 1 || payload[0] != JSONB_VERSION)
		error_integrity();
	plain = text_to_cstring(from_utf8(payload + 1, len - 1));
	return inner_from_text(VALUE_TYPE_JSONB, -1, plain);
}

/* ---- arrays ---- */

static char *
array_payload(uint8 code, Datum value, size_t *len)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	uint8		element = code & ~VALUE_TYPE_ARRAY;
	StringInfoData out;
	int16		typlen;
	bool		byval;
	char		align;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("arrays of more than one dimension cannot be encrypted"),
				 errhint("Store it as encrypted(jsonb).")));
	get_typlenbyvalalign(inner_type(element), &typlen, &byval, &align);
	deconstruct_array(array, inner_type(element), typlen, byval, align,
					  &elements, &nulls, &n);

	initStringInfo(&out);
	pq_sendint32(&out, ARR_NDIM(array));
	pq_sendint32(&out, ARR_HASNULL(array) ? 1 : 0);
	pq_sendint32(&out, inner_type(element));
	if (ARR_NDIM(array) == 1)
	{
		pq_sendint32(&out, n);
		pq_sendint32(&out, ARR_LBOUND(array)[0]);
	}
	for (int i = 0; i < n; i++)
	{
		size_t		part_len;
		char	   *part;

		if (nulls[i])
		{
			pq_sendint32(&out, (uint32) -1);
			continue;
		}
		part = inner_payload(element, elements[i], &part_len);
		pq_sendint32(&out, (uint32) part_len);
		appendBinaryStringInfo(&out, part, (int) part_len);
		wipe(part, part_len);
	}
	*len = out.len;
	return out.data;
}

typedef struct Reader
{
	const char *at;
	size_t		left;
} Reader;

static const char *
take(Reader *in, size_t len)
{
	const char *bytes = in->at;

	if (len > in->left)
		error_integrity();
	in->at += len;
	in->left -= len;
	return bytes;
}

static uint32
take_int(Reader *in)
{
	uint32		number;

	memcpy(&number, take(in, sizeof(number)), sizeof(number));
	return pg_ntoh32(number);
}

static Datum
array_from_payload(uint8 code, const char *payload, size_t len)
{
	uint8		element = code & ~VALUE_TYPE_ARRAY;
	Oid			type = inner_type(element);
	Reader		in = {payload, len};
	uint32		dimensions = take_int(&in);
	uint32		has_null = take_int(&in);
	uint32		n;
	int			count;
	int			lower;
	Datum	   *elements;
	bool	   *nulls;
	int16		typlen;
	bool		byval;
	char		align;

	if (dimensions > 1 || has_null > 1 || take_int(&in) != type)
		error_integrity();
	if (dimensions == 0)
	{
		if (in.left != 0)
			error_integrity();
		return PointerGetDatum(construct_empty_array(type));
	}
	n = take_int(&in);
	lower = (int) take_int(&in);
	/* each element has a length, so that many there can be at most */
	if (n == 0 || n > in.left / sizeof(uint32) || n > MaxArraySize ||
		(int64) lower + n > PG_INT32_MAX)
		error_integrity();

	elements = palloc0(n * sizeof(Datum));
	nulls = palloc0(n * sizeof(bool));
	for (uint32 i = 0; i < n; i++)
	{
		uint32		part_len = take_int(&in);

		nulls[i] = part_len == (uint32) -1;
		if (nulls[i] && has_null == 0)
			error_integrity();
		if (!nulls[i])
			elements[i] = inner_from_payload(element, take(&in, part_len), part_len);
	}
	if (in.left != 0)
		error_integrity();
	count = (int) n;
	get_typlenbyvalalign(type, &typlen, &byval, &align);
	return PointerGetDatum(construct_md_array(elements, nulls, 1, &count, &lower,
											  type, typlen, byval, align));
}

/* ---- all others ---- */

typedef struct BinaryIo
{
	bool		ready;
	FmgrInfo	send;
	FmgrInfo	receive;
	Oid			io_param;
} BinaryIo;

/* A scalar type's send and receive functions, looked up once per process. */
static BinaryIo *
binary_functions(uint8 code)
{
	static BinaryIo known[VALUE_TYPE_LAST + 1];
	BinaryIo   *io = &known[code];
	Oid			send;
	Oid			receive;
	bool		varlena;

	if (io->ready)
		return io;
	getTypeBinaryOutputInfo(inner_type(code), &send, &varlena);
	getTypeBinaryInputInfo(inner_type(code), &receive, &io->io_param);
	fmgr_info_cxt(send, &io->send, TopMemoryContext);
	fmgr_info_cxt(receive, &io->receive, TopMemoryContext);
	io->ready = true;
	return io;
}

static char *
binary_payload(uint8 code, Datum value, size_t *len)
{
	bytea	   *sent = SendFunctionCall(&binary_functions(code)->send, value);

	*len = VARSIZE(sent) - VARHDRSZ;
	return memmove(sent, VARDATA(sent), *len);
}

static Datum
binary_from_payload(uint8 code, const char *payload, size_t len)
{
	BinaryIo   *io = binary_functions(code);
	StringInfoData in;
	Datum		value;

	if (len > MaxAllocSize)
		error_integrity();
	in.data = unconstify(char *, payload);
	in.len = in.maxlen = (int) len;
	in.cursor = 0;
	value = ReceiveFunctionCall(&io->receive, &in, io->io_param, -1);
	if (in.cursor != in.len)
		error_integrity();
	return value;
}

char *
inner_payload(uint8 code, Datum value, size_t *len)
{
	if (is_text_like(code))
	{
		text	   *plain = DatumGetTextPP(value);

		return to_utf8(VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain), 0, len);
	}
	if (code == VALUE_TYPE_JSONB)
		return jsonb_payload(value, len);
	if (code & VALUE_TYPE_ARRAY)
		return array_payload(code, value, len);
	return binary_payload(code, value, len);
}

Datum
inner_from_payload(uint8 code, const char *payload, size_t len)
{
	if (is_text_like(code))
		return PointerGetDatum(from_utf8(payload, len));
	if (code == VALUE_TYPE_JSONB)
		return jsonb_from_payload(payload, len);
	if (code & VALUE_TYPE_ARRAY)
		return array_from_payload(code, payload, len);
	return binary_from_payload(code, payload, len);
}

/* In a UTF-8 database a text's payload is the text itself: no copy. */
Datum
inner_take_payload(uint8 code, bytea *payload)
{
	int			len = VARSIZE(payload) - VARHDRSZ;
	Datum		value;

	if (is_text_like(code) && GetDatabaseEncoding() == PG_UTF8)
	{
		if (pg_encoding_verifymbstr(PG_UTF8, VARDATA(payload), len) != len)
			error_integrity();
		return PointerGetDatum(payload);
	}
	value = inner_from_payload(code, VARDATA(payload), len);
	envelope_wipe(payload);
	return value;
}
