/*
 * keystore_input_test.c
 *		What the keystore helper is told from outside: malformed frames, bad
 *		settings, PIN files that anyone can read, wrong PINs.
 *
 * The module is SoftHSM behind pkcs11_shim.c, which here only counts calls.
 */
#include "keystore_client.h"

static char pin_file[PATH_MAX + 64];
static char shim_uri[3 * PATH_MAX];

/* ---- frames ---- */

/* Does the helper end with exit code 2 on these bytes, after a greeting? */
static bool
ends_helper(const void *data, size_t len, bool greet)
{
	Helper		h = greet ? start("pkcs11:") : start_mute();
	int			status;

	(void) send_raw(&h, data, len);
	shutdown(h.fd, SHUT_WR);
	status = stop(&h);
	return exited_with(status, 2);
}

/* The same for a frame with the body under construction. */
static bool
body_ends_helper(int op)
{
	uint8_t		kept[512];
	size_t		len = body.len;
	uint8_t		byte;
	Helper		h;
	bool		gone;

	if (len > sizeof(kept))
		tap_bail("the body is too long for this test");
	memcpy(kept, body_buf, len);
	h = start(shim_uri);
	begin();
	wire_put(&body, kept, len);
	gone = send_frame(&h, 1, op) && receive(&h, &byte, 1) == 0;
	return exited_with(stop(&h), 2) && gone;
}

static bool
empty_ends_helper(int op)
{
	begin();
	return body_ends_helper(op);
}

static void
test_frames(void)
{
	Helper		h = start_mute();

	tap_ok(exited_with(stop(&h), 0), "a helper that is told nothing ends well");
	tap_ok(ends_helper("\0\0", 2, true), "half a length word ends it with code 2");
	tap_ok(ends_helper("\0\0\0\11\0\0\0", 7, true), "so does half a frame");
	tap_ok(ends_helper("\0\0\0\0", 4, true), "a frame of no length");
	tap_ok(ends_helper("\0\0\0\10\0\0\0\0\0\0\0\1", 12, true), "a frame without a code");
	tap_ok(ends_helper("\0\1\0\1\0\0\0\0\0\0\0\1\2", 13, true), "a frame a byte too long");
	tap_ok(ends_helper("\377\377\377\377\0\0\0\0\0\0\0\1\2", 13, true), "a frame of 4 GB");
	tap_ok(ends_helper("\0\0\0\17\0\0\0\0\0\0\0\1\2\0\0\0\0\0\0", 19, false),
		   "a request before the greeting");
	tap_ok(empty_ends_helper(0) && empty_ends_helper(KS_OP_PROBE + 1) && empty_ends_helper(255),
		   "operations that do not exist");
	tap_ok(empty_ends_helper(KS_OP_HELLO), "a greeting without words");
	begin();
	put_uint(KS_PROTOCOL_VERSION, 2);
	put("pkcs11:");
	put("");
	put("");
	put("");
	tap_ok(body_ends_helper(KS_OP_HELLO), "a second greeting");
	begin();
	put(INST);
	put_uint(0, 1);
	tap_ok(body_ends_helper(KS_OP_STATUS), "a byte too many");
	begin();
	put_uint(9, 2);
	wire_put(&body, "short", 5);
	tap_ok(body_ends_helper(KS_OP_STATUS), "a string longer than its frame");
	begin();
	wire_put_str(&body, "1111\0", 5);
	tap_ok(body_ends_helper(KS_OP_STATUS), "a string with a zero in it");
	begin();
	put(INST);
	put(SCHOOL);
	put_uint(1, 4);
	put_uint(KS_MAX_KEYS + 1, 1);
	for (int i = 0; i <= KS_MAX_KEYS; i++)
		put("aad");
	tap_ok(body_ends_helper(KS_OP_CREATE_KEK), "more keys than one request may have");
	begin();
	put(INST);
	put(KEK1);
	put_uint(2, 1);
	put_uint(0, 4);
	put_uint(0, 1);
	tap_ok(body_ends_helper(KS_OP_UNWRAP), "a flag that is neither 0 nor 1");
}

static void
test_other_version(void)
{
	Helper		h = start_mute();

	begin();
	put_uint(KS_PROTOCOL_VERSION + 1, 2);
	put("pkcs11:");
	put("");
	put("");
	put("");
	tap_ok(ask(&h, KS_OP_HELLO) == KS_REFUSED, "another protocol version is refused");
	stop(&h);
}

/* Random bodies: an answer or the end with code 2, never a signal. */
static void
test_random_frames(void)
{
	Helper		h = start(shim_uri);
	int			bad = 0;

	for (int i = 0; i < 1000; i++)
	{
		KsStatus	status;

		begin();
		if (next_byte() % 2 != 0)
			put(INST);
		if (next_byte() % 2 != 0)
			put(next_byte() % 2 != 0 ? KEK1 : SCHOOL);
		for (int n = next_byte() % 24; n > 0; n--)
			put_uint(next_byte() % 4 == 0 ? next_byte() : 0, 1);
		status = ask(&h, (KsOp) (KS_OP_STATUS + next_byte() % (KS_OP_ENABLE - KS_OP_STATUS + 1)));
		if (status == SILENT || (status == GONE && !exited_with(stop(&h), 2)))
			bad++;
		if (status == GONE)
			h = start(shim_uri);
	}
	tap_ok(bad == 0, "1000 random frames get an answer or end the helper (%d did not)", bad);
	stop(&h);
}

/* ---- settings ---- */

static KsStatus
status_of(const char *uri)
{
	Helper		h = start(uri);
	KsStatus	status = ask_strings(&h, KS_OP_STATUS, "", NULL, NULL);

	stop(&h);
	return status;
}

static void
test_settings(void)
{
	char		uri[3 * PATH_MAX];
	static const char *const bad[] = {
		"", "nothing", "aws-kms://", "aws-kms://eu-north-1?what=this", "pkcs11:", "pkcs11:%zz", "pkcs11:token=a;token=b",
		"pkcs11:token=nomp?module-path=lib.so",
		"pkcs11:token=nomp?module-path=/lib.so&pin-value=secret-4711",
		"pkcs11:token=nomp?module-path=/lib.so&pin-source=pin",
		"pkcs11:token=nomp?module-path=/lib.so&pin-source=file://host/pin",
		"pkcs11:token=nomp?module-path=/lib.so&pin-source=%7Ccat%20/etc/pin",
		"pkcs11:token=nomp;object=key?module-path=/lib.so",
		"pkcs11:token=nomp;x=y?module-path=/lib.so",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		bool		pin = strstr(bad[i], "pin-value") != NULL;

		tap_ok(status_of(bad[i]) == KS_BAD_URI, "bad URI: %s",
			   pin ? "with a PIN in it" : bad[i]);
	}
	tap_ok(status_of("pkcs11:token=nomp?module-path=/nonexistent/module.so") == KS_MODULE_LOAD,
		   "no such module: %s", reply.reason);
	snprintf(uri, sizeof(uri), "pkcs11:token=nomp?module-path=%s", control_path);
	tap_ok(status_of(uri) == KS_MODULE_LOAD, "a module that is no library: %s", reply.reason);
	tap_ok(status_of("pkcs11:token=nomp?module-path=/lib/x86_64-linux-gnu/libm.so.6") ==
		   KS_MODULE_LOAD, "a library that is no module: %s", reply.reason);
	tap_ok(status_of(softhsm_uri("other", pin_file, false)) == KS_TOKEN_MISSING,
		   "no such token: %s", reply.reason);
	make_softhsm_token("twin");
	make_softhsm_token("twin");
	tap_ok(status_of(softhsm_uri("twin", pin_file, false)) == KS_TOKEN_MISSING &&
		   strstr(reply.reason, "2 tokens") != NULL, "two such tokens: %s", reply.reason);
	snprintf(uri, sizeof(uri), "pkcs11:token=nomp?module-path=%s", softhsm_module());
	tap_ok(status_of(uri) == KS_PIN_FILE, "no PIN file named: %s", reply.reason);
	tap_ok(status_of(softhsm_uri("nomp", pin_file, false)) == KS_OK, "and the right one");
}

/* ---- PINs ---- */

static void
test_pin_files(void)
{
	char	   *path = in_scratch("another-pin");
	char	   *link = in_scratch("pin-link");
	char	   *uri = softhsm_uri("nomp", path, true);
	char		longer[5000];

	unlink(shim_log);
	tap_ok(status_of(uri) == KS_PIN_FILE, "no PIN file: %s", reply.reason);
	write_file(path, PIN, 0640);
	tap_ok(status_of(uri) == KS_PIN_FILE, "readable by the group: %s", reply.reason);
	write_file(path, PIN, 0604);
	tap_ok(status_of(uri) == KS_PIN_FILE, "readable by others");
	write_file(path, PIN, 0602);
	tap_ok(status_of(uri) == KS_PIN_FILE, "writable by others");
	write_file(path, "", 0600);
	tap_ok(status_of(uri) == KS_PIN_FILE, "empty: %s", reply.reason);
	write_file(path, "\n", 0600);
	tap_ok(status_of(uri) == KS_PIN_FILE, "an empty line");
	memset(longer, '1', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	write_file(path, longer, 0600);
	tap_ok(status_of(uri) == KS_PIN_FILE, "too long: %s", reply.reason);
	unlink(path);
	if (mkdir(path, 0700) != 0)
		tap_bail("cannot make %s", path);
	tap_ok(status_of(uri) == KS_PIN_FILE, "a folder: %s", reply.reason);
	rmdir(path);
	if (mkfifo(path, 0600) != 0)
		tap_bail("cannot make %s", path);
	tap_ok(status_of(uri) == KS_PIN_FILE, "a pipe");
	unlink(path);
	tap_ok(shim_calls("C_Login") == 0, "none of them was tried");
	write_file(path, PIN, 0400);
	tap_ok(status_of(uri) == KS_OK, "a PIN without a line's end");
	if (symlink(path, link) != 0)
		tap_bail("cannot make %s", link);
	tap_ok(status_of(softhsm_uri("nomp", link, true)) == KS_OK, "a link to a good file");
	unlink(path);
	write_file(path, PIN "\n\n", 0600);
	tap_ok(status_of(uri) == KS_PIN_INCORRECT, "only one line's end is taken off");
	unlink(path);
}

/* A wrong PIN is tried once: not for every request, nor by the next helper. */
static void
test_wrong_pin(void)
{
	char	   *path = in_scratch("wrong-pin");
	char	   *uri = softhsm_uri("nomp", path, true);
	char		stamp[256];
	Helper		h;
	int			refused = 0;

	write_file(path, "wrong\n", 0600);
	unlink(shim_log);
	h = start(uri);
	tap_ok(ask_strings(&h, KS_OP_STATUS, "", NULL, NULL) == KS_PIN_INCORRECT &&
		   reply.stamp[0] != '\0', "a wrong PIN: %s (%s)", reply.reason, reply.stamp);
	snprintf(stamp, sizeof(stamp), "%s", reply.stamp);
	for (int i = 0; i < 20; i++)
		refused += ask_strings(&h, KS_OP_STATUS, "", NULL, NULL) == KS_PIN_INCORRECT &&
			strcmp(reply.stamp, stamp) == 0;
	stop(&h);
	for (int i = 0; i < 5; i++)
	{
		h = start_with_stamp(uri, stamp);
		refused += ask_strings(&h, KS_OP_STATUS, "", NULL, NULL) == KS_PIN_INCORRECT &&
			strcmp(reply.stamp, stamp) == 0;
		stop(&h);
	}
	tap_ok(refused == 25, "it stays wrong (%d)", refused);
	tap_ok(shim_calls("C_Login") == 1, "and was tried once (%d)", shim_calls("C_Login"));

	h = start_with_stamp(uri, stamp);
	(void) ask_strings(&h, KS_OP_STATUS, "", NULL, NULL);
	write_file(path, PIN "\n", 0600);
	tap_ok(ask_strings(&h, KS_OP_STATUS, "", NULL, NULL) == KS_OK,
		   "the same helper takes the right PIN as soon as the file has it");
	stop(&h);

	shim("C_Login rv=0xa4\n");
	h = start(uri);
	tap_ok(ask_strings(&h, KS_OP_STATUS, "", NULL, NULL) == KS_PIN_LOCKED,
		   "a locked PIN: %s", reply.reason);
	stop(&h);
	shim("");
	tap_ok(status_of(uri) == KS_OK, "the token itself is not locked");
}

int
main(int argc, char **argv)
{
	begin_tests(argc, argv);
	snprintf(pin_file, sizeof(pin_file), "%s/pin", scratch);
	write_file(pin_file, PIN "\n", 0600);
	use_softhsm("tokens");
	make_softhsm_token("nomp");
	snprintf(shim_uri, sizeof(shim_uri), "%s", softhsm_uri("nomp", pin_file, true));

	test_frames();
	test_other_version();
	test_random_frames();
	test_settings();
	test_pin_files();
	test_wrong_pin();
	return end_tests();
}
