#!/usr/bin/python3
"""A stand-in for AWS: KMS, STS, and where credentials come from, on ports of
loopback, for tests.

    kms_double.py FOLDER [--region R] [--account N] [--partition P]
                  [--ports TLS,PLAIN,CONTROL] [--at-once] [--while PID]

What it does it does as the documentation says, with real cryptography and
checked signatures; t/kms_double_is_like_kms.pl has it examined by boto3.  It
is no keystore: it protects nothing.

Three ports: TLS and plain HTTP for the services, and one by which tests move
its clock, break things and look into it (aws_double/control.py).  With port
0, or none given, a free one.

In the FOLDER, which is made:
    ready.json            the ports, written when it listens
    journal               its keys: the next double in this folder has them
    ca.pem, *.pem         certificates, right and wrong
    credentials, config   for clients, profiles default, destroyer, reader
                          and stranger, who may do nothing
    web-identity-token, container-token

With --at-once a key whose deletion is scheduled is gone at once.  With --while
it ends when that process does.
"""

import argparse
import collections
import json
import os
import secrets
import sys
import threading
import time

sys.dont_write_bytecode = True      # leave the tree as it is

from aws_double import tls                                      # noqa: E402
from aws_double.basics import Clock                             # noqa: E402
from aws_double.control import Control                          # noqa: E402
from aws_double.credentials import CredentialServices           # noqa: E402
from aws_double.faults import Faults                            # noqa: E402
from aws_double.identities import Identities                    # noqa: E402
from aws_double.kms import Kms                                  # noqa: E402
from aws_double.service import Service                          # noqa: E402
from aws_double.store import Store                              # noqa: E402
from aws_double.web import Listener                             # noqa: E402

Place = collections.namedtuple("Place", "partition region account")

READ = ["kms:DescribeKey", "kms:ListKeys", "kms:ListResourceTags", "kms:GetPublicKey"]
USERS = {
    # profile: access key, secret, what it may do
    "default": ("AKIADOUBLE0000000001", "everyday/secret+of/the/double", ["*"]),
    "destroyer": ("AKIADOUBLE0000000002", "destroyer/secret+of/the/double", ["*"]),
    "reader": ("AKIADOUBLE0000000003", "reader/secret+of/the/double", READ + ["kms:Decrypt"]),
    "stranger": ("AKIADOUBLE0000000004", "stranger/secret+of/the/double", []),
}


def write(path, text):
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def kept(path):
    """A random text, the one that an earlier double put there."""
    if not os.path.exists(path):
        write(path, secrets.token_urlsafe(60))
    with open(path) as file:
        return file.read()


class Double:
    def __init__(self, folder, place, ports):
        self.folder = folder
        self.clock = Clock()
        self.store = Store(f"{folder}/journal")
        self.kms = Kms(self.store, place)
        self.identities = Identities(self.clock, place.account, place.partition)
        for name, (access_key, secret, allow) in USERS.items():
            self.identities.add(name, access_key, secret, allow)
        self.credentials = CredentialServices(self.identities, place)
        self.credentials.web_token = kept(f"{folder}/web-identity-token")
        self.credentials.container_token = kept(f"{folder}/container-token")
        self.faults = Faults()
        self.service = Service(self.kms, self.identities, self.credentials, self.faults, place)
        tls.make_certificates(folder)
        self.contexts = tls.contexts(folder)
        self.certificate = "right"
        now = self.clock.now
        self.tls = Listener(ports[0], self.service.answer, now,
                            lambda: self.contexts[self.certificate])
        self.plain = Listener(ports[1], self.service.answer, now)
        self.control = Listener(ports[2], Control(self).answer, now)

    def ports(self):
        return {"tls": self.tls.port, "plain": self.plain.port, "control": self.control.port}

    def present(self, certificate):
        if certificate not in self.contexts:
            raise KeyError(f"no certificate {certificate}")
        if certificate != self.certificate:
            self.certificate = certificate
            self.tls.drop()

    def set_down(self, down):
        self.tls.down = self.plain.down = down
        if down:
            self.drop()

    def drop(self):
        self.tls.drop()
        self.plain.drop()

    def write_files(self, region):
        profiles = "".join(f"[{name}]\naws_access_key_id = {access_key}\n"
                           f"aws_secret_access_key = {secret}\n\n"
                           for name, (access_key, secret, _) in USERS.items())
        write(f"{self.folder}/credentials", profiles)
        write(f"{self.folder}/config", f"[default]\nregion = {region}\n")

    def start(self):
        for listener in (self.tls, self.plain, self.control):
            listener.start()
        write(f"{self.folder}/ready.json", json.dumps({"pid": os.getpid(), **self.ports()}))


def end_with(pid):
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.5)
    os._exit(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--region", default="eu-north-1")
    parser.add_argument("--account", default="111122223333")
    parser.add_argument("--partition", default="aws")
    parser.add_argument("--ports", default="0,0,0")
    parser.add_argument("--at-once", action="store_true")
    parser.add_argument("--while", type=int, dest="process")
    arguments = parser.parse_args()
    os.makedirs(arguments.folder, mode=0o700, exist_ok=True)
    threading.stack_size(1 << 19)
    double = Double(os.path.abspath(arguments.folder),
                    Place(arguments.partition, arguments.region, arguments.account),
                    [int(port) for port in arguments.ports.split(",")])
    double.kms.at_once = arguments.at_once
    double.write_files(arguments.region)
    double.start()
    if arguments.process:
        end_with(arguments.process)
    threading.Event().wait()


if __name__ == "__main__":
    main()
