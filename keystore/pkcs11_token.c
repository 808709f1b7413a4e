/*
 * pkcs11_token.c
 *		Opens the token that the URI names: module, slot, session, login.
 *
 * The module is initialised here and nowhere else, with one read-write
 * session that stays logged in.  A session that was lost is not repaired:
 * everything is closed, the module finalised, and opened anew
 * (p11_run does so, once per request).
 *
 * The PIN lives in one static buffer, wiped right after C_Login.  A PIN file
 * that was refused once is not tried again until it changes, because every
 * attempt brings the token nearer to locking.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pkcs11.h"

#define MAX_SLOTS	4096
#define LOGIN_SECONDS	600		/* as long as the broker would wait at most */

static uint8_t pin[MAX_PIN];

/* Errors after which another try with a fresh session makes sense. */
static bool
session_is_lost(CK_RV rv)
{
	switch (rv)
	{
		case CKR_SESSION_HANDLE_INVALID:
		case CKR_SESSION_CLOSED:
		case CKR_USER_NOT_LOGGED_IN:
		case CKR_DEVICE_REMOVED:
		case CKR_DEVICE_ERROR:
		case CKR_TOKEN_NOT_PRESENT:
		case CKR_TOKEN_NOT_RECOGNIZED:
		case CKR_SLOT_ID_INVALID:
		case CKR_CRYPTOKI_NOT_INITIALIZED:
		case CKR_OPERATION_ACTIVE:
		case CKR_OPERATION_NOT_INITIALIZED:
			return true;
		default:
			return false;
	}
}

bool
p11_stale_handle(CK_RV rv)
{
	return rv == CKR_OBJECT_HANDLE_INVALID || rv == CKR_KEY_HANDLE_INVALID;
}

/* Report what a function of the module answered. */
KsStatus
p11_failed(Keystore *ks, const char *function, CK_RV rv)
{
	if (session_is_lost(rv))
		ks->lost = true;
	return p11_refuse(ks, KS_MODULE_ERROR, "%s: %s (0x%lx)", function,
					  p11_kit_strerror(rv), rv);
}

/* Copy a blank-padded field of the module's as printable ASCII. */
void
p11_text(const unsigned char *field, size_t len, char *out)
{
	while (len > 0 && (field[len - 1] == ' ' || field[len - 1] == '\0'))
		len--;
	for (size_t i = 0; i < len; i++)
		out[i] = field[i] >= 0x20 && field[i] < 0x7f ? (char) field[i] : '?';
	out[len] = '\0';
}

void
p11_serial(const Keystore *ks, char *out)
{
	p11_text(ks->token.serialNumber, sizeof(ks->token.serialNumber), out);
}

/* Is the token in the slot still the one that was opened? */
KsStatus
p11_same_token(Keystore *ks)
{
	CK_TOKEN_INFO now;
	CK_RV		rv;

	memset(&now, 0, sizeof(now));
	rv = ks->f->C_GetTokenInfo(ks->slot, &now);
	if (rv != CKR_OK)
		return p11_failed(ks, "C_GetTokenInfo", rv);
	if (memcmp(now.serialNumber, ks->token.serialNumber, sizeof(now.serialNumber)) != 0)
		return p11_refuse(ks, KS_TOKEN_WRONG, "the token's serial number changed");
	return KS_OK;
}

/* The functions this provider calls are all there. */
static bool
module_is_complete(const CK_FUNCTION_LIST *f)
{
	return f->version.major >= 2 &&
		f->C_Initialize != NULL && f->C_Finalize != NULL &&
		f->C_GetSlotList != NULL && f->C_GetSlotInfo != NULL &&
		f->C_GetTokenInfo != NULL && f->C_GetMechanismInfo != NULL &&
		f->C_OpenSession != NULL && f->C_CloseSession != NULL &&
		f->C_Login != NULL && f->C_FindObjectsInit != NULL &&
		f->C_FindObjects != NULL && f->C_FindObjectsFinal != NULL &&
		f->C_GetAttributeValue != NULL && f->C_SetAttributeValue != NULL &&
		f->C_GenerateKey != NULL && f->C_DestroyObject != NULL &&
		f->C_EncryptInit != NULL && f->C_Encrypt != NULL &&
		f->C_DecryptInit != NULL && f->C_Decrypt != NULL;
}

static KsStatus
load_module(Keystore *ks)
{
	const char *reason;

	if (ks->f != NULL)
		return KS_OK;
	ks->f = p11_kit_module_load(ks->module_path, P11_KIT_MODULE_UNMANAGED);
	if (ks->f == NULL)
	{
		reason = p11_kit_message();
		return p11_refuse(ks, KS_MODULE_LOAD, "module \"%s\": %s", ks->module_path,
						  reason != NULL ? reason : "cannot be loaded");
	}
	if (module_is_complete(ks->f))
		return KS_OK;
	p11_kit_module_release(ks->f);
	ks->f = NULL;
	return p11_refuse(ks, KS_MODULE_LOAD, "module \"%s\" lacks functions",
					  ks->module_path);
}

static KsStatus
initialize_module(Keystore *ks)
{
	CK_C_INITIALIZE_ARGS args;
	CK_RV		rv;

	memset(&args, 0, sizeof(args));
	args.flags = CKF_OS_LOCKING_OK;
	/* the module may not write there, but the standard's type has no const */
	args.pReserved = (void *) (uintptr_t) ks->init_reserved;
	rv = ks->f->C_Initialize(&args);
	if (rv != CKR_OK && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED)
		return p11_refuse(ks, KS_MODULE_LOAD, "C_Initialize: %s (0x%lx)",
						  p11_kit_strerror(rv), rv);
	ks->initialized = true;
	return KS_OK;
}

/* Does the token in this slot match?  Fills ks->slot and ks->token if so. */
static bool
slot_matches(Keystore *ks, CK_SLOT_ID slot, size_t *blank)
{
	CK_SLOT_ID	wanted = p11_kit_uri_get_slot_id(ks->uri);
	CK_SLOT_INFO slot_info;
	CK_TOKEN_INFO token;

	memset(&slot_info, 0, sizeof(slot_info));
	memset(&token, 0, sizeof(token));
	if (wanted != (CK_SLOT_ID) -1 && wanted != slot)
		return false;
	if (ks->f->C_GetSlotInfo(slot, &slot_info) != CKR_OK ||
		ks->f->C_GetTokenInfo(slot, &token) != CKR_OK ||
		!p11_kit_uri_match_slot_info(ks->uri, &slot_info))
		return false;
	if ((token.flags & CKF_TOKEN_INITIALIZED) == 0)
	{
		(*blank)++;
		return false;
	}
	if (!p11_kit_uri_match_token_info(ks->uri, &token))
		return false;
	ks->slot = slot;
	ks->token = token;
	return true;
}

static KsStatus
find_token(Keystore *ks)
{
	CK_SLOT_ID *slots = calloc(MAX_SLOTS, sizeof(*slots));
	CK_ULONG	n = MAX_SLOTS;
	size_t		matching = 0;
	size_t		blank = 0;
	CK_RV		rv;

	if (slots == NULL)
		return p11_refuse(ks, KS_MODULE_ERROR, "out of memory");
	/* some modules look for new tokens only if asked for the number */
	(void) ks->f->C_GetSlotList(CK_TRUE, NULL, &n);
	n = MAX_SLOTS;
	rv = ks->f->C_GetSlotList(CK_TRUE, slots, &n);
	if (rv == CKR_OK && n <= MAX_SLOTS)
	{
		/* on the second match ks->slot is wrong, but then it is not used */
		for (CK_ULONG i = 0; i < n; i++)
			matching += slot_matches(ks, slots[i], &blank);
	}
	free(slots);
	if (rv != CKR_OK)
		return p11_failed(ks, "C_GetSlotList", rv);
	if (n > MAX_SLOTS)
		return p11_refuse(ks, KS_MODULE_ERROR, "C_GetSlotList: too many slots");
	if (matching == 0)
		return p11_refuse(ks, KS_TOKEN_MISSING,
						  "no token matches the keystore's URI (%lu tokens present, %zu of them not initialised)",
						  n, blank);
	if (matching > 1)
		return p11_refuse(ks, KS_TOKEN_MISSING,
						  "%zu tokens match the keystore's URI; name the serial too",
						  matching);
	return KS_OK;
}

/*
 * Check one mechanism.  Key sizes count bytes for AES, but bits in some
 * modules, and are left zero in others.
 */
static KsStatus
check_mechanism(Keystore *ks, CK_MECHANISM_TYPE type, CK_FLAGS flags, const char *name)
{
	CK_MECHANISM_INFO info;
	CK_RV		rv;

	memset(&info, 0, sizeof(info));
	rv = ks->f->C_GetMechanismInfo(ks->slot, type, &info);
	if (rv != CKR_OK && rv != CKR_MECHANISM_INVALID)
		return p11_failed(ks, "C_GetMechanismInfo", rv);
	if (rv == CKR_OK && (info.flags & flags) == flags &&
		((info.ulMinKeySize <= 32 && info.ulMaxKeySize >= 32) ||
		 (info.ulMinKeySize <= 256 && info.ulMaxKeySize >= 256) ||
		 info.ulMaxKeySize == 0))
		return KS_OK;
	return p11_refuse(ks, KS_MECHANISM_MISSING,
					  "the token lacks %s with 32-byte keys", name);
}

static KsStatus
check_mechanisms(Keystore *ks)
{
	KsStatus	status = check_mechanism(ks, CKM_AES_KEY_GEN, CKF_GENERATE,
										 "CKM_AES_KEY_GEN");

	if (status != KS_OK)
		return status;
	return check_mechanism(ks, CKM_AES_GCM, CKF_ENCRYPT | CKF_DECRYPT, "CKM_AES_GCM");
}

static KsStatus
refuse_pin(Keystore *ks, const char *stamp, const char *reason)
{
	memmove(ks->refused_pin, stamp, strlen(stamp) + 1);
	memcpy(ks->why->pin_stamp, ks->refused_pin, sizeof(ks->why->pin_stamp));
	return p11_refuse(ks, KS_PIN_INCORRECT, "%s", reason);
}

/*
 * C_Login, which is not cut short by SIGTERM: SoftHSM rewrites the token's
 * file in it, and a process that dies between emptying and writing leaves no
 * token.  A login that hangs ends the helper all the same.
 */
static CK_RV
log_in_undisturbed(Keystore *ks, size_t len)
{
	sigset_t	term;
	sigset_t	before;
	CK_RV		rv;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	(void) sigprocmask(SIG_BLOCK, &term, &before);
	(void) alarm(LOGIN_SECONDS);
	rv = ks->f->C_Login(ks->session, CKU_USER, pin, len);
	(void) alarm(0);
	(void) sigprocmask(SIG_SETMASK, &before, NULL);
	return rv;
}

/* Log in with the PIN in the buffer. */
static KsStatus
try_pin(Keystore *ks, size_t len, const char *stamp)
{
	CK_RV		rv;

	if (strcmp(stamp, ks->refused_pin) == 0)
		return refuse_pin(ks, stamp, "the PIN in this file was refused before: it is not tried again until the file changes");
	rv = log_in_undisturbed(ks, len);
	switch (rv)
	{
		case CKR_OK:
		case CKR_USER_ALREADY_LOGGED_IN:
			return KS_OK;
		case CKR_PIN_INCORRECT:
		case CKR_PIN_INVALID:
		case CKR_PIN_LEN_RANGE:
			return refuse_pin(ks, stamp, "the token refused the PIN");
		case CKR_PIN_LOCKED:
			return p11_refuse(ks, KS_PIN_LOCKED, "the token has locked its PIN");
		default:
			return p11_failed(ks, "C_Login", rv);
	}
}

static KsStatus
log_in(Keystore *ks)
{
	char		stamp[KS_MAX_PIN_STAMP + 1];
	size_t		len = 0;
	KsStatus	status;

	if (ks->pin_path == NULL)
	{
		if ((ks->token.flags & CKF_LOGIN_REQUIRED) == 0)
			return KS_OK;
		return p11_refuse(ks, KS_PIN_FILE, "the keystore's URI has no pin-source");
	}
	if ((ks->token.flags & CKF_USER_PIN_LOCKED) != 0)
		return p11_refuse(ks, KS_PIN_LOCKED, "the token has locked its PIN");
	(void) mlock(pin, sizeof(pin));
	status = p11_read_pin(ks, pin, &len, stamp);
	if (status == KS_OK)
		status = try_pin(ks, len, stamp);
	explicit_bzero(pin, sizeof(pin));
	return status;
}

static KsStatus
open_session(Keystore *ks)
{
	CK_RV		rv = ks->f->C_OpenSession(ks->slot, CKF_SERIAL_SESSION | CKF_RW_SESSION,
										  NULL, NULL, &ks->session);

	if (rv != CKR_OK)
		return p11_failed(ks, "C_OpenSession", rv);
	ks->open = true;
	return KS_OK;
}

/* Open the token and learn its keys, or leave everything closed. */
KsStatus
p11_open(Keystore *ks)
{
	KsStatus	status = KS_OK;

	if (ks->open)
		return KS_OK;
	if (ks->uri == NULL)
		return p11_refuse(ks, KS_BAD_URI, "%s", ks->bad_uri);
	status = load_module(ks);
	if (status == KS_OK)
		status = initialize_module(ks);
	if (status == KS_OK)
		status = find_token(ks);
	if (status == KS_OK)
		status = check_mechanisms(ks);
	if (status == KS_OK)
		status = open_session(ks);
	if (status == KS_OK)
		status = log_in(ks);
	if (status == KS_OK)
		status = p11_know_all(ks);
	if (status == KS_OK)
		(void) clock_gettime(CLOCK_MONOTONIC, &ks->opened_at);
	else
		p11_close(ks);
	return status;
}

/* Close what is open; errors do not matter any more. */
void
p11_close(Keystore *ks)
{
	p11_forget_all(ks);
	if (ks->open)
		(void) ks->f->C_CloseSession(ks->session);
	ks->open = false;
	if (ks->initialized)
		(void) ks->f->C_Finalize(NULL);
	ks->initialized = false;
}

/* Is nothing open, or only since so shortly that it need not be questioned? */
bool
p11_is_new(const Keystore *ks)
{
	struct timespec now;

	(void) clock_gettime(CLOCK_MONOTONIC, &now);
	return !ks->open || now.tv_sec - ks->opened_at.tv_sec < 1 ||
		(now.tv_sec - ks->opened_at.tv_sec == 1 &&
		 now.tv_nsec < ks->opened_at.tv_nsec);
}
