"""The keys, in memory and in a journal, so that a double that was killed goes
on where it was.  The caller holds the lock."""

import json
import threading
import time


class Store:
    """A key is a dict of what JSON can hold; it is replaced, never changed, so
    that views of earlier moments stay true."""

    def __init__(self, path):
        self.lock = threading.RLock()
        self.lag = 0.0              # seconds until reads see what was written
        self.keys = {}              # id => list of (time, key), newest last
        self.aliases = {}           # name => id
        self.replay(path)
        self.journal = open(path, "ab", buffering=0)

    def replay(self, path):
        try:
            with open(path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        for line in lines:
            entry = json.loads(line)
            if "key" in entry:
                self.keys[entry["key"]["id"]] = [(0.0, entry["key"])]
            else:
                self.aliases[entry["alias"]] = entry["id"]

    def note(self, entry):
        self.journal.write(json.dumps(entry).encode() + b"\n")

    def save(self, key):
        self.note({"key": key})
        views = self.keys.setdefault(key["id"], [])
        views.append((time.monotonic(), key))
        del views[:-8]

    def change(self, key, **fields):
        changed = {**key, **fields}
        self.save(changed)
        return changed

    def save_alias(self, name, key_id):
        self.note({"alias": name, "id": key_id})
        self.aliases[name] = key_id

    def age(self, seconds):
        """Every date that was written moves into the past."""
        for views in self.keys.values():
            key = views[-1][1]
            deletion = key["deletion"]
            self.change(key, created=key["created"] - seconds,
                        deletion=None if deletion is None else deletion - seconds)

    def gone(self, key):
        return key["deletion"] is not None and key["deletion"] <= time.time()

    def current(self, key_id):
        """As it is, or None."""
        views = self.keys.get(key_id)
        return None if views is None or self.gone(views[-1][1]) else views[-1][1]

    def seen(self, key_id):
        """As reads see it, or None."""
        return self.before(key_id, self.lag)

    def before(self, key_id, lag):
        """As it was so many seconds ago, or None."""
        if lag == 0:
            return self.current(key_id)
        until = time.monotonic() - lag
        views = [key for when, key in self.keys.get(key_id, []) if when <= until]
        return None if not views or self.gone(views[-1]) else views[-1]

    def all_seen(self):
        found = (self.seen(key_id) for key_id in sorted(self.keys))
        return [key for key in found if key is not None]
