/*
 * register_file.c
 *		The register's file in the register directory: append-only, one line
 *		for each record.
 *
 *		nomp_crypt register 1 <installation> <site>
 *		<number> <record, a compact JWS>
 *		...
 *
 * A line is written, and is on disk, right before the transaction commits that
 * has its record in the table nomp_crypt.register: what is rolled back before
 * that leaves nothing behind.  When it has committed, the keystore is told the
 * new head without waiting.  So the file can be ahead of the table by what a
 * crash left, and never the other way round; a line that was being written is
 * torn, without its end.  The "site" is this file's own: records carry it, and
 * so a file that lacks some of its own has lost them.
 *
 * Whoever writes holds the register's lock (_lock_register) to the end of the
 * transaction.  What lines mean is checked elsewhere, in SQL; no secrets here.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "register.h"
#include "register_file.h"
#include "register_keys.h"
#include "request.h"
#include "storage/fd.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "wire.h"

NC_FUNCTION(nc_register_file);
NC_FUNCTION(nc_register_lines);
NC_FUNCTION(nc_register_queue);
NC_FUNCTION(nc_register_extend);
NC_FUNCTION(nc_register_make);

#define FILE_NAME	"register"
#define FILE_HEADER "nomp_crypt register 1 "
#define HEADER_LEN	(sizeof(FILE_HEADER) - 1 + 36 + 1 + 36 + 1)
#define CHUNK		65536

/* A line that this transaction has to write, and the head that it makes. */
typedef struct PendingLine
{
	SubTransactionId subxact;
	int64		number;
	KeystoreRef store;
	size_t		head_len;
	uint8		head[256];		/* body of a HEAD request */
	char		jws[FLEXIBLE_ARRAY_MEMBER];
} PendingLine;

static List *pending = NIL;

/*
 * For tests of what a crash leaves, in builds with assertions only: if the
 * register directory's file "crash" names this point, the process is killed
 * there, once.
 */
static void
crash_point(const char *name)
{
#ifdef USE_ASSERT_CHECKING
	char		path[MAXPGPATH];
	char	   *wanted;

	register_path(path, "crash");
	wanted = register_slurp(path);
	if (wanted == NULL || strcmp(wanted, name) != 0)
		return;
	(void) unlink(path);
	kill(getpid(), SIGKILL);
	pg_usleep(10 * USECS_PER_SEC);
#endif
}

/* ---- reading ---- */

static int
open_register(int flags)
{
	char		path[MAXPGPATH];
	int			fd;

	register_path(path, FILE_NAME);
	fd = OpenTransientFile(path, flags);
	if (fd < 0 && errno != ENOENT)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	return fd;
}

static void
file_error(const char *what)
{
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not %s file \"register\" in the register directory: %m", what)));
}

static off_t
file_size(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		file_error("read");
	return st.st_size;
}

static char *
read_range(int fd, off_t from, size_t len)
{
	char	   *text = palloc_extended(len + 1, MCXT_ALLOC_HUGE);
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = pread(fd, text + done, len - done, from + done);

		if (n < 0)
			file_error("read");
		if (n == 0)
			break;
		done += n;
	}
	text[done] = '\0';
	return text;
}

/* Is it the first line of a register?  Then whose. */
static bool
parse_header(const char *text, pg_uuid_t *installation, pg_uuid_t *site)
{
	const size_t before = strlen(FILE_HEADER);
	char		first[37];
	char		second[37];

	if (strlen(text) < HEADER_LEN || strncmp(text, FILE_HEADER, before) != 0 ||
		text[before + 36] != ' ' || text[HEADER_LEN - 1] != '\n')
		return false;
	strlcpy(first, text + before, sizeof(first));
	strlcpy(second, text + before + 37, sizeof(second));
	return uuid_parse(first, installation) && uuid_parse(second, site);
}

/* Where the last line that has its end ends. */
static off_t
end_of_lines(int fd, off_t size)
{
	off_t		from = size;

	while (from > HEADER_LEN)
	{
		size_t		len = Min(from - HEADER_LEN, CHUNK);
		char	   *text = read_range(fd, from - len, len);

		from -= len;
		for (size_t i = len; i > 0; i--)
		{
			if (text[i - 1] == '\n')
				return from + i;
		}
		pfree(text);
	}
	return HEADER_LEN;
}

/*
 * nomp_crypt._register_file(OUT trouble text, OUT installation uuid,
 *							 OUT site uuid, OUT torn text)
 *
 * The file as such: trouble is NULL, 'missing' or 'corrupt'; torn: what it has
 * after its last whole line, '' if nothing.
 */
Datum
nc_register_file(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[4] = {0};
	bool		nulls[4] = {false, true, true, true};
	pg_uuid_t	installation;
	pg_uuid_t	site;
	off_t		size;
	off_t		end;
	int			fd;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	fd = open_register(O_RDONLY);
	size = fd >= 0 ? file_size(fd) : 0;
	if (fd < 0)
		values[0] = CStringGetTextDatum("missing");
	else if (!parse_header(read_range(fd, 0, Min(size, HEADER_LEN)), &installation, &site))
		values[0] = CStringGetTextDatum("corrupt");
	else
	{
		end = end_of_lines(fd, size);
		values[1] = UUIDPGetDatum(&installation);
		values[2] = UUIDPGetDatum(&site);
		values[3] = CStringGetTextDatum(read_range(fd, end, size - end));
		memset(nulls, false, sizeof(nulls));
		nulls[0] = true;
	}
	if (fd >= 0)
		CloseTransientFile(fd);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* The number that a line begins with; -1 if it is no line of a register. */
static int64
line_number(const char *line, const char **jws)
{
	char	   *end;
	int64		number = strtoll(line, &end, 10);

	if (*line < '1' || *line > '9' || *end != ' ' || number <= 0 ||
		end[1] == '\0' || strspn(end + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") != strlen(end + 1))
		return -1;
	*jws = end + 1;
	return number;
}

static void
put_line(ReturnSetInfo *rsinfo, int64 number, const char *jws)
{
	Datum		values[2];
	bool		nulls[2] = {false, false};

	values[0] = Int64GetDatum(number);
	values[1] = CStringGetTextDatum(jws);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * The whole lines from the file's end back to one with at most that number,
 * or all of them.
 */
static char *
read_lines(int fd, int64 after)
{
	const off_t end = end_of_lines(fd, file_size(fd));

	for (size_t len = CHUNK;; len *= 4)
	{
		off_t		from = Max(end - (off_t) len, (off_t) HEADER_LEN);
		char	   *text = read_range(fd, from, end - from);
		char	   *first = from == HEADER_LEN ? text : strchr(text, '\n');
		const char *jws;
		int64		number;

		if (from == HEADER_LEN)
			return text;
		if (first != NULL)
		{
			char	   *line = pnstrdup(first + 1, strcspn(first + 1, "\n"));

			number = line_number(line, &jws);
			if (number > 0 && number <= after)
				return first + 1;
			pfree(line);
		}
		pfree(text);
	}
}

/*
 * nomp_crypt._register_lines(after bigint, OUT number bigint, OUT jws text)
 *		returns setof record
 *
 * The file's records after that number, and those that this transaction will
 * append.  A line that is none has number -1.
 */
Datum
nc_register_lines(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		after = PG_GETARG_INT64(0);
	ListCell   *lc;
	int			fd;

	InitMaterializedSRF(fcinfo, 0);
	fd = open_register(O_RDONLY);
	if (fd >= 0 && file_size(fd) >= HEADER_LEN)
	{
		char	   *rest = read_lines(fd, after);
		char	   *line;

		while ((line = strsep(&rest, "\n")) != NULL)
		{
			const char *jws = line;
			int64		number = line_number(line, &jws);

			if (*line != '\0' && (number < 0 || number > after))
				put_line(rsinfo, number, jws);
		}
	}
	if (fd >= 0)
		CloseTransientFile(fd);
	foreach(lc, pending)
	{
		PendingLine *line = lfirst(lc);

		if (line->number > after)
			put_line(rsinfo, line->number, line->jws);
	}
	return (Datum) 0;
}

/* ---- writing ---- */

static void
write_at(int fd, off_t at, const char *text, size_t len)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n;

		errno = 0;
		n = pwrite(fd, text + done, len - done, at + done);
		if (n <= 0)
		{
			errno = errno != 0 ? errno : ENOSPC;
			file_error("write");
		}
		done += n;
	}
}

/*
 * Append whole lines, after what is whole: a torn line is written over.  If
 * that fails halfway, the file ends in a torn line again.
 */
static void
append(const char *text, size_t len)
{
	int			fd = open_register(O_RDWR);
	off_t		end;

	if (fd < 0)
		file_error("open");
	end = end_of_lines(fd, file_size(fd));
	if (ftruncate(fd, end) != 0)
		file_error("write");
	write_at(fd, end, text, len / 2);
	crash_point("half");
	write_at(fd, end + len / 2, text + len / 2, len - len / 2);
	crash_point("unsynced");
	if (pg_fsync(fd) != 0)
		file_error("write");
	CloseTransientFile(fd);
}

static void
write_pending(void)
{
	StringInfoData text;
	ListCell   *lc;

	crash_point("signed");
	initStringInfo(&text);
	foreach(lc, pending)
	{
		PendingLine *line = lfirst(lc);

		appendStringInfo(&text, INT64_FORMAT " %s\n", line->number, line->jws);
	}
	append(text.data, text.len);
	crash_point("written");
}

/* The newest head, to the keystore; what is lost is made good by the next. */
static void
post_head(void)
{
	PendingLine *line = llast(pending);

	crash_point("committed");
	request_post(KS_OP_HEAD, &line->store, line->head, line->head_len);
}

static void
at_xact_event(XactEvent event, void *arg)
{
	if (pending == NIL)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			write_pending();
			return;
		case XACT_EVENT_COMMIT:
			post_head();
			break;
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			break;
		default:
			return;
	}
	list_free_deep(pending);
	pending = NIL;
}

static void
at_subxact_event(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(lc, pending)
	{
		PendingLine *line = lfirst(lc);

		if (line->subxact != mine)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			line->subxact = parent;
		else
			pending = foreach_delete_current(pending, lc);
	}
}

void
register_file_init(void)
{
	RegisterXactCallback(at_xact_event, NULL);
	RegisterSubXactCallback(at_subxact_event, NULL);
}

/*
 * nomp_crypt._register_queue(number bigint, jws text, kid text, head text)
 *		returns void
 *
 * Writes that line when this transaction commits, and then tells the keystore
 * with that key the new head.
 */
Datum
nc_register_queue(PG_FUNCTION_ARGS)
{
	char	   *jws = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *kid = text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *head = text_to_cstring(PG_GETARG_TEXT_PP(3));
	char		reason[REQUEST_REASON_MAX];
	char		installation[37];
	pg_uuid_t	mine;
	KsStatus	status;
	RegisterKey *key = register_key_named(kid, &status, reason);
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	PendingLine *line = palloc0(offsetof(PendingLine, jws) + strlen(jws) + 1);
	WireWriter	w = {line->head, sizeof(line->head), 0, false};

	if (key == NULL || !catalog_installation(&mine))
		elog(ERROR, "the register's key was forgotten");
	uuid_text(&mine, installation);
	line->subxact = GetCurrentSubTransactionId();
	line->number = PG_GETARG_INT64(0);
	line->store = key->store;
	strcpy(line->jws, jws);
	wire_put_str(&w, installation, 36);
	wire_put_uint(&w, 1, 1);
	wire_put_str(&w, head, strlen(head));
	line->head_len = w.len;
	pending = lappend(pending, line);
	MemoryContextSwitchTo(old);
	PG_RETURN_VOID();
}

/* Lines of records from a number on. */
static void
put_records(StringInfo lines, ArrayType *records, int64 number)
{
	Datum	   *jws;
	int			n;

	deconstruct_array(records, TEXTOID, -1, false, TYPALIGN_INT, &jws, NULL, &n);
	for (int i = 0; i < n; i++)
		appendStringInfo(lines, INT64_FORMAT " %s\n", number + i, TextDatumGetCString(jws[i]));
}

/*
 * nomp_crypt._register_extend(number bigint, records text[]) returns void
 *
 * Appends records from that number on, now; cuts off a torn line.
 */
Datum
nc_register_extend(PG_FUNCTION_ARGS)
{
	StringInfoData text;

	initStringInfo(&text);
	put_records(&text, PG_GETARG_ARRAYTYPE_P(1), PG_GETARG_INT64(0));
	append(text.data, text.len);
	PG_RETURN_VOID();
}

/*
 * nomp_crypt._register_make(installation uuid, site uuid, records text[])
 *		returns void
 *
 * Makes the file, with those records from number 1 on.  One that is there is
 * kept beside it.
 */
Datum
nc_register_make(PG_FUNCTION_ARGS)
{
	char		path[MAXPGPATH];
	char		kept[MAXPGPATH];
	char		installation[37];
	char		site[37];
	StringInfoData text;

	register_check_directory();
	uuid_text(PG_GETARG_UUID_P(0), installation);
	uuid_text(PG_GETARG_UUID_P(1), site);
	initStringInfo(&text);
	appendStringInfo(&text, FILE_HEADER "%s %s\n", installation, site);
	put_records(&text, PG_GETARG_ARRAYTYPE_P(2), 1);
	register_path(path, FILE_NAME);
	snprintf(kept, MAXPGPATH, "%s.%ld", path, (long) time(NULL));
	if (link(path, kept) != 0 && errno != ENOENT && errno != EEXIST)
		file_error("keep the old");
	register_replace(path, text.data, text.len);
	PG_RETURN_VOID();
}
