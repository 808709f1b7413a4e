/*
 * tables.h
 *		Tables with encrypted columns, for commands that go through all rows.
 */
#ifndef NOMP_TABLES_H
#define NOMP_TABLES_H

#include "postgres.h"

#include "access/attnum.h"
#include "nodes/pg_list.h"
#include "storage/block.h"
#include "utils/acl.h"
#include "utils/relcache.h"

typedef struct TableColumns
{
	int			n;
	AttrNumber *numbers;
} TableColumns;

/* By name, as the session's search_path has it.  Raises 42P01. */
extern Oid	tables_by_name(const char *name);

/* For messages: schema.table, quoted where needed. */
extern char *tables_name(Oid table);

/*
 * The current role has those privileges on the table, or on that column of
 * it (NULL: on all that can hold our values), and no row-level security hides
 * rows from it.  Raises 42501, 42703, 42804, 42809.
 */
extern void tables_require(Oid table, const char *column, AclMode mode);

/* The relations that hold its rows, itself or its partitions and children. */
extern List *tables_storage(Oid table);

/* How many blocks a relation has now; none if it is gone. */
extern BlockNumber tables_blocks(Oid relid);

/* All tables of the database that can hold our values. */
extern List *tables_all(void);

/* Those, and their parents, that can hold searchable ones, in order of OIDs. */
extern List *tables_searchable(void);

/*
 * A relation's columns that can hold our values, or that one of them, without
 * those that are computed from others.
 */
extern TableColumns tables_columns(Relation rel, const char *column);

/* The column that says whose row it is, by the trigger enforce_tenant; or 0. */
extern AttrNumber tables_school(Relation rel);

/* What that column says; char(n)'s padding is not part of it. */
extern char *tables_school_text(Datum value, Oid base_type, Oid output);

#endif							/* NOMP_TABLES_H */
