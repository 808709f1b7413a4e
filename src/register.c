/*
 * register.c
 *		The folder outside the data directory that says whose keys these are.
 *
 * Its file "installation" holds the installation's uuid and the databases, by
 * oid and data directory, that may destroy its keys.  A copy of a database or
 * of a whole data directory, on another machine or beside the original, finds
 * no file or is not named in it, and so can destroy nothing.  (The system identifier would not do: a
 * clone has the same one, an upgraded cluster another.)
 *
 * As long as there is none, the file "founding" keeps the uuid that the
 * installation will have, of one data directory: a call that made a key in a
 * key service and failed then leaves it to the next one.
 *
 * The signed register lives in the same folder: register_file.c, and
 * register_pins.c for its keys.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog.h"
#include "compat.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "register.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/guc.h"

NC_FUNCTION(nc_register_read);
NC_FUNCTION(nc_register_founding);
NC_FUNCTION(nc_register_write);

#define FILE_NAME		"installation"
#define FILE_HEADER		"nomp_crypt installation 1"
#define FOUNDING_NAME	"founding"
#define FOUNDING_HEADER	"nomp_crypt founding 1"
#define DATABASE_KEY	"database "
#define MAX_FILE_SIZE	65536

static char *register_directory = NULL;

void
register_init(void)
{
	DefineCustomStringVariable("nomp_crypt.register_directory",
							   "Folder outside the data directory and its backups that identifies the installation.",
							   NULL,
							   &register_directory, "/var/lib/nomp_crypt",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
}

static void
real_data_directory(char out[MAXPGPATH])
{
	char		path[PATH_MAX];

	if (realpath(DataDir, path) == NULL || strlen(path) >= MAXPGPATH ||
		strchr(path, '\n') != NULL)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not resolve the data directory's path: %m")));
	strlcpy(out, path, MAXPGPATH);
}

static bool
is_ours_alone(const struct stat *st)
{
	return S_ISDIR(st->st_mode) && st->st_uid == geteuid() &&
		(st->st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

bool
register_directory_is_good(void)
{
	struct stat st;

	return stat(register_directory, &st) == 0 && is_ours_alone(&st);
}

/* The folder must exist, be ours alone to write, and lie outside the data. */
void
register_check_directory(void)
{
	char		data[MAXPGPATH];
	char		dir[PATH_MAX];
	struct stat st;
	size_t		len;

	real_data_directory(data);
	if (realpath(register_directory, dir) == NULL || stat(dir, &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open the register directory \"%s\": %m", register_directory),
				 errhint("Create it, owned by the server's user, mode 700, or set nomp_crypt.register_directory.")));
	if (!is_ours_alone(&st))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("register directory \"%s\" has the wrong owner or permissions", register_directory),
				 errhint("It must belong to the server's user, and nobody else may write to it (chmod 700).")));
	len = strlen(data);
	if (strncmp(dir, data, len) == 0 && (dir[len] == '/' || dir[len] == '\0'))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("register directory \"%s\" lies in the data directory", register_directory),
				 errhint("It must be outside, so that a copy of the data does not carry it along.")));
}

/* Is it on the data's file system, whose snapshot has both?  False: not known. */
bool
register_beside_data(bool *beside)
{
	struct stat data;
	struct stat dir;

	*beside = false;
	if (stat(DataDir, &data) != 0 || stat(register_directory, &dir) != 0)
		return false;
	*beside = data.st_dev == dir.st_dev;
	return true;
}

void
register_path(char out[MAXPGPATH], const char *name)
{
	snprintf(out, MAXPGPATH, "%s/%s", register_directory, name);
}

char *
register_slurp(const char *path)
{
	char	   *text;
	int			fd;
	ssize_t		n;

	fd = OpenTransientFile(path, O_RDONLY);
	if (fd < 0)
	{
		if (errno == ENOENT)
			return NULL;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	}
	text = palloc(MAX_FILE_SIZE + 1);
	n = read(fd, text, MAX_FILE_SIZE);
	CloseTransientFile(fd);
	if (n < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", path)));
	text[n] = '\0';
	return text;
}

/* The file's content, or NULL if there is none. */
static char *
read_file(void)
{
	char		path[MAXPGPATH];

	register_path(path, FILE_NAME);
	return register_slurp(path);
}

static void
malformed(void)
{
	char		path[MAXPGPATH];

	register_path(path, FILE_NAME);
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("file \"%s\" is malformed", path),
			 errhint("Restore it from its own backup; nothing will be destroyed without it.")));
}

/* The line that names this database. */
static char *
own_line(void)
{
	char		data[MAXPGPATH];

	real_data_directory(data);
	return psprintf("%s%u of %s", DATABASE_KEY, MyDatabaseId, data);
}

/* Does the line name a database of this data directory? */
static bool
is_neighbour(const char *line)
{
	const char *of = strstr(line, " of ");
	char		data[MAXPGPATH];

	real_data_directory(data);
	return of != NULL && strcmp(of + 4, data) == 0;
}

bool
register_read(pg_uuid_t *installation, bool *ours, bool *neighbour)
{
	char	   *mine = own_line();
	char	   *text;
	char	   *line;
	char	   *rest;
	int			number = 0;

	register_check_directory();
	*ours = *neighbour = false;
	text = read_file();
	if (text == NULL)
		return false;
	for (line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
	{
		number++;
		if (number == 1 && strcmp(line, FILE_HEADER) != 0)
			malformed();
		if (number == 2 && !uuid_parse(line, installation))
			malformed();
		if (number < 3)
			continue;
		if (strncmp(line, DATABASE_KEY, strlen(DATABASE_KEY)) != 0)
			malformed();
		*ours = *ours || strcmp(line, mine) == 0;
		*neighbour = *neighbour || is_neighbour(line);
	}
	if (number < 2)
		malformed();
	return true;
}

/* Write a file under a temporary name, durably. */
static void
write_temporary(const char *temp, const char *text, size_t len)
{
	int			fd;

	(void) unlink(temp);
	fd = OpenTransientFilePerm(temp, O_WRONLY | O_CREAT | O_EXCL, S_IRUSR | S_IWUSR);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", temp)));
	errno = 0;
	if (write(fd, text, len) != (ssize_t) len || pg_fsync(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", temp)));
	CloseTransientFile(fd);
}

void
register_replace(const char *path, const char *text, size_t len)
{
	char		temp[MAXPGPATH];

	snprintf(temp, MAXPGPATH, "%s.new", path);
	write_temporary(temp, text, len);
	(void) durable_rename(temp, path, ERROR);
}

/* The same for one of the folder's files, of which there was none. */
static void
create_file(const char *name, const char *text)
{
	char		path[MAXPGPATH];
	char		temp[MAXPGPATH];

	register_path(path, name);
	snprintf(temp, MAXPGPATH, "%s.new", path);
	write_temporary(temp, text, strlen(text));
	if (link(temp, path) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", path),
				 errhint("Another session may have created the installation just now: repeat the call.")));
	(void) unlink(temp);
	fsync_fname(register_directory, true);
}

/*
 * nomp_crypt._register_read(OUT installation uuid, OUT ours boolean,
 *							 OUT neighbour boolean)
 *
 * Which installation; does it name this database, or another one of this data
 * directory?  NULL, false, false where there is no file yet.  Raises the file system's errors
 * and XX001 for a malformed file.
 */
Datum
nc_register_read(PG_FUNCTION_ARGS)
{
	pg_uuid_t	installation;
	bool		ours;
	bool		neighbour;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	nulls[0] = !register_read(&installation, &ours, &neighbour);
	values[0] = UUIDPGetDatum(&installation);
	values[1] = BoolGetDatum(ours);
	values[2] = BoolGetDatum(neighbour);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ---- before there is an installation ---- */

/* Whose uuid the file keeps; raises 55000 for another data directory's. */
static bool
read_founding(const char *path, const char *data, pg_uuid_t *installation)
{
	char	   *text = register_slurp(path);
	char	   *rest;
	char	   *header;
	char	   *uuid;
	char	   *of;

	if (text == NULL)
		return false;
	header = strtok_r(text, "\n", &rest);
	uuid = strtok_r(NULL, "\n", &rest);
	of = strtok_r(NULL, "\n", &rest);
	if (of == NULL || strcmp(header, FOUNDING_HEADER) != 0 || !uuid_parse(uuid, installation))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" is malformed", path),
				 errhint("Nothing is founded yet: remove it.")));
	if (strcmp(of, data) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the register directory belongs to another server"),
				 errdetail("The server with the data directory \"%s\" has begun to create its installation.", of),
				 errhint("Give this server its own nomp_crypt.register_directory. If that one is no more, remove the file \"%s\".", path)));
	return true;
}

/*
 * nomp_crypt._register_founding(wanted uuid) returns uuid
 *
 * The uuid of the installation that is to be founded: the one that an earlier
 * call of this data directory began with and failed, or "wanted", which is kept
 * whatever becomes of the transaction.  The caller has the keystore's lock.
 * Raises 55000 for another server's, XX001, the file system's errors.
 */
Datum
nc_register_founding(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *installation = palloc(sizeof(pg_uuid_t));
	char		path[MAXPGPATH];
	char		data[MAXPGPATH];
	char		text[37];

	register_check_directory();
	real_data_directory(data);
	register_path(path, FOUNDING_NAME);
	if (!read_founding(path, data, installation))
	{
		*installation = *PG_GETARG_UUID_P(0);
		uuid_text(installation, text);
		create_file(FOUNDING_NAME, psprintf("%s\n%s\n%s\n", FOUNDING_HEADER, text, data));
	}
	PG_RETURN_UUID_P(installation);
}

/* It is founded. */
static void
forget_founding(void)
{
	char		path[MAXPGPATH];

	register_path(path, FOUNDING_NAME);
	if (unlink(path) == 0)
		fsync_fname(register_directory, true);
	else if (errno != ENOENT)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
}

/*
 * nomp_crypt._register_write(installation uuid) returns void
 *
 * Creates the file, or adds this database to it.  Raises 55000 if it
 * belongs to another installation.
 */
Datum
nc_register_write(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *wanted = PG_GETARG_UUID_P(0);
	pg_uuid_t	found;
	bool		ours;
	bool		neighbour;
	char		text[37];
	char		path[MAXPGPATH];
	StringInfoData content;
	bool		exists = register_read(&found, &ours, &neighbour);

	if (exists && memcmp(&found, wanted, UUID_LEN) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("register directory \"%s\" belongs to another installation", register_directory)));
	if (exists && ours)
	{
		forget_founding();
		PG_RETURN_VOID();
	}
	uuid_text(wanted, text);
	initStringInfo(&content);
	if (exists)
		appendStringInfoString(&content, read_file());
	else
		appendStringInfo(&content, "%s\n%s\n", FILE_HEADER, text);
	appendStringInfo(&content, "%s\n", own_line());
	if (exists)
	{
		register_path(path, FILE_NAME);
		register_replace(path, content.data, content.len);
	}
	else
		create_file(FILE_NAME, content.data);
	forget_founding();
	PG_RETURN_VOID();
}
