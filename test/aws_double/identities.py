"""Who calls: access keys, what they may do, when they expire, and whether the
signature (version 4) of a request is theirs.

Signatures are computed again by botocore."""

import calendar
import fnmatch
import hashlib
import hmac
import re
import secrets
import time

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .basics import ApiError
from .policies import allows

MAX_SKEW = 300
AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/(\d{8})/([^/,\s]+)/([^/,\s]+)/aws4_request,"
    r"\s*SignedHeaders=([a-z0-9;-]+),\s*Signature=([0-9a-f]{64})")


class Identity:
    """What it may do is in "allow" and "deny", or in a policy of IAM."""

    def __init__(self, access_key, secret, arn, allow=("*",), token=None, expires=None):
        self.access_key = access_key
        self.secret = secret
        self.arn = arn
        self.allow = list(allow)
        self.deny = []
        self.policy = None
        self.token = token
        self.expires = expires

    def may(self, action, resource="*", context=None):
        if self.policy is not None:
            return allows(self.policy, action, resource, context or {})
        return (any(fnmatch.fnmatchcase(action, rule) for rule in self.allow) and
                not any(fnmatch.fnmatchcase(action, rule) for rule in self.deny))


class Identities:
    def __init__(self, clock, account, partition):
        self.clock = clock
        self.account = account
        self.partition = partition
        self.known = {}

    def arn(self, rest):
        return f"arn:{self.partition}:iam::{self.account}:{rest}"

    def add(self, name, access_key, secret, allow):
        self.known[access_key] = Identity(access_key, secret, self.arn(f"user/{name}"), allow)

    def named(self, name):
        """By access key, or by the end of its ARN."""
        for identity in self.known.values():
            if name in (identity.access_key, identity.arn.rpartition("/")[2]):
                return identity
        raise KeyError(f"nobody is called {name}")

    def new_session(self, role, seconds, allow, session="session"):
        """Credentials that expire."""
        access_key = "ASIA" + secrets.token_hex(8).upper()
        arn = (f"arn:{self.partition}:sts::{self.account}:"
               f"assumed-role/{role}/{session}")
        identity = Identity(access_key, secrets.token_urlsafe(30), arn, allow,
                            token=secrets.token_urlsafe(90) + "/+==",
                            expires=self.clock.now() + seconds)
        self.known[access_key] = identity
        return identity

    def check(self, request, service, region):
        """The identity that signed the request."""
        if "authorization" not in request.headers:
            raise ApiError("MissingAuthenticationTokenException", "Missing Authentication Token")
        match = AUTHORIZATION.fullmatch(request.headers["authorization"])
        if match is None:
            raise ApiError("IncompleteSignatureException",
                           "Authorization header is not understood")
        access_key, date, scope_region, scope_service, signed, signature = match.groups()
        identity = self.known.get(access_key)
        if identity is None:
            raise ApiError("UnrecognizedClientException",
                           "The security token included in the request is invalid.")
        check_scope(scope_region, scope_service, region, service)
        check_headers(request, signed.split(";"))
        self.check_time(request.header("x-amz-date", ""), date)
        self.check_token(request, identity)
        computed = sign(request, identity, signed.split(";"), service, region)
        if not hmac.compare_digest(computed, signature):
            raise ApiError("InvalidSignatureException",
                           "The request signature we calculated does not match the signature"
                           " you provided. Check your AWS Secret Access Key and signing method."
                           " Consult the service documentation for details.")
        return identity

    def check_time(self, stamp, date):
        try:
            then = calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
        except ValueError:
            raise ApiError("IncompleteSignatureException", "Date is not understood") from None
        if stamp[:8] != date:
            raise ApiError("InvalidSignatureException",
                           "Date in Credential scope does not match YYYYMMDD from ISO-8601"
                           f" version of date from HTTP: '{date}' != '{stamp[:8]}'")
        now = self.clock.now()
        text = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        if then < now - MAX_SKEW:
            raise ApiError("InvalidSignatureException",
                           f"Signature expired: {stamp} is now earlier than {text}"
                           f" ({text} - 5 min.)")
        if then > now + MAX_SKEW:
            raise ApiError("InvalidSignatureException",
                           f"Signature not yet current: {stamp} is still later than {text}"
                           f" ({text} + 5 min.)")

    def check_token(self, request, identity):
        if request.header("x-amz-security-token") != identity.token:
            raise ApiError("UnrecognizedClientException",
                           "The security token included in the request is invalid.")
        if identity.expires is not None and identity.expires <= self.clock.now():
            raise ApiError("ExpiredTokenException",
                           "The security token included in the request is expired")


def check_scope(scope_region, scope_service, region, service):
    if scope_region != region:
        raise ApiError("InvalidSignatureException",
                       f"Credential should be scoped to a valid region, not '{scope_region}'.")
    if scope_service != service:
        raise ApiError("InvalidSignatureException",
                       f"Credential should be scoped to correct service: '{service}'.")


def check_headers(request, signed):
    """What has to be signed is: the host, and everything of Amazon's."""
    needed = {"host"} | {name for name in request.headers if name.startswith("x-amz-")}
    missing = needed - set(signed)
    if missing or any(name not in request.headers for name in signed):
        raise ApiError("InvalidSignatureException",
                       f"'{', '.join(sorted(missing))}' must be a 'SignedHeader'"
                       " in the AWS Authorization.")
    claimed = request.header("x-amz-content-sha256")
    if claimed not in (None, hashlib.sha256(request.body).hexdigest()):
        raise ApiError("InvalidSignatureException", "The body is not what was signed.")


def sign(request, identity, signed, service, region):
    headers = {name: request.headers[name] for name in signed}
    again = AWSRequest(method=request.method, data=request.body, headers=headers,
                       url=f"http://{headers['host']}{request.target}")
    again.context["timestamp"] = request.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(identity.access_key, identity.secret), service, region)
    text = signer.string_to_sign(again, signer.canonical_request(again))
    return signer.signature(text, again)
