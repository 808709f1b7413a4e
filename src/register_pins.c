/*
 * register_pins.c
 *		The register's public keys that this node has been shown.
 *
 * The file "register.keys" of the register directory: a line with the
 * installation, then one for each generation with its SubjectPublicKeyInfo in
 * base64, as in a PEM file.  Written when a key is made, and when a site takes
 * the installation over.  And "register.archived": how far the register was
 * copied away.  No secrets here.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "common/base64.h"
#include "compat.h"
#include "lib/stringinfo.h"
#include "register.h"
#include "register_pins.h"
#include "utils/array.h"
#include "utils/builtins.h"

NC_FUNCTION(nc_register_pin);
NC_FUNCTION(nc_register_mark);

#define FILE_NAME	"register.keys"
#define MARK_NAME	"register.archived"
#define FILE_HEADER	"nomp_crypt register keys 1 "
#define MAX_SPKI	256

static void
malformed(const char *path)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("file \"%s\" is malformed", path),
			 errhint("Remove it: the keystore is asked for the keys then.")));
}

/* Is the first line the one of this database's installation? */
static bool
is_for_us(const char *line)
{
	pg_uuid_t	mine;
	char		installation[37];

	if (strncmp(line, FILE_HEADER, strlen(FILE_HEADER)) != 0 || !catalog_installation(&mine))
		return false;
	uuid_text(&mine, installation);
	return strcmp(line + strlen(FILE_HEADER), installation) == 0;
}

void
register_pinned_keys(PinnedKey callback)
{
	char		path[MAXPGPATH];
	char	   *text;
	char	   *rest;
	char	   *line;

	if (!register_directory_is_good())
		return;
	register_path(path, FILE_NAME);
	text = register_slurp(path);
	line = text != NULL ? strtok_r(text, "\n", &rest) : NULL;
	if (line == NULL || !is_for_us(line))
		return;
	while ((line = strtok_r(NULL, "\n", &rest)) != NULL)
	{
		char	   *end;
		unsigned long generation = strtoul(line, &end, 10);
		uint8		spki[MAX_SPKI];
		int			len = *end == ' ' ? pg_b64_decode(end + 1, (int) strlen(end + 1),
													  (char *) spki, sizeof(spki)) : -1;

		if (len <= 0 || generation == 0 || generation > PG_INT32_MAX)
			malformed(path);
		callback((uint32) generation, spki, (size_t) len);
	}
}

/*
 * nomp_crypt._register_pin(installation uuid, generations int[], keys bytea[])
 *		returns void
 *
 * Writes the file anew.
 */
Datum
nc_register_pin(PG_FUNCTION_ARGS)
{
	char		path[MAXPGPATH];
	char		installation[37];
	Datum	   *generations;
	Datum	   *keys;
	int			n;
	int			n_keys;
	StringInfoData text;

	register_check_directory();
	uuid_text(PG_GETARG_UUID_P(0), installation);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, 4, true, TYPALIGN_INT,
					  &generations, NULL, &n);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), BYTEAOID, -1, false, TYPALIGN_INT,
					  &keys, NULL, &n_keys);
	if (n != n_keys)
		elog(ERROR, "as many generations as keys are needed");
	initStringInfo(&text);
	appendStringInfo(&text, "%s%s\n", FILE_HEADER, installation);
	for (int i = 0; i < n; i++)
	{
		bytea	   *key = DatumGetByteaPP(keys[i]);
		int			len = VARSIZE_ANY_EXHDR(key);
		int			room = pg_b64_enc_len(len);
		char	   *encoded = palloc(room + 1);
		int			encoded_len = pg_b64_encode(VARDATA_ANY(key), len, encoded, room);

		if (encoded_len < 0)
			elog(ERROR, "could not encode a key");
		appendStringInfo(&text, "%d %.*s\n", DatumGetInt32(generations[i]), encoded_len, encoded);
	}
	register_path(path, FILE_NAME);
	register_replace(path, text.data, text.len);
	PG_RETURN_VOID();
}

/*
 * nomp_crypt._register_mark(mark text) returns text
 *
 * How far the register was copied away, NULL if nobody has said so; said now,
 * unless the argument is NULL.
 */
Datum
nc_register_mark(PG_FUNCTION_ARGS)
{
	char		path[MAXPGPATH];
	char	   *mark;

	register_path(path, MARK_NAME);
	if (!PG_ARGISNULL(0))
	{
		mark = text_to_cstring(PG_GETARG_TEXT_PP(0));
		register_check_directory();
		register_replace(path, mark, strlen(mark));
	}
	mark = register_slurp(path);
	if (mark == NULL || mark[0] == '\0' || strspn(mark, "0123456789") != strlen(mark) || strlen(mark) > 18)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(mark));
}
