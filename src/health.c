/*
 * health.c
 *		What nomp_crypt.health() wants to know about this server process and
 *		machine, as internal SQL functions.
 *
 * None of them raises because something is in trouble, none takes longer than
 * a few system calls, and none returns a path or a secret.
 */
#include "postgres.h"

#include <ctype.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "catalog.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "register.h"
#include "request.h"
#include "secret.h"
#include "stores.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

NC_FUNCTION(nc_server_facts);
NC_FUNCTION(nc_pin_file);

/* First line of a file of the kernel's that starts like this, or false. */
static bool
kernel_line(const char *path, const char *start, char *line, int size)
{
	FILE	   *file = fopen(path, "r");
	bool		found = false;

	while (file != NULL && !found && fgets(line, size, file) != NULL)
		found = strncmp(line, start, strlen(start)) == 0;
	if (file != NULL)
		fclose(file);
	return found;
}

/* Can a crash of this process leave its memory in a file, or in a program? */
static bool
cores_possible(void)
{
	struct rlimit limit;
	char		line[16];

	/* the limit does not count where the kernel hands dumps to a program */
	return getrlimit(RLIMIT_CORE, &limit) != 0 || limit.rlim_cur > 0 ||
		kernel_line("/proc/sys/kernel/core_pattern", "|", line, sizeof(line));
}

static bool
swap_used(void)
{
	char		line[256];

	return kernel_line("/proc/meminfo", "SwapTotal:", line, sizeof(line)) &&
		strtoul(line + strlen("SwapTotal:"), NULL, 10) > 0;
}

/*
 * nomp_crypt._server_facts(OUT library text, OUT broker boolean,
 *		OUT protected boolean, OUT cores boolean, OUT swap boolean,
 *		OUT register_beside_data boolean)
 *
 * protected: shared memory with keys is locked and not dumped.
 * register_beside_data: on the same file system; NULL if not known.
 */
Datum
nc_server_facts(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false};
	bool		beside;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(SQL_VERSION);
	values[1] = BoolGetDatum(request_broker_running());
	values[2] = BoolGetDatum(secret_all_protected());
	values[3] = BoolGetDatum(cores_possible());
	values[4] = BoolGetDatum(swap_used());
	nulls[5] = !register_beside_data(&beside);
	values[5] = BoolGetDatum(beside);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* Undo %xx in place. */
static void
unescape(char *text)
{
	char	   *to = text;

	for (char *from = text; *from != '\0'; from++)
	{
		unsigned int byte;

		if (*from == '%' && isxdigit((unsigned char) from[1]) &&
			isxdigit((unsigned char) from[2]) && sscanf(from + 1, "%2x", &byte) == 1)
		{
			*to++ = (char) byte;
			from += 2;
		}
		else
			*to++ = *from;
	}
	*to = '\0';
}

/* The file that a keystore's URI names as pin-source, or NULL; palloc'd. */
static char *
pin_path(const char *uri)
{
	const char *found = strstr(uri, "pin-source=");
	char	   *path;

	if (found == NULL || found == uri || strchr("?&", found[-1]) == NULL)
		return NULL;
	found += strlen("pin-source=");
	path = pnstrdup(found, strcspn(found, "&"));
	unescape(path);
	if (strncmp(path, "file:", 5) == 0)
		path += 5;
	if (strncmp(path, "///", 3) == 0)
		path += 2;
	return path;
}

/* What is wrong with a PIN file, or NULL and since when it is as it is. */
static const char *
pin_trouble(const char *path, TimestampTz *changed)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return "cannot be found";
	if (!S_ISREG(st.st_mode))
		return "is not a regular file";
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return "belongs to another user";
	if ((st.st_mode & 077) != 0)
		return "is accessible to group or others";
	*changed = time_t_to_timestamptz(st.st_mtime);
	return NULL;
}

/*
 * nomp_crypt._pin_file() returns setof (trouble text, changed timestamptz)
 *
 * One row for each keystore with a PIN file: what is wrong with its owner or
 * permissions, if anything is, and since when it is as it is.  The helper
 * refuses a file in trouble, but only when it reads it next.
 */
Datum
nc_pin_file(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const char *uri;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; (uri = stores_uri(i)) != NULL; i++)
	{
		char	   *path = pin_path(uri);
		TimestampTz changed = 0;
		const char *trouble;
		Datum		values[2];
		bool		nulls[2];

		if (path == NULL)
			continue;
		trouble = pin_trouble(path, &changed);
		nulls[0] = trouble == NULL;
		nulls[1] = trouble != NULL;
		values[0] = trouble != NULL ? CStringGetTextDatum(trouble) : (Datum) 0;
		values[1] = TimestampTzGetDatum(changed);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
