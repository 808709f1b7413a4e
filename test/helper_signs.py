#!/usr/bin/python3
"""Starts the keystore helper, as the broker does, and has it make a key pair and
sign with it.  Speaks include/protocol.h.

    helper_signs.py HELPER URI

Prints "ok - NAME" or "not ok - NAME" for each thing, and the plan.
"""

import os
import socket
import struct
import subprocess
import sys
import uuid

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

VERSION, HELPER_FD = 6, 3
HELLO, SETUP, REGISTER_KEY, SIGN, HEAD = 1, 3, 14, 15, 16
FIND, MAKE = 0, 2
REGIONS = "eu-north-1 eu-central-1"

tests = 0


def check(good, name):
    global tests
    tests += 1
    print("ok" if good else "not ok", "-", name, flush=True)


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">H", len(data)) + data


class Reader:
    def __init__(self, data):
        self.data = data

    def take(self, length):
        taken, self.data = self.data[:length], self.data[length:]
        return taken

    def string(self):
        return self.take(struct.unpack(">H", self.take(2))[0])


class Helper:
    def __init__(self, program, uri):
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.process = subprocess.Popen(
            [program], stdin=subprocess.DEVNULL, close_fds=False,
            preexec_fn=lambda: self.hand_over(theirs))
        theirs.close()
        self.next = 1
        self.ask(HELLO, struct.pack(">H", VERSION) + text(uri) + text("") + text(REGIONS) +
                 text(""))

    @staticmethod
    def hand_over(theirs):
        os.dup2(theirs.fileno(), HELPER_FD)
        os.closerange(HELPER_FD + 1, 64)

    def ask(self, op, body):
        body = text("") + struct.pack(">I", 60000) + body
        frame = struct.pack(">QB", self.next, op) + body
        self.next += 1
        self.socket.sendall(struct.pack(">I", len(frame)) + frame)
        length = struct.unpack(">I", self.read(4))[0]
        reply = self.read(length)
        status, reader = reply[8], Reader(reply[9:])
        if status != 0:
            raise RuntimeError(f"status {status}: {reader.string().decode()}")
        return reader

    def read(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise RuntimeError("the helper ended")
            data += more
        return data


def verifies(public, raw, digest):
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"),
                                           int.from_bytes(raw[32:], "big"))
    try:
        public.verify(signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True


def register_key(helper, installation, make):
    reply = helper.ask(REGISTER_KEY, text(installation) + struct.pack(">I", 1) + text("") +
                       struct.pack(">B", make))
    return reply.take(1)[0], reply.string().decode(), reply.string()


def main():
    helper = Helper(sys.argv[1], sys.argv[2])
    installation = str(uuid.uuid4())
    check(helper.ask(SETUP, text(installation)).take(1) == b"\x01", "a canary is made")
    created, reference, spki = register_key(helper, installation, MAKE)
    check(created == 1 and reference.startswith("arn:aws:kms:"), "a key pair is made")
    public = serialization.load_der_public_key(spki)
    digest = os.urandom(32)
    raw = helper.ask(SIGN, text(installation) + struct.pack(">I", 1) + text(spki) +
                     text(digest)).string()
    check(len(raw) == 64 and verifies(public, raw, digest), "it signs a digest")
    check(register_key(helper, installation, FIND) == (0, reference, spki), "it is found again")
    head = "1:" + "ab" * 32
    helper.ask(HEAD, text(installation) + b"\x01" + text(head))
    check(helper.ask(HEAD, text(installation) + b"\x00" + text("")).string().decode() == head,
          "the register's head is remembered")
    helper.socket.close()
    check(helper.process.wait(20) is not None, "the helper ends with its socket")
    print(f"1..{tests}")


main()
