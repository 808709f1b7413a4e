/*
 * disk_shim.c
 *		A disk that remembers what was flushed, for tests.
 *
 * Preloaded into a server.  Of the folder that NOMP_DISK_FOLDER names, a copy
 * of each file is made in NOMP_DISK_KEPT, by its inode, when it is flushed;
 * and a list "names" of inodes and names when the folder is.  From these a
 * test makes what a power cut leaves at the worst.  Nothing else happens when
 * something is flushed.
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void
need(bool good)
{
	if (!good)
		abort();
}

/* Copy a file, of whatever name by now, to one that is whole or not there. */
static void
keep_file(const char *link, const char *kept)
{
	char		name[PATH_MAX];
	char		temp[PATH_MAX + 32];
	char		buffer[65536];
	struct stat st;
	ssize_t		n;
	int			in = open(link, O_RDONLY | O_CLOEXEC);
	int			out;

	need(in >= 0 && fstat(in, &st) == 0);
	snprintf(name, sizeof(name), "%s/%lu", kept, (unsigned long) st.st_ino);
	snprintf(temp, sizeof(temp), "%s.%d", name, (int) getpid());
	out = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	need(out >= 0);
	while ((n = read(in, buffer, sizeof(buffer))) > 0)
		need(write(out, buffer, (size_t) n) == n);
	need(n == 0 && close(in) == 0 && close(out) == 0 && rename(temp, name) == 0);
}

static void
keep_names(const char *folder, const char *kept)
{
	char		name[PATH_MAX];
	char		temp[PATH_MAX + 32];
	DIR		   *dir = opendir(folder);
	FILE	   *out;

	snprintf(name, sizeof(name), "%s/names", kept);
	snprintf(temp, sizeof(temp), "%s.%d", name, (int) getpid());
	out = fopen(temp, "we");
	need(dir != NULL && out != NULL);
	for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
	{
		if (entry->d_type == DT_REG)
			fprintf(out, "%lu %s\n", (unsigned long) entry->d_ino, entry->d_name);
	}
	closedir(dir);
	need(fclose(out) == 0 && rename(temp, name) == 0);
}

__attribute__((visibility("default"))) int
fsync(int fd)
{
	const char *folder = getenv("NOMP_DISK_FOLDER");
	const char *kept = getenv("NOMP_DISK_KEPT");
	char		link[64];
	char		path[PATH_MAX];
	ssize_t		n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (folder == NULL || kept == NULL || n < 0)
		return 0;
	path[n] = '\0';
	if (strcmp(path, folder) == 0)
		keep_names(folder, kept);
	else if (strncmp(path, folder, strlen(folder)) == 0 && path[strlen(folder)] == '/')
		keep_file(link, kept);
	return 0;
}

__attribute__((visibility("default"))) int
syncfs(int fd)
{
	(void) fd;
	return 0;
}
