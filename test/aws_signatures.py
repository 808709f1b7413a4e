#!/usr/bin/env python3
"""aws_signatures.py: requests as botocore makes and signs them.

Prints one JSON object a line, for test/aws_sigv4_test.c: every action of KMS
that is called, and STS's AssumeRole, at every kind of endpoint, with and
without a session token. Nothing is sent; the clock is a fixed one.
"""

import datetime
import json
import os
import sys

import botocore.auth
import botocore.config
import botocore.session

KEY = "arn:aws:kms:eu-north-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
CONTEXT = {"nomp_crypt": "v1", "key": "åäö / +&="}
CALLS = {
    "kms": {
        "CreateKey": {"Origin": "AWS_KMS", "MultiRegion": False, "Policy": '{"Version":"2012-10-17"}',
                      "Tags": [{"TagKey": "nomp_crypt", "TagValue": "a-b"}]},
        "GenerateDataKey": {"KeyId": KEY, "KeySpec": "AES_256", "EncryptionContext": CONTEXT},
        "Encrypt": {"KeyId": KEY, "Plaintext": bytes(range(32)), "EncryptionContext": CONTEXT},
        "Decrypt": {"KeyId": KEY, "CiphertextBlob": bytes(range(200)), "EncryptionContext": CONTEXT},
        "DescribeKey": {"KeyId": KEY},
        "ListKeys": {"Limit": 1000, "Marker": "x"},
        "ListResourceTags": {"KeyId": KEY},
        "TagResource": {"KeyId": KEY, "Tags": [{"TagKey": "a", "TagValue": "b c"}]},
        "UntagResource": {"KeyId": KEY, "TagKeys": ["a"]},
        "EnableKey": {"KeyId": KEY},
        "DisableKey": {"KeyId": KEY},
        "ScheduleKeyDeletion": {"KeyId": KEY, "PendingWindowInDays": 7},
        "Sign": {"KeyId": KEY, "Message": bytes(32), "MessageType": "DIGEST",
                 "SigningAlgorithm": "ECDSA_SHA_256"},
        "GetPublicKey": {"KeyId": KEY},
    },
    "sts": {
        "AssumeRole": {"RoleArn": "arn:aws:iam::111122223333:role/r", "RoleSessionName": "nomp_crypt",
                       "ExternalId": "a b&c", "DurationSeconds": 900},
    },
}
TOKEN = "IQoJb3JpZ2luX2VjEJ//////////wEaCmV1LW5vcnRoLTEiRzBFAiEA==+/"


class Captured(Exception):
    pass


class Clock(datetime.datetime):
    @classmethod
    def utcnow(cls):
        return cls(2026, 11, 27, 0, 30, 0)


class Recorder(botocore.auth.SigV4Auth):
    """Remembers what was signed."""
    canonical = None

    def canonical_request(self, request):
        Recorder.canonical = super().canonical_request(request)
        return Recorder.canonical


def endpoints(service):
    yield "region", {}
    yield "port", {"endpoint_url": "http://127.0.0.1:4566"}
    yield "vpc", {"endpoint_url": f"https://vpce-0a1b.{service}.eu-north-1.vpce.amazonaws.com"}
    yield "dual stack", {"config": botocore.config.Config(use_dualstack_endpoint=True)}
    if service == "kms":
        yield "fips", {"config": botocore.config.Config(use_fips_endpoint=True)}


def capture(request, **kwargs):
    raise Captured(request)


def sign(session, service, action, parameters, options, token):
    client = session.create_client(service, region_name="eu-north-1", aws_access_key_id="AKIDEXAMPLE",
                                   aws_secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
                                   aws_session_token=token, **options)
    client.meta.events.register(f"before-send.{service}.{action}", capture)
    try:
        client._make_api_call(action, parameters)
    except Captured as stopped:
        return stopped.args[0]
    raise RuntimeError("the request was sent")


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def main():
    os.environ["AWS_STS_REGIONAL_ENDPOINTS"] = "regional"
    botocore.auth.datetime.datetime = Clock
    botocore.auth.AUTH_TYPE_MAPS["v4"] = Recorder
    session = botocore.session.Session()
    for service, calls in CALLS.items():
        for action, parameters in calls.items():
            for kind, options in endpoints(service):
                for token in (None, TOKEN):
                    request = sign(session, service, action, parameters, options, token)
                    signed = Recorder.canonical.split("\n")[-2].split(";")
                    values = dict(line.split(":", 1) for line in Recorder.canonical.split("\n")[3:-3])
                    json.dump({"name": f"{action}, {kind}, {'with' if token else 'without'} a token",
                               "service": service, "method": request.method,
                               "headers": [[name, values[name]] for name in reversed(signed)],
                               "body": text(request.body), "canonical": Recorder.canonical,
                               "authorization": text(request.headers["Authorization"])}, sys.stdout)
                    print()


if __name__ == "__main__":
    main()
