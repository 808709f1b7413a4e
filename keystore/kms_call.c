/*
 * kms_call.c
 *		One call of the service and its answer checked; many calls at once.
 *
 * The time that a request has is kept for its thread, and for those that it
 * starts.  No secrets here: answers with data keys are read in kms_crypto.c.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kms.h"
#include "workers.h"

#define DEFAULT_PATIENCE	10000	/* milliseconds */
#define LONGEST_PAUSE		1.0 /* seconds */
#define MAX_MARGIN			500 /* kept for the answer to arrive in time */

static _Thread_local double deadline;
static _Thread_local char expected[KS_MAX_SERIAL + 1];

double
kms_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

/* How long this thread's calls may take, from now on. */
void
kms_set_patience(uint32_t milliseconds)
{
	uint32_t	patience = milliseconds > 0 ? milliseconds : DEFAULT_PATIENCE;

	patience -= patience / 10 < MAX_MARGIN ? patience / 10 : MAX_MARGIN;
	deadline = kms_now() + patience / 1e3;
	aws_set_patience(patience);
}

double
kms_time_left(void)
{
	return deadline - kms_now();
}

/* Wait; false, at once, if there is no time for it. */
bool
kms_pause(double seconds)
{
	struct timespec t = {(time_t) seconds, (long) ((seconds - (double) (time_t) seconds) * 1e9)};

	if (kms_time_left() < seconds)
		return false;
	while (nanosleep(&t, &t) != 0)
		;
	return true;
}

/* The pause after that one: twice as long, within bounds. */
double
kms_longer(double pause)
{
	return 2 * pause < LONGEST_PAUSE ? 2 * pause : LONGEST_PAUSE;
}

/*
 * May what an attempt came to be different soon, and is there time?  Access
 * that was denied before stays denied when the time is over in the middle of
 * the next attempt.
 */
bool
kms_again(KmsAgain *again, bool not_yet, KsStatus *status, KsFailure *why)
{
	if (again->denied && *status == KS_NETWORK)
	{
		*why = again->said;
		*status = KS_ACCESS_DENIED;
		return false;
	}
	if (!not_yet)
		return false;
	again->denied = *status == KS_ACCESS_DENIED;
	again->said = *why;
	again->pause = again->pause == 0 ? KMS_FIRST_PAUSE : kms_longer(again->pause);
	return kms_pause(again->pause);
}

/* Call; KS_REFUSED leaves reply->error for the caller to interpret. */
KsStatus
kms_call(Keystore *ks, AwsRole role, const char *action, json_t *body, AwsReply *reply,
		 KsFailure *why)
{
	KsStatus	status;

	memset(reply, 0, sizeof(*reply));
	if (body == NULL)
		return ks_fail(why, KS_MODULE_ERROR, "%s: out of memory", action);
	status = aws_call(ks->client, role, action, body, reply, why);
	if (status == KS_TIMEOUT)
		status = KS_NETWORK;	/* what the broker calls a timeout is its own */
	if (status == KS_OK && !json_is_object(reply->body))
		status = ks_fail(why, KS_MODULE_ERROR, "%s: the answer is no object", action);
	return status;
}

bool
kms_error_is(const AwsReply *reply, const char *name)
{
	return strcmp(reply->error, name) == 0;
}

/*
 * A refusal that means nothing in particular to its caller.  Of quotas, this
 * is about what there may be at once, not about requests: that is throttling.
 */
KsStatus
kms_refused(const char *action, const AwsReply *reply, KsFailure *why)
{
	/* what it does not take is the file that the setting names */
	const bool	policy = kms_error_is(reply, "MalformedPolicyDocumentException");

	if (!kms_error_is(reply, "LimitExceededException"))
		return ks_fail(why, policy ? KS_REFUSED : KS_MODULE_ERROR, "%s: %s: %.200s; %s", action,
					   reply->error, reply->message, aws_advice(reply->error));
	if (strcmp(action, "CreateKey") == 0)
		return ks_fail(why, KS_REFUSED, "CreateKey: the account's quota of keys in this region is "
					   "used up, not one of requests; ask AWS to raise it (%s: %s)",
					   reply->error, reply->message);
	return ks_fail(why, KS_REFUSED, "%s: a quota is used up, not one of requests (%s: %s)", action,
				   reply->error, reply->message);
}

/* Is an answer about the key that was asked for? */
KsStatus
kms_answers_for(const char *action, const AwsReply *reply, const char *arn, KsFailure *why)
{
	const char *key = json_string_value(json_object_get(reply->body, "KeyId"));

	if (key != NULL && strcmp(key, arn) == 0)
		return KS_OK;
	return ks_fail(why, KS_MODULE_ERROR, "%s: the answer is about another key than %s", action, arn);
}

/* ---- which account it is ---- */

/* The account that this thread's next operation is for. */
void
kms_expect(const char *serial)
{
	snprintf(expected, sizeof(expected), "%s", serial);
}

/* What stands in for a token's serial number; "" as long as it is not known. */
void
kms_serial(Keystore *ks, char out[KS_MAX_SERIAL + 1])
{
	pthread_mutex_lock(&ks->lock);
	out[0] = '\0';
	if (ks->account[0] != '\0')
		snprintf(out, KS_MAX_SERIAL + 1, "arn:%.12s:kms:%.24s:%s", ks->partition,
				 ks->options.region, ks->account);
	pthread_mutex_unlock(&ks->lock);
}

KsStatus
kms_check_expected(Keystore *ks, KsFailure *why)
{
	char		serial[KS_MAX_SERIAL + 1];

	kms_serial(ks, serial);
	if (expected[0] == '\0' || strcmp(serial, expected) == 0)
		return KS_OK;
	return ks_fail(why, KS_OTHER_TOKEN, "the keystore is \"%s\", not the one expected", serial);
}

/* ---- DescribeKey ---- */

/* Copy what may be longer, or hold anything. */
void
kms_copy_printable(char *out, size_t size, const char *text)
{
	size_t		n = 0;

	for (; text[n] != '\0' && n + 1 < size; n++)
		out[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
	out[n] = '\0';
}

static bool
says(const json_t *metadata, const char *name, const char *wanted)
{
	const char *value = json_string_value(json_object_get(metadata, name));

	return value != NULL && strcmp(value, wanted) == 0;
}

static KsStatus
wrong_kind(const json_t *metadata, KsStatus status, const KmsArn *arn, const char *name,
		   KsFailure *why)
{
	const char *value = json_string_value(json_object_get(metadata, name));

	return ks_fail(why, status, "%s has %s \"%.40s\"", arn->text, name,
				   value != NULL ? value : "");
}

/* Is it a key of ours: made by the service for this account, here alone? */
static KsStatus
check_kind(const json_t *metadata, KmsKind kind, const KmsArn *arn, KsFailure *why)
{
	const bool	wrapping = kind == KMS_WRAPPING;

	if (!says(metadata, "Origin", "AWS_KMS"))
		return wrong_kind(metadata, KS_REGION, arn, "Origin", why);
	if (!json_is_false(json_object_get(metadata, "MultiRegion")))
		return ks_fail(why, KS_REGION, "%s is a key of several regions", arn->text);
	if (!says(metadata, "KeyManager", "CUSTOMER"))
		return wrong_kind(metadata, KS_MODULE_ERROR, arn, "KeyManager", why);
	if (!says(metadata, "KeySpec", wrapping ? "SYMMETRIC_DEFAULT" : "ECC_NIST_P256"))
		return wrong_kind(metadata, KS_MODULE_ERROR, arn, "KeySpec", why);
	if (!says(metadata, "KeyUsage", wrapping ? "ENCRYPT_DECRYPT" : "SIGN_VERIFY"))
		return wrong_kind(metadata, KS_MODULE_ERROR, arn, "KeyUsage", why);
	return KS_OK;
}

static KsStatus
read_state(const json_t *metadata, const KmsArn *arn, KmsSight *sight, KsFailure *why)
{
	const json_t *date = json_object_get(metadata, "DeletionDate");
	const double until = json_is_number(date) ? json_number_value(date) : 0;

	if (says(metadata, "KeyState", "Enabled"))
		sight->state = KS_STATE_USABLE;
	else if (says(metadata, "KeyState", "Disabled"))
		sight->state = KS_STATE_DISABLED;
	else if (says(metadata, "KeyState", "PendingDeletion"))
		sight->state = KS_STATE_PENDING;
	else if (says(metadata, "KeyState", "Creating"))
		sight->creating = true;
	else
		return wrong_kind(metadata, KS_MODULE_ERROR, arn, "KeyState", why);
	if (sight->state == KS_STATE_PENDING)
	{
		if (!(until >= 1 && until < 1e11))
			return ks_fail(why, KS_MODULE_ERROR, "%s is pending deletion without a date", arn->text);
		sight->until = (uint64_t) until;
	}
	return KS_OK;
}

/* Read and check KeyMetadata, of whichever key it is. */
KsStatus
kms_read_description(Keystore *ks, const json_t *metadata, KmsKind kind, KmsArn *arn,
					 KmsSight *sight, KsFailure *why)
{
	const char *text = json_string_value(json_object_get(metadata, "Arn"));
	const char *description = json_string_value(json_object_get(metadata, "Description"));
	KsStatus	status;

	memset(sight, 0, sizeof(*sight));
	if (description != NULL)
		kms_copy_printable(sight->made_as, sizeof(sight->made_as), description);
	if (text == NULL || !kms_arn_parse(text, arn) || !says(metadata, "KeyId", arn->id) ||
		!says(metadata, "AWSAccountId", arn->account))
		return ks_fail(why, KS_MODULE_ERROR, "the service describes a key without saying which it is");
	status = kms_check_arn(ks, arn, why);
	if (status == KS_OK)
		status = check_kind(metadata, kind, arn, why);
	if (status == KS_OK)
		status = read_state(metadata, arn, sight, why);
	sight->found = status == KS_OK && !sight->creating;
	sight->created = json_number_value(json_object_get(metadata, "CreationDate"));
	return status;
}

/*
 * Ask the service for a key, now; one that it does not know is not "found".
 * One that is still being created is an error to all but its maker.
 */
KsStatus
kms_describe(Keystore *ks, const char *arn, KmsKind kind, KmsSight *sight, KsFailure *why)
{
	AwsReply	reply;
	KmsArn		seen;
	KsStatus	status = kms_call(ks, AWS_EVERYDAY, "DescribeKey",
								  json_pack("{s:s}", "KeyId", arn), &reply, why);

	memset(sight, 0, sizeof(*sight));
	if (status == KS_OK)
		status = kms_read_description(ks, json_object_get(reply.body, "KeyMetadata"), kind,
									  &seen, sight, why);
	else if (status == KS_REFUSED)
		status = kms_error_is(&reply, "NotFoundException") ? KS_OK :
			kms_refused("DescribeKey", &reply, why);
	if (status == KS_OK && (sight->found || sight->creating) && strcmp(seen.text, arn) != 0)
	{
		memset(sight, 0, sizeof(*sight));
		status = ks_fail(why, KS_MODULE_ERROR, "DescribeKey: the answer is about another key than %s", arn);
	}
	else if (status == KS_OK && sight->creating)
		status = ks_fail(why, KS_MODULE_ERROR, "%s is still being created", arn);
	aws_reply_free(&reply);
	return status;
}

/*
 * Does AWS manage a key, for one of its other services?  Such a key can have
 * no tags.
 */
KsStatus
kms_see_manager(Keystore *ks, const char *arn, bool *aws, KsFailure *why)
{
	AwsReply	reply;
	const json_t *metadata;
	KsStatus	status = kms_call(ks, AWS_EVERYDAY, "DescribeKey",
								  json_pack("{s:s}", "KeyId", arn), &reply, why);

	if (status == KS_REFUSED)
		status = kms_refused("DescribeKey", &reply, why);
	metadata = json_object_get(reply.body, "KeyMetadata");
	if (status == KS_OK && !says(metadata, "Arn", arn))
		status = ks_fail(why, KS_MODULE_ERROR, "DescribeKey: the answer is about another key than %s", arn);
	*aws = status == KS_OK && says(metadata, "KeyManager", "AWS");
	aws_reply_free(&reply);
	return status;
}

/* ---- many calls at once ---- */

typedef struct Crew
{
	Keystore   *ks;
	KmsTask		task;
	void	   *arg;
	size_t		n;
	double		deadline;
	atomic_size_t next;
	atomic_bool failed;
	pthread_mutex_t lock;
	KsStatus	status;			/* the first failure */
	KsFailure	why;
} Crew;

static void *
work(void *arg)
{
	Crew	   *crew = arg;

	while (!atomic_load(&crew->failed))
	{
		KsFailure	why = {0};
		const size_t i = atomic_fetch_add(&crew->next, 1);
		KsStatus	status = i < crew->n ? crew->task(crew->ks, i, crew->arg, &why) : KS_OK;

		if (i >= crew->n)
			break;
		if (status == KS_OK)
			continue;
		pthread_mutex_lock(&crew->lock);
		if (crew->status == KS_OK)
		{
			crew->status = status;
			crew->why = why;
		}
		pthread_mutex_unlock(&crew->lock);
		atomic_store(&crew->failed, true);
	}
	return NULL;
}

static void *
begin_work(void *arg)
{
	Crew	   *crew = arg;
	const double left = crew->deadline - kms_now();

	deadline = crew->deadline;
	aws_set_patience(left > 0.001 ? (uint32_t) (left * 1e3) : 1);
	return work(crew);
}

/*
 * Run a task for each of n things, several at once, this thread among those
 * that work.  The first failure ends it.
 */
KsStatus
kms_each(Keystore *ks, size_t n, KmsTask task, void *arg, KsFailure *why)
{
	Crew		crew = {ks, task, arg, n, deadline};
	pthread_t	threads[KMS_MAX_THREADS - 1];
	pthread_attr_t attr;
	size_t		started = 0;

	pthread_mutex_init(&crew.lock, NULL);
	pthread_attr_init(&attr);
	(void) pthread_attr_setstacksize(&attr, KS_STACK_SIZE);
	while (started + 1 < n && started < KMS_MAX_THREADS - 1 &&
		   pthread_create(&threads[started], &attr, begin_work, &crew) == 0)
		started++;
	pthread_attr_destroy(&attr);
	(void) work(&crew);
	for (size_t i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	pthread_mutex_destroy(&crew.lock);
	if (crew.status != KS_OK)
		*why = crew.why;
	return crew.status;
}
