/*
 * aws_credentials.c
 *		One role's credentials, for all threads, renewed before they expire.
 *
 * One thread at a time looks for new ones.  While the old ones are good, the
 * others go on with them, and so does that one if it finds none; when they
 * are not, the others wait for what it finds, and share its failure.  So does
 * whoever comes within a second: many sessions that need credentials, one
 * after the other, do not overrun the service that gives them out.
 *
 * Credentials from a file that has changed are as good as expired: whoever
 * changed it wants the old ones out of use.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "aws_credentials.h"

#define RENEW_SECONDS	600		/* before they expire */
#define LAST_SECONDS	15		/* they may expire on their way */
#define QUICK_MS		2000	/* for a renewal that can be tried again */
#define PAUSE_MS		20000	/* until it is */
#define FAILED_MS		1000	/* until one that cannot wait is tried again */
#define LOOK_MS			1000	/* between two looks at the files */

struct AwsChain
{
	pthread_mutex_t lock;		/* guards what follows */
	pthread_cond_t changed;
	AwsCredentials *now;
	bool		refused;		/* by the service */
	bool		renewing;		/* a thread is at it */
	uint64_t	round;			/* renewals so far */
	KsStatus	status;			/* of the last one */
	KsFailure	failure;
	int64_t		renew_at;		/* seconds since 1970; 0: never */
	int64_t		not_before;		/* by aws_now() */
	int64_t		failed;			/* the last one, by aws_now(); 0: it did not */
	uint64_t	failed_stamp;	/* of the files then */
	int64_t		looked;			/* at the files, by aws_now() */
	uint64_t	stamp;

	AwsSources	from;			/* constant */
};

/* Printable, without blanks: it becomes part of a header. */
static bool
is_word(const char *s, size_t max)
{
	size_t		len = strlen(s);

	if (len == 0 || len > max)
		return false;
	for (size_t i = 0; i < len; i++)
	{
		if (s[i] <= ' ' || s[i] > '~')
			return false;
	}
	return true;
}

AwsCredentials *
aws_credentials_make(const char *source, const char *access_key, const char *secret,
					 const char *token, int64_t expires, KsFailure *why)
{
	AwsCredentials *c;

	if (token != NULL && token[0] == '\0')
		token = NULL;
	if (!is_word(access_key, AWS_MAX_KEY) || !is_word(secret, AWS_MAX_KEY) ||
		(token != NULL && !is_word(token, AWS_MAX_TOKEN)))
	{
		(void) ks_fail(why, KS_CREDENTIALS, "the credentials from %s are malformed", source);
		return NULL;
	}
	c = wiping_calloc(1, sizeof(*c));
	if (c != NULL)
	{
		c->access_key = wiping_strdup(access_key);
		c->secret = wiping_strdup(secret);
		c->token = token != NULL ? wiping_strdup(token) : NULL;
		c->expires = expires;
		c->source = source;
		c->users = 1;
	}
	if (c == NULL || c->access_key == NULL || c->secret == NULL ||
		(token != NULL && c->token == NULL))
	{
		aws_credentials_free(c);
		(void) ks_fail(why, KS_CREDENTIALS, "no memory for credentials");
		return NULL;
	}
	return c;
}

void
aws_credentials_free(AwsCredentials *c)
{
	if (c == NULL)
		return;
	wiping_free(c->access_key);
	wiping_free(c->secret);
	wiping_free(c->token);
	wiping_free(c);
}

AwsChain *
aws_chain_create(const AwsSources *from)
{
	AwsChain   *chain = calloc(1, sizeof(*chain));
	pthread_condattr_t attr;

	if (chain == NULL)
		return NULL;
	chain->from = *from;
	if (pthread_mutex_init(&chain->lock, NULL) != 0 || pthread_condattr_init(&attr) != 0)
	{
		free(chain);
		return NULL;
	}
	(void) pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void) pthread_cond_init(&chain->changed, &attr);
	(void) pthread_condattr_destroy(&attr);
	return chain;
}

void
aws_chain_free(AwsChain *chain)
{
	if (chain == NULL)
		return;
	aws_credentials_free(chain->now);
	(void) pthread_cond_destroy(&chain->changed);
	(void) pthread_mutex_destroy(&chain->lock);
	free(chain);
}

/* One user less.  Under the lock. */
static void
drop(AwsCredentials *c)
{
	if (c != NULL && --c->users == 0)
		aws_credentials_free(c);
}

/* Under the lock. */
static bool
files_changed(AwsChain *chain)
{
	if (chain->looked != 0 && aws_now() - chain->looked < LOOK_MS)
		return false;
	chain->looked = aws_now();
	return aws_files_stamp(&chain->from) != chain->stamp;
}

static bool
expired(const AwsCredentials *c)
{
	return c->expires != 0 && c->expires - LAST_SECONDS <= (int64_t) time(NULL);
}

/* Are the credentials at hand good for a request?  Under the lock. */
static bool
usable(AwsChain *chain)
{
	const AwsCredentials *c = chain->now;

	if (c == NULL || chain->refused || expired(c))
		return false;
	if (!files_changed(chain))
		return true;
	chain->refused = true;
	return false;
}

/* Should they be replaced by and by?  Under the lock. */
static bool
due(AwsChain *chain)
{
	return chain->renew_at != 0 && (int64_t) time(NULL) >= chain->renew_at &&
		aws_now() >= chain->not_before;
}

/* Take what a renewal has found.  Under the lock. */
static void
replace(AwsChain *chain, AwsCredentials *found, uint64_t stamp)
{
	int64_t		now = (int64_t) time(NULL);
	int64_t		ahead;

	drop(chain->now);
	chain->now = found;
	chain->refused = false;
	chain->stamp = stamp;
	chain->renew_at = 0;
	if (found->expires == 0)
		return;
	/* ten minutes of an hour's would be most of a quarter of an hour's */
	ahead = (found->expires - now) / 4;
	if (ahead > RENEW_SECONDS)
		ahead = RENEW_SECONDS;
	if (ahead < 2 * LAST_SECONDS)
		ahead = 2 * LAST_SECONDS;
	chain->renew_at = found->expires - ahead;
}

/* Find new credentials.  Holds the lock, but not while it looks. */
static void
renew(AwsChain *chain, int64_t until)
{
	AwsCredentials *found = NULL;
	KsFailure	why = {0};
	uint64_t	stamp;
	KsStatus	status;

	chain->renewing = true;
	(void) pthread_mutex_unlock(&chain->lock);
	stamp = aws_files_stamp(&chain->from);
	status = aws_find_credentials(&chain->from, until, &found, &why);
	(void) pthread_mutex_lock(&chain->lock);
	chain->renewing = false;
	chain->round++;
	chain->status = status;
	chain->failure = why;
	if (status == KS_OK)
		replace(chain, found, stamp);
	else
		chain->not_before = aws_now() + PAUSE_MS;
	/* one that ran out of time says nothing to whoever has more */
	chain->failed = status != KS_OK && status != KS_TIMEOUT ? aws_now() : 0;
	chain->failed_stamp = stamp;
	(void) pthread_cond_broadcast(&chain->changed);
}

/* Wait for a renewal by another thread.  False if the time is over. */
static bool
await(AwsChain *chain, int64_t until)
{
	int64_t		left = until - aws_now();
	struct timespec at;

	if (left <= 0)
		return false;
	(void) clock_gettime(CLOCK_MONOTONIC, &at);
	at.tv_sec += left / 1000;
	at.tv_nsec += left % 1000 * 1000000;
	if (at.tv_nsec >= 1000000000)
	{
		at.tv_sec++;
		at.tv_nsec -= 1000000000;
	}
	(void) pthread_cond_timedwait(&chain->changed, &chain->lock, &at);
	return true;
}

/* Has it just been seen that there are none?  Under the lock. */
static bool
just_failed(const AwsChain *chain)
{
	return chain->failed != 0 && aws_now() - chain->failed < FAILED_MS &&
		aws_files_stamp(&chain->from) == chain->failed_stamp;
}

/* Why there are no credentials.  Under the lock. */
static KsStatus
failure(const AwsChain *chain, KsFailure *why)
{
	if (chain->now != NULL && expired(chain->now))
		return ks_fail(why, chain->status, "the credentials at hand (%s) have expired, and there are no "
					   "new ones: %.320s", chain->now->source, chain->failure.reason);
	return ks_fail(why, chain->status, "%s", chain->failure.reason);
}

/* Under the lock. */
static KsStatus
get(AwsChain *chain, int64_t until, KsFailure *why)
{
	bool		good = usable(chain);
	uint64_t	round = chain->round;

	if (good && (chain->renewing || !due(chain)))
		return KS_OK;
	if (good)
	{
		int64_t		soon = aws_now() + QUICK_MS;

		renew(chain, soon < until ? soon : until);
		return usable(chain) || chain->status == KS_OK ? KS_OK : failure(chain, why);
	}
	if (!chain->renewing && just_failed(chain))
		return failure(chain, why);
	if (!chain->renewing)
		renew(chain, until);
	while (chain->renewing && chain->round == round)
	{
		if (!await(chain, until))
			return ks_fail(why, KS_TIMEOUT, "no credentials in time");
	}
	return chain->status == KS_OK ? KS_OK : failure(chain, why);
}

KsStatus
aws_chain_get(AwsChain *chain, int64_t until, AwsCredentials **out, KsFailure *why)
{
	KsStatus	status;

	*out = NULL;
	(void) pthread_mutex_lock(&chain->lock);
	status = get(chain, until, why);
	if (status == KS_OK)
	{
		*out = chain->now;
		chain->now->users++;
	}
	(void) pthread_mutex_unlock(&chain->lock);
	return status;
}

void
aws_chain_give_back(AwsChain *chain, AwsCredentials *credentials)
{
	(void) pthread_mutex_lock(&chain->lock);
	drop(credentials);
	(void) pthread_mutex_unlock(&chain->lock);
}

void
aws_chain_refuse(AwsChain *chain, const AwsCredentials *credentials)
{
	(void) pthread_mutex_lock(&chain->lock);
	if (chain->now == credentials)
		chain->refused = true;
	(void) pthread_mutex_unlock(&chain->lock);
}

const char *
aws_chain_source(AwsChain *chain, bool *lasting)
{
	const char *source;

	(void) pthread_mutex_lock(&chain->lock);
	source = chain->now != NULL ? chain->now->source : "";
	*lasting = chain->now != NULL && chain->now->expires == 0 && chain->now->token == NULL;
	(void) pthread_mutex_unlock(&chain->lock);
	return source;
}
