/*
 * pkcs11_rules.h
 *		PKCS#11's rules for processes, sessions and operations, which many
 *		modules do not enforce and hardware does.  For pkcs11_shim.c.
 *
 * A call that breaks one gets the standard's error instead of an answer, and
 * a line "RULE ..." in the shim's log.
 */
#ifndef NOMP_PKCS11_RULES_H
#define NOMP_PKCS11_RULES_H

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include <p11-kit/pkcs11.h>

#define RULES_SESSIONS	64

typedef enum RulesOperation
{
	RULES_FIND,
	RULES_ENCRYPT,
	RULES_DECRYPT,
	RULES_OPERATIONS
} RulesOperation;

typedef struct RulesSession
{
	CK_SESSION_HANDLE handle;	/* 0: none */
	bool		active[RULES_OPERATIONS];
} RulesSession;

static pid_t rules_process;		/* that initialised the module; 0: none */
static RulesSession rules_sessions[RULES_SESSIONS];
static void (*rules_log)(const char *line);

static CK_RV
rules_broken(const char *rule, CK_RV rv)
{
	rules_log(rule);
	return rv;
}

static void
rules_forget(void)
{
	rules_process = 0;
	memset(rules_sessions, 0, sizeof(rules_sessions));
}

/* May this process initialise the module? */
static CK_RV
rules_initialize(void)
{
	if (rules_process == getpid())
		return rules_broken("RULE initialised twice", CKR_CRYPTOKI_ALREADY_INITIALIZED);
	return CKR_OK;
}

static void
rules_initialized(void)
{
	rules_forget();
	rules_process = getpid();
}

/* May this process call a function that needs no session? */
static CK_RV
rules_call(void)
{
	if (rules_process == getpid())
		return CKR_OK;
	return rules_broken(rules_process == 0 ? "RULE not initialised" :
						"RULE initialised by another process",
						CKR_CRYPTOKI_NOT_INITIALIZED);
}

static RulesSession *
rules_find_session(CK_SESSION_HANDLE handle)
{
	for (int i = 0; i < RULES_SESSIONS; i++)
	{
		if (rules_sessions[i].handle == handle)
			return &rules_sessions[i];
	}
	return NULL;
}

static void
rules_opened(CK_SESSION_HANDLE handle)
{
	RulesSession *session = rules_find_session(0);

	if (session == NULL)
		rules_log("RULE too many sessions");
	else
		session->handle = handle;
}

static void
rules_closed(CK_SESSION_HANDLE handle)
{
	RulesSession *session = rules_find_session(handle);

	if (session != NULL)
		memset(session, 0, sizeof(*session));
}

/* May it use this session? */
static CK_RV
rules_session(CK_SESSION_HANDLE handle)
{
	CK_RV		rv = rules_call();

	if (rv == CKR_OK && (handle == 0 || rules_find_session(handle) == NULL))
		return rules_broken("RULE no such session", CKR_SESSION_HANDLE_INVALID);
	return rv;
}

/* May it begin that operation in it? */
static CK_RV
rules_begin(CK_SESSION_HANDLE handle, RulesOperation operation)
{
	CK_RV		rv = rules_session(handle);

	if (rv == CKR_OK && rules_find_session(handle)->active[operation])
		return rules_broken("RULE begun twice", CKR_OPERATION_ACTIVE);
	return rv;
}

/* May it go on with it? */
static CK_RV
rules_go_on(CK_SESSION_HANDLE handle, RulesOperation operation)
{
	CK_RV		rv = rules_session(handle);

	if (rv == CKR_OK && !rules_find_session(handle)->active[operation])
		return rules_broken("RULE not begun", CKR_OPERATION_NOT_INITIALIZED);
	return rv;
}

static void
rules_set(CK_SESSION_HANDLE handle, RulesOperation operation, bool active)
{
	RulesSession *session = rules_find_session(handle);

	if (session != NULL)
		session->active[operation] = active;
}

#endif							/* NOMP_PKCS11_RULES_H */
