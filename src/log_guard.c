/*
 * log_guard.c
 *		Keeps personal data in error messages out of the server log.
 *
 * In a session that names a tenant, and for our own errors, an error's
 * DETAIL, CONTEXT, QUERY and statement are not logged (but the reason that
 * the keystore gave is), and its message only if its SQLSTATE belongs to a
 * class whose messages name nothing but objects; otherwise the message's
 * untranslated template is logged, without what was filled in.  The client
 * sees everything, as without us.
 *
 * emit_log_hook is called before both are written, with one ErrorData for
 * both: so the log's message is written here, and the original is kept from
 * the log alone.
 */
#include "postgres.h"

#include "guard.h"
#include "miscadmin.h"
#include "session.h"
#include "tcop/tcopprot.h"
#include "utils/elog.h"

static emit_log_hook_type next_emit = NULL;

/* Classes whose messages name objects, states and limits, never values. */
static bool
names_objects_only(int sqlerrcode)
{
	static const char *const classes[] = {
		"08", "23", "25", "26", "28", "2B", "2D", "34", "3B", "3D", "3F", "40",
		"53", "54", "55", "57", "58", "F0", "NC"
	};
	char		code[6];

	strlcpy(code, unpack_sql_state(sqlerrcode), sizeof(code));
	if (strcmp(code, "42501") == 0 || strcmp(code, "42P01") == 0 ||
		strcmp(code, "0A000") == 0)
		return true;
	for (int i = 0; i < lengthof(classes); i++)
	{
		if (strncmp(code, classes[i], 2) == 0)
			return true;
	}
	return false;
}

/* Our own errors: a statement that forgot the tenant has plaintext in it. */
static bool
is_ours(int sqlerrcode)
{
	return strncmp(unpack_sql_state(sqlerrcode), "NC", 2) == 0;
}

/* An application's RAISE may say anything under any SQLSTATE, but ours. */
static bool
keeps_message(const ErrorData *edata)
{
	return names_objects_only(edata->sqlerrcode) &&
		(is_ours(edata->sqlerrcode) || edata->funcname == NULL ||
		 strcmp(edata->funcname, "exec_stmt_raise") != 0);
}

/* A PIN that somebody wrote where none belongs, and was refused. */
static bool
quotes_pin(void)
{
	return debug_query_string != NULL && strcasestr(debug_query_string, "pin-value") != NULL;
}

static void
guard_log(ErrorData *edata)
{
	static bool inside = false;

	if (next_emit != NULL)
		next_emit(edata);
	if (quotes_pin())
		edata->hide_stmt = true;
	if (inside || edata->elevel < WARNING || !edata->output_to_server ||
		(!session_names_tenant() && !is_ours(edata->sqlerrcode)))
		return;
	edata->hide_stmt = true;
	edata->hide_ctx = true;
	/* what we write for the log alone is a keystore's reason: never a value */
	if (edata->detail_log != NULL ? !is_ours(edata->sqlerrcode) : edata->detail != NULL)
		edata->detail_log = pstrdup("Withheld, as is the statement: the session was inside a tenant.");
	if (keeps_message(edata) && edata->internalquery == NULL)
		return;

	/* write the template instead; the client's copy stays as it is */
	edata->output_to_server = false;
	inside = true;
	ereport(LOG_SERVER_ONLY,
			(errcode(edata->sqlerrcode),
			 errmsg_internal("%s: %s", edata->elevel >= FATAL ? "FATAL" :
							 edata->elevel >= ERROR ? "ERROR" : "WARNING",
							 keeps_message(edata) ? edata->message :
							 edata->message_id != NULL ? edata->message_id : "(message withheld)"),
			 errdetail_internal("Values, statement and context withheld: the session was inside a tenant."),
			 errhidestmt(true), errhidecontext(true)));
	inside = false;
}

void
log_guard_init(void)
{
	next_emit = emit_log_hook;
	emit_log_hook = guard_log;
}
