"""What the Python clients share: lines of TAP, and values to write.

Not a test of its own.
"""

import datetime
import decimal
import uuid

UTC = datetime.timezone.utc

ANNA = {
    "name": "Åsa Öberg-Żółć 🎓",
    "born": datetime.date(2014, 5, 1),
    "active": True,
    "points": 42,
    "weight": decimal.Decimal("31.50"),
    "seen": datetime.datetime(2024, 2, 29, 12, 30, 15, 250000, tzinfo=UTC),
    "token": uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "photo": b"\x00\xff'\\jpeg",
    "notes": {"allergy": ["nuts", "ägg"], "ok": True, "n": None},
    "ssn": "20140501-1234",
}
BERTIL = {
    "name": "Bertil",
    "born": datetime.date(2013, 12, 31),
    "active": False,
    "points": -7,
    "weight": decimal.Decimal("40.25"),
    "seen": datetime.datetime(2023, 1, 1, tzinfo=UTC),
    "token": uuid.UUID("b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22"),
    "photo": b"",
    "notes": {"allergy": []},
    "ssn": "20131231-5678",
}

number = 0


def ok(passed, name, *why):
    global number
    number += 1
    print(f"{'ok' if passed else 'not ok'} - {name}", flush=True)
    if not passed:
        for line in why:
            print(f"#   {line!r}", flush=True)


def types(value):
    """The type of a value, and of what is in it."""
    if isinstance(value, dict):
        return {k: types(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value), *(types(v) for v in value)]
    return type(value)


def same(got, expected, name):
    """Equal, and of the same types: 1 is not True here."""
    ok(got == expected and types(got) == types(expected), name, got, expected)


def error(wanted, action):
    """The error of that class that action() raises; None if there is none.
    Others pass on."""
    try:
        action()
    except wanted as caught:
        return caught
    return None


def finish():
    print(f"1..{number}")
