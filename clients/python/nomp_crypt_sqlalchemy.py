"""nomp_crypt for SQLAlchemy: the column type, and the tenant of a transaction.

    from nomp_crypt_sqlalchemy import Encrypted, tenant_per_transaction

    class Pupil(Base):
        __tablename__ = "pupil"
        id = Column(BigInteger, primary_key=True)
        name = Column(Encrypted(Text))
        born = Column(Encrypted(Date))
        ssn = Column(Encrypted(Text, searchable=True), unique=True)

    tenant_per_transaction(Session)
    with Session(info={"tenant": "s-0180-42"}) as session:
        session.query(Pupil).order_by(Pupil.name).all()

The type renders as encrypted(<inner>), sends values as the inner type does,
and gives back what the inner type gives.  Importing this file teaches
SQLAlchemy to reflect such columns.  For SQLAlchemy 1.4 with psycopg2, and 2.0
with psycopg2 or psycopg.  Copy the file into your project.
"""

import datetime
import functools
import json
import re
import uuid
from contextlib import contextmanager

from sqlalchemy import event, text, types
from sqlalchemy.dialects.postgresql import base as postgresql

# The oid by which a driver knows the text of a type; types that are not here
# (text, varchar, inet) go to the inner type as text.
OIDS = {
    "boolean": 16, "bytea": 17, "smallint": 21, "integer": 23, "bigint": 20,
    "real": 700, "float": 701, "double precision": 701, "numeric": 1700,
    "date": 1082, "time without time zone": 1083, "time": 1083,
    "time with time zone": 1266, "timestamp without time zone": 1114,
    "timestamp": 1114, "timestamp with time zone": 1184, "interval": 1186,
    "uuid": 2950, "json": 114, "jsonb": 3802,
    "text[]": 1009, "varchar[]": 1015, "boolean[]": 1000, "integer[]": 1007,
    "bigint[]": 1016, "numeric[]": 1231, "date[]": 1182,
}
def _with_zone(parse, value):
    time, fraction, zone = re.fullmatch(
        r"(.*?:\d\d)(\.\d+)?([+-].*)", value).groups()
    zone += ":00" if len(zone) == 3 else ""
    return parse(f"{time}{(fraction or '.').ljust(7, '0')}{zone}")


def _psycopg2_caster(dialect, name, oid):
    # For these psycopg2 looks into a cursor, and there is none here, or
    # SQLAlchemy has it do what it does not do by itself.
    if name == "timestamp with time zone":
        return functools.partial(_with_zone, datetime.datetime.fromisoformat)
    if name == "time with time zone":
        return functools.partial(_with_zone, datetime.time.fromisoformat)
    if name in ("json", "jsonb"):
        return dialect._json_deserializer or json.loads
    if name == "uuid":
        return uuid.UUID
    from psycopg2.extensions import string_types
    return lambda value: string_types[oid](value, None)


def _caster(dialect, name):
    """The driver's own function from a type's text to Python."""
    oid = OIDS.get(name)
    if oid is None:
        if name.endswith(("[]", "range")):
            raise NotImplementedError(
                f"nomp_crypt_sqlalchemy does not know {name}; "
                "cast the column to its plain type in the query")
        return None
    if dialect.driver == "psycopg2":
        return _psycopg2_caster(dialect, name, oid)
    if dialect.driver == "psycopg":
        from psycopg.adapt import Transformer
        from psycopg.pq import Format
        load = Transformer().get_loader(oid, Format.TEXT).load
        return lambda value: load(value.encode())
    raise NotImplementedError(
        f"nomp_crypt_sqlalchemy does not know the driver {dialect.driver}; "
        "cast the column to its plain type in the query")


class Encrypted(types.UserDefinedType):
    """encrypted(<inner>[, searchable [, nocase|digits]]).  searchable is False,
    True, "nocase" or "digits"."""

    cache_ok = True

    def __init__(self, inner=types.Text, searchable=False):
        if searchable not in (False, True, "nocase", "digits"):
            raise ValueError(
                'searchable is False, True, "nocase" or "digits"')
        self.inner = types.to_instance(inner)
        self.searchable = searchable

    def __repr__(self):
        return f"Encrypted({self.inner!r}, searchable={self.searchable!r})"

    @property
    def python_type(self):
        return self.inner.python_type

    def _inner_name(self):
        return self.inner.compile(dialect=postgresql.PGDialect()).lower()

    def get_col_spec(self, **kwargs):
        inner = self._inner_name()
        if not inner.isalpha():
            inner = f"'{inner}'"
        search = {False: "", True: ", searchable"}.get(
            self.searchable, f", searchable, {self.searchable}")
        return f"encrypted({inner}{search})"

    def bind_processor(self, dialect):
        return self.inner.dialect_impl(dialect).bind_processor(dialect)

    def literal_processor(self, dialect):
        return self.inner.dialect_impl(dialect).literal_processor(dialect)

    def result_processor(self, dialect, coltype):
        name = re.sub(r"\([^)]*\)", "", self._inner_name())
        cast = _caster(dialect, name)
        finish = self.inner.dialect_impl(dialect).result_processor(
            dialect, OIDS.get(name))

        def process(value):
            # Outside a tenant there is ciphertext, and it stays what it is.
            if isinstance(value, str):
                if value.startswith("nc1:"):
                    return value
                if cast:
                    value = cast(value)
            return finish(value) if finish else value

        return process


# Reflection.  SQLAlchemy takes a type's modifier apart as if it were numbers,
# so the type is recognised before it does.

ENCRYPTED = re.compile(
    r"""(?:.*\.)?encrypted\((?:'([^']*)'|([^,]*))"""
    r"""(?P<search>,[ ]searchable(?:,[ ](\w+))?)?\)""")
# As the extension prints types, and as format_type() does.
NAMES = {
    "bool": "boolean", "int2": "smallint", "int4": "integer", "int8": "bigint",
    "float4": "real", "float8": "double precision", "bpchar": "character",
    "varchar": "character varying", "time": "time without time zone",
    "timetz": "time with time zone",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
}


def _encrypted_from(format_type):
    match = ENCRYPTED.fullmatch(format_type)
    if match is None:
        return None
    searchable = match.group(4) or True if match.group("search") else False
    name, array = re.fullmatch(
        r"(.*?)(\[\])?", match.group(1) or match.group(2)).groups()
    return NAMES.get(name, name) + (array or ""), searchable


def _reflecting(original, plain_type):
    @functools.wraps(original)
    def reflect(self, *args, **kwargs):
        found = [a for a in args if isinstance(a, str) and _encrypted_from(a)]
        found += [a for a in kwargs.values()
                  if isinstance(a, str) and _encrypted_from(a)]
        if not found:
            return original(self, *args, **kwargs)
        inner, searchable = _encrypted_from(found[0])

        def plain(value):
            return inner if value == found[0] else value

        answer = original(self, *[plain(a) for a in args],
                          **{k: plain(v) for k, v in kwargs.items()})
        return plain_type(answer, searchable)

    return reflect


def _column_info(info, searchable):
    return dict(info, type=Encrypted(info["type"], searchable))


if hasattr(postgresql.PGDialect, "_get_column_info"):       # 1.4
    postgresql.PGDialect._get_column_info = _reflecting(
        postgresql.PGDialect._get_column_info, _column_info)
else:                                                       # 2.0
    postgresql.PGDialect._reflect_type = _reflecting(
        postgresql.PGDialect._reflect_type, Encrypted)


# The tenant

def set_tenant(connection, tenant_id):
    """From now on, to the end of the transaction; connection or session."""
    connection.execute(
        text("SELECT set_config('nomp_crypt.tenant', :tenant, true)"),
        {"tenant": tenant_id})


@contextmanager
def tenant(engine, tenant_id):
    """A connection with a transaction inside that tenant."""
    with engine.begin() as connection:
        set_tenant(connection, tenant_id)
        yield connection


def tenant_per_transaction(sessions, tenant_of=None):
    """Each transaction of these sessions (a sessionmaker, or Session) begins
    inside the tenant that tenant_of(session) says, by default
    session.info["tenant"]; without one, outside."""
    tenant_of = tenant_of or (lambda session: session.info.get("tenant"))

    @event.listens_for(sessions, "after_begin")
    def begin(session, transaction, connection):
        tenant_id = tenant_of(session)
        if tenant_id is not None:
            set_tenant(connection, tenant_id)
