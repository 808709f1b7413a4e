/*
 * register_file.h
 *		The register's file in the register directory.
 */
#ifndef NOMP_REGISTER_FILE_H
#define NOMP_REGISTER_FILE_H

extern void register_file_init(void);

#endif							/* NOMP_REGISTER_FILE_H */
