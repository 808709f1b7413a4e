/*
 * kms_tags.c
 *		What a key's tags say, read from the service.
 *
 * What they say may be anything: whoever may tag keys may have written it.
 * Whose a key is, its description says (kms_look.c).  No secrets here.
 */
#include <stdio.h>
#include <string.h>

#include "kms.h"

#define TAGS_LIMIT		50
#define MAX_TAG_PAGES	4

/* Take in one tag.  A mark that is malformed is none: such a key is kept. */
static void
take_tag(KmsKey *key, char mark[64], const char *name, const char *value)
{
	if (strcmp(name, TAG_LABEL) == 0)
		kms_copy_printable(key->label, sizeof(key->label), value);
	else if (strcmp(name, TAG_PROVISIONAL) == 0)
		kms_copy_printable(mark, 64, value);
	else if (strcmp(name, TAG_HEAD) == 0)
		kms_copy_printable(key->head, sizeof(key->head), value);
}

static void
take_mark(KmsKey *key, const char *mark)
{
	char		marked[KS_MAX_LABEL + 128];
	KsLabel		label;

	snprintf(marked, sizeof(marked), "%s:provisional@%s", key->label, mark);
	if (label_parse(marked, &label) && label.provisional)
	{
		key->provisional = true;
		key->created = label.created;
	}
}

/* Read one page of tags; *marker is what the next begins with, or NULL. */
static KsStatus
read_tag_page(const json_t *body, KmsKey *key, char mark[64], const char **marker,
			  KsFailure *why)
{
	const json_t *tags = json_object_get(body, "Tags");
	const json_t *tag;
	size_t		i;

	*marker = NULL;
	if (!json_is_array(tags))
		return ks_fail(why, KS_MODULE_ERROR, "ListResourceTags: the answer has no tags");
	json_array_foreach(tags, i, tag)
	{
		const char *name = json_string_value(json_object_get(tag, "TagKey"));
		const char *value = json_string_value(json_object_get(tag, "TagValue"));

		if (name == NULL || value == NULL)
			return ks_fail(why, KS_MODULE_ERROR, "ListResourceTags: the answer has a tag without name or value");
		take_tag(key, mark, name, value);
	}
	if (json_is_true(json_object_get(body, "Truncated")))
	{
		*marker = json_string_value(json_object_get(body, "NextMarker"));
		if (*marker == NULL)
			return ks_fail(why, KS_MODULE_ERROR, "ListResourceTags: the answer goes on nowhere");
	}
	return KS_OK;
}

static KsStatus
tags_refused(const AwsReply *reply, const char *arn, KsFailure *why)
{
	if (!kms_error_is(reply, "NotFoundException"))
		return kms_refused("ListResourceTags", reply, why);
	return ks_fail(why, KS_KEY_ABSENT, "the service does not know %s", arn);
}

static KsStatus
read_tags(Keystore *ks, const char *arn, KmsKey *key, KsFailure *why)
{
	char		mark[64] = "";
	json_t	   *request = json_pack("{s:s, s:i}", "KeyId", arn, "Limit", TAGS_LIMIT);

	for (int page = 0; page < MAX_TAG_PAGES; page++)
	{
		AwsReply	reply;
		const char *marker = NULL;
		KsStatus	status = kms_call(ks, AWS_EVERYDAY, "ListResourceTags", request, &reply, why);

		if (status == KS_OK)
			status = read_tag_page(reply.body, key, mark, &marker, why);
		else if (status == KS_REFUSED)
			status = tags_refused(&reply, arn, why);
		request = marker == NULL ? NULL :
			json_pack("{s:s, s:i, s:s}", "KeyId", arn, "Limit", TAGS_LIMIT, "Marker", marker);
		aws_reply_free(&reply);
		if (status == KS_OK && marker == NULL && mark[0] != '\0')
			take_mark(key, mark);
		if (status != KS_OK || marker == NULL)
			return status;
	}
	json_decref(request);
	return ks_fail(why, KS_MODULE_ERROR, "%s has more tags than a key can have", arn);
}

/*
 * Read a key's tags, now, and remember them.  KS_KEY_ABSENT, which is no
 * verdict: the service does not know it.
 */
KsStatus
directory_read(Keystore *ks, const char *arn, KmsKey *out, KsFailure *why)
{
	KmsKey		key = {0};
	KsStatus	status;

	snprintf(key.arn, sizeof(key.arn), "%s", arn);
	status = read_tags(ks, arn, &key, why);
	if (status == KS_KEY_ABSENT)
		directory_gone(ks->directory, arn);
	if (status == KS_ACCESS_DENIED)
	{
		const KsFailure said = *why;

		return ks_fail(why, status, "it cannot be known whose key %s is; let the IAM policy, and its own "
					   "if somebody else's, allow kms:ListResourceTags: %.200s", arn, said.reason);
	}
	if (status != KS_OK)
		return status;
	if (!directory_put(ks->directory, &key) || !directory_get(ks->directory, arn, out))
		return ks_fail(why, KS_MODULE_ERROR, "out of memory");
	return KS_OK;
}
