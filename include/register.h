/*
 * register.h
 *		The folder outside the data directory that says whose keys these are.
 */
#ifndef NOMP_REGISTER_H
#define NOMP_REGISTER_H

#include "utils/uuid.h"

extern void register_init(void);

extern bool register_beside_data(bool *beside);

/* A file's path in the folder. */
extern void register_path(char out[MAXPGPATH], const char *name);
/* Is the folder there, and ours alone to write? */
extern bool register_directory_is_good(void);
/* The same and more; raises what is wrong. */
extern void register_check_directory(void);
/* A small file's content, or NULL if there is none. */
extern char *register_slurp(const char *path);
/* Write a file durably, under a temporary name first. */
extern void register_replace(const char *path, const char *text, size_t len);

/*
 * False if there is no file yet.  *ours: it names this database; *neighbour:
 * it names some database of this data directory.
 */
extern bool register_read(pg_uuid_t *installation, bool *ours, bool *neighbour);

#endif							/* NOMP_REGISTER_H */
