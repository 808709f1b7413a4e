/*
 * register.h
 *		The folder outside the data directory that says whose keys these are.
 */
#ifndef NOMP_REGISTER_H
#define NOMP_REGISTER_H

#include "utils/uuid.h"

extern void register_init(void);

extern bool register_beside_data(bool *beside);

/*
 * False if there is no file yet.  *ours: it names this database; *neighbour:
 * it names some database of this data directory.
 */
extern bool register_read(pg_uuid_t *installation, bool *ours, bool *neighbour);

#endif							/* NOMP_REGISTER_H */
