/*
 * jws.h
 *		Records that are signed: JWS (RFC 7515), compact, ES256 and nothing else.
 */
#ifndef NOMP_JWS_H
#define NOMP_JWS_H

#include "postgres.h"

#include "protocol.h"

#define JWS_KID_LEN		43		/* RFC 7638 thumbprint, base64url */
#define JWS_SPKI_LEN	91		/* SubjectPublicKeyInfo of a point of P-256 */
#define JWS_POINT_LEN	65		/* 4, x, y: its end */

typedef struct JwsKey
{
	char		kid[JWS_KID_LEN + 1];
	uint8		spki[JWS_SPKI_LEN];
} JwsKey;

/* False unless it is a point of P-256, uncompressed. */
extern bool jws_key(const uint8 *spki, size_t len, JwsKey *out);
/* {"crv":"P-256","kty":"EC","x":"...","y":"..."} */
extern char *jws_jwk(const JwsKey *key);

/* What is signed of a record; its digest; the record. */
extern char *jws_input(const JwsKey *key, const char *payload);
extern void jws_digest(const char *input, uint8 digest[KS_DIGEST_LEN]);
extern char *jws_finish(const char *input, const uint8 signature[KS_SIGNATURE_LEN]);

/* The key that a record says signed it, if its header is to the letter one of ours. */
extern bool jws_names(const char *jws, char kid[JWS_KID_LEN + 1]);
/* The payload if that key signed it, else NULL. */
extern char *jws_open(const char *jws, const JwsKey *key);
/* The bytes of a base64url text, NUL after them; NULL if it is none. */
extern char *jws_decode(const char *text, size_t len, size_t *out_len);

#endif							/* NOMP_JWS_H */
