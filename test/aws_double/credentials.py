"""Where credentials come from that expire by themselves: STS, the instance's
metadata service (version 2) and a container's endpoint."""

import secrets
import time
import urllib.parse
from xml.sax.saxutils import escape

from .basics import ApiError, Response, iso, json_response
from .web import not_found

NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
CONTAINER_PATH = "/v2/credentials/double"
METADATA = "/latest/meta-data/iam/security-credentials/"
ROLE = "database"


def xml_response(status, text):
    return Response(status, text.encode(), "text/xml")


def sts_error(error):
    return xml_response(
        403 if error.name == "AccessDenied" else error.status,
        f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type>'
        f"<Code>{escape(error.name)}</Code><Message>{escape(error.message or '')}</Message>"
        "</Error><RequestId>0</RequestId></ErrorResponse>")


def sts_answer(action, identity):
    fields = {"AccessKeyId": identity.access_key, "SecretAccessKey": identity.secret,
              "SessionToken": identity.token, "Expiration": iso(identity.expires)}
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    return xml_response(
        200, f'<{action}Response xmlns="{NAMESPACE}"><{action}Result>'
        f"<AssumedRoleUser><Arn>{escape(identity.arn)}</Arn>"
        f"<AssumedRoleId>AROADOUBLE:session</AssumedRoleId></AssumedRoleUser>"
        f"<Credentials>{inner}</Credentials></{action}Result>"
        f"<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></{action}Response>")


class CredentialServices:
    def __init__(self, identities, place):
        self.identities = identities
        self.place = place
        self.allow = ["*"]          # what new sessions may do
        self.seconds = 3600         # how long they last
        self.web_token = None       # what web identities show; the double sets it
        self.container_token = None
        self.instance_tokens = {}   # token => until
        self.metadata = True        # is there a metadata service?

    # STS

    def sts(self, request):
        text = request.body.decode() if request.method == "POST" else request.query
        values = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
        try:
            return self.sts_action(request, values)
        except ApiError as error:
            return sts_error(error)

    def sts_action(self, request, values):
        action = values.get("Action")
        if values.get("Version") != "2011-06-15":
            raise ApiError("InvalidAction", f"Could not find operation {action}")
        for name in ("RoleArn", "RoleSessionName"):
            if not values.get(name):
                raise ApiError("ValidationError", f"Value null at '{name}' failed to satisfy"
                               " constraint: Member must not be null")
        role = values["RoleArn"].rpartition(":role/")[2]
        if values["RoleArn"] != self.identities.arn(f"role/{role}"):
            raise ApiError("AccessDenied", f"Not authorized to assume {values['RoleArn']}", 403)
        if action == "AssumeRoleWithWebIdentity":
            if not secrets.compare_digest(values.get("WebIdentityToken", "").encode(),
                                          self.web_token.encode()):
                raise ApiError("InvalidIdentityToken", "Token is not valid")
        elif action == "AssumeRole":
            caller = self.check_caller(request)
            if not caller.may("sts:AssumeRole"):
                raise ApiError("AccessDenied", f"User: {caller.arn} is not authorized to perform:"
                               f" sts:AssumeRole on resource: {values['RoleArn']}", 403)
        else:
            raise ApiError("InvalidAction", f"Could not find operation {action}")
        return sts_answer(action, self.session(role, values["RoleSessionName"]))

    def check_caller(self, request):
        """STS's names for what is wrong with a signature differ from KMS's."""
        names = {"InvalidSignatureException": "SignatureDoesNotMatch",
                 "UnrecognizedClientException": "InvalidClientTokenId",
                 "ExpiredTokenException": "ExpiredToken",
                 "MissingAuthenticationTokenException": "MissingAuthenticationToken",
                 "IncompleteSignatureException": "IncompleteSignature"}
        try:
            return self.identities.check(request, "sts", self.place.region)
        except ApiError as error:
            raise ApiError(names.get(error.name, error.name), error.message, 403) from None

    def session(self, role, name="session"):
        return self.identities.new_session(role, self.seconds, self.allow, name)

    # the instance's metadata

    def instance(self, request):
        if not self.metadata:
            return not_found()
        if request.path == "/latest/api/token":
            return self.instance_token(request)
        until = self.instance_tokens.get(request.header("x-aws-ec2-metadata-token"), 0)
        if until <= time.time():
            return Response(401, b"")
        if request.path == METADATA:
            return Response(200, ROLE.encode())
        if request.path == METADATA + ROLE:
            return json_response(200, {
                "Code": "Success", "Type": "AWS-HMAC",
                "LastUpdated": iso(self.identities.clock.now()),
                **expiring(self.session(ROLE))})
        return not_found()

    def instance_token(self, request):
        ttl = request.header("x-aws-ec2-metadata-token-ttl-seconds", "")
        if request.method != "PUT":
            return Response(405, b"")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600 or "x-forwarded-for" in request.headers:
            return Response(400, b"")
        token = secrets.token_urlsafe(40)
        self.instance_tokens[token] = time.time() + int(ttl)
        response = Response(200, token.encode())
        response.headers.append(("x-aws-ec2-metadata-token-ttl-seconds", ttl))
        return response

    # a container's

    def container(self, request):
        if request.header("authorization") not in (None, self.container_token):
            return json_response(403, {"code": "AccessDenied", "message": "wrong token"})
        return json_response(200, {"RoleArn": self.identities.arn(f"role/{ROLE}"),
                                   **expiring(self.session(ROLE))})


def expiring(identity):
    return {"AccessKeyId": identity.access_key, "SecretAccessKey": identity.secret,
            "Token": identity.token, "Expiration": iso(identity.expires)}
