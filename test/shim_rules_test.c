/*
 * shim_rules_test.c
 *		pkcs11_shim.so enforces PKCS#11's rules and fails as its seed says.
 *
 * Other tests take "the module has seen no rule broken" for a result, which it
 * is only if the shim sees one that is.
 */
#include <dlfcn.h>

#include <p11-kit/pkcs11.h>

#include "keystore_client.h"

static CK_FUNCTION_LIST *f;
static CK_SLOT_ID slot;

/* What a function answers in a child of this process. */
static CK_RV
in_child(CK_RV (*call) (CK_SESSION_HANDLE session), CK_SESSION_HANDLE session)
{
	int			fds[2];
	CK_RV		rv = CKR_GENERAL_ERROR;
	pid_t		pid;

	if (pipe(fds) != 0)
		tap_bail("no pipe");
	fflush(stdout);
	pid = fork();
	if (pid == 0)
	{
		rv = call(session);
		_exit(write(fds[1], &rv, sizeof(rv)) == sizeof(rv) ? 0 : 1);
	}
	close(fds[1]);
	if (read(fds[0], &rv, sizeof(rv)) != sizeof(rv))
		tap_bail("the child says nothing");
	close(fds[0]);
	(void) waitpid(pid, NULL, 0);
	return rv;
}

static CK_RV
ask_slots(CK_SESSION_HANDLE session)
{
	unsigned long n = 0;

	(void) session;
	return f->C_GetSlotList(CK_TRUE, NULL, &n);
}

static CK_RV
begin_search(CK_SESSION_HANDLE session)
{
	return f->C_FindObjectsInit(session, NULL, 0);
}

static CK_RV
initialise(CK_SESSION_HANDLE session)
{
	(void) session;
	return f->C_Initialize(NULL);
}

static CK_RV
use_parents_session(CK_SESSION_HANDLE session)
{
	CK_RV		rv = f->C_Initialize(NULL);

	return rv != CKR_OK ? rv : begin_search(session);
}

static CK_SESSION_HANDLE
open_token(void)
{
	CK_SLOT_ID	slots[16];
	unsigned long n = 16;
	CK_SESSION_HANDLE session = 0;

	if (f->C_Initialize(NULL) != CKR_OK || f->C_GetSlotList(CK_TRUE, slots, &n) != CKR_OK ||
		n == 0 || f->C_OpenSession(slots[0], CKF_SERIAL_SESSION, NULL, NULL, &session) != CKR_OK)
		tap_bail("cannot open the token behind the shim");
	slot = slots[0];
	return session;
}

static void
test_processes(void)
{
	CK_SESSION_HANDLE session;

	tap_ok(ask_slots(0) == CKR_CRYPTOKI_NOT_INITIALIZED, "a call before C_Initialize");
	session = open_token();
	tap_ok(initialise(0) == CKR_CRYPTOKI_ALREADY_INITIALIZED, "C_Initialize twice");
	tap_ok(in_child(ask_slots, 0) == CKR_CRYPTOKI_NOT_INITIALIZED,
		   "a call after fork, without C_Initialize");
	tap_ok(in_child(initialise, 0) == CKR_OK, "but a child may initialise");
	tap_ok(in_child(use_parents_session, session) == CKR_SESSION_HANDLE_INVALID,
		   "and then has none of its parent's sessions");
	tap_ok(begin_search(session) == CKR_OK, "which the parent still has");
	f->C_Finalize(NULL);
	tap_ok(begin_search(session) == CKR_CRYPTOKI_NOT_INITIALIZED, "a call after C_Finalize");
}

static void
test_sessions(void)
{
	CK_SESSION_HANDLE session = open_token();
	CK_OBJECT_HANDLE object;
	unsigned long n;
	unsigned char buf[16] = {0};

	n = sizeof(buf);
	tap_ok(f->C_Decrypt(session, buf, sizeof(buf), buf, &n) == CKR_OPERATION_NOT_INITIALIZED,
		   "a decryption that was not begun");
	tap_ok(f->C_FindObjects(session, &object, 1, &n) == CKR_OPERATION_NOT_INITIALIZED,
		   "a search that was not begun");
	tap_ok(begin_search(session) == CKR_OK && begin_search(session) == CKR_OPERATION_ACTIVE,
		   "a search begun twice");
	tap_ok(f->C_FindObjectsFinal(session) == CKR_OK &&
		   f->C_FindObjectsFinal(session) == CKR_OPERATION_NOT_INITIALIZED,
		   "a search ended twice");
	tap_ok(f->C_CloseSession(session) == CKR_OK &&
		   begin_search(session) == CKR_SESSION_HANDLE_INVALID, "a closed session");
	f->C_Finalize(NULL);
	tap_ok(shim_calls("RULE not begun") == 3 && shim_calls("RULE begun twice") == 1 &&
		   shim_calls("RULE no such session") == 2 && shim_calls("RULE initialised twice") == 1 &&
		   shim_calls("RULE not initialised") == 2 &&
		   shim_calls("RULE initialised by another process") == 1,
		   "what was broken stands in the log");
}

/* How many of 500 calls fail, and a sum that depends on which, how. */
static int
failures(const char *seed, unsigned long *which)
{
	CK_TOKEN_INFO info;
	int			failed = 0;

	unlink(shim_log);
	shim("");
	(void) open_token();
	*which = 0;
	for (int i = 0; i < 500; i++)
	{
		CK_RV		rv;

		/* nothing that ends or stops this process */
		shim(seed);
		rv = f->C_GetTokenInfo(slot, &info);
		failed += rv != CKR_OK;
		*which = *which * 31 + rv;
	}
	shim("");
	f->C_Finalize(NULL);
	return failed;
}

static void
test_chance(void)
{
	unsigned long first;
	unsigned long again;
	unsigned long other;
	int			n = failures("random 1 10 errors\n", &first);

	tap_ok(n > 20 && n < 80, "about a tenth of the calls fail: %d of 500", n);
	tap_ok(failures("random 1 10 errors\n", &again) == n && again == first,
		   "with the same seed, the same ones in the same way");
	(void) failures("random 2 10 errors\n", &other);
	tap_ok(other != first, "with another, others");
	tap_ok(failures("random 1 0 errors\n", &other) == 0, "none, if so told");
}

int
main(int argc, char **argv)
{
	CK_C_GetFunctionList get = NULL;
	void	   *module;

	begin_tests(argc, argv);
	use_softhsm("tokens");
	make_softhsm_token("nomp");
	module = dlopen(shim_path, RTLD_NOW | RTLD_LOCAL);
	if (module != NULL)
		*(void **) &get = dlsym(module, "C_GetFunctionList");
	if (get == NULL || get(&f) != CKR_OK)
		tap_bail("cannot load the shim");
	test_processes();
	test_sessions();
	test_chance();
	return end_tests();
}
