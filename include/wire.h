/*
 * wire.h
 *		Bounded reader and writer for the fields of protocol.h.
 *
 * Neither ever touches a byte outside its buffer: the first field that does
 * not fit sets "bad", later calls do nothing, and the caller checks once at
 * the end.  No PostgreSQL header here; used on both sides of the socket.
 */
#ifndef NOMP_WIRE_H
#define NOMP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct WireWriter
{
	uint8_t    *buf;
	size_t		size;
	size_t		len;
	bool		bad;
} WireWriter;

typedef struct WireReader
{
	const uint8_t *buf;
	size_t		len;
	size_t		pos;
	bool		bad;
} WireReader;

static inline void
wire_put(WireWriter *w, const void *data, size_t len)
{
	if (w->bad || len > w->size - w->len)
	{
		w->bad = true;
		return;
	}
	if (len > 0)
		memcpy(w->buf + w->len, data, len);
	w->len += len;
}

/* Write an unsigned number of "width" bytes, big-endian. */
static inline void
wire_put_uint(WireWriter *w, uint64_t value, int width)
{
	uint8_t		b[8];

	for (int i = 0; i < width; i++)
		b[i] = (uint8_t) (value >> (8 * (width - 1 - i)));
	wire_put(w, b, (size_t) width);
}

static inline void
wire_put_str(WireWriter *w, const void *data, size_t len)
{
	if (len > UINT16_MAX)
	{
		w->bad = true;
		return;
	}
	wire_put_uint(w, len, 2);
	wire_put(w, data, len);
}

static inline uint64_t
wire_get_uint(WireReader *r, int width)
{
	uint64_t	value = 0;

	if (r->bad || (size_t) width > r->len - r->pos)
	{
		r->bad = true;
		return 0;
	}
	for (int i = 0; i < width; i++)
		value = value << 8 | r->buf[r->pos++];
	return value;
}

/* Point "data" at the next string's bytes in the reader's own buffer. */
static inline size_t
wire_get_str(WireReader *r, const uint8_t **data)
{
	size_t		len = (size_t) wire_get_uint(r, 2);

	*data = r->buf + r->pos;
	if (r->bad || len > r->len - r->pos)
	{
		r->bad = true;
		return 0;
	}
	r->pos += len;
	return len;
}

/* Copy the next string into out, zero-terminated; it must fit. */
static inline void
wire_get_cstr(WireReader *r, char *out, size_t size)
{
	const uint8_t *data;
	size_t		len = wire_get_str(r, &data);

	if (r->bad || len >= size || memchr(data, 0, len) != NULL)
	{
		r->bad = true;
		len = 0;
	}
	else if (len > 0)
		memcpy(out, data, len);
	out[len] = '\0';
}

/* Everything was read, and nothing was bad. */
static inline bool
wire_done(const WireReader *r)
{
	return !r->bad && r->pos == r->len;
}

#endif							/* NOMP_WIRE_H */
