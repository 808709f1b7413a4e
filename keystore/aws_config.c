/*
 * aws_config.c
 *		The shared files of AWS's tools, ~/.aws/credentials and ~/.aws/config.
 *
 * The format is that of the AWS SDKs and Tools Reference Guide ("Shared
 * config and credentials files"): sections, "key = value", comments.  Of
 * that, what credentials need; indented lines belong to settings of other
 * services and are passed over.  A line that is none of these is an error,
 * not a guess.  No word of a file gets into a message but the names of
 * profiles, which are settings.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aws_config.h"

#define MAX_FILE	(256 * 1024)
#define MAX_PATH	1024
#define BLANKS		" \t\r"

static const char *const field_names[AWS_FIELDS] = {
	[AWS_ACCESS_KEY] = "aws_access_key_id",
	[AWS_SECRET] = "aws_secret_access_key",
	[AWS_TOKEN] = "aws_session_token",
	[AWS_ROLE_ARN] = "role_arn",
	[AWS_SOURCE_PROFILE] = "source_profile",
	[AWS_CREDENTIAL_SOURCE] = "credential_source",
	[AWS_WEB_IDENTITY_FILE] = "web_identity_token_file",
	[AWS_SESSION_NAME] = "role_session_name",
	[AWS_EXTERNAL_ID] = "external_id",
	[AWS_DURATION] = "duration_seconds",
	[AWS_MFA] = "mfa_serial",
	[AWS_PROCESS] = "credential_process",
	[AWS_SSO_SESSION] = "sso_session",
	[AWS_SSO_URL] = "sso_start_url",
	[AWS_LOGIN_SESSION] = "login_session",
};

/* A piece of a line, without blanks around it. */
typedef struct Span
{
	const char *start;
	size_t		len;
} Span;

static Span
trim(const char *start, const char *end)
{
	while (start < end && strchr(BLANKS, *start) != NULL)
		start++;
	while (end > start && strchr(BLANKS, end[-1]) != NULL)
		end--;
	return (Span) {start, (size_t) (end - start)};
}

static bool
is_text(Span span, const char *text)
{
	return span.len == strlen(text) && memcmp(span.start, text, span.len) == 0;
}

/*
 * Is "[...]" the section of that profile?  In the config file all but
 * "default" have the word "profile" in front.  False in *valid: no section.
 */
static bool
names_profile(Span line, bool config, const char *name, bool *valid)
{
	const char *end = memchr(line.start, ']', line.len);
	Span		title;
	Span		rest;

	*valid = false;
	if (end == NULL)
		return false;
	rest = trim(end + 1, line.start + line.len);
	if (rest.len > 0 && rest.start[0] != '#' && rest.start[0] != ';')
		return false;
	title = trim(line.start + 1, end);
	*valid = title.len > 0;
	if (config && title.len > 8 && strncmp(title.start, "profile", 7) == 0 &&
		strchr(BLANKS, title.start[7]) != NULL)
		title = trim(title.start + 7, title.start + title.len);
	else if (config && !is_text(title, "default"))
		return false;
	if (title.len >= 2 && (title.start[0] == '"' || title.start[0] == '\'') &&
		title.start[title.len - 1] == title.start[0])
		title = trim(title.start + 1, title.start + title.len - 1);
	return is_text(title, name);
}

/* Keep a value if it is of a field that counts.  False if there is no memory. */
static bool
keep(AwsProfile *out, Span key, Span value)
{
	for (int i = 0; i < AWS_FIELDS; i++)
	{
		char	   *copy;

		if (key.len != strlen(field_names[i]) ||
			strncasecmp(key.start, field_names[i], key.len) != 0)
			continue;
		copy = wiping_calloc(1, value.len + 1);
		if (copy == NULL)
			return false;
		memcpy(copy, value.start, value.len);
		wiping_free(out->field[i]);
		out->field[i] = copy;
	}
	return true;
}

/* Where a value ends: at a comment, which has a blank before it. */
static const char *
value_end(const char *start, const char *end)
{
	for (const char *c = start; c < end; c++)
	{
		if ((*c == '#' || *c == ';') && c > start && strchr(BLANKS, c[-1]) != NULL)
			return c;
	}
	return end;
}

/* One line.  False if it is not understood. */
static bool
parse_line(const char *start, const char *end, bool config, const char *name,
		   bool *inside, AwsProfile *out)
{
	Span		line = trim(start, end);
	const char *equals;
	bool		valid;

	if (line.len == 0 || line.start[0] == '#' || line.start[0] == ';')
		return true;
	if (line.start != start)
		return true;			/* indented: of something else */
	if (line.start[0] == '[')
	{
		*inside = names_profile(line, config, name, &valid);
		out->found |= *inside;
		return valid;
	}
	equals = memchr(line.start, '=', line.len);
	if (equals == NULL || equals == line.start)
		return false;
	if (!*inside)
		return true;
	end = line.start + line.len;
	return keep(out, trim(line.start, equals), trim(equals + 1, value_end(equals + 1, end)));
}

int
aws_config_parse(const char *text, bool config, const char *name, AwsProfile *out)
{
	bool		inside = false;

	for (int number = 1; *text != '\0'; number++)
	{
		const char *end = strchr(text, '\n');

		if (end == NULL)
			end = text + strlen(text);
		if (!parse_line(text, end, config, name, &inside, out))
			return number;
		text = *end == '\0' ? end : end + 1;
	}
	return 0;
}

void
aws_profile_free(AwsProfile *profile)
{
	for (int i = 0; i < AWS_FIELDS; i++)
		wiping_free(profile->field[i]);
	*profile = (AwsProfile) {0};
}

/* NULL if it may be read; else what is wrong with it. */
static const char *
trouble(const struct stat *st, AwsFileRule rule)
{
	mode_t		wrong = rule == AWS_FILE_SECRET ? 077 : rule == AWS_FILE_CONFIG ? 022 : 002;

	if (!S_ISREG(st->st_mode))
		return "is no file";
	if (rule != AWS_FILE_TOKEN && st->st_uid != geteuid() && st->st_uid != 0)
		return "belongs to another user";
	if ((st->st_mode & wrong) != 0)
		return rule == AWS_FILE_SECRET ? "can be read by others: chmod 600" :
			"can be written by others: chmod go-w";
	if (st->st_size > MAX_FILE)
		return "is too long";
	return NULL;
}

static KsStatus
read_all(int fd, const char *path, AwsText *out, KsFailure *why)
{
	char		piece[4096];
	ssize_t		n;

	while ((n = read(fd, piece, sizeof(piece))) > 0 && out->len <= MAX_FILE)
		aws_text_add(out, piece, (size_t) n);
	explicit_bzero(piece, sizeof(piece));
	aws_text_add(out, "", 0);
	if (n != 0 || out->bad)
		return ks_fail(why, KS_CREDENTIALS, "%.200s cannot be read", path);
	if (strlen(out->data) != out->len)
		return ks_fail(why, KS_CREDENTIALS, "%.200s is no text", path);
	return KS_OK;
}

KsStatus
aws_file_read(const char *path, AwsFileRule rule, bool *absent, AwsText *out, KsFailure *why)
{
	int			fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	const char *reason;
	KsStatus	status;

	if (absent != NULL)
		*absent = fd < 0 && (errno == ENOENT || errno == ENOTDIR);
	if (fd < 0)
	{
		if (absent != NULL && *absent)
			return KS_OK;
		return ks_fail(why, KS_CREDENTIALS, "%.200s: %s", path, strerror(errno));
	}
	if (fstat(fd, &st) != 0)
		reason = "cannot be read";
	else
		reason = trouble(&st, rule);
	status = reason == NULL ? read_all(fd, path, out, why) :
		ks_fail(why, KS_CREDENTIALS, "%.200s %s", path, reason);
	(void) close(fd);
	if (status != KS_OK)
		aws_text_free(out);
	return status;
}

/* The file that a variable names, or the one in the home directory. */
static bool
find_file(const char *variable, const char *name, char path[MAX_PATH])
{
	const char *given = getenv(variable);
	const char *home = getenv("HOME");
	struct passwd pw;
	struct passwd *found = NULL;
	char		room[4096];

	if ((home == NULL || home[0] != '/') &&
		getpwuid_r(geteuid(), &pw, room, sizeof(room), &found) == 0 && found != NULL)
		home = pw.pw_dir;
	if (given != NULL && given[0] != '\0')
	{
		if (given[0] == '~' && given[1] == '/' && home != NULL)
			return snprintf(path, MAX_PATH, "%s%s", home, given + 1) < MAX_PATH;
		return snprintf(path, MAX_PATH, "%s", given) < MAX_PATH;
	}
	return home != NULL && snprintf(path, MAX_PATH, "%s/.aws/%s", home, name) < MAX_PATH;
}

static bool
credentials_path(char path[MAX_PATH])
{
	return find_file("AWS_SHARED_CREDENTIALS_FILE", "credentials", path);
}

static bool
config_path(char path[MAX_PATH])
{
	return find_file("AWS_CONFIG_FILE", "config", path);
}

/*
 * Read one of the files into the profile.  The config file may be readable
 * by others as long as the profile has no secret there.
 */
static KsStatus
read_file(const char *path, bool config, const char *name, AwsProfile *out, KsFailure *why)
{
	AwsText		text = {0};
	AwsProfile	here = {0};
	bool		absent;
	KsStatus	status = aws_file_read(path, config ? AWS_FILE_CONFIG : AWS_FILE_SECRET,
									   &absent, &text, why);
	int			line;

	if (status != KS_OK || absent)
		return status;
	line = aws_config_parse(text.data, config, name, &here);
	aws_text_free(&text);
	if (line != 0)
		status = ks_fail(why, KS_CREDENTIALS, "%.200s: line %d is not understood", path, line);
	else if (config && (here.field[AWS_SECRET] != NULL || here.field[AWS_TOKEN] != NULL))
		status = aws_file_read(path, AWS_FILE_SECRET, NULL, &text, why);
	aws_text_free(&text);
	out->found |= here.found;
	for (int i = 0; i < AWS_FIELDS && status == KS_OK; i++)
	{
		if (here.field[i] == NULL)
			continue;
		wiping_free(out->field[i]);
		out->field[i] = here.field[i];
		here.field[i] = NULL;
	}
	aws_profile_free(&here);
	return status;
}

/* A home directory that is closed to us has no files for us. */
static bool
is_hidden(const char *path, const char *variable)
{
	struct stat st;

	return getenv(variable) == NULL && stat(path, &st) != 0 && errno == EACCES;
}

KsStatus
aws_profile_read(const char *name, AwsProfile *out, KsFailure *why)
{
	char		path[MAX_PATH];
	KsStatus	status = KS_OK;

	*out = (AwsProfile) {0};
	if (config_path(path) && !is_hidden(path, "AWS_CONFIG_FILE"))
		status = read_file(path, true, name, out, why);
	if (status == KS_OK && credentials_path(path) &&
		!is_hidden(path, "AWS_SHARED_CREDENTIALS_FILE"))
		status = read_file(path, false, name, out, why);
	if (status != KS_OK)
		aws_profile_free(out);
	return status;
}

/* FNV-1a over what tells two states of a file apart. */
static uint64_t
add_to_stamp(uint64_t stamp, const char *path)
{
	struct stat st;
	uint64_t	facts[5] = {0};

	if (stat(path, &st) == 0)
	{
		facts[0] = st.st_ino;
		facts[1] = (uint64_t) st.st_size;
		facts[2] = (uint64_t) st.st_mtim.tv_sec * 1000000000 + (uint64_t) st.st_mtim.tv_nsec;
		facts[3] = (uint64_t) st.st_ctim.tv_sec * 1000000000 + (uint64_t) st.st_ctim.tv_nsec;
		facts[4] = st.st_dev;
	}
	for (int i = 0; i < 5; i++)
		stamp = (stamp ^ facts[i]) * 0x100000001b3;
	return stamp;
}

uint64_t
aws_config_stamp(void)
{
	uint64_t	stamp = 0xcbf29ce484222325;
	char		path[MAX_PATH];

	if (config_path(path))
		stamp = add_to_stamp(stamp, path);
	if (credentials_path(path))
		stamp = add_to_stamp(stamp, path);
	return stamp;
}
