/*
 * aws_memory.c
 *		Memory of the AWS client: wiped when freed; texts that grow.
 *
 * Credentials and data keys pass through buffers of libraries that do not
 * wipe them.  Each takes an allocator; this one remembers how long a piece
 * is, in front of it, and overwrites it before it is freed.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <curl/curl.h>
#include <openssl/crypto.h>

#include "aws_memory.h"

/* In front of each piece; as long as the strictest alignment. */
typedef union Head
{
	size_t		size;
	max_align_t align;
} Head;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool ready;

void *
wiping_malloc(size_t size)
{
	Head	   *head;

	if (size > SIZE_MAX - sizeof(Head))
		return NULL;
	head = malloc(sizeof(Head) + size);
	if (head == NULL)
		return NULL;
	head->size = size;
	return head + 1;
}

void *
wiping_calloc(size_t n, size_t size)
{
	void	   *p;

	if (size != 0 && n > SIZE_MAX / size)
		return NULL;
	p = wiping_malloc(n * size);
	if (p != NULL)
		memset(p, 0, n * size);
	return p;
}

void
wiping_free(void *p)
{
	Head	   *head = p;

	if (p == NULL)
		return;
	head--;
	explicit_bzero(p, head->size);
	free(head);
}

/* Never in place: what realloc() leaves behind is not wiped. */
void *
wiping_realloc(void *p, size_t size)
{
	size_t		old;
	void	   *new;

	if (p == NULL)
		return wiping_malloc(size);
	old = ((Head *) p)[-1].size;
	new = wiping_malloc(size);
	if (new == NULL)
		return NULL;
	memcpy(new, p, old < size ? old : size);
	wiping_free(p);
	return new;
}

char *
wiping_strdup(const char *s)
{
	size_t		size = strlen(s) + 1;
	char	   *copy = wiping_malloc(size);

	if (copy != NULL)
		memcpy(copy, s, size);
	return copy;
}

static void *
ssl_malloc(size_t size, const char *file, int line)
{
	return wiping_malloc(size);
}

/* OpenSSL's contract is realloc()'s: a size of zero frees. */
static void *
ssl_realloc(void *p, size_t size, const char *file, int line)
{
	if (p != NULL && size == 0)
	{
		wiping_free(p);
		return NULL;
	}
	return wiping_realloc(p, size);
}

static void
ssl_free(void *p, const char *file, int line)
{
	wiping_free(p);
}

/*
 * A TLS library told to write its keys to a file would do so, and everything
 * said could be read with them.
 */
static void
start(void)
{
	(void) unsetenv("SSLKEYLOGFILE");
	if (CRYPTO_set_mem_functions(ssl_malloc, ssl_realloc, ssl_free) != 1)
		return;
	json_set_alloc_funcs(wiping_malloc, wiping_free);
	json_object_seed(0);
	ready = curl_global_init_mem(CURL_GLOBAL_DEFAULT, wiping_malloc, wiping_free,
								 wiping_realloc, wiping_strdup,
								 wiping_calloc) == CURLE_OK;
}

bool
aws_memory_init(void)
{
	(void) pthread_once(&once, start);
	return ready;
}

static bool
make_room(AwsText *text, size_t more)
{
	size_t		room = text->room == 0 ? 256 : text->room;
	char	   *data;

	if (text->bad || more > AWS_TEXT_MAX - text->len)
		return false;
	while (room < text->len + more + 1)
		room *= 2;
	if (room == text->room)
		return true;
	data = wiping_realloc(text->data, room);
	if (data == NULL)
		return false;
	text->data = data;
	text->room = room;
	return true;
}

void
aws_text_add(AwsText *text, const char *data, size_t len)
{
	if (!make_room(text, len))
	{
		text->bad = true;
		return;
	}
	if (len > 0)
		memcpy(text->data + text->len, data, len);
	text->len += len;
	text->data[text->len] = '\0';
}

void
aws_text_addf(AwsText *text, const char *fmt,...)
{
	va_list		args;
	int			len;

	va_start(args, fmt);
	len = vsnprintf(NULL, 0, fmt, args);
	va_end(args);
	if (len < 0 || !make_room(text, (size_t) len))
	{
		text->bad = true;
		return;
	}
	va_start(args, fmt);
	(void) vsnprintf(text->data + text->len, (size_t) len + 1, fmt, args);
	va_end(args);
	text->len += (size_t) len;
}

void
aws_text_add_encoded(AwsText *text, const char *s)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";

	for (; *s != '\0'; s++)
	{
		if (strchr(plain, *s) != NULL)
			aws_text_add(text, s, 1);
		else
			aws_text_addf(text, "%%%02X", (unsigned char) *s);
	}
}

void
aws_text_free(AwsText *text)
{
	wiping_free(text->data);
	*text = (AwsText) {0};
}

void
aws_printable(char *out, size_t size, const char *in, size_t len)
{
	size_t		n = 0;

	for (size_t i = 0; i < len && n + 1 < size; i++)
		out[n++] = in[i] >= ' ' && in[i] <= '~' ? in[i] : '?';
	out[n] = '\0';
}

int64_t
aws_now(void)
{
	struct timespec now;

	(void) clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}
