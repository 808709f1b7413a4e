"""From a request to an answer: which service it is for, who asks, what goes
wrong on purpose, and a record of every call."""

import json
import threading
import time
from collections import Counter

from .basics import ApiError, Response
from .credentials import CONTAINER_PATH
from .faults import KMS_JSON
from .policies import context_of

TARGET = "TrentService."


class Calls:
    """Every call of KMS and of where credentials come from: counted when it
    comes, written down when it is answered."""

    def __init__(self):
        self.lock = threading.Lock()
        self.forget()

    def forget(self):
        with self.lock:
            self.counts = Counter()
            self.list = []

    def begin(self, action):
        with self.lock:
            self.counts[action] += 1

    def note(self, action, **details):
        with self.lock:
            self.list.append({"action": action, "time": time.time(), **details})


class Service:
    def __init__(self, kms, identities, credentials, faults, place):
        self.kms = kms
        self.identities = identities
        self.credentials = credentials
        self.faults = faults
        self.place = place
        self.calls = Calls()

    def answer(self, request):
        if request.header("x-amz-target", "").startswith(TARGET):
            return self.answer_kms(request)
        if request.path.startswith("/latest/"):
            return self.other("instance", request, self.credentials.instance)
        if request.path == CONTAINER_PATH:
            return self.other("container", request, self.credentials.container)
        return self.other("sts", request, self.credentials.sts)

    def other(self, name, request, action):
        self.calls.begin(name)
        self.calls.note(name, path=request.path, method=request.method)
        self.faults.delay(name)
        fault = self.faults.next(name, None)
        if fault is not None and fault.kind == "error":
            return Response(fault.status, b"")
        response = fault and self.faults.before(fault)
        if response is not None:
            return response
        response = action(request)
        return self.faults.after(fault, name, response) if fault else response

    def answer_kms(self, request):
        action = request.headers["x-amz-target"][len(TARGET):]
        note = {"key": None, "caller": None, "error": None}
        self.calls.begin(action)
        try:
            response = self.perform(action, request, note)
        except ApiError as error:
            note["error"] = error.name
            response = error_response(error)
        self.calls.note(action, **note)
        return response

    def perform(self, action, request, note):
        self.faults.delay(action)
        if request.method != "POST" or request.path != "/" or request.header("content-type") != KMS_JSON:
            raise ApiError("UnknownOperationException", None, 404)
        identity = self.identities.check(request, "kms", self.place.region)
        note["caller"] = identity.arn
        self.faults.take(action)
        values = self.kms.parse(action, request.body)
        note["key"] = self.key_of(values)
        note["sent"] = {name: value for name, value in values.items() if not isinstance(value, bytes)}
        fault = self.faults.next(action, note["key"])
        response = fault and self.faults.before(fault)
        if response is not None:
            return response
        self.allow(identity, action, values)
        with self.kms.store.lock:
            before = self.kms.store.current(note["key"])
            answer = getattr(self.kms, action)(values)
            if fault is not None and fault.kind == "pretend":
                self.kms.store.save(before)
        response = Response(200, b"" if answer is None else json.dumps(answer).encode(), KMS_JSON)
        if fault is not None:
            response = self.faults.after(fault, action, response)
        else:
            self.faults.remember(action, answer)
        return response

    def key_of(self, values):
        """The id of the key that a request names, for faults and records."""
        name = values.get("KeyId", values.get("TargetKeyId"))
        try:
            return None if name is None else self.kms.resolve(name)
        except ApiError:
            return name

    def may(self, identity, action, values):
        """By the identity's policy, which knows a key's tags late, and the key's."""
        key_id = self.key_of(values)
        resource = "*" if key_id is None else self.kms.arn(key_id)
        with self.kms.store.lock:
            if not self.kms.lets(key_id, action):
                return False
            context = context_of(action, values, self.kms.tags_for_policies(key_id))
        if action == "CreateKey" and "Tags" in values and not identity.may("kms:TagResource", resource, context):
            return False
        return identity.may(f"kms:{action}", resource, context)

    def allow(self, identity, action, values):
        if self.may(identity, action, values):
            return
        key = self.key_of(values)
        resource = "*" if key is None else self.kms.arn(key)
        raise ApiError("AccessDeniedException",
                       f"User: {identity.arn} is not authorized to perform: kms:{action} on"
                       f" resource: {resource} because no identity-based policy allows the"
                       f" kms:{action} action")


def error_response(error):
    body = {"__type": error.name}
    if error.message is not None:
        body["Message" if error.name == "AccessDeniedException" else "message"] = error.message
    return Response(error.status, json.dumps(body).encode(), KMS_JSON)
