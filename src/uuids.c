/*
 * uuids.c
 *		Uuids as text, the way labels and files carry them.
 */
#include "postgres.h"

#include "catalog.h"
#include "utils/fmgrprotos.h"

/* The 36-character lower-case form. */
void
uuid_text(const pg_uuid_t *uuid, char out[37])
{
	char	   *text = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(uuid)));

	strlcpy(out, text, 37);
	pfree(text);
}

/* Parse the 36-character lower-case form; false for anything else. */
bool
uuid_parse(const char *text, pg_uuid_t *out)
{
	if (strlen(text) != 36)
		return false;
	for (int i = 0, n = 0; i < 36; i++)
	{
		char		c = text[i];
		int			digit;

		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (c != '-')
				return false;
			continue;
		}
		if (c >= '0' && c <= '9')
			digit = c - '0';
		else if (c >= 'a' && c <= 'f')
			digit = c - 'a' + 10;
		else
			return false;
		out->data[n / 2] = (n % 2 == 0) ? digit << 4 : out->data[n / 2] | digit;
		n++;
	}
	return true;
}
