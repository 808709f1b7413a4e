/*
 * convert_files.h
 *		Nothing plain is left in the files of a table that was converted.
 */
#ifndef NOMP_CONVERT_FILES_H
#define NOMP_CONVERT_FILES_H

#include "batches.h"

/*
 * For a procedure that is connected to SPI, in a transaction in which nothing
 * was done: writes the table anew, and the statistics, if there may be plain
 * values in them, and waits for so long until nobody sees old ones.  Commits.
 */
extern void convert_files(Oid table, const LockPatience *patience, int64 microseconds);

#endif							/* NOMP_CONVERT_FILES_H */
