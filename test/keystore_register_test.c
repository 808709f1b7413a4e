/*
 * keystore_register_test.c
 *		The key pair that signs the register, and the register's head, on
 *		SoftHSM and NSS.
 *
 * Signatures are verified here with OpenSSL, which knows nothing of the
 * helper.  NSS keeps no data objects on a token, so it remembers no head:
 * KS_UNSUPPORTED, and the register does without.
 */
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

#include "keystore_client.h"

#define REGISTER(generation)	"nomp_crypt:" INST ":register:" generation
#define HEAD	"nomp_crypt:" INST ":head"

typedef struct PublicKey
{
	uint8_t		der[KS_MAX_PUBLIC_KEY];
	size_t		len;
	bool		created;
} PublicKey;

static char pin_file[PATH_MAX + 64];

static KsStatus
register_key(Helper *h, const char *inst, uint32_t generation, unsigned create, PublicKey *key)
{
	const uint8_t *der;
	KsStatus	status;

	memset(key, 0, sizeof(*key));
	begin();
	put(inst);
	put_uint(generation, 4);
	put("");
	put_uint(create ? KS_MAKE : KS_FIND, 1);
	status = ask(h, KS_OP_REGISTER_KEY);
	if (status != KS_OK)
		return status;
	key->created = wire_get_uint(&reply.r, 1) == 1;
	(void) next_string();
	key->len = wire_get_str(&reply.r, &der);
	if (!wire_done(&reply.r) || key->len > sizeof(key->der))
		tap_bail("a malformed reply to REGISTER_KEY");
	memcpy(key->der, der, key->len);
	return status;
}

static KsStatus
sign(Helper *h, const char *inst, uint32_t generation, const char *text, uint8_t signature[64])
{
	uint8_t		digest[32];
	const uint8_t *data;
	KsStatus	status;

	SHA256((const uint8_t *) text, strlen(text), digest);
	begin();
	put(inst);
	put_uint(generation, 4);
	put("");
	wire_put_str(&body, digest, sizeof(digest));
	status = ask(h, KS_OP_SIGN);
	if (status != KS_OK)
		return status;
	if (wire_get_str(&reply.r, &data) != 64 || !wire_done(&reply.r))
		tap_bail("a malformed reply to SIGN");
	memcpy(signature, data, 64);
	return status;
}

/* The head, or with "set" another one: the status, and what is answered. */
static KsStatus
head(Helper *h, const char *inst, const char *set, char out[256])
{
	KsStatus	status;

	begin();
	put(inst);
	put_uint(set != NULL, 1);
	put(set != NULL ? set : "");
	status = ask(h, KS_OP_HEAD);
	out[0] = '\0';
	if (status == KS_OK)
		snprintf(out, 256, "%s", next_string());
	return status;
}

static bool
head_is(Helper *h, const char *wanted)
{
	char		now[256];

	return head(h, INST, NULL, now) == KS_OK && strcmp(now, wanted) == 0;
}

/* Does OpenSSL find the signature, r and s, to be that key's over the text? */
static bool
verifies(const PublicKey *key, const char *text, const uint8_t signature[64])
{
	const uint8_t *der = key->der;
	EVP_PKEY   *pkey = d2i_PUBKEY(NULL, &der, (long) key->len);
	EVP_PKEY_CTX *check = pkey != NULL ? EVP_PKEY_CTX_new(pkey, NULL) : NULL;
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	ECDSA_SIG  *sig = ECDSA_SIG_new();
	uint8_t	   *sig_der = NULL;
	int			len;
	bool		good;

	if (ctx == NULL || sig == NULL ||
		ECDSA_SIG_set0(sig, BN_bin2bn(signature, 32, NULL), BN_bin2bn(signature + 32, 32, NULL)) != 1)
		tap_bail("OpenSSL has no memory");
	len = i2d_ECDSA_SIG(sig, &sig_der);
	good = check != NULL && EVP_PKEY_public_check(check) == 1 && len > 0 &&
		EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, pkey) == 1 &&
		EVP_DigestVerify(ctx, sig_der, (size_t) len, (const uint8_t *) text, strlen(text)) == 1;
	OPENSSL_free(sig_der);
	ECDSA_SIG_free(sig);
	EVP_MD_CTX_free(ctx);
	EVP_PKEY_CTX_free(check);
	EVP_PKEY_free(pkey);
	return good;
}

static void
test_without_canary(Helper *h)
{
	PublicKey	key;
	uint8_t		signature[64];
	char		now[256];

	tap_ok(register_key(h, INST, 1, 1, &key) == KS_TOKEN_WRONG,
		   "on a token without the canary no key is made");
	tap_ok(register_key(h, INST, 1, 0, &key) == KS_TOKEN_WRONG &&
		   sign(h, INST, 1, "text", signature) == KS_TOKEN_WRONG,
		   "and none is called absent");
	tap_ok(head(h, INST, NULL, now) == KS_TOKEN_WRONG && head(h, INST, "1 a", now) == KS_TOKEN_WRONG,
		   "it has no head, and is given none");
}

static void
test_key(Helper *h, Helper *other)
{
	PublicKey	key;
	PublicKey	again;
	PublicKey	second;
	uint8_t		signature[64];
	uint8_t		next[64];

	tap_ok(register_key(h, INST, 1, 0, &key) == KS_KEY_ABSENT, "there is no key until it is made");
	tap_ok(sign(h, INST, 1, "text", signature) == KS_KEY_ABSENT, "nothing signs until then");
	tap_ok(register_key(h, INST, 1, 1, &key) == KS_OK && key.created && key.len == 91,
		   "it is made: %s", reply.reason);
	tap_ok(register_key(h, INST, 1, 1, &again) == KS_OK && !again.created &&
		   memcmp(key.der, again.der, key.len) == 0, "and only once");
	tap_ok(register_key(other, INST, 1, 0, &again) == KS_OK && !again.created &&
		   memcmp(key.der, again.der, key.len) == 0, "another helper sees the same");
	tap_ok(sign(h, INST, 1, "text", signature) == KS_OK && verifies(&key, "text", signature),
		   "its signature verifies with OpenSSL: %s", reply.reason);
	tap_ok(!verifies(&key, "Text", signature), "of that text only");
	tap_ok(sign(h, INST, 1, "text", next) == KS_OK && memcmp(signature, next, 64) != 0 &&
		   verifies(&key, "text", next), "the next one differs and verifies, too");
	tap_ok(sign(other, INST, 1, "other", next) == KS_OK && verifies(&key, "other", next),
		   "another helper signs with it");
	tap_ok(sign(h, INST, 2, "text", signature) == KS_KEY_ABSENT, "a second generation is another");
	tap_ok(register_key(h, INST, 2, 1, &second) == KS_OK && second.created &&
		   memcmp(key.der, second.der, key.len) != 0, "it is made beside the first");
	tap_ok(sign(h, INST, 2, "text", signature) == KS_OK && verifies(&second, "text", signature) &&
		   !verifies(&key, "text", signature), "and signs as itself");
	tap_ok(sign(h, INST, 1, "text", signature) == KS_OK && verifies(&key, "text", signature),
		   "so does the first");
	tap_ok(register_key(h, "no uuid", 1, 1, &again) == KS_REFUSED &&
		   sign(h, "no uuid", 1, "text", signature) == KS_REFUSED, "an installation must be a uuid");
	tap_ok(register_key(h, INST2, 1, 1, &again) == KS_TOKEN_WRONG &&
		   sign(h, INST2, 1, "text", signature) == KS_TOKEN_WRONG,
		   "another installation has none here");
	tap_ok(see(h, INST, SCHOOL) == 0 && list(h, INST, 0, &(int) {0}) == 0,
		   "it is nobody's key-encryption key");
}

static void
test_head(Helper *h, Helper *other)
{
	char		longest[KS_MAX_HEAD + 1];
	char		now[256];

	memset(longest, 'a', KS_MAX_HEAD);
	longest[KS_MAX_HEAD] = '\0';
	tap_ok(head_is(h, ""), "there is no head at first");
	tap_ok(head(h, INST, "1 aa", now) == KS_OK && strcmp(now, "1 aa") == 0, "it is remembered");
	tap_ok(head_is(h, "1 aa") && head_is(other, "1 aa"), "for every helper");
	tap_ok(head(other, INST, longest, now) == KS_OK && head_is(h, longest) && head_is(other, longest),
		   "and replaced, by the longest that there can be");
	tap_ok(head(h, INST, "2 bb", now) == KS_OK && head_is(other, "2 bb") && head_is(h, "2 bb"),
		   "and by a short one");
	tap_ok(head(h, "no uuid", "1 a", now) == KS_REFUSED && head(h, INST2, NULL, now) == KS_TOKEN_WRONG,
		   "another installation has none here");
}

#define PKCS11_TOOL(...) RUN("pkcs11-tool", "--module", (char *) softhsm_module(), \
							 "--token-label", "nomp", "--login", "--pin", PIN, __VA_ARGS__)

/* What other programs do to the token while a helper has it open. */
static void
test_other_programs(Helper *h, const char *uri)
{
	Helper		fresh;
	PublicKey	key;
	PublicKey	other;
	uint8_t		signature[64];
	char		now[256];

	if (register_key(h, INST, 1, 0, &key) != KS_OK)
		tap_bail("no key: %s", reply.reason);
	write_file(in_scratch("head"), "9 cc", 0600);
	if (PKCS11_TOOL("--write-object", in_scratch("head"), "--type", "data", "--private",
					"--label", HEAD) != 0)
		tap_bail("pkcs11-tool failed, see programs.log");
	fresh = start(uri);
	tap_ok(head_is(&fresh, "9 cc"), "of two heads the one that is further counts");
	tap_ok(head(&fresh, INST, "3 dd", now) == KS_OK && head_is(&fresh, "3 dd"), "both are replaced by one");
	stop(&fresh);
	fresh = start(uri);
	tap_ok(head_is(&fresh, "3 dd"), "for a new helper");
	(void) head(h, INST, NULL, now);
	tap_ok(strcmp(now, "3 dd") == 0, "for every helper: %s %s", now, reply.reason);
	write_file(in_scratch("head"), "3 ee", 0600);
	if (PKCS11_TOOL("--write-object", in_scratch("head"), "--type", "data", "--private",
					"--label", HEAD) != 0)
		tap_bail("pkcs11-tool failed, see programs.log");
	stop(&fresh);
	fresh = start(uri);
	tap_ok(head(&fresh, INST, NULL, now) == KS_REFUSED && head(&fresh, INST, "4 ff", now) == KS_REFUSED,
		   "of two different ones with one number none is believed, nor replaced: %s", reply.reason);
	for (int i = 0; i < 2; i++)
	{
		if (PKCS11_TOOL("--delete-object", "--type", "data", "--label", HEAD) != 0)
			tap_bail("pkcs11-tool failed, see programs.log");
	}
	tap_ok(head_is(h, "") && head_is(&fresh, ""), "when they are gone there is none");

	if (PKCS11_TOOL("--keypairgen", "--key-type", "EC:prime256v1", "--label", REGISTER("1")) != 0)
		tap_bail("pkcs11-tool failed, see programs.log");
	stop(&fresh);
	fresh = start(uri);
	tap_ok(register_key(&fresh, INST, 1, 1, &other) == KS_REFUSED &&
		   sign(&fresh, INST, 1, "text", signature) == KS_REFUSED,
		   "of two keys with one label none is used: %s", reply.reason);
	for (int i = 0; i < 2; i++)
	{
		if (PKCS11_TOOL("--delete-object", "--type", "privkey", "--label", REGISTER("1")) != 0)
			tap_bail("pkcs11-tool failed, see programs.log");
	}
	tap_ok(sign(h, INST, 1, "text", signature) == KS_KEY_ABSENT,
		   "a key that another program deleted is absent");
	if (PKCS11_TOOL("--keypairgen", "--key-type", "EC:secp384r1", "--label", REGISTER("3")) != 0)
		tap_bail("pkcs11-tool failed, see programs.log");
	tap_ok(register_key(h, INST, 3, 0, &other) == KS_REFUSED, "a key on another curve is refused: %s",
		   reply.reason);
	tap_ok(register_key(h, INST, 1, 1, &other) == KS_OK && other.created &&
		   memcmp(other.der, key.der, key.len) != 0, "a key that is made again is another");
	if (PKCS11_TOOL("--delete-object", "--type", "pubkey", "--label", REGISTER("1")) != 0)
		tap_bail("pkcs11-tool failed, see programs.log");
	tap_ok(register_key(h, INST, 1, 0, &key) == KS_REFUSED ||
		   memcmp(other.der, key.der, key.len) == 0,
		   "without its public object it is the same key, or none");
	stop(&fresh);
}

static void
test_token(const char *name, const char *uri, bool keeps_head)
{
	Helper		h = start(uri);
	Helper		other;
	bool		created;
	char		now[256];

	printf("# %s\n", name);
	test_without_canary(&h);
	if (setup(&h, INST, &created) != KS_OK)
		tap_bail("no canary: %s", reply.reason);
	other = start(uri);
	test_key(&h, &other);
	if (keeps_head)
		test_head(&h, &other);
	else
		tap_ok(head_is(&h, "") && head(&h, INST, "1 a", now) == KS_UNSUPPORTED,
			   "%s cannot remember a head, and says so", name);
	if (keeps_head)
		test_other_programs(&h, uri);
	stop(&h);
	stop(&other);
}

int
main(int argc, char **argv)
{
	char		uri[4 * PATH_MAX];

	begin_tests(argc, argv);
	snprintf(pin_file, sizeof(pin_file), "%s/pin", scratch);
	write_file(pin_file, PIN "\n", 0600);
	use_softhsm("tokens");
	make_softhsm_token("nomp");
	snprintf(uri, sizeof(uri), "%s", softhsm_uri("nomp", pin_file, false));

	test_token("SoftHSM", uri, true);
	test_token("NSS", make_nss_token("nss", pin_file), false);
	return end_tests();
}
