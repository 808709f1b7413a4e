/*
 * broker_codec.h
 *		The broker's requests as bytes, and its answers back; key derivation.
 */
#ifndef NOMP_BROKER_CODEC_H
#define NOMP_BROKER_CODEC_H

#include "request.h"
#include "wire.h"

extern void codec_put_unwrap(WireWriter *w, const UnwrapRequest *what);
extern void codec_put_wrap(WireWriter *w, const WrapRequest *what, const uint8 *dek);
extern const char *codec_school(const char *label);
extern void codec_put_see(WireWriter *w, const UnwrapRequest *what);
extern bool codec_get_later(WireReader *r, const UnwrapRequest *what, bool *later);
extern void codec_put_create(WireWriter *w, const CreateRequest *what);
extern bool codec_get_create(WireReader *r, const CreateRequest *what,
							 CreateAnswer *answer);
extern bool codec_get_wrap(WireReader *r, KeySpec *key, uint8 check[KEY_CHECK_LEN]);
extern bool codec_is_key(const KeySpec *spec, const uint8 *dek, size_t len);
extern bool codec_working_key(const KeySpec *spec, const uint8 *dek, size_t len,
							  WorkingKey *out);

#endif							/* NOMP_BROKER_CODEC_H */
