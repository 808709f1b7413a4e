"""What a test says to the double: POST / on its own port, one JSON object with
"do" and what that takes."""

import json

from .basics import ApiError, json_response
from .policies import from_page


class Control:
    def __init__(self, double):
        self.double = double

    def answer(self, request):
        try:
            values = json.loads(request.body)
            action = getattr(self, "do_" + values.pop("do"))
            with self.double.store.lock:
                return json_response(200, {"answer": action(**values)})
        except (ApiError, AttributeError, KeyError, TypeError, ValueError) as error:
            return json_response(400, {"error": f"{type(error).__name__}: {error}"})

    # time

    def do_advance(self, seconds):
        """As if that much time had passed for the keys: deletions come due."""
        self.double.store.age(seconds)

    def do_skew(self, seconds):
        """Move the clock that signatures and credentials are judged by."""
        self.double.clock.skew = seconds

    def do_at_once(self, on=True):
        """Windows before deletion are over as soon as they begin."""
        self.double.kms.at_once = on

    def do_lag(self, seconds):
        self.double.store.lag = seconds

    def do_tag_lag(self, seconds, actions=()):
        """Policies know tags so late; these actions are refused until then."""
        self.double.kms.tag_lag = seconds
        self.double.kms.tag_actions = actions

    # trouble

    def do_fault(self, **rules):
        self.double.faults.add(**rules)

    def do_latency(self, seconds, action="*"):
        self.double.faults.latency[action] = seconds

    def do_seed(self, seed):
        """Of the faults that have a probability."""
        self.double.faults.random.seed(seed)

    def do_quota(self, action, per_second):
        self.double.faults.quotas[action] = per_second

    def do_recover(self):
        self.double.faults.clear()
        self.double.present("right")
        self.double.set_down(False)
        self.double.clock.skew = 0.0
        self.double.store.lag = 0.0
        self.double.kms.max_page = self.double.kms.max_keys = None
        self.do_tag_lag(0.0)

    def do_down(self, on=True):
        """Connections are accepted and closed; those that are open end."""
        self.double.set_down(on)

    def do_present(self, certificate):
        """To new connections; those that are open end."""
        self.double.present(certificate)

    def do_drop(self):
        self.double.drop()

    def do_page(self, most):
        """No page of a list has more entries."""
        self.double.kms.max_page = most

    def do_max_keys(self, most):
        self.double.kms.max_keys = most

    # keys, behind the client's back

    def do_keys(self):
        store = self.double.store
        return [self.shown(views[-1][1]) for _, views in sorted(store.keys.items())
                if not store.gone(views[-1][1])]

    def shown(self, key):
        shown = {name: value for name, value in key.items() if name != "material"}
        return {**shown, "arn": self.double.kms.arn(key["id"])}

    def key(self, name):
        key = self.double.store.current(self.double.kms.resolve(name))
        if key is None:
            raise KeyError(f"no key {name}")
        return key

    def do_change(self, key, **fields):
        """Whatever is in a key: state, origin, multi_region, tags, policy."""
        unknown = set(fields) - set(self.key(key))
        if unknown:
            raise KeyError(f"a key has no {unknown}")
        self.double.store.change(self.key(key), **fields)

    def do_delete(self, key):
        """Gone, at once."""
        self.double.store.change(self.key(key), state="PendingDeletion", deletion=0)

    def do_managed(self, service="ebs", lets=("Describe*", "Get*", "List*")):
        """A key that AWS manages; "lets": the actions that its policy leaves."""
        return self.double.kms.new_managed_key(service, list(lets))

    def do_call(self, action, **values):
        """An action of KMS as by another client, without credentials."""
        body = json.dumps(values).encode()
        return getattr(self.double.kms, action)(self.double.kms.parse(action, body))

    # who may do what

    def do_identity(self, name, **fields):
        """Change "allow", "deny", "secret", "expires" of one of them."""
        identity = self.double.identities.named(name)
        for field, value in fields.items():
            if not hasattr(identity, field):
                raise KeyError(f"an identity has no {field}")
            setattr(identity, field, value)

    def do_policy(self, name, page, heading, words):
        """One of them may do what a page's policy says."""
        self.double.identities.named(name).policy = from_page(page, heading, words)

    def do_may(self, name, action, **values):
        """Would one of them be allowed this?"""
        body = json.dumps(values).encode()
        return self.double.service.may(self.double.identities.named(name), action,
                                       self.double.kms.parse(action, body))

    def do_sessions(self, **fields):
        """How sessions will be: "seconds", "allow"; "metadata": is there any?"""
        for field, value in fields.items():
            if field not in ("seconds", "allow", "metadata"):
                raise KeyError(f"a session has no {field}")
            setattr(self.double.credentials, field, value)

    def do_expire_sessions(self):
        """Those that are out are over."""
        for identity in self.double.identities.known.values():
            if identity.expires is not None:
                identity.expires = 0

    # what was called

    def do_counts(self):
        return dict(self.double.service.calls.counts)

    def do_calls(self, action=None):
        return [call for call in self.double.service.calls.list
                if action in (None, call["action"])]

    def do_forget_calls(self):
        self.double.service.calls.forget()

    def do_ready(self):
        return self.double.ports()
