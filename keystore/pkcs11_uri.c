/*
 * pkcs11_uri.c
 *		The two things a PKCS#11 keystore is configured by: URI and PIN file.
 *
 * The URI is RFC 7512's, parsed by p11-kit.  Of its attributes these count:
 * those of slot and token (which token), module-path (absolute), pin-source
 * (a file) and our own x-init-reserved (handed to C_Initialize: NSS wants its
 * folders there).  A PIN in the URI itself would sit in configuration files
 * and SHOW output, so it is refused.
 *
 * The PIN is read into the caller's buffer; the caller wipes it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pkcs11.h"

static void
bad_uri(Keystore *ks, const char *reason)
{
	snprintf(ks->bad_uri, sizeof(ks->bad_uri), "the keystore's URI %s", reason);
	if (ks->uri != NULL)
		p11_kit_uri_free(ks->uri);
	ks->uri = NULL;
}

/* Strip "file:" and an empty authority; NULL if that leaves no absolute path. */
static const char *
file_path(const char *source)
{
	if (strncmp(source, "file:", 5) == 0)
		source += 5;
	if (strncmp(source, "///", 3) == 0)
		source += 2;
	return source[0] == '/' && source[1] != '/' ? source : NULL;
}

/* Take the URI apart.  What is wrong with it is told at the first request. */
void
p11_configure(Keystore *ks, const char *text)
{
	CK_ULONG	n_attributes = 0;
	const char *pin_source;

	ks->uri = p11_kit_uri_new();
	if (ks->uri == NULL || p11_kit_uri_parse(text, P11_KIT_URI_FOR_ANY, ks->uri) != P11_KIT_URI_OK)
	{
		bad_uri(ks, "does not parse");
		return;
	}
	if (p11_kit_uri_get_pin_value(ks->uri) != NULL)
	{
		bad_uri(ks, "contains a PIN: put it into a file and name that as pin-source");
		return;
	}
	(void) p11_kit_uri_get_attributes(ks->uri, &n_attributes);
	if (p11_kit_uri_any_unrecognized(ks->uri) || n_attributes > 0)
	{
		bad_uri(ks, "has attributes that do not choose a token");
		return;
	}
	ks->module_path = p11_kit_uri_get_module_path(ks->uri);
	if (ks->module_path == NULL || ks->module_path[0] != '/')
	{
		bad_uri(ks, "has no module-path that starts with a slash");
		return;
	}
	ks->init_reserved = p11_kit_uri_get_vendor_query(ks->uri, "x-init-reserved");
	pin_source = p11_kit_uri_get_pin_source(ks->uri);
	if (pin_source == NULL)
		return;
	ks->pin_path = file_path(pin_source);
	if (ks->pin_path == NULL)
		bad_uri(ks, "has a pin-source that is no file: name or path");
}

static KsStatus
bad_pin_file(Keystore *ks, const char *what)
{
	return p11_refuse(ks, KS_PIN_FILE, "PIN file \"%s\" %s", ks->pin_path, what);
}

/* Is this file one that only its owner, root or us, can read? */
static KsStatus
check_pin_file(Keystore *ks, const struct stat *st)
{
	if (!S_ISREG(st->st_mode))
		return bad_pin_file(ks, "is not a regular file");
	if (st->st_uid != geteuid() && st->st_uid != 0)
		return bad_pin_file(ks, "belongs to another user");
	if ((st->st_mode & 077) != 0)
		return bad_pin_file(ks, "is accessible to group or others");
	if (st->st_size == 0)
		return bad_pin_file(ks, "is empty");
	if (st->st_size > MAX_PIN)
		return bad_pin_file(ks, "is too long");
	return KS_OK;
}

static KsStatus
read_open_pin(Keystore *ks, int fd, uint8_t pin[MAX_PIN], size_t *len, char *stamp)
{
	struct stat st;
	ssize_t		n;
	KsStatus	status;

	if (fstat(fd, &st) != 0)
		return bad_pin_file(ks, "cannot be examined");
	status = check_pin_file(ks, &st);
	if (status != KS_OK)
		return status;
	snprintf(stamp, KS_MAX_PIN_STAMP + 1, "%llu:%llu:%lld:%lld.%09ld",
			 (unsigned long long) st.st_dev, (unsigned long long) st.st_ino,
			 (long long) st.st_size, (long long) st.st_mtim.tv_sec,
			 st.st_mtim.tv_nsec);
	n = read(fd, pin, MAX_PIN);
	if (n != st.st_size)
		return bad_pin_file(ks, "cannot be read");
	if (pin[n - 1] == '\n')
		n--;
	*len = (size_t) n;
	return n > 0 ? KS_OK : bad_pin_file(ks, "is empty");
}

/* Read the PIN and note which file it was. */
KsStatus
p11_read_pin(Keystore *ks, uint8_t pin[MAX_PIN], size_t *len,
			 char stamp[KS_MAX_PIN_STAMP + 1])
{
	int			fd = open(ks->pin_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	KsStatus	status;

	if (fd < 0)
		return p11_refuse(ks, KS_PIN_FILE, "PIN file \"%s\" cannot be opened: %s",
						  ks->pin_path, strerror(errno));
	status = read_open_pin(ks, fd, pin, len, stamp);
	(void) close(fd);
	return status;
}
