/*
 * kms_policy.c
 *		The policy of new keys, from a template file.
 *
 * The file is a key policy in which ${partition}, ${region}, ${account},
 * ${installation} and ${school} stand for what they say; ${school} is "canary"
 * or "register" for those keys.  IAM's own variables have a colon in their names, or are
 * one of ${*} ${?} ${$}, and are left as they are.  No secrets in it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kms.h"

#define MAX_POLICY	32768		/* KMS takes no more */

typedef struct Policy
{
	char	   *text;
	size_t		len;
} Policy;

typedef struct Variable
{
	const char *name;
	const char *value;
} Variable;

static bool
add(Policy *p, const char *text, size_t len)
{
	if (len > MAX_POLICY - p->len)
		return false;
	memcpy(p->text + p->len, text, len);
	p->len += len;
	p->text[p->len] = '\0';
	return true;
}

/* Read a file of at most MAX_POLICY bytes. */
static KsStatus
read_template(const char *path, char *out, KsFailure *why)
{
	struct stat st;
	size_t		len = 0;
	ssize_t		n = 1;
	int			fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > MAX_POLICY)
	{
		const char *reason = fd < 0 ? strerror(errno) : "it is no file of at most 32 kB";

		if (fd >= 0)
			close(fd);
		return ks_fail(why, KS_REFUSED, "the key policy %.200s cannot be read: %s", path, reason);
	}
	while (n > 0 && len < MAX_POLICY)
	{
		n = read(fd, out + len, MAX_POLICY - len);
		if (n > 0)
			len += (size_t) n;
	}
	close(fd);
	out[len] = '\0';
	if (n < 0 || strlen(out) != len)
		return ks_fail(why, KS_REFUSED, "the key policy %.200s cannot be read", path);
	return KS_OK;
}

static bool
is_of_iam(const char *name, size_t len)
{
	return memchr(name, ':', len) != NULL || (len == 1 && strchr("*?$", name[0]) != NULL);
}

/* Put what the name of a variable, of "len" bytes, stands for. */
static KsStatus
substitute(Policy *p, const char *name, size_t len, const Variable *variables, size_t n,
		   KsFailure *why)
{
	const Variable *v = NULL;
	bool		fits;

	for (size_t i = 0; i < n; i++)
	{
		if (strlen(variables[i].name) == len && strncmp(variables[i].name, name, len) == 0)
			v = &variables[i];
	}
	if (v == NULL && !is_of_iam(name, len))
		return ks_fail(why, KS_REFUSED, "the key policy has ${%.*s}, which stands for nothing",
					   (int) (len < 40 ? len : 40), name);
	if (v != NULL && v->value[0] == '\0')
		return ks_fail(why, KS_REFUSED, "the key policy has ${%s}, which is not known yet: name it in the keystore's URI",
					   v->name);
	fits = v != NULL ? add(p, v->value, strlen(v->value)) : add(p, name - 2, len + 3);
	return fits ? KS_OK : ks_fail(why, KS_REFUSED, "the key policy is longer than 32 kB");
}

static KsStatus
fill_in(Policy *p, const char *template, const Variable *variables, size_t n, KsFailure *why)
{
	const char *rest = template;

	for (;;)
	{
		const char *begin = strstr(rest, "${");
		const char *end = begin == NULL ? NULL : strchr(begin, '}');
		KsStatus	status;

		if (!add(p, rest, end == NULL ? strlen(rest) : (size_t) (begin - rest)))
			return ks_fail(why, KS_REFUSED, "the key policy is longer than 32 kB");
		if (end == NULL)
			return KS_OK;
		status = substitute(p, begin + 2, (size_t) (end - begin - 2), variables, n, why);
		if (status != KS_OK)
			return status;
		rest = end + 1;
	}
}

static KsStatus
check_json(const char *text, KsFailure *why)
{
	json_error_t error;
	json_t	   *policy = json_loads(text, JSON_REJECT_DUPLICATES, &error);
	const bool	ok = json_is_object(policy);

	json_decref(policy);
	return ok ? KS_OK :
		ks_fail(why, KS_REFUSED, "the key policy is no JSON object: line %d: %.150s", error.line, error.text);
}

/* The policy of a new key; *out is NULL if none is configured, else freed by the caller. */
KsStatus
kms_policy(Keystore *ks, const char *inst, const char *school, char **out, KsFailure *why)
{
	char		account[ACCOUNT_LEN + 1];
	const Variable variables[] = {
		{"partition", ks->partition},
		{"account", account},
		{"region", ks->options.region},
		{"installation", inst},
		{"school", school},
	};
	char	   *template = malloc(MAX_POLICY + 1);
	Policy		p = {malloc(MAX_POLICY + 1), 0};
	KsStatus	status;

	*out = NULL;
	pthread_mutex_lock(&ks->lock);
	strcpy(account, ks->account);
	pthread_mutex_unlock(&ks->lock);
	if (ks->key_policy[0] == '\0')
		status = KS_OK;
	else if (template == NULL || p.text == NULL)
		status = ks_fail(why, KS_MODULE_ERROR, "out of memory");
	else
	{
		status = read_template(ks->key_policy, template, why);
		if (status == KS_OK)
			status = fill_in(&p, template, variables,
							 sizeof(variables) / sizeof(variables[0]), why);
		if (status == KS_OK)
			status = check_json(p.text, why);
		if (status == KS_OK)
		{
			*out = p.text;
			p.text = NULL;
		}
	}
	free(template);
	free(p.text);
	return status;
}
