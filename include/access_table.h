/*
 * access_table.h
 *		Counts of use, per role, tenant and hour, for the whole node.
 */
#ifndef NOMP_ACCESS_TABLE_H
#define NOMP_ACCESS_TABLE_H

#include "postgres.h"

typedef enum AccessKind
{
	ACCESS_READ,
	ACCESS_WRITTEN,
	ACCESS_SEARCHED
} AccessKind;

#define ACCESS_KINDS	(ACCESS_SEARCHED + 1)

/* Hashed as bytes: zero it before filling it in. */
typedef struct AccessKey
{
	int64		hour;			/* since PostgreSQL's epoch */
	char		database[NAMEDATALEN];
	char		role[NAMEDATALEN];
	char		tenant[NAMEDATALEN * 2];
} AccessKey;

typedef struct AccessEntry
{
	AccessKey	key;
	uint64		counts[ACCESS_KINDS];
} AccessEntry;

extern void access_table_shmem_request(void);
extern void access_table_shmem_startup(void);

/* Add to the running hour; false if the caller must write the line himself. */
extern bool access_table_add(const AccessEntry *entry);

/* A palloc'd copy of what has not been written yet. */
extern AccessEntry *access_table_copy(int *n);

/* One line of the server log; for an hour, or for a transaction. */
extern void access_write_hour(const AccessEntry *entry);
extern void access_write_transaction(const AccessEntry *entry, bool by_worker);

/* For the broker: take counts from now on; write what is due; write all, take no more. */
extern void access_table_open(void);
extern void access_table_write_due(void);
extern void access_table_close(void);

#endif							/* NOMP_ACCESS_TABLE_H */
