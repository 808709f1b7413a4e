/*
 * relchange.c
 *		Who wants to know when PostgreSQL says that a relation has changed.
 *
 * PostgreSQL has room for ten relcache callbacks in a process, for itself and
 * all extensions, and ends a process that wants more.  This takes one of them
 * for all of ours.
 */
#include "postgres.h"

#include "relchange.h"
#include "utils/inval.h"

#define MAX_LISTENERS	8

static void (*listeners[MAX_LISTENERS]) (Oid relid);
static int	num_listeners = 0;

static void
at_change(Datum arg, Oid relid)
{
	for (int i = 0; i < num_listeners; i++)
		listeners[i] (relid);
}

void
relchange_listen(void (*callback) (Oid relid))
{
	if (num_listeners == MAX_LISTENERS)
		elog(ERROR, "too many listeners for changes of relations");
	if (num_listeners == 0)
		CacheRegisterRelcacheCallback(at_change, (Datum) 0);
	listeners[num_listeners++] = callback;
}
