"""nomp_crypt for psycopg 3: native types from encrypted columns, and the
tenant of a transaction.

    import nomp_crypt_psycopg as nomp

    with psycopg.connect(...) as connection:
        nomp.register(connection)
        with nomp.tenant(connection, "s-0180-42"):
            connection.execute("SELECT name, born FROM pupil").fetchall()
            # [('Anna', datetime.date(2014, 5, 1))]

All encrypted columns have one type; what is inside is said by the column's
type modifier.  psycopg chooses a loader by type alone, so this is done in the
row factory.  Parameters need nothing.  Copy the file into your project.
"""

from contextlib import contextmanager

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import Format
from psycopg.types import TypeInfo

# The type code, the modifier's lowest byte: the type's and its array's oid.
ARRAY = 0x80
OIDS = {
    1: (25, 1009), 2: (1043, 1015), 3: (1042, 1014),        # text, varchar, char
    4: (17, 1001), 5: (16, 1000),                           # bytea, bool
    6: (21, 1005), 7: (23, 1007), 8: (20, 1016),            # int2, int4, int8
    9: (700, 1021), 10: (701, 1022), 11: (1700, 1231),      # float4, 8, numeric
    12: (790, 791), 13: (1082, 1182),                       # money, date
    14: (1083, 1183), 15: (1266, 1270),                     # time, timetz
    16: (1114, 1115), 17: (1184, 1185), 18: (1186, 1187),   # timestamp, tz, interval
    19: (2950, 2951), 20: (869, 1041),                      # uuid, inet
    21: (114, 199), 22: (3802, 3807),                       # json, jsonb
    23: (3904, 3905), 24: (3926, 3927), 25: (3906, 3907),   # int4-, int8-, numrange
    26: (3912, 3913), 27: (3908, 3909), 28: (3910, 3911),   # date-, ts-, tstzrange
}


def _inner_oid(modifier):
    code = modifier & 0xFF if modifier >= 0 else 1
    return OIDS[code & ~ARRAY][1 if code & ARRAY else 0]


def _converter(cursor, column):
    """From what psycopg makes of an encrypted column to the value."""
    if cursor.pgresult.fformat(column) == Format.BINARY:
        raise psycopg.NotSupportedError(
            "an encrypted column is ciphertext in binary; "
            "use a text cursor, or cast the column to its plain type")
    connection = cursor.connection
    load = Transformer.from_context(connection).get_loader(
        _inner_oid(cursor.pgresult.fmod(column)), Format.TEXT).load

    def convert(value):
        # Outside a tenant there is ciphertext, and it stays what it is.
        if value is None or value.startswith("nc1:"):
            return value
        return load(value.encode(connection.info.encoding))

    return convert


def typed_rows(row_factory, oid):
    """row_factory, with what is inside encrypted columns as Python's types.
    oid is that of type "encrypted"."""

    def factory(cursor):
        make = row_factory(cursor)
        result = cursor.pgresult
        converters = [
            (i, _converter(cursor, i))
            for i in range(result.nfields if result else 0)
            if result.ftype(i) == oid]
        if not converters:
            return make

        def make_row(values):
            values = list(values)
            for i, convert in converters:
                values[i] = convert(values[i])
            return make(values)

        return make_row

    return factory


def register(connection):
    """Native types in all cursors that this connection makes from now on."""
    info = TypeInfo.fetch(connection, "encrypted")
    if info is None:
        raise psycopg.ProgrammingError(
            "there is no type \"encrypted\": CREATE EXTENSION nomp_crypt")
    connection.row_factory = typed_rows(connection.row_factory, info.oid)


def set_tenant(connection, tenant_id):
    """From now on, to the end of the transaction."""
    connection.execute("SELECT set_config('nomp_crypt.tenant', %s, true)",
                       [tenant_id])


@contextmanager
def tenant(connection, tenant_id):
    """A transaction inside that tenant.  Not inside another transaction: the
    tenant would stay when this block ends."""
    if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise psycopg.ProgrammingError(
            "tenant() begins a transaction, and there is one; "
            "commit it, or use set_tenant()")
    with connection.transaction() as transaction:
        set_tenant(connection, tenant_id)
        yield transaction
