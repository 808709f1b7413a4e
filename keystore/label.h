/*
 * label.h
 *		The labels and ids that keys carry in a keystore.
 *
 *		canary       nomp_crypt:<installation>:canary
 *		register     nomp_crypt:<installation>:register:<generation>
 *		head         nomp_crypt:<installation>:head
 *		KEK          nomp_crypt:<installation>:<school>:<generation>
 *		provisional  the KEK's, then :provisional@2026-11-23T20:07:26Z (UTC)
 *
 * "Base" is a KEK's label without the provisional mark.
 */
#ifndef NOMP_LABEL_H
#define NOMP_LABEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "protocol.h"

#define UUID_TEXT_LEN	36
#define KEY_ID_LEN		20		/* school, generation */

typedef struct KsLabel
{
	char		base[KS_MAX_LABEL + 1];
	char		full[KS_MAX_LABEL + 1]; /* as parsed */
	char		inst[UUID_TEXT_LEN + 1];
	char		tenant[UUID_TEXT_LEN + 1];
	uint32_t	generation;
	bool		provisional;
	uint64_t	created;		/* the mark's time */
} KsLabel;

extern bool label_is_uuid(const char *s);
extern bool label_parse(const char *text, KsLabel *out);
extern bool label_make(const char *inst, const char *tenant, uint32_t generation,
					   KsLabel *out);
extern void label_mark(KsLabel *label, time_t now);
extern void label_canary(const char *inst, char out[KS_MAX_LABEL + 1]);
extern void label_register(const char *inst, uint32_t generation,
						   char out[KS_MAX_LABEL + 1]);
extern void label_head(const char *inst, char out[KS_MAX_LABEL + 1]);
extern void label_installation_prefix(const char *inst, char out[KS_MAX_LABEL + 1]);
extern void label_tenant_prefix(const char *inst, const char *tenant,
								char out[KS_MAX_LABEL + 1]);
extern bool label_are_uuids(const char *s);
extern void label_tenants_prefix(const char *inst, const char *tenants,
								 char out[KS_MAX_LABEL + 1]);
extern bool label_is_of(const char *label, const char *inst, const char *tenants);
extern void label_key_id(const char *tenant, uint32_t generation,
						 uint8_t out[KEY_ID_LEN]);

#endif							/* NOMP_LABEL_H */
