/*
 * aws_renewal_test.c
 *		Credentials that expire are replaced before they do, by one thread, and
 *		a source that fails is not overrun.
 *
 * The clocks that the client reads, time() and CLOCK_BOOTTIME, are this
 * program's: once set they stand still, until they are set again.  What
 * expires by the server's clock, test/aws_server.py, was given its time
 * seconds before, so nothing here is nearer to a bound than a minute, but for
 * what this program's clocks alone decide.
 */
#include <pthread.h>
#include <sys/syscall.h>

#include "aws_who.h"

#define MINUTE		60
#define HOUR		3600

static int64_t clock_start;		/* 0: the real time */
static int64_t boot_start;
static int64_t clock_passed;

int
clock_gettime(clockid_t which, struct timespec *out)
{
	int			result = (int) syscall(SYS_clock_gettime, which, out);

	if (result == 0 && which == CLOCK_BOOTTIME && clock_start != 0)
		*out = (struct timespec) {boot_start + clock_passed, 0};
	return result;
}

time_t
time(time_t *out)
{
	struct timespec now;
	time_t		result;

	(void) syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
	result = clock_start != 0 ? clock_start + clock_passed : now.tv_sec;
	if (out != NULL)
		*out = result;
	return result;
}

static void
start_clock(void)
{
	struct timespec now;

	clock_start = 0;
	clock_start = time(NULL);
	(void) syscall(SYS_clock_gettime, CLOCK_BOOTTIME, &now);
	boot_start = now.tv_sec;
	clock_passed = 0;
}

/* What is given out from now on expires so long after "clock_passed". */
static void
set_lifetime(int64_t seconds)
{
	char		query[40];

	snprintf(query, sizeof(query), "lifetime=%lld", (long long) (clock_passed + seconds));
	set_control(query);
}

/* ---- sources whose credentials expire ---- */

static void
set_container(void)
{
	(void) setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", local_url("/container"), 1);
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token-c", 1);
}

static void
set_instance(void)
{
	(void) unsetenv("AWS_EC2_METADATA_DISABLED");
	(void) setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", local_url("/"), 1);
}

static void
set_web_identity(void)
{
	write_file(server_path("token"), "t", 0600);
	(void) setenv("AWS_WEB_IDENTITY_TOKEN_FILE", server_path("token"), 1);
	(void) setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/w", 1);
}

static void
set_role(void)
{
	write_file(server_path("credentials"),
			   "[default]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n"
			   "[base]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n", 0600);
}

typedef struct Source
{
	const char *name;
	const char *key;			/* begins its access keys */
	const char *asked;			/* what the server counts */
	void		(*set) (void);
} Source;

static const Source sources[] = {
	{"container", "ASIACONTAINER", "container", set_container},
	{"instance", "ASIAINSTANCE", "instance:the-role", set_instance},
	{"web identity", "ASIAWEB", "sts:AssumeRoleWithWebIdentity", set_web_identity},
	{"assumed role", "ASIAROLE", "sts:AssumeRole", set_role},
};

/* A client of a source whose credentials are good for so long. */
static AwsClient *
begin(const Source *source, int64_t seconds)
{
	clear_sources();
	start_clock();
	source->set();
	set_lifetime(seconds);
	return client_of("", "");
}

/* A call at that time is signed with the n-th credentials, of as many asked for. */
static void
expect_at(AwsClient *client, const Source *source, int64_t passed, int nth, int asked, const char *name)
{
	char		key[40];
	Result		r;

	clock_passed = passed;
	snprintf(key, sizeof(key), "%s%04d", source->key, nth);
	r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
	if (!tap_ok(r.status == KS_OK && sees(&r, "key", key) && counted(source->asked) == asked,
				"%s: %s", source->name, name))
		printf("# status %d, asked %d times: %s\n", r.status, counted(source->asked), r.why.reason);
	aws_reply_free(&r.reply);
}

/* Ten minutes before the end of an hour, from whichever source. */
static void
test_hour(const Source *source)
{
	AwsClient  *client = begin(source, HOUR);

	expect_at(client, source, 0, 1, 1, "credentials for an hour");
	expect_at(client, source, 0, 1, 1, "serve for a second call");
	expect_at(client, source, 30 * MINUTE, 1, 1, "and half an hour before their end");
	expect_at(client, source, 49 * MINUTE, 1, 1, "and eleven minutes before");
	clock_passed = 51 * MINUTE;
	set_lifetime(HOUR);
	expect_at(client, source, 51 * MINUTE, 2, 2, "nine minutes before it there are new ones");
	expect_at(client, source, 51 * MINUTE, 2, 2, "which serve on");
	expect_at(client, source, 90 * MINUTE, 2, 2, "past the old ones' end");
	aws_client_free(client);
}

/* An endpoint may give out what has not long to go, and has no newer ones. */
static void
test_quarter(const Source *source)
{
	AwsClient  *client = begin(source, 9 * MINUTE);

	expect_at(client, source, 0, 1, 1, "credentials for nine minutes");
	expect_at(client, source, 0, 1, 1, "are not asked for with each call");
	expect_at(client, source, 5 * MINUTE, 1, 1, "nor before a quarter of that is left");
	clock_passed = 8 * MINUTE;
	set_lifetime(HOUR);
	expect_at(client, source, 8 * MINUTE, 2, 2, "but then");
	aws_client_free(client);

	/* so short that they count as expired at once */
	client = begin(source, 5);
	expect_at(client, source, 0, 1, 1, "credentials for seconds");
	expect_at(client, source, 0, 2, 2, "are replaced by the next call");
	aws_client_free(client);
}

/* There are none: that class, that reason. */
static void
expect_none_at(AwsClient *client, const Source *source, int64_t passed, int asked, const char *reason,
			   const char *name)
{
	int			calls = counted("who");
	Result		r;

	clock_passed = passed;
	r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
	if (!tap_ok(r.status == KS_CREDENTIALS && strstr(r.why.reason, reason) != NULL &&
				counted(source->asked) == asked && counted("who") == calls, "%s: %s", source->name, name))
		printf("# status %d, asked %d times: %s\n", r.status, counted(source->asked), r.why.reason);
	aws_reply_free(&r.reply);
}

/* While what there is still serves, a renewal that fails harms nobody. */
static void
test_failing_renewal(void)
{
	const Source *source = &sources[0];
	AwsClient  *client = begin(source, HOUR);

	expect_at(client, source, 0, 1, 1, "credentials that will not be replaced");
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong", 1);
	expect_at(client, source, 51 * MINUTE, 1, 2, "are used on, though others were asked for");
	for (int i = 0; i < 3; i++)
		expect_at(client, source, 51 * MINUTE, 1, 2, "which is not tried with each call");
	expect_at(client, source, 51 * MINUTE + 19, 1, 2, "nor 19 seconds later");
	expect_at(client, source, 51 * MINUTE + 21, 1, 3, "but 21 seconds later");
	set_container();
	set_lifetime(HOUR);
	expect_at(client, source, 51 * MINUTE + 25, 1, 3, "what works again is not asked yet");
	expect_at(client, source, 51 * MINUTE + 42, 2, 4, "and then gives new ones");
	aws_client_free(client);
}

/* When they are over, that is said, and the source is asked once a second. */
static void
test_expired(void)
{
	const Source *source = &sources[0];
	AwsClient  *client = begin(source, HOUR);

	expect_at(client, source, 0, 1, 1, "credentials that end");
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong", 1);
	expect_none_at(client, source, 61 * MINUTE, 2,
				   "the credentials at hand (container) have expired, and there are no new ones: "
				   "the container's endpoint: the service answered with HTTP status 401", "there are none");
	for (int i = 0; i < 3; i++)
		expect_none_at(client, source, 61 * MINUTE, 2, "have expired", "nor is that asked with each call");
	expect_none_at(client, source, 61 * MINUTE + 1, 3, "have expired", "but a second later");
	set_container();
	set_lifetime(HOUR);
	expect_at(client, source, 61 * MINUTE + 2, 2, 4, "a source that works again is used");
	aws_client_free(client);

	client = begin(source, HOUR);
	(void) setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong", 1);
	expect_none_at(client, source, 0, 1, "HTTP status 401", "none from the first on");
	expect_none_at(client, source, 0, 1, "HTTP status 401", "not asked with each call either");
	write_file(server_path("credentials"),
			   "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n", 0600);
	expect_key(client, AWS_EVERYDAY, "AKIDFILE", "shared file", true, "a file that appears is used at once");
	aws_client_free(client);
}

/* The service says that they have expired; this machine's clock does not. */
static void
test_refused_by_service(void)
{
	AwsClient  *client;
	Result		r;

	client = begin(&sources[0], HOUR);
	expect_key(client, AWS_EVERYDAY, "ASIACONTAINER0001", "container", false, "credentials that work");
	set_control("expired=ASIACONTAINER0001");
	expect_key(client, AWS_EVERYDAY, "ASIACONTAINER0002", "container", false, "refused: others are found at once");
	tap_ok(counted("expired") == 1, "with one call in vain");
	set_control("reset=1");
	set_control("expired=all");
	r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
	tap_ok(r.status == KS_CREDENTIALS && strcmp(r.reply.error, "ExpiredTokenException") == 0 &&
		   strstr(r.why.reason, "should have renewed") != NULL && counted("expired") == 2 &&
		   counted("container") == 1, "others that are refused, too: no third call");
	aws_client_free(client);

	clear_sources();
	(void) setenv("AWS_ACCESS_KEY_ID", "AKIDENV", 1);
	(void) setenv("AWS_SECRET_ACCESS_KEY", "secret-env", 1);
	set_control("expired=AKIDENV");
	client = client_of("", "");
	r = call(client, AWS_EVERYDAY, "DescribeKey", "who", PATIENT);
	tap_ok(r.status == KS_CREDENTIALS && strcmp(r.reply.error, "ExpiredTokenException") == 0 &&
		   counted("expired") == 2, "where there are no others, that is tried once more");
	aws_client_free(client);
}

#define THREADS	16

static void *
ask_who(void *arg)
{
	Result		r = call(arg, AWS_EVERYDAY, "DescribeKey", "who", 60000);
	intptr_t	good = r.status == KS_OK && sees(&r, "key", "ASIAROLE0001");

	aws_reply_free(&r.reply);
	return (void *) good;
}

/* Threads that all find none wait for one. */
static void
test_one_asks(void)
{
	AwsClient  *client;
	pthread_t	threads[THREADS];
	intptr_t	good = 0;

	clear_sources();
	clock_start = 0;
	set_control("sts=slow");
	write_file(server_path("credentials"),
			   "[base]\naws_access_key_id = AKIDFILE\naws_secret_access_key = secret-file\n", 0600);
	write_file(server_path("config"),
			   "[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n", 0644);
	client = client_of("role", "");
	for (int i = 0; i < THREADS; i++)
	{
		if (pthread_create(&threads[i], NULL, ask_who, client) != 0)
			tap_bail("no thread");
	}
	for (int i = 0; i < THREADS; i++)
	{
		void	   *result;

		(void) pthread_join(threads[i], &result);
		good += (intptr_t) result;
	}
	tap_ok(good == THREADS && counted("sts:AssumeRole") == 1, "of %d threads one assumes the role", THREADS);
	aws_client_free(client);
}

int
main(void)
{
	(void) umask(022);
	start_server();
	for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++)
	{
		test_hour(&sources[i]);
		/* of an instance's that are nearly over, see aws_credentials_test.c */
		if (sources[i].set != set_instance)
			test_quarter(&sources[i]);
	}
	test_failing_renewal();
	test_expired();
	test_refused_by_service();
	test_one_asks();
	stop_server();
	return tap_done();
}
