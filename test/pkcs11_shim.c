/*
 * pkcs11_shim.c
 *		A PKCS#11 module that passes everything on to another one, and fails,
 *		lies, hangs or crashes as a control file says.  For tests only.
 *
 * Environment: NOMP_SHIM_MODULE, the real module; NOMP_SHIM_CONTROL, the
 * control file, read at every call (none: only pass on); NOMP_SHIM_LOG, a
 * file to which the name of every function called is appended;
 * NOMP_SHIM_REPORT, a file that C_Initialize fills with what the process
 * around it has: mappings, open descriptors, environment.  (From outside,
 * /proc does not tell: the helper is not dumpable.)
 *
 * Lines of the control file:
 *
 *		C_Decrypt hang			never returns
 *		C_Decrypt hold			waits until the file says so no longer
 *		C_Decrypt crash			segmentation fault
 *		C_Decrypt rv=0x30		returns that, without asking the real module
 *								(an encryption or decryption that had begun
 *								there is ended, as a module would)
 *		C_Decrypt delay=500		milliseconds, then goes on
 *		hide CKM_AES_GCM		the mechanism is not there (or a number)
 *		iv zero					C_Encrypt uses an IV of zeros, and says so
 *		iv repeat				always the same IV, and says so
 *		iv own					a random IV of its own, and says so
 *		iv hidden				a random IV of its own, and says nothing
 *		label long				labels claim to be longer than their buffer
 *		label junk				labels are full of 0xff
 *		extractable				new keys claim to be extractable
 *		find many				C_FindObjects claims more than it was asked for
 *		decrypt long			C_Decrypt claims more output than there is room
 *		serial other			the token shows another serial number
 *		random SEED PERCENT		that share of all calls, chosen by the seed and
 *								the length of the log, fails with one of many
 *								errors, is late, hangs or crashes; with "errors"
 *								at the end, only fails
 *
 * "once" at the end of a line: the line is taken out of the file before it
 * takes effect, so it works once, also if the process does not survive it.
 *
 * Whatever the file says, the shim enforces what pkcs11_rules.h has.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <p11-kit/pkcs11.h>

#include "pkcs11_chance.h"
#include "pkcs11_rules.h"

#define CONTROL_MAX 4096
#define IV_LEN		12
#define NOT_TOLD	((CK_RV) -1)

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST list;

/* the IV of the encryption under way, and where its caller reads it */
static unsigned char *iv_out;
static unsigned char iv_now[IV_LEN];
static bool iv_told;

CK_RV		C_GetFunctionList(CK_FUNCTION_LIST **out)
			__attribute__((visibility("default")));

/* Read the control file; empty if there is none. */
static void
read_control(char text[CONTROL_MAX])
{
	const char *path = getenv("NOMP_SHIM_CONTROL");
	int			fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t		n = fd >= 0 ? read(fd, text, CONTROL_MAX - 1) : 0;

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
}

/* Write the control file anew without the line that is used up. */
static void
take_out(const char *line)
{
	const char *path = getenv("NOMP_SHIM_CONTROL");
	char		text[CONTROL_MAX];
	char	   *save = NULL;
	FILE	   *f;

	read_control(text);
	f = fopen(path, "we");
	if (f == NULL)
		abort();
	for (char *l = strtok_r(text, "\n", &save); l != NULL; l = strtok_r(NULL, "\n", &save))
	{
		if (strcmp(l, line) != 0)
			fprintf(f, "%s\n", l);
	}
	fclose(f);
}

/* Is there a line "first second ..."?  Copies what "second" is, if asked. */
static bool
told(const char *first, char *second, size_t size)
{
	char		text[CONTROL_MAX];
	char	   *save = NULL;

	read_control(text);
	for (char *l = strtok_r(text, "\n", &save); l != NULL; l = strtok_r(NULL, "\n", &save))
	{
		char		a[64] = "";
		char		b[64] = "";
		char		c[64] = "";

		if (sscanf(l, "%63s %63s %63s", a, b, c) < 1 || strcmp(a, first) != 0)
			continue;
		if (strcmp(c, "once") == 0 || strcmp(b, "once") == 0)
			take_out(l);
		if (second != NULL)
			snprintf(second, size, "%s", b);
		return true;
	}
	return false;
}

static bool
told_to(const char *first, const char *second)
{
	char		b[64];

	return told(first, b, sizeof(b)) && strcmp(b, second) == 0;
}

/* Append a line to the log; its length then. */
static off_t
append_log(const char *line)
{
	const char *path = getenv("NOMP_SHIM_LOG");
	int			fd = path != NULL ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
	off_t		length;

	if (fd < 0)
		return 0;
	if (dprintf(fd, "%s\n", line) < 0)
		abort();
	length = lseek(fd, 0, SEEK_END);
	close(fd);
	return length;
}

static void
log_rule(const char *line)
{
	(void) append_log(line);
}

/* Do what the control file says about a function. */
static CK_RV
before(const char *function)
{
	char		what[64];
	char		text[CONTROL_MAX];
	off_t		place = append_log(function);

	read_control(text);
	/* a C_Finalize that failed would leave rules that nobody can keep */
	if (!told(function, what, sizeof(what)) &&
		(strcmp(function, "C_Finalize") == 0 || !chance(text, place, what, sizeof(what))))
		return NOT_TOLD;
	if (strcmp(what, "crash") == 0)
		raise(SIGSEGV);
	while (strcmp(what, "hang") == 0)
		pause();
	while (strcmp(what, "hold") == 0 && told_to(function, "hold"))
		usleep(10000);
	if (strncmp(what, "delay=", 6) == 0)
		usleep(1000 * (useconds_t) atoi(what + 6));
	if (strncmp(what, "rv=", 3) == 0)
		return strtoul(what + 3, NULL, 0);
	return NOT_TOLD;
}

#define BEFORE(function, rule) \
	do { \
		CK_RV		rv_ = (rule); \
		if (rv_ != CKR_OK) \
			return rv_; \
		rv_ = before(function); \
		if (rv_ != NOT_TOLD) \
			return rv_; \
	} while (0)

/* As BEFORE, for functions that end an operation whatever they answer. */
#define BEFORE_END(function, operation, end) \
	do { \
		unsigned char scrap_[4096]; \
		unsigned long scrap_len_ = sizeof(scrap_); \
		CK_RV		rv_ = rules_go_on(session, operation); \
		if (rv_ != CKR_OK) \
			return rv_; \
		rules_set(session, operation, false); \
		rv_ = before(function); \
		if (rv_ != NOT_TOLD) \
		{ \
			(void) (end)(session, in, in_len, scrap_, &scrap_len_); \
			return rv_; \
		} \
	} while (0)

static bool
hidden(CK_MECHANISM_TYPE type)
{
	char		name[64];

	if (!told("hide", name, sizeof(name)))
		return false;
	if (strcmp(name, "CKM_AES_GCM") == 0)
		return type == CKM_AES_GCM;
	if (strcmp(name, "CKM_AES_KEY_GEN") == 0)
		return type == CKM_AES_KEY_GEN;
	return type == strtoul(name, NULL, 0);
}

static void
copy_file(FILE *out, const char *path)
{
	FILE	   *in = fopen(path, "re");
	char		line[4096];

	if (in == NULL)
		abort();
	while (fgets(line, sizeof(line), in) != NULL)
		fprintf(out, "map %s", line);
	fclose(in);
}

/* Write down what this process can reach. */
static void
report(void)
{
	const char *path = getenv("NOMP_SHIM_REPORT");
	FILE	   *out = path != NULL ? fopen(path, "we") : NULL;

	if (out == NULL)
		return;
	fprintf(out, "pid %d\n", (int) getpid());
	for (int fd = 0; fd < 4096; fd++)
	{
		char		link[64];
		char		target[512];
		ssize_t		n;

		if (fd == fileno(out))
			continue;
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		n = readlink(link, target, sizeof(target) - 1);
		if (n >= 0)
			fprintf(out, "fd %d %.*s\n", fd, (int) n, target);
	}
	for (char **e = environ; *e != NULL; e++)
		fprintf(out, "env %s\n", *e);
	copy_file(out, "/proc/self/maps");
	fclose(out);
}

static CK_RV
shim_Initialize(void *args)
{
	CK_RV		rv;

	report();
	BEFORE("C_Initialize", rules_initialize());
	rv = real->C_Initialize(args);
	if (rv == CKR_OK)
		rules_initialized();
	return rv;
}

static CK_RV
shim_Finalize(void *reserved)
{
	BEFORE("C_Finalize", rules_call());
	rules_forget();
	return real->C_Finalize(reserved);
}

static CK_RV
shim_GetSlotList(unsigned char present, CK_SLOT_ID *slots, unsigned long *n)
{
	BEFORE("C_GetSlotList", rules_call());
	return real->C_GetSlotList(present, slots, n);
}

static CK_RV
shim_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
	CK_RV		rv;

	BEFORE("C_GetTokenInfo", rules_call());
	rv = real->C_GetTokenInfo(slot, info);
	if (rv == CKR_OK && told_to("serial", "other"))
		memcpy(info->serialNumber, "another one     ", 16);
	return rv;
}

static CK_RV
shim_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *types, unsigned long *n)
{
	CK_RV		rv;
	unsigned long kept = 0;

	BEFORE("C_GetMechanismList", rules_call());
	rv = real->C_GetMechanismList(slot, types, n);
	if (rv != CKR_OK || types == NULL)
		return rv;
	for (unsigned long i = 0; i < *n; i++)
	{
		if (!hidden(types[i]))
			types[kept++] = types[i];
	}
	*n = kept;
	return rv;
}

static CK_RV
shim_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info)
{
	BEFORE("C_GetMechanismInfo", rules_call());
	return hidden(type) ? CKR_MECHANISM_INVALID : real->C_GetMechanismInfo(slot, type, info);
}

static CK_RV
shim_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *app, CK_NOTIFY notify,
				 CK_SESSION_HANDLE *session)
{
	CK_RV		rv;

	BEFORE("C_OpenSession", rules_call());
	rv = real->C_OpenSession(slot, flags, app, notify, session);
	if (rv == CKR_OK)
		rules_opened(*session);
	return rv;
}

static CK_RV
shim_CloseSession(CK_SESSION_HANDLE session)
{
	BEFORE("C_CloseSession", rules_session(session));
	rules_closed(session);
	return real->C_CloseSession(session);
}

static CK_RV
shim_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, unsigned char *pin,
		   unsigned long len)
{
	BEFORE("C_Login", rules_session(session));
	return real->C_Login(session, user, pin, len);
}

static CK_RV
shim_FindObjectsInit(CK_SESSION_HANDLE session, CK_ATTRIBUTE *template, unsigned long n)
{
	CK_RV		rv;

	BEFORE("C_FindObjectsInit", rules_begin(session, RULES_FIND));
	rv = real->C_FindObjectsInit(session, template, n);
	rules_set(session, RULES_FIND, rv == CKR_OK);
	return rv;
}

static CK_RV
shim_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects,
				 unsigned long room, unsigned long *n)
{
	CK_RV		rv;

	BEFORE("C_FindObjects", rules_go_on(session, RULES_FIND));
	rv = real->C_FindObjects(session, objects, room, n);
	if (rv == CKR_OK && told_to("find", "many"))
		*n = room + 1000000;
	return rv;
}

static CK_RV
shim_FindObjectsFinal(CK_SESSION_HANDLE session)
{
	BEFORE("C_FindObjectsFinal", rules_go_on(session, RULES_FIND));
	rules_set(session, RULES_FIND, false);
	return real->C_FindObjectsFinal(session);
}

static void
lie_about(CK_ATTRIBUTE *attr)
{
	if (attr->type == CKA_EXTRACTABLE && attr->pValue != NULL && told("extractable", NULL, 0))
		*(CK_BBOOL *) attr->pValue = CK_TRUE;
	if (attr->type != CKA_LABEL)
		return;
	if (attr->pValue != NULL && told_to("label", "junk"))
		memset(attr->pValue, 0xff, attr->ulValueLen);
	if (told_to("label", "long"))
		attr->ulValueLen = 1000000;
}

static CK_RV
shim_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
					   CK_ATTRIBUTE *attrs, unsigned long n)
{
	CK_RV		rv;

	BEFORE("C_GetAttributeValue", rules_session(session));
	rv = real->C_GetAttributeValue(session, object, attrs, n);
	for (unsigned long i = 0; rv == CKR_OK && i < n; i++)
		lie_about(&attrs[i]);
	return rv;
}

static CK_RV
shim_SetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
					   CK_ATTRIBUTE *attrs, unsigned long n)
{
	BEFORE("C_SetAttributeValue", rules_session(session));
	return real->C_SetAttributeValue(session, object, attrs, n);
}

static CK_RV
shim_GenerateKey(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism,
				 CK_ATTRIBUTE *attrs, unsigned long n, CK_OBJECT_HANDLE *key)
{
	BEFORE("C_GenerateKey", rules_session(session));
	return real->C_GenerateKey(session, mechanism, attrs, n, key);
}

static CK_RV
shim_DestroyObject(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
	BEFORE("C_DestroyObject", rules_session(session));
	return real->C_DestroyObject(session, object);
}

/* Choose the IV as told; false if the caller's is to be used. */
static bool
choose_iv(void)
{
	char		kind[64];

	if (!told("iv", kind, sizeof(kind)))
		return false;
	iv_told = strcmp(kind, "hidden") != 0;
	memset(iv_now, strcmp(kind, "zero") == 0 ? 0 : 0x5a, IV_LEN);
	if (strcmp(kind, "own") == 0 || strcmp(kind, "hidden") == 0)
		return getrandom(iv_now, IV_LEN, 0) == IV_LEN;
	return true;
}

static CK_RV
shim_EncryptInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
	CK_MECHANISM changed = *mechanism;
	CK_GCM_PARAMS params;
	CK_RV		rv;

	BEFORE("C_EncryptInit", rules_begin(session, RULES_ENCRYPT));
	iv_out = NULL;
	if (mechanism->mechanism != CKM_AES_GCM || !choose_iv())
	{
		rv = real->C_EncryptInit(session, mechanism, key);
		rules_set(session, RULES_ENCRYPT, rv == CKR_OK);
		return rv;
	}
	memcpy(&params, mechanism->pParameter, sizeof(params));
	iv_out = params.pIv;
	params.pIv = iv_now;
	changed.pParameter = &params;
	rv = real->C_EncryptInit(session, &changed, key);
	rules_set(session, RULES_ENCRYPT, rv == CKR_OK);
	return rv;
}

static CK_RV
shim_Encrypt(CK_SESSION_HANDLE session, unsigned char *in, unsigned long in_len,
			 unsigned char *out, unsigned long *out_len)
{
	CK_RV		rv;

	BEFORE_END("C_Encrypt", RULES_ENCRYPT, real->C_Encrypt);
	rv = real->C_Encrypt(session, in, in_len, out, out_len);
	if (rv == CKR_OK && iv_out != NULL && iv_told)
		memcpy(iv_out, iv_now, IV_LEN);
	return rv;
}

static CK_RV
shim_DecryptInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
	CK_RV		rv;

	BEFORE("C_DecryptInit", rules_begin(session, RULES_DECRYPT));
	rv = real->C_DecryptInit(session, mechanism, key);
	rules_set(session, RULES_DECRYPT, rv == CKR_OK);
	return rv;
}

static CK_RV
shim_Decrypt(CK_SESSION_HANDLE session, unsigned char *in, unsigned long in_len,
			 unsigned char *out, unsigned long *out_len)
{
	CK_RV		rv;

	BEFORE_END("C_Decrypt", RULES_DECRYPT, real->C_Decrypt);
	rv = real->C_Decrypt(session, in, in_len, out, out_len);
	if (rv == CKR_OK && told_to("decrypt", "long"))
		*out_len = 1000000;
	return rv;
}

static CK_RV
load_real(void)
{
	const char *path = getenv("NOMP_SHIM_MODULE");
	void	   *module = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	CK_C_GetFunctionList get = NULL;

	if (module != NULL)
		*(void **) &get = dlsym(module, "C_GetFunctionList");
	return get != NULL ? get(&real) : CKR_GENERAL_ERROR;
}

CK_RV
C_GetFunctionList(CK_FUNCTION_LIST **out)
{
	CK_RV		rv = real == NULL ? load_real() : CKR_OK;

	if (rv != CKR_OK)
		return rv;
	rules_log = log_rule;
	list = *real;
	list.C_GetFunctionList = C_GetFunctionList;
	list.C_Initialize = shim_Initialize;
	list.C_Finalize = shim_Finalize;
	list.C_GetSlotList = shim_GetSlotList;
	list.C_GetTokenInfo = shim_GetTokenInfo;
	list.C_GetMechanismList = shim_GetMechanismList;
	list.C_GetMechanismInfo = shim_GetMechanismInfo;
	list.C_OpenSession = shim_OpenSession;
	list.C_CloseSession = shim_CloseSession;
	list.C_Login = shim_Login;
	list.C_FindObjectsInit = shim_FindObjectsInit;
	list.C_FindObjects = shim_FindObjects;
	list.C_FindObjectsFinal = shim_FindObjectsFinal;
	list.C_GetAttributeValue = shim_GetAttributeValue;
	list.C_SetAttributeValue = shim_SetAttributeValue;
	list.C_GenerateKey = shim_GenerateKey;
	list.C_DestroyObject = shim_DestroyObject;
	list.C_EncryptInit = shim_EncryptInit;
	list.C_Encrypt = shim_Encrypt;
	list.C_DecryptInit = shim_DecryptInit;
	list.C_Decrypt = shim_Decrypt;
	*out = &list;
	return CKR_OK;
}
