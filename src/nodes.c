/*
 * nodes.c
 *		Asks other nodes whether a value of an erased school can be read there.
 *
 * nomp_crypt.nodes names them: connection URIs with blanks between them, and
 * no password in any, as a setting is shown and backed up; libpq finds one in
 * a passfile.  Waiting is interruptible, and bounded for each node.
 *
 * What is asked (_reading) needs no right there if the node knows that the
 * school is erased.  What it answers is no more than a word, an SQLSTATE or a
 * text to show.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "compat.h"
#include "erase.h"
#include "funcapi.h"
#include "libpq-fe.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

NC_FUNCTION(nc_ask_nodes);

#define PATIENCE_MS		15000	/* for connecting, and for each answer */
#define MAX_DETAIL		300
#define DEFAULT_PORT	"5432"

static char *nodes = NULL;

/* The next URI of a list, NULL at its end; moves "at". */
static char *
next_uri(const char **at)
{
	const char *start = *at + strspn(*at, " \t\n");
	size_t		len = strcspn(start, " \t\n");

	*at = start + len;
	return len == 0 ? NULL : pnstrdup(start, len);
}

static const char *
option_value(const PQconninfoOption *options, const char *keyword)
{
	for (; options != NULL && options->keyword != NULL; options++)
	{
		if (strcmp(options->keyword, keyword) == 0)
			return options->val;
	}
	return NULL;
}

/* Why a node must not be named like this; NULL if it may. */
static const char *
objection(const char *uri)
{
	PQconninfoOption *options;
	const char *result = NULL;

	if (strncmp(uri, "postgresql://", 13) != 0 && strncmp(uri, "postgres://", 11) != 0)
		return "Each node is a URI like postgresql://check@site-b/school, with blanks between them.";
	/* libpq's own message would quote what may be a password */
	options = PQconninfoParse(uri, NULL);
	if (options == NULL)
		return "One of the URIs cannot be parsed.";
	if (option_value(options, "password") != NULL || option_value(options, "sslpassword") != NULL)
		result = "A password must not be in the setting: use a passfile.";
	else if (option_value(options, "host") == NULL && option_value(options, "hostaddr") == NULL)
		result = "A URI must name a host.";
	PQconninfoFree(options);
	return result;
}

static bool
check_nodes(char **newval, void **extra, GucSource source)
{
	const char *at = *newval == NULL ? "" : *newval;
	char	   *uri;

	while ((uri = next_uri(&at)) != NULL)
	{
		const char *why = objection(uri);

		pfree(uri);
		if (why != NULL)
		{
			GUC_check_errdetail("%s", why);
			return false;
		}
	}
	return true;
}

void
nodes_init(void)
{
	DefineCustomStringVariable("nomp_crypt.nodes",
							   "Other nodes that are asked whether an erased tenant can still be read: URIs, with blanks between them.",
							   "Without passwords: these belong into a passfile.",
							   &nodes, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY, check_nodes, NULL, NULL);
}

/* What a node is called on record. */
static char *
node_name(const char *uri)
{
	PQconninfoOption *options = PQconninfoParse(uri, NULL);
	const char *host = option_value(options, "host");
	const char *port = option_value(options, "port");
	const char *dbname = option_value(options, "dbname");
	char	   *name;

	if (host == NULL)
		host = option_value(options, "hostaddr");
	name = psprintf("%s:%s/%s", host, port == NULL ? DEFAULT_PORT : port,
					dbname == NULL ? get_database_name(MyDatabaseId) : dbname);
	PQconninfoFree(options);
	return name;
}

/* Wait for a connection's socket; false if the time is over. */
static bool
await(PGconn *conn, int events, TimestampTz end)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
	int			woken;

	if (left <= 0 || PQsocket(conn) < 0)
		return false;
	woken = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | events,
							  PQsocket(conn), left, PG_WAIT_EXTENSION);
	if (woken & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

static bool
connect_node(PGconn *conn)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS);
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	while (status != PGRES_POLLING_OK)
	{
		if (PQstatus(conn) == CONNECTION_BAD || status == PGRES_POLLING_FAILED ||
			!await(conn, status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE, end))
			return false;
		status = PQconnectPoll(conn);
	}
	return true;
}

/* The last result of a query, or NULL if none came in time. */
static PGresult *
ask(PGconn *conn, const char *sql, const char *param)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS);
	PGresult   *result = NULL;

	if (!PQsendQueryParams(conn, sql, param == NULL ? 0 : 1, NULL, &param, NULL, NULL, 0))
		return NULL;
	for (;;)
	{
		PGresult   *next;

		while (PQisBusy(conn))
		{
			if (!await(conn, WL_SOCKET_READABLE, end) || !PQconsumeInput(conn))
			{
				PQclear(result);
				return NULL;
			}
		}
		next = PQgetResult(conn);
		if (next == NULL)
			return result;
		PQclear(result);
		result = next;
	}
}

/* Foreign text, made fit to keep: one line, in this database's encoding. */
static char *
clean(const char *text)
{
	char	   *copy = pstrdup(text == NULL ? "" : text);

	for (char *c = copy; *c != '\0'; c++)
	{
		if ((unsigned char) *c < 0x20 || (unsigned char) *c >= 0x7f)
			*c = *c == '\n' ? ' ' : '?';
	}
	if (strlen(copy) > MAX_DETAIL)
		copy[MAX_DETAIL] = '\0';
	return copy;
}

typedef struct Answer
{
	char	   *node;
	char	   *answer;			/* an SQLSTATE, "readable", "not asked" */
	char	   *detail;
	int			lease;			/* seconds; -1: not known */
	int			standby;		/* -1: not known */
} Answer;

static void
take_facts(Answer *answer, PGconn *conn)
{
	PGresult   *result = ask(conn, "SELECT pg_catalog.pg_is_in_recovery(), s.setting FROM pg_catalog.pg_settings s"
							 " WHERE s.name OPERATOR(pg_catalog.=) 'nomp_crypt.key_lease'", NULL);

	if (PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1)
	{
		answer->standby = PQgetvalue(result, 0, 0)[0] == 't';
		answer->lease = atoi(PQgetvalue(result, 0, 1));
	}
	PQclear(result);
}

static void
try_reading(Answer *answer, PGconn *conn, const char *sample)
{
	PGresult   *result = ask(conn, "SELECT nomp_crypt._reading($1)", sample);
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1)
		answer->answer = clean(PQgetvalue(result, 0, 0));
	else if (state != NULL)
	{
		answer->answer = pstrdup(state);
		answer->detail = clean(PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY));
	}
	else
		answer->detail = result == NULL ? "no answer in time" : clean(PQerrorMessage(conn));
	PQclear(result);
}

/*
 * To this database, if the URI names none; what it says goes before ours.  The
 * port is not left to the server's environment.
 */
static PGconn *
start(const char *uri)
{
	const char *keywords[6] = {"options", "fallback_application_name", "port", "dbname"};
	const char *values[6] = {"-c statement_timeout=10s -c default_transaction_read_only=on",
	"nomp_crypt verification", DEFAULT_PORT, uri};
	PQconninfoOption *options = PQconninfoParse(uri, NULL);

	if (option_value(options, "dbname") == NULL)
	{
		keywords[4] = "dbname";
		values[4] = get_database_name(MyDatabaseId);
	}
	PQconninfoFree(options);
	return PQconnectStartParams(keywords, values, 1);
}

/* One node; what it answers is allocated in the current context. */
static void
ask_node(Answer *answer, const char *uri, const char *sample)
{
	PGconn	   *conn = start(uri);

	if (conn == NULL)
		elog(ERROR, "out of memory");
	PG_TRY();
	{
		if (!connect_node(conn))
			answer->detail = clean(PQstatus(conn) == CONNECTION_BAD ? PQerrorMessage(conn) : "no connection in time");
		else
		{
			take_facts(answer, conn);
			try_reading(answer, conn, sample);
		}
	}
	PG_FINALLY();
	{
		PQfinish(conn);
	}
	PG_END_TRY();
}

/*
 * nomp_crypt._ask_nodes(sample text)
 *		returns setof (node text, answer text, detail text, lease_seconds int,
 *					   standby boolean)
 *
 * Of each of nomp_crypt.nodes: the SQLSTATE that reading the sample, a
 * ciphertext in hex, gives there, "readable", or "not asked" where nobody answers.
 */
Datum
nc_ask_nodes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *sample = text_to_cstring(PG_GETARG_TEXT_PP(0));
	const char *at = nodes;
	char	   *uri;

	InitMaterializedSRF(fcinfo, 0);
	while ((uri = next_uri(&at)) != NULL)
	{
		Answer		answer = {.node = node_name(uri),.answer = "not asked",.lease = -1,.standby = -1};
		Datum		values[5];
		bool		nulls[5] = {false};

		ask_node(&answer, uri, sample);
		values[0] = CStringGetTextDatum(answer.node);
		values[1] = CStringGetTextDatum(answer.answer);
		nulls[2] = answer.detail == NULL;
		values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(answer.detail);
		nulls[3] = answer.lease < 0;
		values[3] = Int32GetDatum(answer.lease);
		nulls[4] = answer.standby < 0;
		values[4] = BoolGetDatum(answer.standby > 0);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
