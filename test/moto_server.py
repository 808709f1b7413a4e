#!/usr/bin/python3
"""moto's server, for t/kms_by_moto.pl, with one repair: actions that change a
key's state take its ARN as AWS's do, where moto 5.1 knows only ids.

    moto_server.py FOLDER PORT      FOLDER: what scripts/fetch-moto filled
"""

import sys

sys.dont_write_bytecode = True
sys.path.insert(1, sys.argv[1] + "/usr/lib/python3/dist-packages")

from moto.kms.models import KmsBackend      # noqa: E402
from moto.server import main                # noqa: E402


def taking_arns(action):
    def taker(backend, key_id, *rest):
        return action(backend, backend.get_key_id(key_id), *rest)
    return taker


for name in ("enable_key", "disable_key", "schedule_key_deletion", "cancel_key_deletion"):
    setattr(KmsBackend, name, taking_arns(getattr(KmsBackend, name)))
main(["-H", "127.0.0.1", "-p", sys.argv[2]])
