"""What goes wrong because a test says so: errors, silence, answers that are
not as they should be, slowness, quotas."""

import os
import json
import random
import threading
import time

from .basics import ApiError, Response

KMS_JSON = "application/x-amz-json-1.1"
HUGE = 64 << 20


class Fault:
    """For an action ("*": any) and a key (None: any), after "skip" calls, for
    "times" calls (None: until recovery), with a probability."""

    def __init__(self, kind="error", action="*", key=None, times=None, skip=0,
                 probability=1.0, status=400, error="KMSInternalException",
                 message="a test wants it so", values=None, seconds=0.0, location=None):
        if kind not in KINDS:
            raise KeyError(f"there is no fault {kind}")
        self.kind = kind
        self.action = action
        self.key = key
        self.times = times
        self.skip = skip
        self.probability = probability
        self.status = status
        self.error = error
        self.message = message
        self.values = values or {}
        self.seconds = seconds
        self.location = location

    def fits(self, action, key_id):
        return self.action in ("*", action) and self.key in (None, key_id)


class Faults:
    def __init__(self):
        self.lock = threading.Lock()
        self.random = random.Random(1)
        self.last = {}              # action => plaintext answered last
        self.recovery = threading.Event()
        self.clear()

    def clear(self):
        with self.lock:
            self.list = []
            self.latency = {}
            self.quotas = {}
            self.buckets = {}
            over, self.recovery = self.recovery, threading.Event()
        over.set()

    def add(self, **rules):
        with self.lock:
            fault = Fault(**rules)
            fault.over = self.recovery
            self.list.append(fault)

    def next(self, action, key_id):
        """The fault that this call meets, or None."""
        with self.lock:
            for fault in self.list:
                if not fault.fits(action, key_id):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if fault.times == 0 or self.random.random() >= fault.probability:
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    def delay(self, action):
        seconds = self.latency.get(action, self.latency.get("*", 0))
        if seconds > 0:
            time.sleep(seconds)

    def take(self, action):
        """One call of the quota: so many a second, and at once."""
        rate = self.quotas.get(action)
        if rate is None:
            return
        with self.lock:
            left, when = self.buckets.get(action, (rate, time.monotonic()))
            now = time.monotonic()
            left = min(rate, left + (now - when) * rate)
            self.buckets[action] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise ApiError("ThrottlingException", "Rate exceeded")

    def before(self, fault):
        """What happens instead of the action."""
        if fault.kind == "error":
            raise ApiError(fault.error, fault.message, fault.status)
        if fault.kind == "hang":
            fault.over.wait(fault.seconds or 900)
        if fault.kind == "close":
            return Response(200, send=lambda connection, response: None)
        if fault.kind == "redirect":
            response = Response(fault.status if fault.status >= 300 and fault.status < 400 else 307)
            response.headers.append(("Location", fault.location))
            return response
        return None

    def after(self, fault, action, response):
        """What becomes of the answer."""
        if fault.kind in BODIES:
            response.body = BODIES[fault.kind](response.body, fault)
        elif fault.kind in SENDERS:
            response.send = SENDERS[fault.kind]
        elif fault.kind == "other_plaintext":
            values = json.loads(response.body)
            values["Plaintext"] = self.last.get(action, values.get("Plaintext"))
            response.body = json.dumps(values).encode()
        elif fault.kind == "failed_after":
            raise ApiError(fault.error, fault.message, fault.status)
        return response

    def remember(self, action, values):
        if values and "Plaintext" in values:
            self.last[action] = values["Plaintext"]


def put(values, path, value):
    """Set "KeyMetadata.Arn" and the like; None removes it.  In a list, "*"
    stands for each."""
    first, _, rest = path.partition(".")
    for place in (range(len(values)) if first == "*" else [first]):
        if rest:
            put(values[place], rest, value)
        elif value is None:
            values.pop(place, None)
        else:
            values[place] = value


def patched(body, fault):
    values = json.loads(body)
    for path, value in fault.values.items():
        put(values, path, value)
    return json.dumps(values).encode()


def replaced(body, fault):
    """A text in the answer by another: an account, a region."""
    text = body.decode()
    for old, new in fault.values.items():
        text = text.replace(old, new)
    return text.encode()


BODIES = {
    "not_json": lambda body, fault: b"<html><body>502 Bad Gateway</body></html>",
    "empty": lambda body, fault: b"",
    "garbage": lambda body, fault: os.urandom(300),
    "cut": lambda body, fault: body[:-1],
    "array": lambda body, fault: b"[" + body + b"]",
    "twice": lambda body, fault: body + body,
    "deep": lambda body, fault: b'{"KeyId":' + b"[" * 200000 + b"]" * 200000 + b"}",
    "nul": lambda body, fault: body.replace(b"arn:aws:kms", b"arn\\u0000aws:kms"),
    "wrong_types": lambda body, fault: json.dumps(
        {name: 7 for name in json.loads(body or b"{}")}).encode(),
    "patch": patched,
    "replace": replaced,
}


def send_huge(connection, response):
    connection.sendall(response.head(HUGE))
    for _ in range(HUGE >> 20):
        connection.sendall(b" " * (1 << 20))


def send_endless_head(connection, response):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(HUGE >> 16):
        connection.sendall(b"X-%d: " % number + b"x" * (1 << 16) + b"\r\n")


def send_truncated(connection, response):
    connection.sendall(response.head() + response.body[:len(response.body) // 2])


def send_drip(connection, response):
    for byte in response.head() + response.body:
        connection.sendall(bytes([byte]))
        time.sleep(1)


def send_nothing(connection, response):
    """It was done, and nobody says so."""


SENDERS = {"huge": send_huge, "endless_head": send_endless_head, "truncated": send_truncated,
           "drip": send_drip, "lost": send_nothing}
# "pretend": the answer says that it was done, and it was not
KINDS = {"error", "hang", "close", "redirect", "other_plaintext", "failed_after", "pretend",
         *BODIES, *SENDERS}
