/*
 * libpq_client.c
 *		libpq, as a program in C uses it: text, binary, prepared statements, the
 *		pipeline, COPY in text and binary.
 *
 *		libpq_client CONNINFO
 *
 *		Needs table person of t/lib/ClientTest.pm; prints TAP.  What is expected
 *		of binary is that it is always the value as stored, in either
 *		direction, whatever the session: programs that move data need that, and
 *		those that read it ask for text or cast.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#define TEXT_FORMAT		0
#define BINARY_FORMAT	1
#define DATE_OID		1082
#define BOOL_OID		16

static PGconn *conn;
static int	number = 0;

static void
ok(bool passed, const char *name)
{
	number++;
	printf("%s - %s\n", passed ? "ok" : "not ok", name);
	if (!passed)
		printf("#   %s\n", PQerrorMessage(conn));
}

static bool
is_text(PGresult *result, int column, const char *expected)
{
	return PQresultStatus(result) == PGRES_TUPLES_OK &&
		PQntuples(result) == 1 &&
		strcmp(PQgetvalue(result, 0, column), expected) == 0;
}

static bool
has_state(PGresult *result, const char *state)
{
	const char *got = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	return got != NULL && strcmp(got, state) == 0;
}

/* A statement that must succeed for the test to make sense. */
static void
run(const char *sql)
{
	PGresult   *result = PQexec(conn, sql);

	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
		PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		fprintf(stderr, "%s: %s", sql, PQerrorMessage(conn));
		exit(1);
	}
	PQclear(result);
}

static void
begin_in(const char *school)
{
	char		sql[100];

	snprintf(sql, sizeof(sql), "BEGIN; SET LOCAL nomp_crypt.tenant = '%s'",
			 school);
	run(sql);
}

static PGresult *
ask(const char *sql, int format, int n, const char *const *values)
{
	return PQexecParams(conn, sql, n, NULL, values, NULL, NULL, format);
}

static void
test_text(void)
{
	const char *values[] = {"Åsa", "2014-05-01", "true", "20140501-1234"};
	const char *ssn[] = {"20140501-1234"};
	PGresult   *result;

	begin_in("north");
	result = ask("INSERT INTO person (name, born, active, ssn) VALUES ($1, $2, $3, $4)",
				 TEXT_FORMAT, 4, values);
	ok(PQresultStatus(result) == PGRES_COMMAND_OK, "text parameters");
	PQclear(result);
	result = ask("SELECT name, born, active FROM person WHERE ssn = $1",
				 TEXT_FORMAT, 1, ssn);
	ok(is_text(result, 0, "Åsa"), "a text in text");
	ok(is_text(result, 1, "2014-05-01"), "a date in text");
	ok(is_text(result, 2, "t"), "a boolean in text");
	ok((PQfmod(result, 1) & 0xff) == 13, "the modifier says that it is a date");
	PQclear(result);
	result = PQprepare(conn, "find", "SELECT name FROM person WHERE ssn = $1",
					   0, NULL);
	PQclear(result);
	result = PQexecPrepared(conn, "find", 1, ssn, NULL, NULL, TEXT_FORMAT);
	ok(is_text(result, 0, "Åsa"), "a prepared statement");
	PQclear(result);
	run("COMMIT");

	begin_in("south");
	result = PQexecPrepared(conn, "find", 1, ssn, NULL, NULL, TEXT_FORMAT);
	ok(PQntuples(result) == 0, "which finds nothing in another school");
	PQclear(result);
	run("COMMIT");
}

static void
test_binary(void)
{
	const char *ssn[] = {"20140501-1234"};
	/* 2014-05-02 in days since 2000-01-01, and true */
	const char	date[4] = {0, 0, 0x14, 0x73};
	const char	yes[1] = {1};
	const char *values[] = {date, yes};
	const int	lengths[] = {sizeof(date), sizeof(yes)};
	const int	formats[] = {BINARY_FORMAT, BINARY_FORMAT};
	const Oid	types[] = {DATE_OID, BOOL_OID};
	const char *stored[1];
	int			stored_len;
	PGresult   *result;
	PGresult   *again;

	begin_in("north");
	result = ask("SELECT name, born::date FROM person WHERE ssn = $1",
				 BINARY_FORMAT, 1, ssn);
	ok(PQgetlength(result, 0, 0) > 50 && PQgetvalue(result, 0, 0)[0] == 0x10,
	   "in binary a column is the value as stored");
	ok(PQgetlength(result, 0, 1) == 4 &&
	   memcmp(PQgetvalue(result, 0, 1), "\0\0\024\162", 4) == 0,
	   "with a cast it is what is inside");
	stored[0] = PQgetvalue(result, 0, 0);
	stored_len = PQgetlength(result, 0, 0);
	again = PQexecParams(conn, "UPDATE person SET name = $1 WHERE ssn = '20140501-1234'",
						 1, NULL, stored, &stored_len, formats, TEXT_FORMAT);
	ok(PQresultStatus(again) == PGRES_FATAL_ERROR,
	   "a value as stored is refused as a parameter, inside a tenant");
	PQclear(again);
	PQclear(result);
	run("ROLLBACK");

	begin_in("north");
	result = PQexecParams(conn,
						  "INSERT INTO person (name, born, active) VALUES ('binary', $1, $2)",
						  2, types, values, lengths, formats, TEXT_FORMAT);
	ok(PQresultStatus(result) == PGRES_COMMAND_OK,
	   "binary parameters of the inner types");
	PQclear(result);
	result = PQexecParams(conn,
						  "SELECT born FROM person WHERE born = $1 AND active = $2",
						  2, types, values, lengths, formats, TEXT_FORMAT);
	ok(is_text(result, 0, "2014-05-02"), "compare, too");
	PQclear(result);
	result = PQexecParams(conn, "INSERT INTO person (born) VALUES ($1)", 1,
						  NULL, values, lengths, formats, TEXT_FORMAT);
	ok(PQresultStatus(result) == PGRES_FATAL_ERROR &&
	   PQresultErrorField(result, PG_DIAG_MESSAGE_HINT) != NULL,
	   "binary without a type is refused, with a hint");
	PQclear(result);
	run("ROLLBACK");
}

static void
test_pipeline(void)
{
	const char *north[] = {"north"};
	const char *south[] = {"south"};
	const char *ssn[] = {"20140501-1234"};
	const char *insert = "INSERT INTO person (name, ssn) VALUES ('in the pipeline', $1)";
	const char *find = "SELECT name FROM person WHERE ssn = $1";
	const char *set = "SELECT set_config('nomp_crypt.tenant', $1, true)";
	char		found[200] = "";
	PGresult   *result;
	int			syncs = 0;

	PQenterPipelineMode(conn);
	PQsendQueryParams(conn, set, 1, NULL, north, NULL, NULL, TEXT_FORMAT);
	PQsendQueryParams(conn, find, 1, NULL, ssn, NULL, NULL, TEXT_FORMAT);
	PQpipelineSync(conn);
	PQsendQueryParams(conn, set, 1, NULL, south, NULL, NULL, TEXT_FORMAT);
	PQsendQueryParams(conn, insert, 1, NULL, ssn, NULL, NULL, TEXT_FORMAT);
	PQsendQueryParams(conn, find, 1, NULL, ssn, NULL, NULL, TEXT_FORMAT);
	PQpipelineSync(conn);
	PQsendQueryParams(conn, find, 1, NULL, ssn, NULL, NULL, TEXT_FORMAT);
	PQpipelineSync(conn);
	while (syncs < 3)
	{
		result = PQgetResult(conn);
		if (result == NULL)
			continue;
		if (PQresultStatus(result) == PGRES_PIPELINE_SYNC)
			syncs++;
		else if (PQresultStatus(result) == PGRES_TUPLES_OK)
			snprintf(found + strlen(found), sizeof(found) - strlen(found),
					 "%s,", PQgetvalue(result, 0, 0));
		else if (PQresultStatus(result) == PGRES_FATAL_ERROR)
			snprintf(found + strlen(found), sizeof(found) - strlen(found),
					 "%s,", PQresultErrorField(result, PG_DIAG_SQLSTATE));
		PQclear(result);
	}
	PQexitPipelineMode(conn);
	ok(strcmp(found, "north,Åsa,south,in the pipeline,NC006,") == 0,
	   "a pipeline: each of its transactions is its school's");
}

static bool
copy_in(const char *sql, const char *data, int len)
{
	PGresult   *result = PQexec(conn, sql);
	bool		done;

	PQclear(result);
	PQputCopyData(conn, data, len);
	PQputCopyEnd(conn, NULL);
	result = PQgetResult(conn);
	done = PQresultStatus(result) == PGRES_COMMAND_OK;
	PQclear(result);
	while ((result = PQgetResult(conn)) != NULL)
		PQclear(result);
	return done;
}

/* All that a COPY TO prints; its length, or -1. */
static int
copy_out(const char *sql, char *buffer, int size)
{
	PGresult   *result = PQexec(conn, sql);
	char	   *chunk;
	int			len = 0;
	int			n;

	PQclear(result);
	while ((n = PQgetCopyData(conn, &chunk, 0)) > 0)
	{
		if (len + n < size)
			memcpy(buffer + len, chunk, n);
		len += n;
		PQfreemem(chunk);
	}
	buffer[len < size ? len : 0] = '\0';
	while ((result = PQgetResult(conn)) != NULL)
		PQclear(result);
	return n == -1 && len < size ? len : -1;
}

static void
test_copy(void)
{
	static const char rows[] =
		"Cecilia\t2012-02-29\tf\tc-1\nDavid\t\\N\t\\N\tc-2\n";
	static const char bad[] = "Erik\t2012-02-30\tf\tc-3\n";
	const char *out = "COPY (SELECT name, born, active, ssn FROM person"
		" WHERE ssn IN ('c-1', 'c-2') ORDER BY name) TO STDOUT";
	char		buffer[8192];
	char		binary[8192];
	int			len;

	begin_in("north");
	ok(copy_in("COPY person (name, born, active, ssn) FROM STDIN", rows,
			   sizeof(rows) - 1), "COPY FROM in text");
	len = copy_out(out, buffer, sizeof(buffer));
	ok(len == sizeof(rows) - 1 && strcmp(buffer, rows) == 0,
	   "COPY TO in text gives the same");
	run("COMMIT");

	begin_in("north");
	ok(!copy_in("COPY person (name, born, active, ssn) FROM STDIN", bad,
				sizeof(bad) - 1), "COPY refuses what is no date");
	run("ROLLBACK");

	begin_in("north");
	len = copy_out("COPY (SELECT name, born FROM person WHERE ssn = 'c-1')"
				   " TO STDOUT (FORMAT binary)", binary, sizeof(binary));
	run("COMMIT");
	ok(len > 0 && memmem(binary, len, "Cecilia", 7) == NULL,
	   "COPY TO in binary has the values as stored");
	ok(!copy_in("COPY person (name, born) FROM STDIN (FORMAT binary)", binary,
				len), "which this role may not load back");
	len = copy_out("COPY (SELECT name, born FROM person) TO STDOUT", buffer,
				   sizeof(buffer));
	ok(len > 0 && strstr(buffer, "Cecilia") == NULL &&
	   strstr(buffer, "nc1:") != NULL, "COPY TO without a tenant is ciphertext");
}

static void
test_errors(void)
{
	const char *values[] = {"20140501-1234"};
	PGresult   *result;

	begin_in("north");
	result = ask("INSERT INTO person (ssn) VALUES ($1)", TEXT_FORMAT, 1, values);
	ok(has_state(result, "23505"), "a duplicate is a unique violation");
	PQclear(result);
	run("ROLLBACK");
	result = ask("INSERT INTO person (name) VALUES ($1)", TEXT_FORMAT, 1, values);
	ok(has_state(result, "NC006"), "without a tenant: NC006");
	ok(strstr(PQresultErrorMessage(result), "nomp_crypt.tenant") != NULL,
	   "and the message says what to do");
	PQclear(result);
}

int
main(int argc, char **argv)
{
	if (argc != 2)
	{
		fprintf(stderr, "usage: libpq_client CONNINFO\n");
		return 1;
	}
	conn = PQconnectdb(argv[1]);
	if (PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		return 1;
	}
	test_text();
	test_binary();
	test_pipeline();
	test_copy();
	test_errors();
	PQfinish(conn);
	printf("1..%d\n", number);
	return 0;
}
