/*
 * canonical.c
 *		The canonical text of a value, which its fingerprint is taken of.
 *
 * Stored fingerprints outlive every setting, encoding and library version,
 * so nothing here may ask one: no DateStyle, TimeZone, lc_*, bytea_output or
 * extra_float_digits.  A text that changes is a fingerprint that no longer
 * matches what is stored.  docs/format.md has the list.
 *
 * Case folding and normalisation are Unicode's (ICU), not a locale's; both
 * are stable for assigned characters.  The only file that includes ICU.
 *
 * Holds nothing.  Copies of the plaintext made on the way are wiped; the
 * result is the caller's.
 */
#include "postgres.h"

#include <math.h>
#include <unicode/unorm2.h>
#include <unicode/ustring.h>

#include "canonical.h"
#include "cipher.h"
#include "common/shortest_dec.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/cash.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "value.h"

bool
canonical_exists(uint8 code)
{
	return code >= VALUE_TYPE_TEXT && code <= VALUE_TYPE_INET &&
		code != VALUE_TYPE_INTERVAL;
}

static void
wipe_and_free(void *secret, size_t len)
{
	cipher_wipe(secret, len);
	pfree(secret);
}

/* A UTF-16 text, as ICU works on it. */
typedef struct Wide
{
	UChar	   *chars;
	int32_t		len;
	int32_t		room;
} Wide;

static Wide
wide_alloc(int64 room)
{
	Wide		wide = {0};

	if (room > MaxAllocSize / (int64) sizeof(UChar))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("text is too long to be folded")));
	wide.room = (int32_t) room;
	wide.chars = palloc(room * sizeof(UChar));
	return wide;
}

static void
wide_free(Wide *wide)
{
	wipe_and_free(wide->chars, wide->room * sizeof(UChar));
}

/* All inputs are valid and all rooms are large enough, or so we thought. */
static void
check_unicode(UErrorCode status)
{
	if (U_FAILURE(status))
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("text is not valid Unicode"),
				 errdetail_log("%s", u_errorName(status))));
}

/* Replace a text by its NFC; no text grows more than threefold. */
static void
compose(Wide *text)
{
	UErrorCode	status = U_ZERO_ERROR;
	const UNormalizer2 *nfc = unorm2_getNFCInstance(&status);
	Wide		out = wide_alloc(3 * (int64) text->len + 1);

	check_unicode(status);
	out.len = unorm2_normalize(nfc, text->chars, text->len, out.chars, out.room, &status);
	check_unicode(status);
	wide_free(text);
	*text = out;
}

/* NFC, full case folding, NFC of a UTF-8 text; wipes the given one. */
static char *
fold_case(char *utf8, size_t *len)
{
	UErrorCode	status = U_ZERO_ERROR;
	Wide		text = wide_alloc((int64) *len + 1);
	Wide		folded;
	int32_t		n;
	char	   *out;

	u_strFromUTF8(text.chars, text.room, &text.len, utf8, (int32_t) *len, &status);
	check_unicode(status);
	wipe_and_free(utf8, *len);
	compose(&text);

	folded = wide_alloc(3 * (int64) text.len + 1);
	folded.len = u_strFoldCase(folded.chars, folded.room, text.chars, text.len,
							   U_FOLD_CASE_DEFAULT, &status);
	check_unicode(status);
	wide_free(&text);
	compose(&folded);

	if (folded.len > MaxAllocSize / 3 - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("text is too long to be folded")));
	out = palloc(3 * (size_t) folded.len + 1);
	u_strToUTF8(out, 3 * folded.len + 1, &n, folded.chars, folded.len, &status);
	check_unicode(status);
	wide_free(&folded);
	*len = (size_t) n;
	return out;
}

/* In place. */
static void
keep_digits(char *text, size_t *len)
{
	size_t		kept = 0;

	for (size_t i = 0; i < *len; i++)
	{
		if (text[i] >= '0' && text[i] <= '9')
			text[kept++] = text[i];
	}
	cipher_wipe(text + kept, *len - kept);
	text[kept] = '\0';
	*len = kept;
}

/* The UTF-8 of a text, without the blanks that char(n) pads with. */
static char *
text_as_utf8(Datum value, bool padded, size_t *len)
{
	text	   *given = (text *) DatumGetPointer(value);
	text	   *bytes = PG_DETOAST_DATUM_PACKED(value);
	int			n = (int) VARSIZE_ANY_EXHDR(bytes);
	char	   *copy;
	char	   *utf8;

	while (padded && n > 0 && VARDATA_ANY(bytes)[n - 1] == ' ')
		n--;
	copy = pnstrdup(VARDATA_ANY(bytes), n);
	if (bytes != given)
		wipe_and_free(bytes, VARSIZE_ANY(bytes));
	utf8 = pg_server_to_any(copy, n, PG_UTF8);
	*len = utf8 == copy ? (size_t) n : strlen(utf8);
	if (utf8 != copy)
		wipe_and_free(copy, n);
	return utf8;
}

static char *
normal_text(Datum value, bool padded, Normal normal, size_t *len)
{
	char	   *text = text_as_utf8(value, padded, len);

	switch (normal)
	{
		case NORMAL_EXACT:
			break;
		case NORMAL_NOCASE:
			return fold_case(text, len);
		case NORMAL_DIGITS:
			keep_digits(text, len);
			break;
	}
	return text;
}

static char *
bytea_text(Datum value)
{
	bytea	   *given = (bytea *) DatumGetPointer(value);
	bytea	   *bytes = PG_DETOAST_DATUM_PACKED(value);
	int			n = VARSIZE_ANY_EXHDR(bytes);
	char	   *out = palloc(2 + 2 * (Size) n + 1);

	out[0] = '\\';
	out[1] = 'x';
	hex_encode(VARDATA_ANY(bytes), n, out + 2);
	out[2 + 2 * (Size) n] = '\0';
	if (bytes != given)
		wipe_and_free(bytes, VARSIZE_ANY(bytes));
	return out;
}

/* Shortest digits that read back as the same number; one zero, one NaN. */
static char *
float8_text(float8 number)
{
	char	   *out = palloc(DOUBLE_SHORTEST_DECIMAL_LEN);

	if (isnan(number))
		return pstrdup("NaN");
	if (isinf(number))
		return pstrdup(number > 0 ? "Infinity" : "-Infinity");
	(void) double_to_shortest_decimal_buf(number == 0 ? 0.0 : number, out);
	return out;
}

static char *
float4_text(float4 number)
{
	char	   *out = palloc(FLOAT_SHORTEST_DECIMAL_LEN);

	if (isnan(number) || isinf(number))
		return float8_text(number);
	(void) float_to_shortest_decimal_buf(number == 0 ? 0.0f : number, out);
	return out;
}

/* 1.0 and 1.00 are equal. */
static char *
numeric_text(Datum value)
{
	Datum		trimmed = DirectFunctionCall1(numeric_trim_scale, value);
	char	   *out = DatumGetCString(DirectFunctionCall1(numeric_out, trimmed));

	wipe_and_free(DatumGetPointer(trimmed), VARSIZE_ANY(DatumGetPointer(trimmed)));
	return out;
}

static char *
date_text(DateADT date)
{
	char	   *out = palloc0(MAXDATELEN + 1);
	struct pg_tm tm = {0};

	if (DATE_NOT_FINITE(date))
	{
		EncodeSpecialDate(date, out);
		return out;
	}
	j2date(date + POSTGRES_EPOCH_JDATE, &tm.tm_year, &tm.tm_mon, &tm.tm_mday);
	EncodeDateOnly(&tm, USE_ISO_DATES, out);
	return out;
}

static char *
time_text(TimeADT time, bool with_zone, int zone)
{
	char	   *out = palloc0(MAXDATELEN + 1);
	struct pg_tm tm = {0};
	fsec_t		fsec;

	time2tm(time, &tm, &fsec);
	EncodeTimeOnly(&tm, fsec, with_zone, zone, USE_ISO_DATES, out);
	return out;
}

/* With time zone: in UTC, +00 behind it. */
static char *
timestamp_text(Timestamp stamp, bool with_zone)
{
	char	   *out = palloc0(MAXDATELEN + 1);
	struct pg_tm tm = {0};
	fsec_t		fsec;

	if (TIMESTAMP_NOT_FINITE(stamp))
	{
		EncodeSpecialTimestamp(stamp, out);
		return out;
	}
	if (timestamp2tm(stamp, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	tm.tm_isdst = 0;			/* the zone is known: UTC */
	EncodeDateTime(&tm, fsec, with_zone, 0, NULL, USE_ISO_DATES, out);
	return out;
}

/* Of all types but those that a normalisation is for. */
static char *
plain_text(uint8 code, Datum value)
{
	TimeTzADT  *timetz;

	switch (code)
	{
		case VALUE_TYPE_BYTEA:
			return bytea_text(value);
		case VALUE_TYPE_BOOL:
			return pstrdup(DatumGetBool(value) ? "true" : "false");
		case VALUE_TYPE_INT2:
			return psprintf("%d", (int) DatumGetInt16(value));
		case VALUE_TYPE_INT4:
			return psprintf("%d", (int) DatumGetInt32(value));
		case VALUE_TYPE_INT8:
			return psprintf(INT64_FORMAT, DatumGetInt64(value));
		case VALUE_TYPE_MONEY:
			return psprintf(INT64_FORMAT, (int64) DatumGetCash(value));
		case VALUE_TYPE_FLOAT4:
			return float4_text(DatumGetFloat4(value));
		case VALUE_TYPE_FLOAT8:
			return float8_text(DatumGetFloat8(value));
		case VALUE_TYPE_NUMERIC:
			return numeric_text(value);
		case VALUE_TYPE_DATE:
			return date_text(DatumGetDateADT(value));
		case VALUE_TYPE_TIME:
			return time_text(DatumGetTimeADT(value), false, 0);
		case VALUE_TYPE_TIMETZ:
			timetz = DatumGetTimeTzADTP(value);
			return time_text(timetz->time, true, timetz->zone);
		case VALUE_TYPE_TIMESTAMP:
			return timestamp_text(DatumGetTimestamp(value), false);
		case VALUE_TYPE_TIMESTAMPTZ:
			return timestamp_text(DatumGetTimestampTz(value), true);
		case VALUE_TYPE_UUID:
			return DatumGetCString(DirectFunctionCall1(uuid_out, value));
		case VALUE_TYPE_INET:
			return DatumGetCString(DirectFunctionCall1(inet_out, value));
	}
	elog(ERROR, "type code %d has no canonical text", (int) code);
}

char *
canonical_text(uint8 code, Datum value, Normal normal, size_t *len)
{
	char	   *text;

	if (code == VALUE_TYPE_TEXT || code == VALUE_TYPE_VARCHAR || code == VALUE_TYPE_BPCHAR)
		return normal_text(value, code == VALUE_TYPE_BPCHAR, normal, len);
	if (normal != NORMAL_EXACT)
		elog(ERROR, "type code %d has no such normalisation", (int) code);
	text = plain_text(code, value);
	*len = strlen(text);
	return text;
}
