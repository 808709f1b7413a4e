"""Key material: AES-GCM with the encryption context as additional data, and
ECDSA over P-256."""

import base64
import json
import os
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .basics import ApiError

# What stands before the ciphertext; as long as in the service's own blobs, of
# which nothing but the length is known.
MAGIC = b"\x01\x02\x02\x00nomp double".ljust(108, b"\0")
IV = 12


def new_symmetric():
    return base64.b64encode(os.urandom(32)).decode()


def new_pair():
    der = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption())
    return base64.b64encode(der).decode()


def context_bytes(context):
    return json.dumps(context or {}, sort_keys=True, separators=(",", ":")).encode()


def key_bytes(key_id):
    return uuid.UUID(key_id.replace("mrk-", "")).bytes


def encrypt(key, plaintext, context):
    head = MAGIC + key_bytes(key["id"])
    iv = os.urandom(IV)
    cipher = AESGCM(base64.b64decode(key["material"]))
    return head + iv + cipher.encrypt(iv, plaintext, head + context_bytes(context))


def invalid():
    # the service says nothing more
    return ApiError("InvalidCiphertextException", None)


def made_by(blob):
    """The 16 bytes of the id of the key that a blob names."""
    if not blob.startswith(MAGIC) or len(blob) < len(MAGIC) + 16 + IV + 16:
        raise invalid()
    return blob[len(MAGIC):len(MAGIC) + 16]


def decrypt(key, blob, context):
    head, rest = blob[:len(MAGIC) + 16], blob[len(MAGIC) + 16:]
    cipher = AESGCM(base64.b64decode(key["material"]))
    try:
        return cipher.decrypt(rest[:IV], rest[IV:], head + context_bytes(context))
    except InvalidTag:
        raise invalid() from None


def private_key(key):
    return serialization.load_der_private_key(base64.b64decode(key["material"]), None)


def sign(key, message, digested):
    kind = Prehashed(hashes.SHA256()) if digested else hashes.SHA256()
    return private_key(key).sign(message, ec.ECDSA(kind))


def public_key(key):
    return private_key(key).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
