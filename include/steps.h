/*
 * steps.h
 *		Procedures that go through steps, with a commit after each.
 */
#ifndef NOMP_STEPS_H
#define NOMP_STEPS_H

#include "postgres.h"

#include "fmgr.h"

extern void steps_refuse_atomic(FunctionCallInfo fcinfo, const char *name);
extern void steps_begin(FunctionCallInfo fcinfo, const char *name);
extern char *steps_run(const char *sql, int nargs, char **args);
extern void steps_commit(void);
extern ErrorData *steps_attempt(void (*drive) (char **args), char **args);

#endif							/* NOMP_STEPS_H */
