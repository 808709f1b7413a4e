#!/usr/bin/python3
"""Reads stored values with nothing but docs/format.md: an independent reader.

Shares no code with the extension.  AES comes from Debian's
python3-cryptography, HMAC from the standard library; everything else is
written after the page.

    decrypt.py --dek HEX --tenant UUID --version N VALUE
    decrypt.py --kek HEX --wrapped HEX --tenant UUID --version N VALUE
    decrypt.py --check < lines of "dek tenant version plaintext-hex value"
    decrypt.py --dek HEX --tenant UUID --version N [--normal KIND] --fingerprint TEXT
    decrypt.py --example docs/format.md

With --fingerprint, --dek is the index key and TEXT the canonical text; KIND
is nocase or digits.  VALUE is the text form, nc1:...  Exits with 0 if everything decrypts (and is
what it should be), 1 if something does not, 2 for wrong usage.
"""

import argparse
import base64
import binascii
import hashlib
import hmac
import re
import sys
import unicodedata
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.backends import default_backend
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LAST_TYPE = 28
ARRAY = 0x80
HAS_FINGERPRINT = 0x01


class Refused(Exception):
    """Not a value of format version 1, or not encrypted with this key."""


# Keys

def lp(field):
    return len(field).to_bytes(2, "big") + field


def place(tenant, purpose, version):
    return lp(tenant.bytes) + lp(purpose) + lp(version.to_bytes(4, "big"))


def hkdf(key, info):
    """HKDF-SHA-256, no salt, one block out."""
    prk = hmac.new(bytes(32), key, hashlib.sha256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def unwrap(kek, wrapped, key_place):
    if len(wrapped) != 61 or wrapped[0] != 1:
        raise Refused("not a wrapped key")
    aad = lp(b"nomp_crypt wrap v1") + key_place
    try:
        return AESGCM(kek).decrypt(wrapped[1:13], wrapped[13:], aad)
    except InvalidTag:
        raise Refused("the wrapped key does not authenticate") from None


# The cipher

def aes_block(key, block):
    encryptor = Cipher(algorithms.AES(key), modes.ECB(), default_backend()).encryptor()
    return encryptor.update(block) + encryptor.finalize()


def derived_key(key, nonce):
    """XAES-256-GCM's key for a nonce, with numbers instead of byte loops."""
    subkey = int.from_bytes(aes_block(key, bytes(16)), "big") << 1
    if subkey >> 128:
        subkey = subkey & (1 << 128) - 1 ^ 0x87
    derived = b""
    for counter in (1, 2):
        message = bytes([0, counter]) + b"X\x00" + nonce[:12]
        block = int.from_bytes(message, "big") ^ subkey
        derived += aes_block(key, block.to_bytes(16, "big"))
    return derived


def xaes_open(key, nonce, sealed, aad):
    try:
        return AESGCM(derived_key(key, nonce)).decrypt(nonce[12:], sealed, aad)
    except InvalidTag:
        raise Refused("the value does not authenticate") from None


# The value

def from_text(text):
    if not text.startswith("nc1:"):
        raise Refused("no nc1: in front")
    try:
        return base64.b64decode(text[4:], validate=True)
    except binascii.Error:
        raise Refused("not base64") from None


def split(value):
    """Header fields of a value: key_id, nonce, aad, ciphertext with tag."""
    if len(value) < 50:
        raise Refused("too short")
    if value[0] >> 4 != 1 or value[0] & 0x0e:
        raise Refused("unknown format")
    if not 1 <= value[1] & ~ARRAY <= LAST_TYPE:
        raise Refused("unknown type")
    body = 34
    if value[0] & HAS_FINGERPRINT:
        body = 50
        if len(value) < 66:
            raise Refused("too short for its fingerprint")
    return value[2:10], value[10:34], value[:10] + value[34:body], value[body:]


def decrypt(dek, tenant, version, text):
    key_place = place(tenant, b"values", version)
    key_id, nonce, aad, sealed = split(from_text(text))
    if key_id != hkdf(dek, lp(b"nomp_crypt key_check v1") + key_place)[:8]:
        raise Refused("encrypted with another key")
    k_enc = hkdf(dek, lp(b"nomp_crypt k_enc v1") + key_place)
    return xaes_open(k_enc, nonce, sealed, aad)


# Searching

def normal(text, kind):
    if kind == "nocase":
        nfc = unicodedata.normalize("NFC", text)
        return unicodedata.normalize("NFC", nfc.casefold())
    if kind == "digits":
        return "".join(c for c in text if c in "0123456789")
    return text


def fingerprint(k_idx, text, kind=None):
    """Of a canonical text."""
    data = normal(text, kind).encode("utf-8")
    return hmac.new(k_idx, data, hashlib.sha256).digest()[:16]


def index_key(dek, tenant, version):
    return hkdf(dek, lp(b"nomp_crypt k_idx v1") + place(tenant, b"index", version))


# Ways of running it

def check(lines):
    """Every line must decrypt to its plaintext."""
    count = 0
    for number, line in enumerate(lines, 1):
        dek, tenant, version, plain, text = line.split()
        plain = b"" if plain == "-" else bytes.fromhex(plain)
        try:
            found = decrypt(bytes.fromhex(dek), uuid.UUID(tenant), int(version), text)
        except Refused as reason:
            print(f"line {number}: refused: {reason}")
            return 1
        if found != plain:
            print(f"line {number}: another plaintext")
            return 1
        count += 1
    return 0 if count > 0 else 1


def check_example(page):
    """The page's example, from the wrapped key to the plaintext."""
    with open(page, encoding="utf-8") as file:
        blocks = re.findall(r"^```text\n(tenant .*?)^```", file.read(), re.M | re.S)
    if len(blocks) != 1:
        print("no example in the page")
        return 1
    fields = {}
    for line in blocks[0].splitlines():
        fields.setdefault(line[:13].strip(), []).append(line[13:])

    def one(name):
        return bytes.fromhex(fields[name][0])

    tenant = uuid.UUID(fields["tenant"][0])
    version = int(fields["version"][0])
    key_place = place(tenant, fields["purpose"][0].encode(), version)
    dek = unwrap(one("KEK"), one("wrapped"), key_place)
    found = [
        dek == one("data key"),
        one("wrap aad") == lp(b"nomp_crypt wrap v1") + key_place,
        hkdf(dek, lp(b"nomp_crypt key_check v1") + key_place) == one("key_check"),
        one("key_check")[:8] == one("key_id"),
        hkdf(dek, lp(b"nomp_crypt k_enc v1") + key_place) == one("k_enc"),
        len(fields["text form"]) == 2,
        index_key(one("index key"), tenant, version) == one("k_idx"),
        fingerprint(one("k_idx"), one("plaintext").decode("utf-8")) == one("fingerprint"),
        from_text(fields["text form"][1])[34:50] == one("fingerprint"),
    ]
    for i, text in enumerate(fields["text form"]):
        key_id, nonce, aad, _ = split(from_text(text))
        found += [
            decrypt(dek, tenant, version, text) == one("plaintext"),
            from_text(text).hex() == fields["value"][i],
            key_id == one("key_id"),
            nonce.hex() == fields["nonce"][i],
            aad.hex() == fields["aad"][i],
        ]
    if not all(found):
        print("the example does not agree with itself:", found)
        return 1
    return 0


def main():
    parser = argparse.ArgumentParser(description="decrypt nomp_crypt values")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--example", metavar="PAGE")
    parser.add_argument("--dek", type=bytes.fromhex)
    parser.add_argument("--kek", type=bytes.fromhex)
    parser.add_argument("--wrapped", type=bytes.fromhex)
    parser.add_argument("--tenant", type=uuid.UUID)
    parser.add_argument("--version", type=int)
    parser.add_argument("--fingerprint", metavar="TEXT")
    parser.add_argument("--normal", choices=["nocase", "digits"])
    parser.add_argument("value", nargs="?")
    args = parser.parse_args()

    if args.check:
        return check(sys.stdin)
    if args.fingerprint is not None:
        if args.dek is None or args.tenant is None or args.version is None:
            parser.error("a fingerprint needs --dek, --tenant and --version")
        k_idx = index_key(args.dek, args.tenant, args.version)
        print(fingerprint(k_idx, args.fingerprint, args.normal).hex())
        return 0
    try:
        if args.example:
            return check_example(args.example)
        if args.value is None or args.tenant is None or args.version is None:
            parser.error("a value needs --tenant and --version")
        if args.dek is None:
            if args.kek is None or args.wrapped is None:
                parser.error("a value needs --dek, or --kek and --wrapped")
            key_place = place(args.tenant, b"values", args.version)
            args.dek = unwrap(args.kek, args.wrapped, key_place)
        plain = decrypt(args.dek, args.tenant, args.version, args.value)
    except Refused as reason:
        print("refused:", reason, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(plain + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
