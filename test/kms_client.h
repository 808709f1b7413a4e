/*
 * kms_client.h
 *		For tests of the AWS KMS provider: a stand-in for AWS, and words for
 *		its control port.
 *
 * Everything is static.  An answer of control() stays in "said" until the
 * next.  The stand-in is test/kms_double.py.
 */
#ifndef NOMP_KMS_CLIENT_H
#define NOMP_KMS_CLIENT_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/prctl.h>

#include "keystore_client.h"

#define ACCOUNT		"111122223333"
#define SERIAL		"arn:aws:kms:eu-north-1:" ACCOUNT
#define ARN			SERIAL ":key/"
#define CANARY		"nomp_crypt:" INST ":canary"
#define DAY			86400
#define KEK2		LABEL(INST, SCHOOL2, "1")

static char double_folder[PATH_MAX + 64];
static int	tls_port;
static int	plain_port;
static int	control_port;
static char kms_uri[2 * PATH_MAX];
static char said[1 << 22];

/* Start the stand-in; it ends with this program. */
static inline void
start_double(const char *program)
{
	char		script[PATH_MAX + 64];
	char		ready[PATH_MAX + 128];
	char		text[512] = "";
	char		pid[32];
	const char *slash = strrchr(program, '/');

	snprintf(script, sizeof(script), "%.*s/kms_double.py",
			 slash != NULL ? (int) (slash - program) : 1, slash != NULL ? program : ".");
	snprintf(double_folder, sizeof(double_folder), "%s/aws", scratch);
	snprintf(ready, sizeof(ready), "%s/ready.json", double_folder);
	snprintf(pid, sizeof(pid), "%d", (int) getpid());
	if (fork() == 0)
	{
		execlp("python3", "python3", script, double_folder, "--while", pid, (char *) NULL);
		_exit(127);
	}
	for (int i = 0; i < 600 && text[0] == '\0'; i++)
	{
		int			fd = open(ready, O_RDONLY);
		ssize_t		n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

		if (n > 0)
			text[n] = '\0';
		if (fd >= 0)
			close(fd);
		else
			usleep(50000);
	}
	if (strstr(text, "\"tls\": ") == NULL ||
		sscanf(strstr(text, "\"tls\": "), "\"tls\": %d, \"plain\": %d, \"control\": %d",
			   &tls_port, &plain_port, &control_port) != 3)
		tap_bail("the double of AWS does not start: %s", text);
	snprintf(kms_uri, sizeof(kms_uri), "aws-kms://eu-north-1?test=yes&endpoint=http://127.0.0.1:%d",
			 plain_port);
}

/* Everyday credentials, from the environment. */
static inline void
use_everyday_credentials(void)
{
	setenv("AWS_ACCESS_KEY_ID", "AKIADOUBLE0000000001", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "everyday/secret+of/the/double", 1);
	unsetenv("AWS_SESSION_TOKEN");
}

/* Say something, a JSON object, on the control port. */
__attribute__((format(printf, 1, 2)))
static inline const char *
control(const char *fmt, ...)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t) control_port)};
	char		words[4096];
	char		request[4400];
	size_t		done = 0;
	ssize_t		n;
	va_list		args;
	int			fd = socket(AF_INET, SOCK_STREAM, 0);

	va_start(args, fmt);
	vsnprintf(words, sizeof(words), fmt, args);
	va_end(args);
	inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
	snprintf(request, sizeof(request),
			 "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
			 strlen(words), words);
	if (connect(fd, (struct sockaddr *) &to, sizeof(to)) != 0 ||
		send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t) strlen(request))
		tap_bail("the double of AWS does not listen");
	while (done + 1 < sizeof(said) && (n = recv(fd, said + done, sizeof(said) - 1 - done, 0)) > 0)
		done += (size_t) n;
	said[done] = '\0';
	close(fd);
	if (strstr(said, " 200 ") == NULL)
		tap_bail("the double of AWS did not understand: %s: %s", words, said);
	return said;
}

/* How often an action was called since they were forgotten. */
static inline int
calls(const char *action)
{
	char		key[64];
	const char *at;

	snprintf(key, sizeof(key), "\"%s\": ", action);
	at = strstr(control("{\"do\": \"counts\"}"), key);
	return at == NULL ? 0 : atoi(at + strlen(key));
}

static inline void
forget_calls(void)
{
	(void) control("{\"do\": \"forget_calls\"}");
}

static inline void
recover(void)
{
	(void) control("{\"do\": \"recover\"}");
}

/* The id of the key with a label, as the service knows it; of the first. */
static inline const char *
key_id(const char *label)
{
	static char ids[4][64];
	static int	next;
	char	   *id = ids[next++ % 4];
	char		tag[256];
	const char *at;
	const char *begin;

	snprintf(tag, sizeof(tag), "\"TagKey\": \"nomp_crypt:label\", \"TagValue\": \"%s\"", label);
	at = strstr(control("{\"do\": \"keys\"}"), tag);
	if (at == NULL)
		return "";
	/* keys are shown one after another, each beginning with its id */
	for (begin = at; strncmp(begin, "{\"id\": \"", 8) != 0; begin--)
		;
	snprintf(id, 64, "%.*s", (int) strcspn(begin + 8, "\""), begin + 8);
	return id;
}

/* The reference in a wrapped key: which key of the service made it. */
static inline void
rename_wrapped(DataKey *key, const char *arn)
{
	uint8_t		blob[KS_MAX_WRAPPED];
	WireReader	r = {key->wrapped, key->wrapped_len, 1, false};
	WireWriter	w = {key->wrapped, sizeof(key->wrapped), 1, false};
	const uint8_t *old;
	size_t		len;

	(void) wire_get_str(&r, &old);
	len = r.len - r.pos;
	memcpy(blob, r.buf + r.pos, len);
	wire_put_str(&w, arn, strlen(arn));
	wire_put(&w, blob, len);
	if (r.bad || w.bad)
		tap_bail("a wrapped key that is none");
	key->wrapped_len = w.len;
}

/* A helper, and two schools with a data key each. */
static inline Helper
start_with_schools(DataKey *good, DataKey *others)
{
	Helper		h = start(kms_uri);

	if (ask_strings(&h, KS_OP_SETUP, INST, NULL, NULL) != KS_OK ||
		create_kek(&h, INST, SCHOOL, 1, good, 1) != KS_OK ||
		ask_strings(&h, KS_OP_CONFIRM, INST, KEK1, NULL) != KS_OK ||
		create_kek(&h, INST, SCHOOL2, 1, others, 1) != KS_OK ||
		ask_strings(&h, KS_OP_CONFIRM, INST, KEK2, NULL) != KS_OK)
		tap_bail("no keys: %s", reply.reason);
	return h;
}

static inline KsStatus
ask_destroy(Helper *h, const char *school, const char *serial, unsigned days)
{
	begin();
	put(INST);
	put(school);
	put(serial);
	put_uint(days, 2);
	return ask(h, KS_OP_DESTROY);
}

static inline KsStatus
ask_head(Helper *h, bool set, const char *head)
{
	begin();
	put(INST);
	put_uint(set, 1);
	put(head);
	return ask(h, KS_OP_HEAD);
}

#endif							/* NOMP_KMS_CLIENT_H */
