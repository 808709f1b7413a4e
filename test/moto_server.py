#!/usr/bin/python3
"""moto's server, for t/kms_by_moto.pl, with three repairs: actions that change a
key's state take its ARN as AWS's do, where moto 5.1 knows only ids;
GetPublicKey names the key by its ARN, as AWS documents; and a digest is signed
as it is, not hashed once more.

    moto_server.py FOLDER PORT      FOLDER: what scripts/fetch-moto filled
"""

import json
import sys

sys.dont_write_bytecode = True
sys.path.insert(1, sys.argv[1] + "/usr/lib/python3/dist-packages")

from moto.kms.models import KmsBackend      # noqa: E402
from cryptography.hazmat.primitives import hashes           # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, utils     # noqa: E402
from moto.kms.responses import KmsResponse  # noqa: E402
from moto.kms.utils import ECDSAPrivateKey  # noqa: E402
from moto.server import main                # noqa: E402


def taking_arns(action):
    def taker(backend, key_id, *rest):
        return action(backend, backend.get_key_id(key_id), *rest)
    return taker


def naming_arns(action):
    def namer(response):
        answer = json.loads(action(response))
        answer["KeyId"] = response.kms_backend.keys[answer["KeyId"]].arn
        return json.dumps(answer)
    return namer


def sign_digest(pair, digest, _algorithm):
    return pair.private_key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


ECDSAPrivateKey.sign = sign_digest
KmsResponse.get_public_key = naming_arns(KmsResponse.get_public_key)
for name in ("enable_key", "disable_key", "schedule_key_deletion", "cancel_key_deletion"):
    setattr(KmsBackend, name, taking_arns(getattr(KmsBackend, name)))
main(["-H", "127.0.0.1", "-p", sys.argv[2]])
