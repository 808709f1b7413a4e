#!/usr/bin/env python3
"""forge_record HOW KID: a record of the register that its key did not sign.

Reads a public key (PEM) and the payload after it. HOW is "own" (another key
signs, under the right key's name), "embedded" (another key signs, and stands in
the header), "none" (nobody signs) or "hs256" (the public key is the secret of
an HMAC). Prints the JWS.
"""
import base64
import hashlib
import hmac
import json
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def main():
    how, kid = sys.argv[1:]
    pem, payload = sys.stdin.read().split("-----END PUBLIC KEY-----\n", 1)
    pem += "-----END PUBLIC KEY-----\n"
    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_numbers()
    header = {"alg": "ES256", "kid": kid, "typ": "nomp-crypt-record"}
    if how == "none":
        header["alg"] = "none"
    elif how == "hs256":
        header["alg"] = "HS256"
    elif how == "embedded":
        header["jwk"] = {"crv": "P-256", "kty": "EC", "x": b64(point.x.to_bytes(32, "big")),
                         "y": b64(point.y.to_bytes(32, "big"))}
    signed = b64(json.dumps(header, separators=(",", ":")).encode()) + "." + b64(payload.strip().encode())
    if how == "none":
        signature = b""
    elif how == "hs256":
        signature = hmac.new(pem.encode(), signed.encode(), hashlib.sha256).digest()
    else:
        r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    print(signed + "." + b64(signature))


if __name__ == "__main__":
    main()
