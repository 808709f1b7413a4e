"""What the parts share: requests, answers, errors, and the clock."""

import email.utils
import json
import time
import uuid


class ApiError(Exception):
    """An answer that says what is wrong, in the service's own terms."""

    def __init__(self, name, message, status=400):
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message
        self.status = status


class Request:
    """Headers have names in lower case."""

    def __init__(self, method, target, headers, body):
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body

    def header(self, name, default=None):
        return self.headers.get(name, default)


class Response:
    """If "send" is set, it writes to the connection instead, and the
    connection ends with it."""

    def __init__(self, status, body=b"", kind="text/plain", send=None):
        self.status = status
        self.headers = [("Content-Type", kind),
                        ("x-amzn-RequestId", str(uuid.uuid4()))]
        self.body = body
        self.send = send
        self.time = None

    def head(self, length=None):
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}",
                 "Date: " + email.utils.formatdate(self.time, usegmt=True)]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines.append(f"Content-Length: {len(self.body) if length is None else length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


REASONS = {200: "OK", 301: "Moved Permanently", 307: "Temporary Redirect",
           400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
           404: "Not Found", 405: "Method Not Allowed", 413: "Too Large",
           500: "Internal Server Error", 503: "Service Unavailable"}


def json_response(status, value, kind="application/json"):
    return Response(status, json.dumps(value).encode(), kind)


class Clock:
    """The clock of signatures and credentials, which tests can move."""

    def __init__(self):
        self.skew = 0.0

    def now(self):
        return time.time() + self.skew


def iso(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
