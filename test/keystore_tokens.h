/*
 * keystore_tokens.h
 *		For tests of the keystore helper: its files, tokens to ask, the shim.
 *
 * Everything is static, and set up by keystore_client.h's begin_tests().
 */
#ifndef NOMP_KEYSTORE_TOKENS_H
#define NOMP_KEYSTORE_TOKENS_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"

#define PIN		"secret-4711"

static char helper_path[PATH_MAX];
static char scratch[PATH_MAX];
static char shim_path[PATH_MAX];
static char control_path[PATH_MAX + 16];
static char shim_log[PATH_MAX + 16];
static bool own_scratch;

/* ---- files and programs ---- */

static inline void
write_file(const char *path, const char *text, mode_t mode)
{
	int			fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t) strlen(text) ||
		fchmod(fd, mode) != 0)
		tap_bail("cannot write %s", path);
	close(fd);
}

/* Run a program, its output into a file; returns its exit status. */
static inline int
run_program(char *const argv[])
{
	char		log[PATH_MAX + 16];
	int			status;
	pid_t		pid;

	snprintf(log, sizeof(log), "%s/programs.log", scratch);
	pid = fork();
	if (pid == 0)
	{
		int			fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);

		if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
			_exit(126);
		execvp(argv[0], argv);
		_exit(127);
	}
	while (waitpid(pid, &status, 0) < 0)
	{
		if (errno != EINTR)
			tap_bail("cannot run %s", argv[0]);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

#define RUN(...) run_program((char *const[]) {__VA_ARGS__, NULL})

static inline const char *
first_file(const char *const *paths)
{
	for (; *paths != NULL; paths++)
	{
		if (access(*paths, R_OK) == 0)
			return *paths;
	}
	tap_bail("a module that the tests need is not installed");
}

static inline const char *
softhsm_module(void)
{
	static const char *const paths[] = {
		"/usr/lib/softhsm/libsofthsm2.so",
		"/usr/lib64/softhsm/libsofthsm.so",
		"/usr/lib64/pkcs11/libsofthsm2.so",
		"/usr/lib/pkcs11/libsofthsm2.so",
		NULL
	};

	return first_file(paths);
}

static inline const char *
nss_module(void)
{
	static const char *const paths[] = {
		"/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
		"/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
		"/usr/lib64/libsoftokn3.so",
		"/usr/lib/libsoftokn3.so",
		NULL
	};

	return first_file(paths);
}

/* The path of a file in the scratch folder, in one of four static buffers. */
static inline char *
in_scratch(const char *name)
{
	static char paths[4][PATH_MAX + 64];
	static int	next;
	char	   *path = paths[next++ % 4];

	snprintf(path, sizeof(paths[0]), "%s/%s", scratch, name);
	return path;
}

/* Choose the folder of SoftHSM tokens that helpers started from now on see. */
static inline void
use_softhsm(const char *name)
{
	char		conf[PATH_MAX + 128];
	char		path[PATH_MAX + 128];

	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	if (mkdir(path, 0700) != 0 && errno != EEXIST)
		tap_bail("cannot make %s", path);
	snprintf(conf, sizeof(conf), "directories.tokendir = %s/%s\n"
			 "objectstore.backend = file\nlog.level = ERROR\n"
			 "library.reset_on_fork = true\n", scratch, name);
	snprintf(path, sizeof(path), "%s/%s.conf", scratch, name);
	write_file(path, conf, 0600);
	setenv("SOFTHSM2_CONF", path, 1);
}

static inline void
make_softhsm_token(const char *label)
{
	if (RUN("softhsm2-util", "--init-token", "--free", "--label", (char *) label,
			"--pin", PIN, "--so-pin", "officer-1") != 0)
		tap_bail("softhsm2-util failed, see programs.log");
}

/* A URI of a SoftHSM token, or of one behind the shim. */
static inline char *
softhsm_uri(const char *token, const char *pin_file, bool shim)
{
	static char uri[3 * PATH_MAX];

	snprintf(uri, sizeof(uri), "pkcs11:token=%s?module-path=%s&pin-source=file:%s",
			 token, shim ? shim_path : softhsm_module(), pin_file);
	return uri;
}

/* Make an NSS database with a PIN, and give its URI. */
static inline char *
make_nss_token(const char *name, const char *pin_file)
{
	static char uri[5 * PATH_MAX];
	char		path[PATH_MAX + 64];
	char		db[PATH_MAX + 80];

	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	snprintf(db, sizeof(db), "sql:%s", path);
	if (mkdir(path, 0700) != 0 ||
		RUN("certutil", "-N", "-d", db, "-f", (char *) pin_file) != 0)
		tap_bail("certutil failed, see programs.log");
	snprintf(uri, sizeof(uri),
			 "pkcs11:token=NSS%%20Certificate%%20DB?module-path=%s&pin-source=%s"
			 "&x-init-reserved=configDir%%3D%%27sql:%s%%27%%20certPrefix%%3D%%27%%27"
			 "%%20keyPrefix%%3D%%27%%27%%20secmod%%3D%%27secmod.db%%27%%20flags%%3D",
			 nss_module(), pin_file, path);
	return uri;
}

/* Tell the shim what to do; "" for nothing. */
static inline void
shim(const char *lines)
{
	write_file(control_path, lines, 0600);
}

/* How often was a function called since the log was last cleared? */
static inline int
shim_calls(const char *function)
{
	char		line[128];
	int			n = 0;
	FILE	   *f = fopen(shim_log, "re");

	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
	{
		line[strcspn(line, "\n")] = '\0';
		n += strcmp(line, function) == 0;
	}
	if (f != NULL)
		fclose(f);
	return n;
}

#endif							/* NOMP_KEYSTORE_TOKENS_H */
