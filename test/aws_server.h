/*
 * aws_server.h
 *		Starts test/aws_server.py for a test program, and talks to it.
 */
#ifndef NOMP_TEST_AWS_SERVER_H
#define NOMP_TEST_AWS_SERVER_H

#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "aws_client.h"

static char server_folder[64];
static json_t *server_ports;
static pid_t server_pid;
static AwsHttp *server_http;

static inline int
server_port(const char *name)
{
	return (int) json_integer_value(json_object_get(server_ports, name));
}

static inline const char *
server_ca(void)
{
	return json_string_value(json_object_get(server_ports, "ca"));
}

/* Paths in the server's folder, a few at a time. */
static inline const char *
server_path(const char *name)
{
	static char paths[8][128];
	static int	next;
	char	   *path = paths[next++ % 8];

	snprintf(path, sizeof(paths[0]), "%s/%s", server_folder, name);
	return path;
}

static inline void
write_file(const char *path, const char *text, mode_t mode)
{
	FILE	   *file = fopen(path, "w");

	if (file == NULL || fputs(text, file) == EOF || fclose(file) != 0 || chmod(path, mode) != 0)
		tap_bail("could not write %s", path);
}

/* The server ends with this program, whatever that ends with. */
static inline void
start_server(void)
{
	int			in[2];
	int			out[2];
	char		line[4096];
	FILE	   *reader;

	snprintf(server_folder, sizeof(server_folder), "/tmp/nomp_aws_XXXXXX");
	if (!aws_memory_init() || mkdtemp(server_folder) == NULL || pipe(in) != 0 || pipe(out) != 0)
		tap_bail("could not prepare a server");
	server_pid = fork();
	if (server_pid == 0)
	{
		(void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		(void) dup2(in[0], STDIN_FILENO);
		(void) dup2(out[1], STDOUT_FILENO);
		(void) close(in[1]);
		(void) close(out[0]);
		(void) execl("/usr/bin/python3", "python3", "test/aws_server.py", server_folder, (char *) NULL);
		_exit(127);
	}
	(void) close(in[0]);
	(void) close(out[1]);
	reader = fdopen(out[0], "r");
	if (reader == NULL || fgets(line, sizeof(line), reader) == NULL)
		tap_bail("the server does not start");
	(void) fclose(reader);
	server_ports = json_loads(line, 0, NULL);
	server_http = aws_http_create("");
	if (server_ports == NULL || server_http == NULL)
		tap_bail("the server says something odd");
}

static inline void
stop_server(void)
{
	static const char *const files[] = {
		"ca.pem", "good.pem", "other.pem", "old.pem", "self.pem", "credentials", "config", "token", "keys",
	};

	(void) kill(server_pid, SIGKILL);
	(void) waitpid(server_pid, NULL, 0);
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		(void) unlink(server_path(files[i]));
	if (rmdir(server_folder) != 0)
		tap_bail("the folder %s is not empty", server_folder);
	json_decref(server_ports);
	aws_http_free(server_http);
}

/* Set something, and get the counters. */
static inline json_t *
control(const char *query)
{
	char		url[200];
	AwsRequest	request = {.method = "GET", .url = url, .plain = true, .until = aws_now() + 20000};
	AwsAnswer	answer;
	KsFailure	why;
	json_t	   *counts;

	snprintf(url, sizeof(url), "http://127.0.0.1:%d/control?%s", server_port("http"), query);
	if (aws_http_call(server_http, &request, &answer, &why) != KS_OK || answer.status != 200)
		tap_bail("the server does not obey: %s", why.reason);
	counts = json_loadb(answer.body.data, answer.body.len, 0, NULL);
	aws_text_free(&answer.body);
	return counts;
}

static inline void
set_control(const char *query)
{
	json_decref(control(query));
}

/* How often something happened since control("reset=1"). */
static inline int
counted(const char *what)
{
	json_t	   *counts = control("");
	int			n = (int) json_integer_value(json_object_get(counts, what));

	json_decref(counts);
	return n;
}

static inline AwsOptions
server_options(const char *scheme, const char *port)
{
	AwsOptions	options = {.region = "eu-north-1", .test = true};

	snprintf(options.endpoint, sizeof(options.endpoint), "%s://127.0.0.1:%d", scheme, server_port(port));
	if (strcmp(scheme, "https") == 0)
		snprintf(options.ca_file, sizeof(options.ca_file), "%s", server_ca());
	return options;
}

static inline AwsClient *
make_client(const AwsOptions *options)
{
	KsFailure	why = {0};
	KsStatus	status;
	AwsClient  *client = aws_client_create(options, &why, &status);

	if (client == NULL)
		tap_bail("no client: %s", why.reason);
	return client;
}

/* What a test sees of one call. */
typedef struct Result
{
	KsStatus	status;
	AwsReply	reply;
	KsFailure	why;
} Result;

static inline Result
call(AwsClient *client, AwsRole role, const char *action, const char *name, uint32_t patience)
{
	Result		result = {0};

	aws_set_patience(patience);
	result.status = aws_call(client, role, action, json_pack("{s:s}", "case", name),
							 &result.reply, &result.why);
	return result;
}

#endif							/* NOMP_TEST_AWS_SERVER_H */
