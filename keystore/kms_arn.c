/*
 * kms_arn.c
 *		Names of keys, and the wrapped form that begins with one.
 *
 *		arn:<partition>:kms:<region>:<account>:key/<uuid>
 *
 *		wrapped  := 2 | u16 length | ARN | the service's ciphertext
 *
 * Only such full names count: no alias, no key of several regions, no key of
 * another region or account.  Both come from tables and from the network and
 * are checked to the letter.  No secrets here.
 */
#include <stdio.h>
#include <string.h>

#include "kms.h"
#include "wire.h"

#define WRAPPED_FORM	2
#define MULTI_REGION	"mrk-"

/* Copy the text before the next colon; what follows it, or NULL. */
static const char *
take_field(const char *p, char *out, size_t size)
{
	const char *end = strchr(p, ':');

	if (end == NULL || (size_t) (end - p) >= size)
		return NULL;
	memcpy(out, p, (size_t) (end - p));
	out[end - p] = '\0';
	return end + 1;
}

/* A word of small letters, digits and hyphens. */
static bool
is_word(const char *s)
{
	return s[0] >= 'a' && s[0] <= 'z' &&
		s[strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-")] == '\0';
}

static bool
is_account(const char *s)
{
	return strlen(s) == ACCOUNT_LEN && s[strspn(s, "0123456789")] == '\0';
}

/* The name of a key of several regions: "mrk-" and 32 digits. */
static bool
is_multi_region(const char *id)
{
	return strncmp(id, MULTI_REGION, strlen(MULTI_REGION)) == 0 &&
		strlen(id) == strlen(MULTI_REGION) + 32 &&
		id[strlen(MULTI_REGION) + strspn(id + strlen(MULTI_REGION), "0123456789abcdef")] == '\0';
}

bool
kms_arn_parse(const char *text, KmsArn *out)
{
	char		prefix[8];
	char		service[8];
	const char *p = text;

	memset(out, 0, sizeof(*out));
	if (strlen(text) >= sizeof(out->text))
		return false;
	p = take_field(p, prefix, sizeof(prefix));
	p = p == NULL ? NULL : take_field(p, out->partition, sizeof(out->partition));
	p = p == NULL ? NULL : take_field(p, service, sizeof(service));
	p = p == NULL ? NULL : take_field(p, out->region, sizeof(out->region));
	p = p == NULL ? NULL : take_field(p, out->account, sizeof(out->account));
	if (p == NULL || strcmp(prefix, "arn") != 0 || strcmp(service, "kms") != 0 ||
		!is_word(out->partition) || !is_word(out->region) || !is_account(out->account) ||
		strncmp(p, "key/", 4) != 0)
		return false;
	out->multi_region = is_multi_region(p + 4);
	if (!label_is_uuid(p + 4) && !out->multi_region)
		return false;
	strcpy(out->id, p + 4);
	strcpy(out->text, text);
	return true;
}

bool
kms_region_allowed(const Keystore *ks, const char *region)
{
	const size_t len = strlen(region);

	for (const char *p = ks->regions; *p != '\0'; p += strcspn(p, " "))
	{
		p += strspn(p, " ");
		if (len > 0 && strncmp(p, region, len) == 0 && (p[len] == ' ' || p[len] == '\0'))
			return true;
	}
	return false;
}

/* Is it in the keystore's account, or is that not known yet? */
bool
kms_account_is_ours(Keystore *ks, const KmsArn *arn)
{
	bool		ours;

	pthread_mutex_lock(&ks->lock);
	ours = ks->account[0] == '\0' || strcmp(arn->account, ks->account) == 0;
	pthread_mutex_unlock(&ks->lock);
	return ours;
}

/* May a key of that name be used here? */
KsStatus
kms_check_arn(Keystore *ks, const KmsArn *arn, KsFailure *why)
{
	if (!kms_region_allowed(ks, arn->region))
		return ks_fail(why, KS_REGION, "%s is in region %s, which is not allowed",
					   arn->text, arn->region);
	if (strcmp(arn->partition, ks->partition) != 0)
		return ks_fail(why, KS_REGION, "%s is in partition %s, not %s", arn->text,
					   arn->partition, ks->partition);
	if (strcmp(arn->region, ks->options.region) != 0)
		return ks_fail(why, KS_REGION, "%s is in another region than the keystore, %s",
					   arn->text, ks->options.region);
	if (!kms_account_is_ours(ks, arn))
		return ks_fail(why, KS_MODULE_ERROR, "%s is in another account than the keystore",
					   arn->text);
	if (arn->multi_region)
		return ks_fail(why, KS_REGION, "%s is a key of several regions", arn->text);
	return KS_OK;
}

bool
kms_wrapped_parse(KsBytes wrapped, KmsWrapped *out)
{
	WireReader	r = {wrapped.data, wrapped.len, 0, false};
	char		arn[KS_MAX_REFERENCE + 1];

	if (wrapped.len > KS_MAX_WRAPPED || wire_get_uint(&r, 1) != WRAPPED_FORM)
		return false;
	wire_get_cstr(&r, arn, sizeof(arn));
	if (r.bad || r.pos >= r.len)
		return false;
	out->blob = r.buf + r.pos;
	out->blob_len = r.len - r.pos;
	return kms_arn_parse(arn, &out->arn);
}

bool
kms_wrapped_make(const char *arn, const uint8_t *blob, size_t blob_len, KsNewKey *key)
{
	WireWriter	w = {key->wrapped, sizeof(key->wrapped), 0, false};

	wire_put_uint(&w, WRAPPED_FORM, 1);
	wire_put_str(&w, arn, strlen(arn));
	wire_put(&w, blob, blob_len);
	key->wrapped_len = w.len;
	return !w.bad && blob_len > 0;
}
