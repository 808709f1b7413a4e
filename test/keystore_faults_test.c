/*
 * keystore_faults_test.c
 *		The keystore helper and modules that lie, fail, hang or crash.
 *
 * The module is SoftHSM behind pkcs11_shim.c, which does as its control file
 * says.  What a well-behaved token gets is in keystore_test.c.
 */
#include "keystore_client.h"

static char pin_file[PATH_MAX + 64];
static char shim_uri[3 * PATH_MAX];

typedef struct Fault
{
	const char *lines;
	KsStatus	expected;		/* for UNWRAP of an intact key */
	const char *what;
} Fault;

static const Fault unwrap_faults[] = {
	{"C_Decrypt rv=0xb3 once\n", KS_OK, "a session that was closed is opened anew"},
	{"C_DecryptInit rv=0xb0 once\n", KS_OK, "so is one that ended"},
	{"C_DecryptInit rv=0x101 once\n", KS_OK, "or was logged out"},
	{"C_DecryptInit rv=0x190 once\n", KS_OK, "or whose module was finalised"},
	{"C_DecryptInit rv=0xe0 once\n", KS_OK, "or whose token was away for a moment"},
	{"C_DecryptInit rv=0x90 once\n", KS_OK, "or had an operation pending"},
	{"C_Decrypt rv=0x30 once\n", KS_OK, "a device error that passes"},
	{"C_Decrypt rv=0x30\n", KS_MODULE_ERROR, "a device error that stays"},
	{"C_Decrypt rv=0xb3\n", KS_MODULE_ERROR, "a session that never works"},
	{"C_DecryptInit rv=0x82 once\n", KS_OK, "a stale handle is looked up again"},
	{"C_DecryptInit rv=0x60 once\n", KS_OK, "by its other name too"},
	{"C_DecryptInit rv=0x82\n", KS_MODULE_ERROR, "handles that are always stale are an error"},
	{"C_Decrypt rv=0x5\n", KS_MODULE_ERROR, "a sick module's general error is no integrity failure"},
	{"C_Decrypt rv=0x40\n", KS_MODULE_ERROR, "nor is its bad tag"},
	{"C_Decrypt rv=0x6\nC_Encrypt rv=0x6\n", KS_MODULE_ERROR, "nor if it cannot encrypt either"},
	{"C_Decrypt rv=0x5 once\n", KS_OK, "an error that passes is no integrity failure either"},
	{"C_Decrypt rv=0x7\n", KS_MODULE_ERROR, "nor an error that means something else"},
	{"C_Decrypt rv=0x5\nC_FindObjects rv=0x5\n", KS_MODULE_ERROR, "nor if it finds nothing"},
	{"decrypt long\n", KS_MODULE_ERROR, "output that was not asked for"},
	{"C_Decrypt delay=300\n", KS_OK, "a slow token is waited for"},
};

static void
test_unwrap_faults(DataKey *key)
{
	Helper		h = start(shim_uri);

	for (size_t i = 0; i < sizeof(unwrap_faults) / sizeof(unwrap_faults[0]); i++)
	{
		const Fault *f = &unwrap_faults[i];
		KsStatus	status;

		shim("");
		if (unwrap_one(&h, KEK1, key) != KS_OK)
			tap_bail("the helper does not recover: %s", reply.reason);
		shim(f->lines);
		status = unwrap_one(&h, KEK1, key);
		tap_ok(status == f->expected, "%s: %d %s", f->what, (int) status, reply.reason);
	}
	shim("");
	tap_ok(unwrap_one(&h, KEK1, key) == KS_OK, "after all that, the helper works");
	stop(&h);
}

/* A fresh helper, so that the key must be looked for. */
static KsStatus
unwrap_afresh(const char *lines, const char *label, DataKey *key)
{
	Helper		h;
	KsStatus	status;

	shim(lines);
	h = start(shim_uri);
	status = unwrap_one(&h, label, key);
	stop(&h);
	shim("");
	return status;
}

/*
 * The canary must be there before and after.  A helper that has the token open
 * for more than a second opens it anew before it says so, and then sees that
 * all is well: so it is asked again if this machine was too slow.
 */
static bool
canary_counts_before(const char *absent, DataKey *key)
{
	bool		doubted = false;

	for (int i = 0; i < 5 && !doubted; i++)
	{
		Helper		h = start(shim_uri);

		(void) ask_strings(&h, KS_OP_STATUS, INST, NULL, NULL);
		shim("label junk once\n");
		doubted = unwrap_one(&h, absent, key) == KS_TOKEN_WRONG;
		shim("");
		stop(&h);
	}
	return doubted;
}

static void
test_search_faults(DataKey *key)
{
	const char *absent = LABEL(INST, SCHOOL, "99");
	Helper		h;

	tap_ok(unwrap_afresh("", absent, key) == KS_KEY_ABSENT, "a key that is not there");
	tap_ok(unwrap_afresh("find many\n", absent, key) == KS_MODULE_ERROR,
		   "more handles than asked for: %s", reply.reason);
	tap_ok(unwrap_afresh("C_FindObjects rv=0x30\n", absent, key) == KS_MODULE_ERROR,
		   "a search that fails proves nothing: %s", reply.reason);
	tap_ok(unwrap_afresh("C_FindObjectsFinal rv=0x31 once\n", KEK1, key) == KS_OK,
		   "a search that does not end takes its session along: %s", reply.reason);
	tap_ok(unwrap_afresh("C_FindObjectsFinal rv=0x31\n", KEK1, key) == KS_MODULE_ERROR,
		   "and is an error if none does: %s", reply.reason);
	tap_ok(unwrap_afresh("C_FindObjects rv=0x5 once\nC_FindObjectsFinal rv=0x31 once\n", KEK1, key) == KS_OK,
		   "so does one that failed before: %s", reply.reason);
	tap_ok(shim_calls("RULE begun twice") == 0, "none begins before the one before has ended");
	tap_ok(unwrap_afresh("C_FindObjectsInit rv=0x101\n", absent, key) == KS_MODULE_ERROR,
		   "nor one by a user who is logged out: %s", reply.reason);
	tap_ok(unwrap_afresh("label long\n", absent, key) == KS_TOKEN_WRONG,
		   "labels longer than their buffer are nobody's");
	tap_ok(unwrap_afresh("label junk\n", absent, key) == KS_TOKEN_WRONG,
		   "so are labels of junk");
	tap_ok(canary_counts_before(absent, key),
		   "a canary that is seen only afterwards is not enough");
	tap_ok(unwrap_afresh("C_GetAttributeValue rv=0x5\n", absent, key) == KS_MODULE_ERROR,
		   "labels that cannot be read prove nothing");
	tap_ok(unwrap_afresh("C_GetAttributeValue rv=0x82\n", absent, key) == KS_MODULE_ERROR,
		   "nor keys that are found and then not there: %s", reply.reason);
	tap_ok(unwrap_afresh("C_GetAttributeValue rv=0x82 once\n", KEK1, key) == KS_OK,
		   "one that was not there for a moment is looked for again");
	tap_ok(unwrap_afresh("hide CKM_AES_GCM\n", KEK1, key) == KS_MECHANISM_MISSING &&
		   strstr(reply.reason, "CKM_AES_GCM") != NULL, "no AES-GCM: %s", reply.reason);
	tap_ok(unwrap_afresh("hide CKM_AES_KEY_GEN\n", KEK1, key) == KS_MECHANISM_MISSING &&
		   strstr(reply.reason, "CKM_AES_KEY_GEN") != NULL, "no AES keys: %s", reply.reason);
	tap_ok(unwrap_afresh("C_Initialize rv=0x30\n", KEK1, key) == KS_MODULE_LOAD,
		   "a module that does not start: %s", reply.reason);
	tap_ok(unwrap_afresh("C_GetSlotList rv=0x5\n", KEK1, key) == KS_MODULE_ERROR,
		   "one without slots: %s", reply.reason);
	tap_ok(unwrap_afresh("C_OpenSession rv=0x30 once\n", KEK1, key) == KS_OK,
		   "opening is tried twice");

	h = start(shim_uri);
	(void) ask_strings(&h, KS_OP_STATUS, INST, NULL, NULL);
	shim("serial other\n");
	tap_ok(unwrap_one(&h, absent, key) == KS_TOKEN_WRONG,
		   "absent on another token than before is not absent: %s", reply.reason);
	shim("");
	stop(&h);
}

/* How many keys does the school have?  Asked without the shim's faults. */
static int
count_keys(const char *school)
{
	Helper		h;
	int			n;

	shim("");
	h = start(shim_uri);
	n = see(&h, INST, school);
	stop(&h);
	return n;
}

typedef struct CreateFault
{
	const char *lines;
	KsStatus	expected;
	int			left;			/* keys of the school afterwards */
	int			keys;			/* data keys asked for */
	const char *what;
} CreateFault;

static const CreateFault create_faults[] = {
	{"iv zero\n", KS_MODULE_ERROR, 0, 1, "an IV of zeros"},
	{"iv repeat\n", KS_MODULE_ERROR, 0, 3, "an IV used twice"},
	{"iv hidden\n", KS_MODULE_ERROR, 0, 3, "an IV of the token's own that it does not tell"},
	{"extractable\n", KS_REFUSED, 0, 3, "a key that could leave the token"},
	{"C_GenerateKey rv=0x5\n", KS_MODULE_ERROR, 0, 3, "no key is made"},
	{"C_Encrypt rv=0x5\n", KS_MODULE_ERROR, 0, 3, "the new key does not encrypt"},
	{"C_Decrypt rv=0x5\n", KS_MODULE_ERROR, 0, 3, "the new key does not decrypt"},
	{"C_Encrypt rv=0xb3 once\n", KS_OK, 1, 3, "the session is lost on the way"},
	{"C_Encrypt rv=0xb3\n", KS_MODULE_ERROR, 1, 3, "the session is lost again and again"},
	{"iv own\n", KS_OK, 1, 3, "an IV of the token's own"},
};

static void
test_create_faults(void)
{
	const size_t n = sizeof(create_faults) / sizeof(create_faults[0]);

	for (size_t i = 0; i < n; i++)
	{
		const CreateFault *f = &create_faults[i];
		char		school[40];
		DataKey		keys[3];
		Helper		h;
		KsStatus	status;
		char		reason[sizeof(reply.reason)];
		int			left;

		snprintf(school, sizeof(school), "cccccccc-cccc-4ccc-8ccc-%012zu", i);
		shim(f->lines);
		h = start(shim_uri);
		status = create_kek(&h, INST, school, 1, keys, f->keys);
		memcpy(reason, reply.reason, sizeof(reason));
		stop(&h);
		left = count_keys(school);
		tap_ok(status == f->expected && left == f->left, "%s: %d, %d keys left, %s", f->what,
			   (int) status, left, reason);
	}
}

/* What a token wrapped with an IV of its own opens without that token's help. */
static void
test_own_iv(void)
{
	const char *label = LABEL(INST, SCHOOL, "50");
	DataKey		keys[2];
	Helper		h;

	shim("iv own\n");
	h = start(shim_uri);
	tap_ok(create_kek(&h, INST, SCHOOL, 50, keys, 2) == KS_OK &&
		   memcmp(keys[0].wrapped + 1, keys[1].wrapped + 1, 12) != 0,
		   "a token with IVs of its own wraps");
	stop(&h);
	shim("");
	h = start(shim_uri);
	tap_ok(unwrap_one(&h, label, &keys[0]) == KS_OK && unwrap_one(&h, label, &keys[1]) == KS_OK,
		   "and its IV is in the wrapped key");
	stop(&h);
}

static void
test_destroy_faults(void)
{
	const char *school = "dddddddd-dddd-4ddd-8ddd-dddddddddddd";
	char		serial[64];
	Helper		h = start(shim_uri);
	bool		removed;

	if (create_kek(&h, INST, school, 1, NULL, 0) != KS_OK ||
		create_kek(&h, INST, school, 2, NULL, 0) != KS_OK || see(&h, INST, school) != 2)
		tap_bail("no keys: %s", reply.reason);
	(void) ask_see(&h, INST, school, 0);
	snprintf(serial, sizeof(serial), "%s", next_string());
	shim("C_DestroyObject rv=0x5\n");
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, school, serial) == KS_MODULE_ERROR,
		   "a token that cannot destroy: %s", reply.reason);
	shim("C_DestroyObject rv=0\n");
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, school, serial) == KS_MODULE_ERROR,
		   "a token that only says it destroyed: %s", reply.reason);
	shim("C_DestroyObject rv=0x5\n");
	tap_ok(remove_key(&h, INST, LABEL(INST, "dddddddd-dddd-4ddd-8ddd-dddddddddddd", "1"), 0,
					  &removed) == KS_MODULE_ERROR, "a provisional key that stays");
	shim("serial other\n");
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, school, serial) == KS_TOKEN_WRONG &&
		   count_keys(school) == 2, "a token that was exchanged keeps its keys");
	stop(&h);
	h = start(shim_uri);
	shim("C_DestroyObject rv=0xb3 once\n");
	tap_ok(ask_strings(&h, KS_OP_DESTROY, INST, school, serial) == KS_OK &&
		   wire_get_uint(&reply.r, 2) == 2, "a session lost on the way");
	shim("C_SetAttributeValue rv=0\n");
	if (create_kek(&h, INST, school, 3, NULL, 0) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	tap_ok(ask_strings(&h, KS_OP_CONFIRM, INST, LABEL(INST, "dddddddd-dddd-4ddd-8ddd-dddddddddddd", "3"),
					   NULL) == KS_MODULE_ERROR, "a label that does not change: %s", reply.reason);
	shim("");
	stop(&h);
}

/* ---- the process ---- */

static bool
is_gone(pid_t pid)
{
	for (int i = 0; i < 200; i++)
	{
		if (kill(pid, 0) != 0 && errno == ESRCH)
			return true;
		usleep(10000);
	}
	return false;
}

static void
test_crash_and_hang(DataKey *key)
{
	Helper		h = start(shim_uri);
	int			status;

	shim("C_Decrypt crash once\n");
	tap_ok(unwrap_one(&h, KEK1, key) == GONE, "a module that crashes takes the helper with it");
	status = stop(&h);
	tap_ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV && !WCOREDUMP(status),
		   "and leaves no core");
	h = start(shim_uri);
	tap_ok(unwrap_one(&h, KEK1, key) == KS_OK, "the next helper works");
	shim("C_Decrypt hang\n");
	patience = 500;
	tap_ok(unwrap_one(&h, KEK1, key) == SILENT, "a module that hangs gives no answer");
	patience = PATIENCE;
	tap_ok(WIFSIGNALED(stop_by_force(&h)), "and can be killed");
	shim("C_Finalize hang\n");
	h = start(shim_uri);
	(void) unwrap_one(&h, KEK1, key);
	status = stop(&h);
	tap_ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM,
		   "one that hangs at the end does not hang for ever");
	shim("");
}

/* The helper dies with the process that started it, even inside a module. */
static void
test_orphan(DataKey *key)
{
	int			fds[2];
	pid_t		broker;
	pid_t		helper = 0;

	if (pipe(fds) != 0)
		tap_bail("no pipe");
	shim("C_Decrypt hang\n");
	broker = fork();
	if (broker == 0)
	{
		Helper		h = start(shim_uri);

		patience = 500;
		(void) unwrap_one(&h, KEK1, key);
		if (write(fds[1], &h.pid, sizeof(h.pid)) != sizeof(h.pid))
			_exit(1);
		/* someone else still holds the socket, so it does not end */
		if (fork() == 0)
		{
			sleep(5);
			_exit(0);
		}
		_exit(0);
	}
	if (read(fds[0], &helper, sizeof(helper)) != sizeof(helper))
		tap_bail("no helper");
	waitpid(broker, NULL, 0);
	if (!tap_ok(is_gone(helper), "a helper whose broker died is gone"))
		kill(helper, SIGKILL);
	close(fds[0]);
	close(fds[1]);
	shim("");
}

static void
test_process(void)
{
	int			fds[2];
	Helper		h;
	char		byte;
	char		path[64];
	struct stat st;
	sigset_t	all;
	sigset_t	old;
	struct pollfd p;

	if (pipe(fds) != 0)
		tap_bail("no pipe");
	h = start(shim_uri);
	close(fds[1]);
	p = (struct pollfd) {fds[0], POLLIN, 0};
	tap_ok(poll(&p, 1, PATIENCE) == 1 && read(fds[0], &byte, 1) == 0,
		   "the helper keeps no descriptor it was not meant to have");
	close(fds[0]);
	snprintf(path, sizeof(path), "/proc/%d/mem", (int) h.pid);
	tap_ok(stat(path, &st) == 0 && st.st_uid == 0,
		   "its memory is not for other processes of the user");
	stop(&h);

	signal(SIGTERM, SIG_IGN);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	h = start(shim_uri);
	kill(h.pid, SIGTERM);
	tap_ok(WTERMSIG(stop(&h)) == SIGTERM, "ignored and blocked signals are not inherited");
	sigprocmask(SIG_SETMASK, &old, NULL);
	signal(SIGTERM, SIG_DFL);
}

int
main(int argc, char **argv)
{
	DataKey		key;
	Helper		h;
	bool		created;

	begin_tests(argc, argv);
	snprintf(pin_file, sizeof(pin_file), "%s/pin", scratch);
	write_file(pin_file, PIN "\n", 0600);
	use_softhsm("tokens");
	make_softhsm_token("nomp");
	snprintf(shim_uri, sizeof(shim_uri), "%s", softhsm_uri("nomp", pin_file, true));

	h = start(shim_uri);
	if (setup(&h, INST, &created) != KS_OK ||
		create_kek(&h, INST, SCHOOL, 1, &key, 1) != KS_OK ||
		ask_strings(&h, KS_OP_CONFIRM, INST, KEK1, NULL) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	stop(&h);
	test_unwrap_faults(&key);
	test_search_faults(&key);
	test_create_faults();
	test_own_iv();
	test_destroy_faults();
	test_crash_and_hang(&key);
	test_orphan(&key);
	test_process();
	return end_tests();
}
