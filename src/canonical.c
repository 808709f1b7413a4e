/*
 * canonical.c
 *		Stands in for the module of this name until it is merged.
 */
#include "postgres.h"

#include "canonical.h"
#include "envelope.h"
#include "inner.h"
#include "value.h"

bool
canonical_exists(uint8 code)
{
	return code != VALUE_TYPE_JSON && code != VALUE_TYPE_FLOAT4 && code < 0x80;
}

char *
canonical_text(uint8 code, Datum value, Normal normal, size_t *len)
{
	char	   *text = inner_to_text(code, value);

	*len = strlen(text);
	return text;
}

void envelope_fingerprint(const TenantRow *tenant, int rights, const char *text, size_t len,
						  uint8 fingerprint[VALUE_FINGERPRINT_LEN], uint8 *key_id) __attribute__((weak));

void
envelope_fingerprint(const TenantRow *tenant, int rights, const char *text, size_t len,
					 uint8 fingerprint[VALUE_FINGERPRINT_LEN], uint8 *key_id)
{
	memset(fingerprint, 7, VALUE_FINGERPRINT_LEN);
	memcpy(fingerprint, text, Min(len, VALUE_FINGERPRINT_LEN));
}
