/*
 * convert_row.h
 *		The encrypted copy of one row's plain value, while a table is being
 *		converted.
 */
#ifndef NOMP_CONVERT_ROW_H
#define NOMP_CONVERT_ROW_H

#include "postgres.h"

#include "access/attnum.h"
#include "utils/relcache.h"

typedef struct ConvertRow ConvertRow;

/*
 * What a conversion needs to know of a relation of its table, allocated in the
 * current context; NULL if there is no such conversion of it.
 */
extern ConvertRow *convert_row_prepare(Relation rel, const char *conversion);

/* The columns: the plain one, and the one that gets the encrypted copy. */
extern AttrNumber convert_row_plain(const ConvertRow *row);
extern AttrNumber convert_row_shadow(const ConvertRow *row);

/*
 * The copy, by a row's values.  False, and null, where it cannot be made: an
 * unknown tenant, a keystore that does not answer.  Raises only what ends the
 * transaction anyway.
 */
extern bool convert_row(ConvertRow *row, const Datum *values, const bool *nulls,
						Datum *copy, bool *isnull);

#endif							/* NOMP_CONVERT_ROW_H */
