/*
 * keystore_client.h
 *		For tests of the keystore helper: the broker's side of the socket.
 *
 * Everything is static.  A reply of ask() stays in "reply" until the next.
 * Usage of the programs: [helper program [scratch folder [shim module]]].
 */
#ifndef NOMP_KEYSTORE_CLIENT_H
#define NOMP_KEYSTORE_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "keystore_tokens.h"
#include "protocol.h"
#include "tap.h"
#include "wire.h"

#define INST	"11111111-1111-4111-8111-111111111111"
#define INST2	"22222222-2222-4222-8222-222222222222"
#define SCHOOL	"aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
#define SCHOOL2 "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
#define SCHOOL3 "cccccccc-cccc-4ccc-8ccc-cccccccccccc"
#define SCHOOL4 "dddddddd-dddd-4ddd-8ddd-dddddddddddd"
#define LABEL(inst, school, generation) "nomp_crypt:" inst ":" school ":" generation
#define KEK1	LABEL(INST, SCHOOL, "1")

/* In place of a status: helper gone; no answer; KS_OK with another key. */
#define GONE	((KsStatus) -1)
#define SILENT	((KsStatus) -2)
#define WRONG_KEY	((KsStatus) -3)

#define WRAPPED_LEN 61
#define PATIENCE	20000		/* milliseconds */

typedef struct Helper
{
	pid_t		pid;
	int			fd;
} Helper;

typedef struct Reply
{
	WireReader	r;
	char		reason[1024];
	char		stamp[256];
	uint8_t		buf[KS_MAX_FRAME];
} Reply;

typedef struct DataKey
{
	char		aad[32];
	uint8_t		key[KS_DEK_LEN];
	uint8_t		wrapped[KS_MAX_WRAPPED];
	size_t		wrapped_len;
	KsStatus	status;
} DataKey;

static uint8_t body_buf[2 * KS_MAX_FRAME];
static WireWriter body;
static Reply reply;
static int	patience = PATIENCE;
static uint32_t kek_age = UINT32_MAX;	/* what unwraps say of it */
static int	asked_patience;		/* what requests say of it, if not the same */
static const char *regions = "eu-north-1";
static const char *expected_token = "";	/* what requests name; "" for any */

/* ---- the helper ---- */

/* Start the helper, without a word. */
static inline Helper
start_mute(void)
{
	int			fds[2];
	Helper		h;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
		tap_bail("no socket pair");
	fflush(stdout);
	h.pid = fork();
	if (h.pid == 0)
	{
		if (fds[1] == KS_HELPER_FD ? fcntl(fds[1], F_SETFD, 0) < 0 :
			dup2(fds[1], KS_HELPER_FD) < 0)
			_exit(126);
		execl(helper_path, "nomp_crypt-keystore", (char *) NULL);
		_exit(127);
	}
	close(fds[1]);
	h.fd = fds[0];
	return h;
}

/* End the conversation; returns the helper's wait status. */
static inline int
stop(Helper *h)
{
	int			status = -1;

	close(h->fd);
	while (waitpid(h->pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static inline int
stop_by_force(Helper *h)
{
	kill(h->pid, SIGKILL);
	return stop(h);
}

static inline bool
exited_with(int status, int code)
{
	return WIFEXITED(status) && WEXITSTATUS(status) == code;
}

static inline bool
send_raw(Helper *h, const void *data, size_t len)
{
	return send(h->fd, data, len, MSG_NOSIGNAL) == (ssize_t) len;
}

static inline void
begin(void)
{
	body = (WireWriter) {body_buf, sizeof(body_buf), 0, false};
}

static inline void
put(const char *text)
{
	wire_put_str(&body, text, strlen(text));
}

static inline void
put_uint(uint64_t value, int width)
{
	wire_put_uint(&body, value, width);
}

/* Send the body as one frame. */
static inline bool
send_frame(Helper *h, uint64_t id, int op)
{
	static uint8_t frame[13 + 256 + sizeof(body_buf)];
	WireWriter	w = {frame, sizeof(frame), 0, false};

	wire_put_uint(&w, 9 + 2 + strlen(expected_token) + 4 + body.len, 4);
	wire_put_uint(&w, id, 8);
	wire_put_uint(&w, (uint64_t) op, 1);
	wire_put_str(&w, expected_token, strlen(expected_token));
	wire_put_uint(&w, (uint64_t) (asked_patience > 0 ? asked_patience : patience), 4);
	wire_put(&w, body.buf, body.len);
	return send_raw(h, frame, w.len);
}

/* 1 if all was read, 0 at the end of the stream, -1 if nothing comes. */
static inline int
receive(Helper *h, uint8_t *buf, size_t len)
{
	size_t		done = 0;

	while (done < len)
	{
		struct pollfd p = {h->fd, POLLIN, 0};
		ssize_t		n;

		if (poll(&p, 1, patience) <= 0)
			return -1;
		n = recv(h->fd, buf + done, len - done, 0);
		if (n <= 0)
			return 0;
		done += (size_t) n;
	}
	return 1;
}

/* Receive the reply to request "id". */
static inline KsStatus
get_reply(Helper *h, uint64_t id)
{
	uint8_t		head[13];
	WireReader	r = {head, sizeof(head), 0, false};
	size_t		len;
	KsStatus	status;
	int			got = receive(h, head, sizeof(head));

	reply.reason[0] = reply.stamp[0] = '\0';
	if (got <= 0)
		return got == 0 ? GONE : SILENT;
	len = (size_t) wire_get_uint(&r, 4);
	if (len < 9 || len > KS_MAX_FRAME || wire_get_uint(&r, 8) != id)
		tap_bail("the helper answered with a malformed frame");
	status = (KsStatus) wire_get_uint(&r, 1);
	if (receive(h, reply.buf, len - 9) <= 0)
		return GONE;
	reply.r = (WireReader) {reply.buf, len - 9, 0, false};
	if (status != KS_OK)
	{
		wire_get_cstr(&reply.r, reply.reason, sizeof(reply.reason));
		wire_get_cstr(&reply.r, reply.stamp, sizeof(reply.stamp));
		if (!wire_done(&reply.r))
			tap_bail("the helper answered with a malformed reason");
		if (strstr(reply.reason, PIN) != NULL)
			tap_bail("the PIN is in a reason");
	}
	return status;
}

static inline KsStatus
ask(Helper *h, KsOp op)
{
	static uint64_t id = 0x1122334455667700;

	if (!send_frame(h, ++id, (int) op))
		return GONE;
	return get_reply(h, id);
}

/* Start the helper and greet it. */
static inline Helper
start_told(const char *uri, const char *stamp, const char *canary)
{
	Helper		h = start_mute();

	begin();
	put_uint(KS_PROTOCOL_VERSION, 2);
	put(uri);
	put(stamp);
	put(regions);
	put(canary);
	if (ask(&h, KS_OP_HELLO) != KS_OK)
		tap_bail("the helper does not start: %s", reply.reason);
	return h;
}

/* What a helper that was just started said: of how many, and of what it forgets. */
static inline bool
greeted_with(uint64_t at_once, bool forgets_keys)
{
	return wire_get_uint(&reply.r, 2) == KS_PROTOCOL_VERSION &&
		wire_get_uint(&reply.r, 2) == at_once &&
		wire_get_uint(&reply.r, 1) == forgets_keys && wire_done(&reply.r);
}

static inline Helper
start_with_stamp(const char *uri, const char *stamp)
{
	return start_told(uri, stamp, "");
}

static inline Helper
start(const char *uri)
{
	return start_with_stamp(uri, "");
}

/* ---- operations ---- */

/* Requests whose body is a row of strings. */
static inline KsStatus
ask_strings(Helper *h, KsOp op, const char *a, const char *b, const char *c)
{
	begin();
	put(a);
	if (b != NULL)
		put(b);
	if (c != NULL)
		put(c);
	if (op == KS_OP_DESTROY || op == KS_OP_DESTROY_KEK)
		put_uint(7, 2);
	return ask(h, op);
}

static inline KsStatus
setup(Helper *h, const char *inst, bool *created)
{
	KsStatus	status = ask_strings(h, KS_OP_SETUP, inst, NULL, NULL);

	*created = status == KS_OK && wire_get_uint(&reply.r, 1) == 1;
	return status;
}

/* The end of a reply to STATUS: a token destroys at once, and has a PIN. */
static inline bool
ends_as_token(void)
{
	return wire_get_uint(&reply.r, 1) == 1 && wire_get_uint(&reply.r, 2) == 0 &&
		wire_get_uint(&reply.r, 1) == 0 && wire_done(&reply.r);
}

/* The rest of a key that SEE shows: lasting, usable, without an end or another name. */
static inline bool
is_plain_key(void)
{
	return wire_get_uint(&reply.r, 1) == 0 && wire_get_uint(&reply.r, 1) == KS_STATE_USABLE &&
		wire_get_uint(&reply.r, 8) == 0 && wire_get_uint(&reply.r, 2) == 0;
}

/* The reply's next string. */
static inline const char *
next_string(void)
{
	static char texts[4][512];
	static int	next;
	char	   *text = texts[next++ % 4];

	wire_get_cstr(&reply.r, text, sizeof(texts[0]));
	return text;
}

static inline KsStatus
create_kek(Helper *h, const char *inst, const char *school, uint32_t generation,
		   DataKey *keys, int n)
{
	KsStatus	status;

	begin();
	put(inst);
	put(school);
	put_uint(generation, 4);
	put_uint((uint64_t) n, 1);
	for (int i = 0; i < n; i++)
	{
		snprintf(keys[i].aad, sizeof(keys[i].aad), "place %u %d", (unsigned) generation, i);
		put(keys[i].aad);
	}
	status = ask(h, KS_OP_CREATE_KEK);
	if (status != KS_OK)
		return status;
	(void) next_string();
	for (int i = 0; i < n; i++)
	{
		const uint8_t *data;

		if (wire_get_str(&reply.r, &data) != KS_DEK_LEN)
			tap_bail("a data key of another length");
		memcpy(keys[i].key, data, KS_DEK_LEN);
		keys[i].wrapped_len = wire_get_str(&reply.r, &data);
		if (keys[i].wrapped_len > KS_MAX_WRAPPED)
			tap_bail("a wrapped key too long");
		memcpy(keys[i].wrapped, data, keys[i].wrapped_len);
	}
	if (!wire_done(&reply.r))
		tap_bail("a malformed reply to CREATE_KEK");
	return status;
}

/* Unwrap; sets each key's status, WRONG_KEY if the key is another one. */
static inline KsStatus
unwrap(Helper *h, const char *inst, const char *label, bool confirm, DataKey *keys, int n)
{
	KsStatus	status;

	begin();
	put(inst);
	put(label);
	put_uint(confirm, 1);
	put_uint(kek_age, 4);
	put_uint((uint64_t) n, 1);
	for (int i = 0; i < n; i++)
	{
		put(keys[i].aad);
		wire_put_str(&body, keys[i].wrapped, keys[i].wrapped_len);
	}
	status = ask(h, KS_OP_UNWRAP);
	for (int i = 0; status == KS_OK && i < n; i++)
	{
		const uint8_t *data;
		size_t		len;

		keys[i].status = (KsStatus) wire_get_uint(&reply.r, 1);
		len = wire_get_str(&reply.r, &data);
		if (keys[i].status != KS_OK ? len != 0 :
			len != KS_DEK_LEN || memcmp(data, keys[i].key, KS_DEK_LEN) != 0)
			keys[i].status = WRONG_KEY;
	}
	if (status == KS_OK && !wire_done(&reply.r))
		tap_bail("a malformed reply to UNWRAP");
	return status;
}

/* Unwrap one key: its own status, or the request's if that failed. */
static inline KsStatus
unwrap_one(Helper *h, const char *label, DataKey *key)
{
	KsStatus	status = unwrap(h, INST, label, false, key, 1);

	return status == KS_OK ? key->status : status;
}

/* Wrap a key's bytes, or fresh ones, for its place; takes the answer in. */
static inline KsStatus
wrap(Helper *h, const char *label, bool fresh, DataKey *key)
{
	const uint8_t *data;
	KsStatus	status;

	begin();
	put(INST);
	put(label);
	put(key->aad);
	wire_put_str(&body, key->key, fresh ? 0 : KS_DEK_LEN);
	status = ask(h, KS_OP_WRAP);
	if (status != KS_OK)
		return status;
	if (wire_get_str(&reply.r, &data) != KS_DEK_LEN ||
		(!fresh && memcmp(data, key->key, KS_DEK_LEN) != 0))
		tap_bail("WRAP answers with another key");
	memcpy(key->key, data, KS_DEK_LEN);
	key->wrapped_len = wire_get_str(&reply.r, &data);
	if (key->wrapped_len > KS_MAX_WRAPPED)
		tap_bail("a wrapped key too long");
	memcpy(key->wrapped, data, key->wrapped_len);
	if (!wire_done(&reply.r))
		tap_bail("a malformed reply to WRAP");
	return status;
}

/* Let a school's keys be used or not: how many obeyed, of *found; -1 if it fails. */
static inline int
enable(Helper *h, const char *school, bool on, int *found)
{
	begin();
	put(INST);
	put(school);
	put_uint(on, 1);
	if (ask(h, KS_OP_ENABLE) != KS_OK)
		return -1;
	*found = (int) wire_get_uint(&reply.r, 2);
	return (int) wire_get_uint(&reply.r, 2);
}

static inline KsStatus
remove_key(Helper *h, const char *inst, const char *label, uint64_t seconds, bool *removed)
{
	KsStatus	status;

	begin();
	put(inst);
	put(label);
	put_uint(seconds, 8);
	status = ask(h, KS_OP_REMOVE);
	*removed = status == KS_OK && wire_get_uint(&reply.r, 1) == 1;
	return status;
}

static inline KsStatus
ask_see(Helper *h, const char *inst, const char *school, uint32_t offset)
{
	begin();
	put(inst);
	put(school);
	put_uint(offset, 4);
	return ask(h, KS_OP_SEE);
}

/* How many keys SEE shows; -1 if it fails. */
static inline int
see(Helper *h, const char *inst, const char *school)
{
	if (ask_see(h, inst, school, 0) != KS_OK)
		return -1;
	(void) next_string();
	return (int) wire_get_uint(&reply.r, 2);
}

/* Look at one page of LIST: the total, or -1; *n is the page's length. */
static inline int
list(Helper *h, const char *inst, uint32_t offset, int *n)
{
	int			total;

	begin();
	put(inst);
	put_uint(offset, 4);
	if (ask(h, KS_OP_LIST) != KS_OK)
		return -1;
	total = (int) wire_get_uint(&reply.r, 4);
	*n = (int) wire_get_uint(&reply.r, 2);
	return total;
}

/* ---- the program ---- */

static inline void
begin_tests(int argc, char **argv)
{
	char		dir[PATH_MAX - 64];
	char	   *slash;

	snprintf(dir, sizeof(dir), "%s", argv[0]);
	slash = strrchr(dir, '/');
	if (slash != NULL)
		*slash = '\0';
	snprintf(helper_path, sizeof(helper_path), "%s",
			 argc > 1 ? argv[1] : "keystore/nomp_crypt-keystore");
	snprintf(scratch, sizeof(scratch), "%s", argc > 2 ? argv[2] : "/tmp/nomp_keystore.XXXXXX");
	own_scratch = argc <= 2;
	if (own_scratch ? mkdtemp(scratch) == NULL :
		mkdir(scratch, 0700) != 0 && errno != EEXIST)
		tap_bail("cannot make the scratch folder %s", scratch);
	if (argc > 3)
		snprintf(shim_path, sizeof(shim_path), "%s", argv[3]);
	else if (realpath(slash != NULL ? dir : ".", shim_path) != NULL)
		strncat(shim_path, "/pkcs11_shim.so", sizeof(shim_path) - strlen(shim_path) - 1);
	if (access(helper_path, X_OK) != 0)
		tap_bail("there is no helper program %s", helper_path);
	if (access(shim_path, R_OK) != 0)
		tap_bail("there is no module %s", shim_path);
	snprintf(control_path, sizeof(control_path), "%s/shim.control", scratch);
	snprintf(shim_log, sizeof(shim_log), "%s/shim.log", scratch);
	setenv("NOMP_SHIM_CONTROL", control_path, 1);
	setenv("NOMP_SHIM_LOG", shim_log, 1);
	setenv("NOMP_SHIM_MODULE", softhsm_module(), 1);
	/* a process that nobody may trace cannot look for leaks */
	setenv("ASAN_OPTIONS", "detect_leaks=0", 0);
	shim("");
	signal(SIGPIPE, SIG_IGN);
}

static inline int
end_tests(void)
{
	if (own_scratch && tap_failed == 0)
		(void) RUN("rm", "-rf", scratch);
	return tap_done();
}

#endif							/* NOMP_KEYSTORE_CLIENT_H */
