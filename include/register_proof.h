/*
 * register_proof.h
 *		Was a school erased?  The register says so, or nobody.
 */
#ifndef NOMP_REGISTER_PROOF_H
#define NOMP_REGISTER_PROOF_H

#include "catalog.h"

/*
 * For a school whose row says that it was erased: does a record of the
 * register that verifies say so too?  Raises NC004 if that cannot be known now.
 */
extern bool register_proves_erased(const TenantRow *tenant);

/* The same; raises NC003 if not. */
extern void register_require_erased(const TenantRow *tenant);

/* Raises that the school was erased, if that is proved, or why not. */
extern void register_raise_erased(const TenantRow *tenant) pg_attribute_noreturn();

#endif							/* NOMP_REGISTER_PROOF_H */
