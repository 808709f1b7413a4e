/*
 * kms.c
 *		AWS KMS as a keystore: its table, its beginning and end, its status.
 *
 * No secrets here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kms.h"

#define IN_FLIGHT 32

static void
expect(Keystore *ks, const char *serial, uint32_t patience)
{
	kms_expect(serial);
	kms_set_patience(patience);
}

/* Does the service answer to our credentials? */
static KsStatus
ask_anything(Keystore *ks, KsFailure *why)
{
	AwsReply	reply;
	KsStatus	status = kms_call(ks, AWS_EVERYDAY, "ListKeys", json_pack("{s:i}", "Limit", 1),
								  &reply, why);

	if (status == KS_REFUSED)
		status = kms_refused("ListKeys", &reply, why);
	aws_reply_free(&reply);
	return status;
}

/*
 * The helper before this one knew the canary by name: look at that key's tags,
 * now, so that not every key's in the account must be read.  It is the canary
 * only if they say so, and seen as such by whoever asks for it; if not, it is
 * looked for as if nothing had been said.
 */
static KsStatus
look_at_last_canary(Keystore *ks, const char *inst, KsFailure *why)
{
	KmsArn		arn;
	KmsKey		key;
	KsStatus	status;

	if (kms_knows_canary(ks, inst) || !kms_arn_parse(ks->last_canary, &arn) ||
		kms_check_arn(ks, &arn, why) != KS_OK)
		return KS_OK;
	status = directory_read(ks, arn.text, &key, why);
	return status == KS_KEY_ABSENT || status == KS_ACCESS_DENIED || status == KS_REFUSED ?
		KS_OK : status;
}

/* An account without a canary is one that may be set up; else it must be right. */
static KsStatus
find_canary(Keystore *ks, const char *inst, KsTokenStatus *out, KsFailure *why)
{
	KmsKey		canary;
	KsStatus	status = look_at_last_canary(ks, inst, why);

	if (status == KS_OK)
		status = kms_canary(ks, inst, &canary, why);
	out->canary = status == KS_OK;
	if (out->canary)
		strcpy(out->canary_name, canary.arn);
	return status == KS_TOKEN_WRONG && !kms_knows_canary(ks, inst) ? KS_OK : status;
}

static KsStatus
service_status(Keystore *ks, const char *inst, KsTokenStatus *out, KsFailure *why)
{
	const char *source;
	KsStatus	status = ks->bad;

	*why = ks->bad_why;
	memset(out, 0, sizeof(*out));
	if (status != KS_OK)
		return status;
	snprintf(out->label, sizeof(out->label), "AWS KMS %.40s", ks->options.region);
	strcpy(out->manufacturer, "Amazon");
	strcpy(out->model, "KMS");
	out->software = ks->options.test;
	status = inst[0] == '\0' ? ask_anything(ks, why) : find_canary(ks, inst, out, why);
	if (status == KS_OK)
		status = kms_check_expected(ks, why);
	kms_serial(ks, out->serial);
	source = aws_credentials_source(ks->client, &out->lasting);
	snprintf(out->credentials, sizeof(out->credentials), "%s", source != NULL ? source : "");
	return status;
}

/* What is wrong with the setting is told at the first request. */
static Keystore *
create(const KsGreeting *greeting)
{
	Keystore   *ks = calloc(1, sizeof(*ks));

	if (ks == NULL)
		return NULL;
	pthread_mutex_init(&ks->lock, NULL);
	memcpy(ks->regions, greeting->regions, sizeof(ks->regions));
	memcpy(ks->last_canary, greeting->canary, sizeof(ks->last_canary));
	ks->directory = directory_new();
	ks->bad = kms_configure(ks, greeting->uri, &ks->bad_why);
	if (ks->bad == KS_OK)
		ks->client = aws_client_create(&ks->options, &ks->bad_why, &ks->bad);
	if (ks->bad == KS_OK && (ks->client == NULL || ks->directory == NULL))
		ks->bad = ks_fail(&ks->bad_why, KS_MODULE_ERROR, "out of memory");
	if (ks->bad == KS_OK)
		memset(&ks->bad_why, 0, sizeof(ks->bad_why));
	return ks;
}

static void
close_keystore(Keystore *ks)
{
	if (ks->client != NULL)
		aws_client_free(ks->client);
	directory_free(ks->directory);
	pthread_mutex_destroy(&ks->lock);
	free(ks);
}

const KeystoreProvider kms_provider = {
	.scheme = "aws-kms:",
	.capabilities = {
		.destroys_at_once = false,
		.can_disable = true,
		.forgets_keys = true,
	},
	.max_in_flight = IN_FLIGHT,
	.create = create,
	.close = close_keystore,
	.expect = expect,
	.status = service_status,
	.setup = kms_setup,
	.create_kek = kms_create_kek,
	.wrap = kms_wrap,
	.unwrap = kms_unwrap,
	.confirm = kms_confirm,
	.list = kms_list,
	.remove = kms_remove,
	.see = kms_see,
	.destroy = kms_destroy,
	.destroy_kek = kms_destroy_kek,
	.enable = kms_enable,
	.register_key = kms_register_key,
	.sign = kms_sign,
	.head = kms_head,
	.look = kms_look_by_name,
};
