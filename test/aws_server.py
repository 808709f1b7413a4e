#!/usr/bin/env python3
"""aws_server.py DIRECTORY: what test/aws_client_test.c talks to.

A small server that plays KMS, STS, a container's and an instance's credential
endpoints, and misbehaves as it is asked to. It is no double of KMS: it knows
no keys. Signatures are checked by botocore, for the secrets it knows.

Ports are printed as one line of JSON: "http", and for TLS "good", "other" (a
certificate for another host), "old" (expired), "self" (self-signed); "ca" is
the file to trust. It ends with its standard input.

A KMS request's body says what to do: {"case": NAME}. A case "NAME:STATUS:WORDS"
is an error of that name, the first time; without a name it is a page of
somebody else's. GET /control?NAME=VALUE sets what the other endpoints do, STS
by such a case too; its answer are the counters.
"""

import datetime
import ipaddress
import json
import os
import socket
import ssl
import sys
import threading
import time
import urllib.parse

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECRETS = {"AKIDENV": "secret-env", "AKIDFILE": "secret-file", "AKIDOTHER": "secret-other"}
LOCK = threading.Lock()
COUNTS = {}
CONTROL = {"lifetime": "3600", "instance": "role", "sts": "ok", "expired": ""}
ISSUED = {}


def count(name):
    with LOCK:
        COUNTS[name] = COUNTS.get(name, 0) + 1
        return COUNTS[name]


def issue(how, **facts):
    """New short-lived credentials, and what is known of them."""
    key = f"ASIA{how.upper()}{count('issued'):04d}"
    secret = "Secret-of-credentials-no-longer-" if "residue" in CONTROL else "secret-" + key
    with LOCK:
        SECRETS[key] = secret
        ISSUED[key] = dict(facts, how=how)
    expires = datetime.datetime.utcnow() + datetime.timedelta(seconds=int(CONTROL["lifetime"]))
    return key, secret, "token-" + key, expires.strftime("%Y-%m-%dT%H:%M:%SZ")


class Request:
    def __init__(self, line, headers, body):
        self.method, self.target, _ = line.split(" ", 2)
        self.headers = headers
        self.body = body

    def signer(self, service):
        """The access key whose signature is right, or None."""
        authorization = self.headers.get("authorization", "")
        if not authorization.startswith("AWS4-HMAC-SHA256 Credential="):
            return None
        fields = dict(f.split("=", 1) for f in authorization[len("AWS4-HMAC-SHA256 "):].split(", "))
        key, _, region, named, _ = fields["Credential"].split("/")
        if named != service or key not in SECRETS:
            return None
        names = fields["SignedHeaders"].split(";")
        token = self.headers.get("x-amz-security-token")
        if (token or "") != ("token-" + key if key in ISSUED else ""):
            return None
        again = AWSRequest(method=self.method, url="http://" + self.headers["host"] + self.target,
                           data=self.body, headers={n: self.headers[n] for n in names})
        again.context["timestamp"] = self.headers["x-amz-date"]
        auth = SigV4Auth(Credentials(key, SECRETS[key], token), service, region)
        text = auth.string_to_sign(again, auth.canonical_request(again))
        return key if auth.signature(text, again) == fields["Signature"] else None


def answer(status, body=b"", headers=(), length=None):
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body) if length is None else length}",
             *(f"{n}: {v}" for n, v in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error(name, message="words", status=400, headers=()):
    return answer(status, {"__type": name, "message": message}, headers)


def error_once(case, seen, good):
    """The error that a case names in the first answer, good ones after it."""
    name, status, words = case.split(":", 2)
    if seen > 1:
        return good
    return error(name, words, int(status)) if name else answer(int(status), b"<html>Go away.<br></html>")


class Hang(Exception):
    pass


class Close(Exception):
    pass


def drip(connection, data):
    for i in range(len(data)):
        connection.sendall(data[i:i + 1])
        time.sleep(0.1)


def http_date(seconds):
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + seconds))


OK = {"KeyId": "it"}


def kms(request, connection):
    """The bytes of an answer, or None if that was sent already."""
    key = request.signer("kms")
    if key is None:
        return error("InvalidSignatureException", "the signature is wrong")
    if CONTROL["expired"] in (key, "all"):
        count("expired")
        return error("ExpiredTokenException", "expired")
    asked = json.loads(request.body)
    case = asked["case"]
    seen = count(case)
    if case == "who":
        return answer(200, dict(ISSUED.get(key, {}), key=key,
                                action=request.headers["x-amz-target"]))
    plain = {
        "ok": lambda: answer(200, OK),
        "secret": lambda: answer(200, {"Plaintext": "Residue-of-a-key-that-was-opened"}),
        "empty": lambda: answer(200),
        "throttled": lambda: error("ThrottlingException", "Rate exceeded"),
        "throttled-twice": lambda: answer(200, OK) if seen > 2 else error("ThrottlingException"),
        "broken": lambda: answer(500, b"oops"),
        "broken-twice": lambda: answer(200, OK) if seen > 2 else error("KMSInternalException", status=500),
        "unavailable": lambda: error("KeyUnavailableException", status=500),
        "dependency": lambda: error("DependencyTimeoutException", status=503),
        "quota": lambda: error("LimitExceededException"),
        "missing": lambda: error("com.amazonaws.kms#NotFoundException", "Key 'x' does not exist"),
        "header-error": lambda: answer(400, b"{}", [("x-amzn-ErrorType", "DisabledException:http://x/")]),
        "denied": lambda: error("AccessDeniedException", "User: x is not authorized"),
        "denied-xml": lambda: answer(403, b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>"
                                          b"<Message>No &lt;way&gt;</Message></Error></ErrorResponse>"),
        "denied-html": lambda: answer(403, b"<html><body>Forbidden<br></body></html>"),
        "entities": lambda: answer(403, b"<!DOCTYPE x [<!ENTITY a 'AccessDenied'>]><R><Error><Code>&a;</Code>"
                                        b"</Error></R>"),
        "nameless": lambda: answer(400, b"{}"),
        "too-many": lambda: answer(429, b""),
        "unrecognized": lambda: error("UnrecognizedClientException", "The security token is invalid"),
        "echo": lambda: error("NotFoundException", "Authorization: secret-env"),
        "echo-signature": lambda: error("SignatureDoesNotMatch", "The canonical string should have been secret-e",
                                        403),
        "echo-value": lambda: error("ValidationException", "Value 'secret-e' at 'plaintext'"),
        "rude": lambda: error("NotFoundException", "a\nb\r\x1b[31m" + "x" * 1000 + "\u00e5"),
        "rude-name": lambda: error("Bad Name\n; drop", "words"),
        "endless-name": lambda: error("N" * 500, "words"),
        "no-json": lambda: answer(200, b"<html>"),
        "array": lambda: answer(200, [1]),
        "string": lambda: answer(200, b'"x"'),
        "twice": lambda: answer(200, b'{"KeyId":"a","KeyId":"b"}'),
        "deep": lambda: answer(200, b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}"),
        "zero": lambda: answer(200, b'{"KeyId":"a\\u0000b"}'),
        "not-utf8": lambda: answer(200, b'{"KeyId":"\xff"}'),
        "rest": lambda: answer(200, b'{"KeyId":"a"} {"KeyId":"b"}'),
        "cut-json": lambda: answer(200, b'{"KeyId":"a'),
        "large": lambda: answer(200, {"KeyId": "x" * 900000}),
        "huge": lambda: answer(200, {"KeyId": "x" * 3000000}),
        "huge-error": lambda: answer(400, {"__type": "NotFoundException", "message": "x" * 3000000}),
        "wrong-type": lambda: answer(200, OK, [("Content-Type", "text/html")]),
        "many-headers": lambda: answer(200, OK, [("X-Pad", "y" * 60)] * 3000),
        "long-header": lambda: answer(200, OK, [("X-Pad", "y" * 90000)]),
        "no-content": lambda: answer(204),
        "redirect": lambda: answer(302, b"", [("Location", f"http://{request.headers['host']}/elsewhere")]),
        "redirect-get": lambda: answer(303, b"", [("Location", "/elsewhere")]),
        "continue": lambda: b"HTTP/1.1 100 Continue\r\n\r\n" + answer(200, OK),
        "not-http": lambda: b"SSH-2.0-OpenSSH\r\n\r\n",
        "status-zero": lambda: b"HTTP/1.1 000 None\r\nContent-Length: 0\r\n\r\n",
        "clock-behind": lambda: error("InvalidSignatureException", "Signature not yet current",
                                      headers=[("Date", http_date(3600))]),
        "clock-ahead": lambda: error("SignatureDoesNotMatch", "Signature expired", 403,
                                     [("Date", http_date(-3600))]),
        "bad-secret": lambda: error("InvalidSignatureException", "no match", headers=[("Date", http_date(0))]),
        "odd-date": lambda: error("InvalidSignatureException", "no match", headers=[("Date", "yesterday")]),
    }
    if case in plain:
        return plain[case]()
    if ":" in case:
        return error_once(case, seen, answer(200, OK))
    if case in ("hang", "hang-once"):
        if case == "hang" or seen == 1:
            raise Hang
        return answer(200, OK)
    if case == "drip":
        drip(connection, answer(200, {"KeyId": "x" * 1000}))
    elif case == "drip-headers":
        drip(connection, answer(200, OK, [("X-Pad", "y" * 1000)]))
    elif case in ("reset", "reset-twice"):
        if case == "reset-twice" and seen > 2:
            return answer(200, OK)
        raise Close
    elif case == "cut":
        connection.sendall(answer(200, b'{"KeyId":', length=100))
        raise Close
    elif case == "bad-chunk":
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        raise Close
    elif case == "endless":
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
    else:
        return error("UnknownCase", case)
    return None


def sts(request):
    form = dict(urllib.parse.parse_qsl(request.body.decode()))
    action = form.get("Action")
    count(f"sts:{action}")
    failures = {
        "broken": answer(500, b""),
        "denied": answer(403, b"<ErrorResponse xmlns='x'><Error><Type>Sender</Type><Code>AccessDenied</Code>"
                              b"<Message>not you</Message></Error><RequestId>1</RequestId></ErrorResponse>"),
        "garbage": answer(200, b"<Assume"),
        "no-time": answer(200, b"<A><R><Credentials><AccessKeyId>a</AccessKeyId><SecretAccessKey>b"
                               b"</SecretAccessKey><SessionToken>c</SessionToken></Credentials></R></A>"),
        "twice": answer(200, b"<A><R><Credentials><AccessKeyId>a</AccessKeyId><AccessKeyId>a</AccessKeyId>"
                             b"</Credentials></R></A>"),
        "laughs": answer(200, b"<!DOCTYPE a [<!ENTITY b 'bbbbbbbbbb'><!ENTITY c '&b;&b;&b;&b;&b;'>]>"
                              b"<A><R><Credentials><AccessKeyId>&c;</AccessKeyId></Credentials></R></A>"),
        "deep": answer(200, b"<a>" * 10000),
        "echo": answer(403, "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not with "
                            f"{form.get('WebIdentityToken', request.headers.get('x-amz-security-token'))}"
                            "</Message></Error></ErrorResponse>".encode()),
    }
    if CONTROL["sts"] == "slow":
        time.sleep(1)
    if CONTROL["sts"] in failures:
        return failures[CONTROL["sts"]]
    if ":" in CONTROL["sts"] and count(CONTROL["sts"]) == 1:
        name, status, words = CONTROL["sts"].split(":", 2)
        return answer(int(status), f"<ErrorResponse><Error><Code>{name}</Code><Message>{words}</Message>"
                                   "</Error></ErrorResponse>".encode())
    facts = {"role": form.get("RoleArn"), "session": form.get("RoleSessionName"),
             "external": form.get("ExternalId"), "duration": form.get("DurationSeconds")}
    if action == "AssumeRole":
        facts["by"] = request.signer("sts")
        if facts["by"] is None:
            return answer(403, b"<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code></Error></ErrorResponse>")
        how = "role"
    else:
        if "authorization" in request.headers:
            return answer(400, b"<ErrorResponse><Error><Code>Signed</Code></Error></ErrorResponse>")
        facts["token"] = form.get("WebIdentityToken")
        how = "web"
    key, secret, token, expires = issue(how, **facts)
    return answer(200, f"""<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
      <{action}Result><AssumedRoleUser><Arn>arn:aws:sts::1:x</Arn></AssumedRoleUser><Credentials>
      <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>
      <SessionToken>{token}</SessionToken><Expiration>{expires}</Expiration></Credentials>
      </{action}Result><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>
      </{action}Response>""".encode())


def given(how, **facts):
    key, secret, token, expires = issue(how, **facts)
    return {"AccessKeyId": key, "SecretAccessKey": secret, "Token": token, "Expiration": expires}


def container(request):
    count("container")
    wanted = request.headers.get("authorization")
    if wanted != "token-c":
        return answer(401, {"code": "x", "message": f"not with {wanted}"})
    return answer(200, given("container"))


def instance(request, path):
    mode = CONTROL["instance"]
    count("instance:" + path.rsplit("/", 1)[-1])
    if mode == "absent":
        return answer(404, b"")
    if path == "/latest/api/token":
        if request.method != "PUT" or "x-aws-ec2-metadata-token-ttl-seconds" not in request.headers:
            return answer(400)
        return answer(200, b"to ken" if mode == "bad-token" else b"instance-token==")
    if request.headers.get("x-aws-ec2-metadata-token") != "instance-token==":
        return answer(401)
    base = "/latest/meta-data/iam/security-credentials/"
    if path == base:
        return answer(404) if mode == "no-role" else answer(200, b"../x" if mode == "bad-role" else b"the-role\n")
    if path == base + "the-role":
        if mode == "echo":
            return answer(403, {"code": "x", "message": "not with " + request.headers["x-aws-ec2-metadata-token"]})
        if mode == "failed":
            return answer(200, {"Code": "AssumeRoleUnauthorizedAccess", "Message": "x"})
        return answer(200, dict(given("instance"), Code="Success", Type="AWS-HMAC"))
    return answer(404)


def control(query):
    with LOCK:
        if "reset" in query:
            COUNTS.clear()
            CONTROL.update(lifetime="3600", instance="role", sts="ok", expired="")
        else:
            CONTROL.update(query)
        return answer(200, COUNTS)


def respond(request, connection):
    path, _, query = request.target.partition("?")
    if path == "/control":
        return control(dict(urllib.parse.parse_qsl(query)))
    if path == "/elsewhere":
        count("elsewhere")
        return answer(200, OK)
    if path == "/container":
        return container(request)
    if path.startswith("/latest/"):
        return instance(request, path)
    if request.method == "POST" and path == "/":
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return sts(request)
        if "x-amz-target" in request.headers:
            return kms(request, connection)
    return answer(404)


def read_request(stream):
    line = stream.readline(65536).decode("latin-1").rstrip("\r\n")
    if line.count(" ") != 2:
        return None
    headers = {}
    while True:
        header = stream.readline(65536).decode("latin-1").rstrip("\r\n")
        if not header:
            break
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    return Request(line, headers, stream.read(int(headers.get("content-length", 0))))


def serve(connection, context):
    try:
        if context:
            connection = context.wrap_socket(connection, server_side=True)
        count("connections")
        stream = connection.makefile("rb")
        while (request := read_request(stream)) is not None:
            data = respond(request, connection)
            if data is not None:
                connection.sendall(data)
    except Hang:
        time.sleep(30)
    except (Close, OSError):
        pass
    finally:
        connection.close()


def listen(context=None):
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, context), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def certificate(name, san, signer=None, days=(-1, 30)):
    """(certificate, key) of a name, by a signer or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.utcnow()
    builder = (x509.CertificateBuilder().subject_name(subject)
               .issuer_name(signer[0].subject if signer else subject).public_key(key.public_key())
               .serial_number(x509.random_serial_number())
               .not_valid_before(now + datetime.timedelta(days=days[0]))
               .not_valid_after(now + datetime.timedelta(days=days[1]))
               .add_extension(x509.BasicConstraints(ca=san is None, path_length=None), critical=True))
    if san is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([san]), critical=False)
    return builder.sign(signer[1] if signer else key, hashes.SHA256()), key


def write(path, made, with_key):
    with open(path, "wb") as f:
        f.write(made[0].public_bytes(serialization.Encoding.PEM))
        if with_key:
            f.write(made[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                          serialization.NoEncryption()))
    return path


def tls(path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def main():
    folder = sys.argv[1]
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    authority = certificate("nomp_crypt test authority", None)
    made = {
        "good": certificate("here", here, authority),
        "other": certificate("elsewhere", x509.DNSName("kms.example.com"), authority),
        "old": certificate("here", here, authority, (-10, -1)),
        "self": certificate("here", here),
    }
    ports = {"http": listen()}
    for name, pair in made.items():
        ports[name] = listen(tls(write(os.path.join(folder, name + ".pem"), pair, True)))
    ports["ca"] = write(os.path.join(folder, "ca.pem"), authority, False)
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
