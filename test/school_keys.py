#!/usr/bin/python3
"""The keys of a school, unwrapped outside the server, for tests that look for
them where they must not be.  Follows docs/format.md, as decrypt.py does, and
asks the token itself.

    school_keys.py MODULE TOKEN PINFILE < lines
    school_keys.py aws-kms FOLDER < lines       (test/kms_double.py's)

Lines in: "key NAME KEK-LABEL TENANT PURPOSE VERSION WRAPPED-HEX" (first), and
"value NAME VALUE-HEX" for values under the values key, "text NAME KIND
TEXT-HEX" for fingerprints under the index key (KIND: exact, nocase, digits).  Lines out, "NAME HEX":
the data key NAME.dek, its working key NAME.work, the derived key of a value or
the fingerprint of a text, NAME, and for working and derived keys, which ciphers are keyed with, the other round keys
of AES-256, NAME.rounds (13 blocks; two neighbours give the key away).
"""

import base64
import ctypes
import json
import sys
import urllib.request
import uuid

sys.dont_write_bytecode = True      # leave the tree as it is

import decrypt                      # noqa: E402

CKF_SERIAL_SESSION, CKU_USER, CKA_LABEL, CKM_AES_GCM = 4, 1, 3, 0x1087
ULONG = ctypes.c_ulong


class Attribute(ctypes.Structure):
    _fields_ = [("type", ULONG), ("value", ctypes.c_char_p), ("len", ULONG)]


class Mechanism(ctypes.Structure):
    _fields_ = [("type", ULONG), ("parameter", ctypes.c_void_p), ("len", ULONG)]


class GcmParams(ctypes.Structure):
    _fields_ = [("iv", ctypes.c_char_p), ("iv_len", ULONG), ("iv_bits", ULONG),
                ("aad", ctypes.c_char_p), ("aad_len", ULONG), ("tag_bits", ULONG)]


class Token:
    """One token of a PKCS#11 module, logged in."""

    def __init__(self, module, label, pin):
        self.module = ctypes.CDLL(module)
        self.call("C_Initialize", None)
        slots = (ULONG * 16)()
        count = ULONG(16)
        self.call("C_GetSlotList", 1, slots, ctypes.byref(count))
        for slot in slots[:count.value]:
            info = ctypes.create_string_buffer(512)
            self.call("C_GetTokenInfo", ULONG(slot), info)
            if info.raw[:32].decode().rstrip() == label:
                break
        else:
            sys.exit(f"no token {label}")
        self.session = ULONG()
        self.call("C_OpenSession", ULONG(slot), ULONG(CKF_SERIAL_SESSION), None, None,
                  ctypes.byref(self.session))
        self.call("C_Login", self.session, ULONG(CKU_USER), pin, ULONG(len(pin)))

    def call(self, name, *args):
        status = getattr(self.module, name)(*args)
        if status != 0:
            sys.exit(f"{name}: {status:#x}")

    def find(self, label):
        template = Attribute(CKA_LABEL, label, len(label))
        found = ULONG()
        count = ULONG()
        self.call("C_FindObjectsInit", self.session, ctypes.byref(template), ULONG(1))
        self.call("C_FindObjects", self.session, ctypes.byref(found), ULONG(1),
                  ctypes.byref(count))
        self.call("C_FindObjectsFinal", self.session)
        if count.value == 0:
            sys.exit(f"no key {label.decode()}")
        return found

    def unwrap(self, label, wrapped, aad):
        params = GcmParams(wrapped[1:13], 12, 96, aad, len(aad), 128)
        mechanism = Mechanism(CKM_AES_GCM, ctypes.addressof(params), ctypes.sizeof(params))
        out = ctypes.create_string_buffer(64)
        length = ULONG(64)
        self.call("C_DecryptInit", self.session, ctypes.byref(mechanism), self.find(label))
        self.call("C_Decrypt", self.session, wrapped[13:], ULONG(len(wrapped) - 13), out,
                  ctypes.byref(length))
        return out.raw[:length.value]


class Double:
    """The double of KMS, asked as by an owner of all its keys."""

    def __init__(self, folder):
        with open(f"{folder}/ready.json", encoding="utf-8") as file:
            self.url = f"http://127.0.0.1:{json.load(file)['control']}/"

    def unwrap(self, label, wrapped, aad):
        _, installation, school, _ = label.decode().split(":")
        length = int.from_bytes(wrapped[1:3], "big")
        question = {
            "do": "call", "action": "Decrypt",
            "KeyId": wrapped[3:3 + length].decode(),
            "CiphertextBlob": base64.b64encode(wrapped[3 + length:]).decode(),
            "EncryptionContext": {"nomp_crypt:installation": installation,
                                  "nomp_crypt:school": school,
                                  "nomp_crypt:key": base64.b64encode(aad).decode()}}
        with urllib.request.urlopen(self.url, json.dumps(question).encode()) as answer:
            return base64.b64decode(json.load(answer)["answer"]["Plaintext"])


def sbox():
    """AES's substitution table: inverses in GF(2^8), then the affine map."""
    table = [0x63] * 256
    p = q = 1
    while True:
        p = p ^ (p << 1) ^ (0x11b if p & 0x80 else 0)
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xff
        if q & 0x80:
            q ^= 0x09
        s = 0x63
        for turn in range(5):
            s ^= (q << turn | q >> (8 - turn)) & 0xff
        table[p] = s
        if p == 1:
            return table


SBOX = sbox()


def round_keys(key):
    """AES-256's key schedule after the key itself: 13 blocks."""
    words = [list(key[i:i + 4]) for i in range(0, 32, 4)]
    rcon = 1
    while len(words) < 60:
        word = words[-1]
        if len(words) % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= rcon
            rcon <<= 1
        elif len(words) % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(word, words[-8])])
    return bytes(b for word in words[8:] for b in word)


def cipher_key(name, key):
    print(name, key.hex())
    print(name + ".rounds", round_keys(key).hex())


def open_token(module, where, pin_file=None):
    if module == "aws-kms":
        return Double(where)
    with open(pin_file, "rb") as file:
        return Token(module, where, file.read().strip())


def main():
    token = open_token(*sys.argv[1:])
    work = {}
    for line in sys.stdin:
        kind, name, *rest = line.split()
        if kind == "key":
            kek, tenant, purpose, version, wrapped = rest
            place = decrypt.place(uuid.UUID(tenant), purpose.encode(), int(version))
            dek = token.unwrap(kek.encode(), bytes.fromhex(wrapped),
                               decrypt.lp(b"nomp_crypt wrap v1") + place)
            info = {"values": b"nomp_crypt k_enc v1", "index": b"nomp_crypt k_idx v1"}[purpose]
            work[purpose] = decrypt.hkdf(dek, decrypt.lp(info) + place)
            print(name + ".dek", dek.hex())
            cipher_key(name + ".work", work[purpose])
        elif kind == "text":
            text = bytes.fromhex("".join(rest[1:])).decode("utf-8")
            print(name, decrypt.fingerprint(work["index"], text, rest[0]).hex())
        else:
            cipher_key(name, decrypt.derived_key(work["values"], bytes.fromhex(rest[0])[10:34]))


if __name__ == "__main__":
    main()
