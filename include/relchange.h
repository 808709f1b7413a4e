/*
 * relchange.h
 *		Who wants to know when PostgreSQL says that a relation has changed.
 */
#ifndef NOMP_RELCHANGE_H
#define NOMP_RELCHANGE_H

#include "postgres.h"

/* Call it with the relation's OID, or InvalidOid for any, from now on. */
extern void relchange_listen(void (*callback) (Oid relid));

#endif							/* NOMP_RELCHANGE_H */
