#!/usr/bin/python3
"""Asks test/kms_double.py, by boto3, whether it is like KMS.

    kms_examiner.py FOLDER [again]

Prints "ok - NAME" or "not ok - NAME" for each thing, and the plan.  "again"
only looks whether what an earlier run left is still there.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

import boto3
import botocore.config
import botocore.credentials
import botocore.exceptions
import botocore.utils
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

FOLDER = sys.argv[1]
with open(f"{FOLDER}/ready.json", encoding="utf-8") as ready:
    PORTS = json.load(ready)
TLS = f"https://127.0.0.1:{PORTS['tls']}"
PLAIN = f"http://127.0.0.1:{PORTS['plain']}"
REGION = "eu-north-1"
CONTEXT = {"school": "11111111-2222-3333-4444-555555555555", "purpose": "values"}
DAY = 86400
# what botocore calls a conversation that breaks off
BROKEN = ("ConnectionClosedError", "IncompleteReadError", "ResponseStreamingError", "SSLError",
          "EndpointConnectionError")

os.environ["AWS_SHARED_CREDENTIALS_FILE"] = f"{FOLDER}/credentials"
os.environ["AWS_CONFIG_FILE"] = f"{FOLDER}/config"
os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = PLAIN
for variable in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "HTTPS_PROXY", "HTTP_PROXY"):
    os.environ.pop(variable, None)

tests = 0


def check(good, name):
    global tests
    tests += 1
    print("ok" if good else "not ok", "-", name, flush=True)


def client(service="kms", profile="default", endpoint=TLS, session=None, **options):
    options = {"retries": {"total_max_attempts": 1}, "read_timeout": 10, **options}
    session = session or boto3.Session(profile_name=profile)
    return session.client(
        service, endpoint_url=endpoint, verify=f"{FOLDER}/ca.pem", region_name=REGION,
        config=botocore.config.Config(**options))


def says(what, **values):
    request = urllib.request.Request(f"http://127.0.0.1:{PORTS['control']}/",
                                     json.dumps({"do": what, **values}).encode())
    with urllib.request.urlopen(request) as response:
        return json.load(response)["answer"]


def error(call, **values):
    """What the service calls it, '' if nothing is wrong."""
    try:
        call(**values)
    except botocore.exceptions.ClientError as failure:
        return failure.response["Error"]["Code"]
    except botocore.exceptions.BotoCoreError as failure:
        return type(failure).__name__
    return ""


def refused(name, expected, call, **values):
    found = error(call, **values)
    check(found == expected, name if found == expected else f"{name} ({found})")


@contextlib.contextmanager
def trouble(what, **values):
    says(what, **values)
    try:
        yield
    finally:
        says("recover")


kms = client()


def new_key(**values):
    return kms.create_key(**values)["KeyMetadata"]


def state(key):
    return kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["KeyState"]


def examine_keys():
    tags = [{"TagKey": "nomp:school", "TagValue": "s-1"}]
    key = new_key(Tags=tags, Description="of a school")
    check(key["Arn"] == f"arn:aws:kms:{REGION}:111122223333:key/{key['KeyId']}",
          "a key has an ARN of its region and account")
    check((key["KeySpec"], key["KeyUsage"], key["Origin"], key["KeyState"], key["Enabled"],
           key["MultiRegion"], key["KeyManager"], key["Description"]) ==
          ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "AWS_KMS", "Enabled", True, False,
           "CUSTOMER", "of a school"), "a new key is symmetric, KMS's own, and enabled")
    check(abs(key["CreationDate"].timestamp() - time.time()) < 60, "it has a date of creation")
    check(kms.describe_key(KeyId=key["Arn"])["KeyMetadata"] == key,
          "DescribeKey says by ARN what CreateKey said")
    check(kms.list_resource_tags(KeyId=key["KeyId"])["Tags"] == tags, "it has its tags")
    kms.tag_resource(KeyId=key["KeyId"], Tags=[{"TagKey": "nomp:school", "TagValue": "s-2"},
                                               {"TagKey": "more", "TagValue": ""}])
    check({t["TagKey"]: t["TagValue"] for t in kms.list_resource_tags(KeyId=key["KeyId"])["Tags"]}
          == {"nomp:school": "s-2", "more": ""}, "TagResource replaces and adds")
    kms.untag_resource(KeyId=key["KeyId"], TagKeys=["more", "absent"])
    check(len(kms.list_resource_tags(KeyId=key["KeyId"])["Tags"]) == 1, "UntagResource removes")
    kms.update_key_description(KeyId=key["KeyId"], Description="of another")
    check(kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["Description"] == "of another",
          "UpdateKeyDescription replaces what DescribeKey says")
    policy = '{"Version": "2012-10-17", "Statement": []}'
    guarded = new_key(Policy=policy)
    check(kms.get_key_policy(KeyId=guarded["KeyId"], PolicyName="default")["Policy"] == policy,
          "a key keeps its policy")
    examine_bad_keys(key)


def examine_bad_keys(key):
    refused("a tag that comes twice is refused", "TagException", kms.tag_resource,
            KeyId=key["KeyId"], Tags=[{"TagKey": "a", "TagValue": "1"}] * 2)
    refused("a tag of AWS's own", "TagException", kms.tag_resource,
            KeyId=key["KeyId"], Tags=[{"TagKey": "aws:a", "TagValue": "1"}])
    refused("a tag with a character that tags do not have", "TagException", kms.tag_resource,
            KeyId=key["KeyId"], Tags=[{"TagKey": "a", "TagValue": "{}"}])
    refused("51 tags", "LimitExceededException", kms.tag_resource, KeyId=key["KeyId"],
            Tags=[{"TagKey": f"t{n}", "TagValue": ""} for n in range(51)])
    refused("a policy that is none", "MalformedPolicyDocumentException", kms.create_key,
            Policy="{")
    refused("a key that there is not", "NotFoundException", kms.describe_key,
            KeyId="00000000-0000-0000-0000-000000000000")
    refused("a key id that is none", "NotFoundException", kms.describe_key, KeyId="school")
    refused("an ARN of another region", "NotFoundException", kms.describe_key,
            KeyId=key["Arn"].replace(REGION, "us-east-1"))
    refused("an ARN of another service", "InvalidArnException", kms.describe_key,
            KeyId=key["Arn"].replace(":kms:", ":s3:"))
    with trouble("max_keys", most=1):
        refused("more keys than an account may have", "LimitExceededException", kms.create_key)
    refused("an action that there is not", "UnknownOperationException", kms.list_grants,
            KeyId=key["KeyId"])


def examine_kinds_of_keys():
    multi = new_key(MultiRegion=True)
    check(multi["MultiRegion"] and multi["KeyId"].startswith("mrk-") and
          multi["MultiRegionConfiguration"]["MultiRegionKeyType"] == "PRIMARY",
          "a multi-region key says so")
    imported = new_key(Origin="EXTERNAL")
    check((imported["Origin"], imported["KeyState"]) == ("EXTERNAL", "PendingImport"),
          "a key to import waits for its material")
    refused("and cannot be used", "KMSInvalidStateException", kms.generate_data_key,
            KeyId=imported["KeyId"], KeySpec="AES_256")
    key = new_key()
    kms.create_alias(AliasName="alias/school", TargetKeyId=key["KeyId"])
    check(kms.describe_key(KeyId="alias/school")["KeyMetadata"]["KeyId"] == key["KeyId"],
          "an alias stands for its key")
    check([a["AliasName"] for a in kms.list_aliases(KeyId=key["KeyId"])["Aliases"]] ==
          ["alias/school"], "aliases are listed")
    refused("an alias that is taken", "AlreadyExistsException", kms.create_alias,
            AliasName="alias/school", TargetKeyId=key["KeyId"])


def examine_pages():
    with trouble("page", most=3):
        keys = [key["KeyId"] for page in kms.get_paginator("list_keys").paginate()
                for key in page["Keys"]]
        first = kms.list_keys()
    check(len(first["Keys"]) == 3 and first["Truncated"] and "NextMarker" in first,
          "a page of keys says that there are more")
    whole = kms.list_keys(Limit=1000)
    check(keys == [key["KeyId"] for key in whole["Keys"]] and not whole["Truncated"],
          "all pages together are all keys")
    check(all(key["KeyArn"].endswith(key["KeyId"]) for key in whole["Keys"]),
          "a list has ids and ARNs")
    refused("a marker of somebody else", "InvalidMarkerException", kms.list_keys, Marker="x")
    refused("1,001 keys on a page", "ValidationException", kms.list_keys, Limit=1001)
    key = new_key(Tags=[{"TagKey": f"t{n:02}", "TagValue": str(n)} for n in range(50)])
    pages = list(kms.get_paginator("list_resource_tags").paginate(
        KeyId=key["KeyId"], PaginationConfig={"PageSize": 20}))
    check([len(page["Tags"]) for page in pages] == [20, 20, 10], "tags come in pages")


def examine_cryptography():
    key, other = new_key(), new_key()
    made = kms.generate_data_key(KeyId=key["KeyId"], KeySpec="AES_256", EncryptionContext=CONTEXT)
    check(len(made["Plaintext"]) == 32 and made["KeyId"] == key["Arn"] and
          len(made["CiphertextBlob"]) == 184,
          "a data key has 32 bytes, the key's ARN, and 184 bytes of ciphertext")
    blob = made["CiphertextBlob"]
    for values in ({}, {"KeyId": key["Arn"]}, {"KeyId": key["KeyId"]}):
        opened = kms.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, **values)
        check(opened["Plaintext"] == made["Plaintext"] and opened["KeyId"] == key["Arn"],
              f"Decrypt gives it back, {'with' if values else 'without'} the key's name")
    refused("under another context", "InvalidCiphertextException", kms.decrypt,
            CiphertextBlob=blob, EncryptionContext={**CONTEXT, "purpose": "index"})
    refused("without one", "InvalidCiphertextException", kms.decrypt, CiphertextBlob=blob)
    refused("with another key", "IncorrectKeyException", kms.decrypt, CiphertextBlob=blob,
            EncryptionContext=CONTEXT, KeyId=other["KeyId"])
    damaged = [blob[:n] + bytes([blob[n] ^ 1]) + blob[n + 1:] for n in (0, 1, 95, 120, 183)]
    found = {error(kms.decrypt, CiphertextBlob=bad, EncryptionContext=CONTEXT,
                   KeyId=key["KeyId"]) for bad in damaged + [blob[:40], blob + b"x"]}
    check(found <= {"InvalidCiphertextException", "IncorrectKeyException"},
          f"a blob with a changed bit does not open {found}")
    sealed = kms.encrypt(KeyId=key["KeyId"], Plaintext=b"x" * 32, EncryptionContext=CONTEXT)
    check(kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=CONTEXT,
                      KeyId=sealed["KeyId"])["Plaintext"] == b"x" * 32, "Encrypt and Decrypt agree")
    again = kms.encrypt(KeyId=key["KeyId"], Plaintext=b"x" * 32, EncryptionContext=CONTEXT)
    check(again["CiphertextBlob"] != sealed["CiphertextBlob"], "never twice the same")
    refused("4,097 bytes", "ValidationException", kms.encrypt, KeyId=key["KeyId"],
            Plaintext=b"x" * 4097)
    refused("a data key of no size", "ValidationException", kms.generate_data_key,
            KeyId=key["KeyId"])


def examine_signing():
    pair = new_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    refused("a pair for encryption", "ValidationException", kms.create_key,
            KeySpec="ECC_NIST_P256")
    answer = kms.get_public_key(KeyId=pair["KeyId"])
    public = serialization.load_der_public_key(answer["PublicKey"])
    check(isinstance(public.curve, ec.SECP256R1) and answer["KeyUsage"] == "SIGN_VERIFY" and
          answer["SigningAlgorithms"] == ["ECDSA_SHA_256"], "a pair's public key is of P-256")
    digest = bytes(range(32))
    signature = kms.sign(KeyId=pair["KeyId"], Message=digest, MessageType="DIGEST",
                         SigningAlgorithm="ECDSA_SHA_256")["Signature"]
    check(verifies(public, signature, digest), "it verifies what Sign signed")
    check(not verifies(public, signature, digest[::-1]), "and nothing else")
    refused("a digest of 31 bytes", "ValidationException", kms.sign, KeyId=pair["KeyId"],
            Message=digest[:31], MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256")
    refused("to encrypt with a pair", "InvalidKeyUsageException", kms.encrypt,
            KeyId=pair["KeyId"], Plaintext=b"x")
    symmetric = new_key()
    refused("to sign with a symmetric key", "InvalidKeyUsageException", kms.sign,
            KeyId=symmetric["KeyId"], Message=digest, MessageType="DIGEST",
            SigningAlgorithm="ECDSA_SHA_256")
    refused("its public key", "UnsupportedOperationException", kms.get_public_key,
            KeyId=symmetric["KeyId"])


def verifies(public, signature, digest):
    try:
        public.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True


def cannot_be_used(key, blob, expected, what):
    refused(f"{what}: Decrypt", expected, kms.decrypt, CiphertextBlob=blob, KeyId=key["KeyId"])
    refused(f"{what}: Encrypt", expected, kms.encrypt, KeyId=key["KeyId"], Plaintext=b"x")
    refused(f"{what}: GenerateDataKey", expected, kms.generate_data_key, KeyId=key["KeyId"],
            KeySpec="AES_256")


def examine_states():
    key = new_key()
    name = {"KeyId": key["KeyId"]}
    blob = kms.encrypt(Plaintext=b"x", **name)["CiphertextBlob"]
    kms.disable_key(**name)
    check(state(key) == "Disabled", "a key can be disabled")
    cannot_be_used(key, blob, "DisabledException", "disabled")
    kms.tag_resource(Tags=[{"TagKey": "a", "TagValue": "b"}], **name)
    kms.enable_key(**name)
    check(kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x", "and enabled again")
    refused("to cancel what is not scheduled", "KMSInvalidStateException",
            kms.cancel_key_deletion, **name)
    for days in (6, 31):
        refused(f"a window of {days} days", "ValidationException", kms.schedule_key_deletion,
                PendingWindowInDays=days, **name)
    answer = kms.schedule_key_deletion(PendingWindowInDays=7, **name)
    check((answer["KeyId"], answer["KeyState"], answer["PendingWindowInDays"]) ==
          (key["Arn"], "PendingDeletion", 7) and
          abs(answer["DeletionDate"].timestamp() - time.time() - 7 * DAY) < 60,
          "a deletion is scheduled, with its date")
    check(kms.describe_key(**name)["KeyMetadata"]["DeletionDate"] == answer["DeletionDate"],
          "which DescribeKey knows")
    examine_pending(key, blob, name)


def examine_pending(key, blob, name):
    cannot_be_used(key, blob, "KMSInvalidStateException", "pending")
    for action in (kms.enable_key, kms.disable_key, kms.schedule_key_deletion):
        refused(f"pending: {action.__name__}", "KMSInvalidStateException", action, **name)
    refused("pending: tag_resource", "KMSInvalidStateException", kms.tag_resource,
            Tags=[{"TagKey": "a", "TagValue": "b"}], **name)
    check(key["KeyId"] in {k["KeyId"] for k in kms.list_keys(Limit=1000)["Keys"]},
          "a pending key is listed")
    kms.cancel_key_deletion(**name)
    check(state(key) == "Disabled", "a deletion that is cancelled leaves the key disabled")
    kms.enable_key(**name)
    check(kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x", "and whole")
    kms.schedule_key_deletion(PendingWindowInDays=7, **name)
    says("advance", seconds=7 * DAY - 60)
    check(state(key) == "PendingDeletion", "it is there until its date")
    says("advance", seconds=60)
    refused("and gone then", "NotFoundException", kms.describe_key, **name)
    refused("its ciphertext with it", "NotFoundException", kms.decrypt, CiphertextBlob=blob, **name)
    refused("without its name too", "AccessDeniedException", kms.decrypt, CiphertextBlob=blob)
    check(key["KeyId"] not in {k["KeyId"] for k in kms.list_keys(Limit=1000)["Keys"]},
          "it is no longer listed")
    says("at_once", on=True)
    short = new_key()
    kms.schedule_key_deletion(KeyId=short["KeyId"], PendingWindowInDays=7)
    refused("told so, a window ends at once", "NotFoundException", kms.describe_key,
            KeyId=short["KeyId"])
    says("at_once", on=False)


def with_keys(access_key, secret, token=None):
    return boto3.Session(aws_access_key_id=access_key, aws_secret_access_key=secret,
                         aws_session_token=token)


def examine_signatures():
    access_key, secret = "AKIADOUBLE0000000001", "everyday/secret+of/the/double"
    good = client(session=with_keys(access_key, secret))
    check(error(good.list_keys) == "", "a right signature is accepted")
    for name, session, expected in (
            ("a wrong secret", with_keys(access_key, secret + "x"), "InvalidSignatureException"),
            ("an unknown access key", with_keys("AKIADOUBLE9", secret), "UnrecognizedClientException"),
            ("a session token where there is none", with_keys(access_key, secret, "token"),
             "UnrecognizedClientException")):
        refused(f"{name} is refused", expected, client(session=session).list_keys)
    elsewhere = boto3.Session().client("kms", endpoint_url=TLS, verify=f"{FOLDER}/ca.pem",
                                       region_name="us-east-1")
    refused("a signature for another region", "InvalidSignatureException", elsewhere.list_keys)
    for seconds in (-360, 360):
        with trouble("skew", seconds=seconds):
            refused(f"a clock that is wrong by {seconds} s", "InvalidSignatureException",
                    kms.list_keys)
    with trouble("skew", seconds=240):
        check(error(kms.list_keys) == "", "four minutes are forgiven")
    check(raw_error({}) == "MissingAuthenticationTokenException", "no signature")
    check(raw_error({"Authorization": "AWS4-HMAC-SHA256 x"}) == "IncompleteSignatureException",
          "half a signature")


def raw_error(headers):
    request = urllib.request.Request(PLAIN + "/", b"{}", {
        "X-Amz-Target": "TrentService.ListKeys", "Content-Type": "application/x-amz-json-1.1",
        **headers})
    try:
        urllib.request.urlopen(request)
    except urllib.error.HTTPError as failure:
        return json.load(failure)["__type"]
    return ""


def examine_tampering():
    """A request that was changed after it was signed."""
    key = new_key()
    changed = client()
    changed.meta.events.register("before-send", lambda request, **_: change_body(request))
    refused("a body that was changed on its way", "InvalidSignatureException",
            changed.schedule_key_deletion, KeyId=key["KeyId"], PendingWindowInDays=7)
    check(state(key) == "Enabled", "it has done nothing")


def change_body(request):
    request.body = request.body.replace(b"7", b"8")


def examine_rights():
    reader, stranger = client(profile="reader"), client(profile="stranger")
    key = new_key()
    refused("what a policy does not allow", "AccessDeniedException", stranger.list_keys)
    check(error(reader.describe_key, KeyId=key["KeyId"]) == "", "what it allows")
    refused("and nothing else", "AccessDeniedException", reader.schedule_key_deletion,
            KeyId=key["KeyId"])
    says("identity", name="default", deny=["kms:Decrypt"])
    blob = kms.encrypt(KeyId=key["KeyId"], Plaintext=b"x")["CiphertextBlob"]
    refused("what was denied meanwhile", "AccessDeniedException", kms.decrypt, CiphertextBlob=blob)
    says("identity", name="default", deny=[])
    check(error(kms.decrypt, CiphertextBlob=blob) == "", "until it is allowed again")


def examine_managed_key():
    arn = says("managed", service="s3")
    key = kms.describe_key(KeyId="alias/aws/s3")["KeyMetadata"]
    check((key["Arn"], key["KeyManager"]) == (arn, "AWS"), "a key that AWS manages says so")
    check(kms.list_resource_tags(KeyId=arn)["Tags"] == [], "it has no tags")
    refused("it can have none", "AccessDeniedException", kms.tag_resource, KeyId=arn,
            Tags=[{"TagKey": "a", "TagValue": "1"}])
    refused("it is not the account's to delete", "AccessDeniedException",
            kms.schedule_key_deletion, KeyId=arn)
    refused("nor to encrypt with", "AccessDeniedException", kms.encrypt, KeyId=arn, Plaintext=b"x")


def examine_tag_lag():
    key = new_key(Tags=[{"TagKey": "a", "TagValue": "1"}])["KeyId"]
    with trouble("tag_lag", seconds=60, actions=["Encrypt"]):
        check(kms.list_resource_tags(KeyId=key)["Tags"] != [], "tags show before policies know them")
        refused("until then they allow nothing", "AccessDeniedException", kms.encrypt, KeyId=key,
                Plaintext=b"x")
    check(error(kms.encrypt, KeyId=key, Plaintext=b"x") == "", "then they do")


def session_client(identity):
    return client(session=with_keys(identity["AccessKeyId"], identity["SecretAccessKey"],
                                    identity["SessionToken"]))


def examine_sts():
    sts = client("sts", endpoint=PLAIN)
    role = {"RoleArn": "arn:aws:iam::111122223333:role/database", "RoleSessionName": "n1"}
    assumed = sts.assume_role(**role)
    session = session_client(assumed["Credentials"])
    check(error(session.list_keys) == "", "AssumeRole gives credentials that work")
    check(abs(assumed["Credentials"]["Expiration"].timestamp() - time.time() - 3600) < 60,
          "for an hour")
    with open(f"{FOLDER}/web-identity-token", encoding="utf-8") as file:
        token = file.read()
    web = sts.assume_role_with_web_identity(WebIdentityToken=token, **role)
    check(error(session_client(web["Credentials"]).list_keys) == "", "so does a web identity")
    refused("another's token", "InvalidIdentityToken", sts.assume_role_with_web_identity,
            WebIdentityToken="x" * 20, **role)
    refused("another account's role", "AccessDenied", sts.assume_role,
            RoleArn="arn:aws:iam::999999999999:role/database", RoleSessionName="n1")
    bad = client("sts", endpoint=PLAIN, session=with_keys("AKIADOUBLE0000000001", "wrong"))
    refused("a wrong secret, to STS", "SignatureDoesNotMatch", bad.assume_role, **role)
    says("expire_sessions")
    refused("credentials that have expired", "ExpiredTokenException", session.list_keys)


def examine_metadata():
    fetcher = botocore.utils.InstanceMetadataFetcher(
        timeout=5, num_attempts=1, base_url=PLAIN, config={"ec2_metadata_service_endpoint": PLAIN})
    found = fetcher.retrieve_iam_role_credentials()
    check(found.get("role_name") == "database" and "expiry_time" in found,
          "the instance's metadata has credentials")
    check(error(client(session=with_keys(found["access_key"], found["secret_key"],
                                         found["token"])).list_keys) == "", "which work")
    check(status("/latest/meta-data/iam/security-credentials/") == 401,
          "not without a token of version 2")
    os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = PLAIN + "/v2/credentials/double"
    with open(f"{FOLDER}/container-token", encoding="utf-8") as file:
        os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = file.read()
    container = botocore.credentials.ContainerProvider().load()
    frozen = container.get_frozen_credentials()
    check(error(client(session=with_keys(*frozen)).list_keys) == "",
          "a container's endpoint gives credentials that work")
    check(status("/v2/credentials/double", {"Authorization": "wrong"}) == 403,
          "not with a wrong token")


def status(path, headers=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(PLAIN + path, headers=headers or {})) as response:
            return response.status
    except urllib.error.HTTPError as failure:
        return failure.code


def examine_tls():
    check(error(client(endpoint=PLAIN).list_keys) == "", "plain HTTP works")
    for certificate in ("expired", "self-signed", "other-host"):
        with trouble("present", certificate=certificate):
            refused(f"a certificate that is {certificate}", "SSLError", client().list_keys)
    check(error(client().list_keys) == "", "the right one again")
    check(bool(ssl.get_server_certificate(("127.0.0.1", PORTS["tls"]))), "it is TLS")


def examine_faults():
    key = new_key()
    call = {"KeyId": key["KeyId"]}
    says("fault", action="DescribeKey", error="ThrottlingException", times=2)
    check([error(kms.describe_key, **call) for _ in range(3)] ==
          ["ThrottlingException"] * 2 + [""], "a fault comes as often as it was asked for")
    patient = client(retries={"mode": "standard", "total_max_attempts": 3})
    with trouble("fault", action="DescribeKey", status=500, times=2):
        check(error(patient.describe_key, **call) == "", "boto3 tries again after a 500")
    with trouble("fault", action="DescribeKey", probability=0.5):
        found = {error(kms.describe_key, **call) for _ in range(40)}
    check(found == {"", "KMSInternalException"}, "a fault may be a matter of chance")
    for kind in ("close", "lost"):
        with trouble("fault", action="DescribeKey", kind=kind):
            found = error(kms.describe_key, **call)
            check(found in BROKEN, f"an answer that is {kind} never comes ({found})")
    with trouble("fault", action="sts", kind="truncated"):
        check(cut_off("/?Action=GetCallerIdentity"), "one that is truncated breaks off")
    with trouble("fault", action="DescribeKey", kind="drip"):
        quick = client(read_timeout=2, connect_timeout=2)
        started = time.monotonic()
        pool = concurrent.futures.ThreadPoolExecutor()
        slow = pool.submit(error, quick.describe_key, **call)
        time.sleep(3)
        check(not slow.done() and time.monotonic() - started > 2, "one that drips takes long")
        says("drop")
    with trouble("fault", action="DescribeKey", kind="patch",
                 values={"KeyMetadata.MultiRegion": True}):
        check(kms.describe_key(**call)["KeyMetadata"]["MultiRegion"], "an answer can lie")
    with trouble("fault", action="Decrypt", kind="other_plaintext"):
        examine_wrong_plaintext(key)
    with trouble("quota", action="ListKeys", per_second=5):
        found = [error(kms.list_keys) for _ in range(20)]
    check("" in found and "ThrottlingException" in found, "a quota throttles")
    with trouble("down", on=True):
        found = error(kms.list_keys)
        check(found in BROKEN, f"when it is down nothing answers ({found})")


def cut_off(path):
    """Does the answer end before its length?  (boto3 does not look.)"""
    connection = http.client.HTTPConnection("127.0.0.1", PORTS["plain"], timeout=10)
    connection.request("GET", path)
    try:
        connection.getresponse().read()
    except http.client.IncompleteRead:
        return True
    return False


def examine_wrong_plaintext(key):
    says("recover")
    mine, others = new_key(), key
    blobs = [kms.encrypt(KeyId=k["KeyId"], Plaintext=text)["CiphertextBlob"]
             for k, text in ((mine, b"mine"), (others, b"others"))]
    kms.decrypt(CiphertextBlob=blobs[1])
    says("fault", action="Decrypt", kind="other_plaintext", times=1)
    check(kms.decrypt(CiphertextBlob=blobs[0])["Plaintext"] == b"others",
          "another's plaintext can come back")


def examine_lag():
    with trouble("lag", seconds=1.5):
        key = new_key()
        refused("a new key is not seen at once", "NotFoundException", kms.describe_key,
                KeyId=key["KeyId"])
        time.sleep(2)
        check(state(key) == "Enabled", "but soon")
        kms.disable_key(KeyId=key["KeyId"])
        check(state(key) == "Enabled", "nor is what happens to it")
        time.sleep(2)
        check(state(key) == "Disabled", "but soon too")


def examine_many():
    key = new_key()
    pooled = client(max_pool_connections=16)
    blob = pooled.encrypt(KeyId=key["KeyId"], Plaintext=b"x")["CiphertextBlob"]
    says("forget_calls")
    says("latency", seconds=0.05)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        started = time.monotonic()
        found = list(pool.map(lambda _: pooled.decrypt(CiphertextBlob=blob)["Plaintext"], range(160)))
        taken = time.monotonic() - started
    says("recover")
    check(found == [b"x"] * 160 and taken < 160 * 0.05,
          "16 clients at once do not wait for each other")
    check(says("counts") == {"Decrypt": 160}, "every call is counted")
    check({call["key"] for call in says("calls", action="Decrypt")} == {None} and
          all("default" in call["caller"] for call in says("calls")), "and written down")


def leave_something():
    key = new_key(Tags=[{"TagKey": "kept", "TagValue": "yes"}])
    with open(f"{FOLDER}/left.bin", "wb") as file:
        file.write(kms.encrypt(KeyId=key["KeyId"], Plaintext=b"left")["CiphertextBlob"])


def look_again():
    with open(f"{FOLDER}/left.bin", "rb") as file:
        opened = kms.decrypt(CiphertextBlob=file.read())
    check(opened["Plaintext"] == b"left", "a ciphertext from before opens")
    check(kms.list_resource_tags(KeyId=opened["KeyId"])["Tags"] ==
          [{"TagKey": "kept", "TagValue": "yes"}], "its key has its tags")
    created = kms.describe_key(KeyId=opened["KeyId"])["KeyMetadata"]["CreationDate"]
    check(time.time() - created.timestamp() > DAY - 120, "it is as old as it was")


def main():
    if len(sys.argv) > 2:
        look_again()
    else:
        for examine in (examine_keys, examine_kinds_of_keys, examine_pages,
                        examine_cryptography, examine_signing, examine_states,
                        examine_signatures, examine_tampering, examine_rights, examine_sts,
                        examine_managed_key, examine_tag_lag,
                        examine_metadata, examine_tls, examine_faults, examine_lag,
                        examine_many, leave_something):
            examine()
    print(f"1..{tests}")


main()
