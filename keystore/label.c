/*
 * label.c
 *		Makes and takes apart the labels of label.h.
 *
 * A label read from a token is anybody's data: what does not follow the
 * grammar to the letter is not ours.  No secrets here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "label.h"

#define PREFIX		"nomp_crypt:"
#define MARK		":provisional@"
#define TIME_LEN	20			/* 2026-11-23T20:07:26Z */

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/* Does the text start with a uuid in lower case? */
static bool
starts_with_uuid(const char *s)
{
	for (int i = 0; i < UUID_TEXT_LEN; i++)
	{
		bool		dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? s[i] != '-' : hex_digit(s[i]) < 0)
			return false;
	}
	return true;
}

bool
label_is_uuid(const char *s)
{
	return starts_with_uuid(s) && s[UUID_TEXT_LEN] == '\0';
}

/* Parse exactly "count" digits; -1 if there are others. */
static int
digits(const char *s, int count)
{
	int			value = 0;

	for (int i = 0; i < count; i++)
	{
		if (s[i] < '0' || s[i] > '9')
			return -1;
		value = value * 10 + (s[i] - '0');
	}
	return value;
}

static void
format_time(time_t t, char out[TIME_LEN + 1])
{
	struct tm	tm;

	if (gmtime_r(&t, &tm) == NULL ||
		strftime(out, TIME_LEN + 1, "%Y-%m-%dT%H:%M:%SZ", &tm) != TIME_LEN)
		out[0] = '\0';
}

static bool
parse_time(const char *s, uint64_t *out)
{
	struct tm	tm = {0};
	char		again[TIME_LEN + 1];
	time_t		t;

	if (strlen(s) != TIME_LEN)
		return false;
	tm.tm_year = digits(s, 4) - 1900;
	tm.tm_mon = digits(s + 5, 2) - 1;
	tm.tm_mday = digits(s + 8, 2);
	tm.tm_hour = digits(s + 11, 2);
	tm.tm_min = digits(s + 14, 2);
	tm.tm_sec = digits(s + 17, 2);
	if (tm.tm_year < 70)
		return false;
	t = timegm(&tm);
	format_time(t, again);
	if (t < 0 || strcmp(s, again) != 0)
		return false;
	*out = (uint64_t) t;
	return true;
}

/* Parse a number without sign or leading zeros; returns what follows it. */
static const char *
parse_generation(const char *s, uint32_t *out)
{
	uint64_t	value = 0;
	const char *p = s;

	while (*p >= '0' && *p <= '9' && p - s < 10)
		value = value * 10 + (uint64_t) (*p++ - '0');
	if (p == s || (*s == '0' && p - s > 1) || value > UINT32_MAX)
		return NULL;
	*out = (uint32_t) value;
	return p;
}

bool
label_make(const char *inst, const char *tenant, uint32_t generation, KsLabel *out)
{
	memset(out, 0, sizeof(*out));
	if (!label_is_uuid(inst) || !label_is_uuid(tenant))
		return false;
	memcpy(out->inst, inst, UUID_TEXT_LEN);
	memcpy(out->tenant, tenant, UUID_TEXT_LEN);
	out->generation = generation;
	snprintf(out->base, sizeof(out->base), PREFIX "%s:%s:%u",
			 out->inst, out->tenant, (unsigned) generation);
	memcpy(out->full, out->base, sizeof(out->full));
	return true;
}

/* Parse a KEK's label, with or without mark. */
bool
label_parse(const char *text, KsLabel *out)
{
	const size_t head = strlen(PREFIX);
	char		inst[UUID_TEXT_LEN + 1] = {0};
	char		tenant[UUID_TEXT_LEN + 1] = {0};
	uint32_t	generation;
	const char *rest;

	memset(out, 0, sizeof(*out));
	if (strlen(text) > KS_MAX_LABEL ||
		strlen(text) < head + 2 * (UUID_TEXT_LEN + 1) + 1 ||
		strncmp(text, PREFIX, head) != 0)
		return false;
	memcpy(inst, text + head, UUID_TEXT_LEN);
	memcpy(tenant, text + head + UUID_TEXT_LEN + 1, UUID_TEXT_LEN);
	rest = text + head + 2 * UUID_TEXT_LEN + 1;
	if (text[head + UUID_TEXT_LEN] != ':' || *rest != ':')
		return false;
	rest = parse_generation(rest + 1, &generation);
	if (rest == NULL || !label_make(inst, tenant, generation, out))
		return false;
	memcpy(out->full, text, strlen(text) + 1);
	if (*rest == '\0')
		return true;
	out->provisional = true;
	return strncmp(rest, MARK, strlen(MARK)) == 0 &&
		parse_time(rest + strlen(MARK), &out->created);
}

/* Turn a base label into a provisional one. */
void
label_mark(KsLabel *label, time_t now)
{
	char		when[TIME_LEN + 1];
	size_t		len = strlen(label->base);

	format_time(now, when);
	label->provisional = true;
	label->created = (uint64_t) now;
	memcpy(label->full, label->base, len);
	snprintf(label->full + len, sizeof(label->full) - len, MARK "%s", when);
}

void
label_canary(const char *inst, char out[KS_MAX_LABEL + 1])
{
	snprintf(out, KS_MAX_LABEL + 1, PREFIX "%s:canary", inst);
}

/* The key pair that signs the register. */
void
label_register(const char *inst, uint32_t generation, char out[KS_MAX_LABEL + 1])
{
	snprintf(out, KS_MAX_LABEL + 1, PREFIX "%s:register:%u", inst, (unsigned) generation);
}

/* Where the register's head is remembered. */
void
label_head(const char *inst, char out[KS_MAX_LABEL + 1])
{
	snprintf(out, KS_MAX_LABEL + 1, PREFIX "%s:head", inst);
}

/* What every label of an installation's keys starts with. */
void
label_installation_prefix(const char *inst, char out[KS_MAX_LABEL + 1])
{
	snprintf(out, KS_MAX_LABEL + 1, PREFIX "%s:", inst);
}

/* What every label of a school's keys starts with. */
void
label_tenant_prefix(const char *inst, const char *tenant, char out[KS_MAX_LABEL + 1])
{
	snprintf(out, KS_MAX_LABEL + 1, PREFIX "%s:%s:", inst, tenant);
}

/* One uuid or more, with a blank between each two. */
bool
label_are_uuids(const char *s)
{
	for (;; s += UUID_TEXT_LEN + 1)
	{
		if (!starts_with_uuid(s))
			return false;
		if (s[UUID_TEXT_LEN] != ' ')
			return s[UUID_TEXT_LEN] == '\0';
	}
}

/* What every label of these schools' keys starts with, and maybe others'. */
void
label_tenants_prefix(const char *inst, const char *tenants, char out[KS_MAX_LABEL + 1])
{
	if (label_is_uuid(tenants))
		label_tenant_prefix(inst, tenants, out);
	else
		label_installation_prefix(inst, out);
}

/* Is it a label of one of these schools' keys? */
bool
label_is_of(const char *label, const char *inst, const char *tenants)
{
	char		prefix[KS_MAX_LABEL + 1];
	size_t		len;

	label_installation_prefix(inst, prefix);
	len = strlen(prefix);
	if (strncmp(label, prefix, len) != 0)
		return false;
	for (const char *t = tenants; *t != '\0'; t += UUID_TEXT_LEN + (t[UUID_TEXT_LEN] == ' '))
	{
		if (strncmp(label + len, t, UUID_TEXT_LEN) == 0 && label[len + UUID_TEXT_LEN] == ':')
			return true;
	}
	return false;
}

/* A key's CKA_ID: the school's uuid, then the generation, big-endian. */
void
label_key_id(const char *tenant, uint32_t generation, uint8_t out[KEY_ID_LEN])
{
	int			n = 0;

	for (int i = 0; i < UUID_TEXT_LEN; i += 2)
	{
		if (tenant[i] == '-')
			i++;
		out[n++] = (uint8_t) (hex_digit(tenant[i]) << 4 | hex_digit(tenant[i + 1]));
	}
	for (int i = 0; i < 4; i++)
		out[n++] = (uint8_t) (generation >> (24 - 8 * i));
}
