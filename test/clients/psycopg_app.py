#!/usr/bin/python3
"""psycopg 3, as an application uses it.

    psycopg_app.py FOLDER-OF-NOMP_CRYPT_PSYCOPG CONNINFO
"""

import datetime
import sys

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tap import ANNA, BERTIL, error, finish, ok, same

sys.path.insert(0, sys.argv[1])
import nomp_crypt_psycopg as nomp  # noqa: E402

COLUMNS = list(ANNA)
INSERT = (f"INSERT INTO person ({', '.join(COLUMNS)}) "
          f"VALUES ({', '.join(['%s'] * len(COLUMNS))}) RETURNING id")
SELECT = f"SELECT {', '.join(COLUMNS)} FROM person"


def parameters(person):
    return [Jsonb(v) if isinstance(v, dict) else v for v in person.values()]


def write_and_read(connection):
    with nomp.tenant(connection, "north"):
        anna, = connection.execute(INSERT, parameters(ANNA)).fetchone()
        connection.execute(INSERT, parameters(BERTIL))
        connection.execute("INSERT INTO person DEFAULT VALUES")
    with nomp.tenant(connection, "north"):
        row = connection.execute(f"{SELECT} WHERE id = %s", [anna]).fetchone()
        for name, got, expected in zip(COLUMNS, row, ANNA.values()):
            same(got, expected, f"{name} comes back as it went in")
        same(connection.execute(
            "SELECT name, born, active FROM person WHERE name IS NULL"
        ).fetchall(), [(None, None, None)], "NULL is None")
        cursor = connection.cursor(row_factory=nomp.typed_rows(
            dict_row, encrypted_oid(connection)))
        same(cursor.execute("SELECT born FROM person WHERE id = %s", [anna])
             .fetchone(), {"born": ANNA["born"]}, "with another row factory")
        connection.execute("UPDATE person SET points = %s WHERE id = %s",
                           [43, anna])
        same(connection.execute("SELECT points FROM person WHERE id = %s",
                                [anna]).fetchone(), (43,), "an update")
        tags = ["a", 'b "c"', "ä,{}"]
        connection.execute("UPDATE person SET tags = %s WHERE id = %s",
                           [tags, anna])
        same(connection.execute("SELECT tags FROM person WHERE id = %s",
                                [anna]).fetchone(), (tags,), "an array")


def encrypted_oid(connection):
    return psycopg.types.TypeInfo.fetch(connection, "encrypted").oid


def compare(connection):
    def names(where, *values):
        return [name for name, in connection.execute(
            f"SELECT name FROM person WHERE {where} ORDER BY name", values)]

    anna, bertil = ANNA["name"], BERTIL["name"]
    with nomp.tenant(connection, "north"):
        same(names("ssn = %s", ANNA["ssn"]), [anna], "= on a searchable column")
        same(names("ssn = ANY(%s)", [ANNA["ssn"], BERTIL["ssn"], "x"]),
             [bertil, anna], "= ANY(list) on it")
        same(names("ssn <> %s", ANNA["ssn"]), [bertil], "<> on it")
        same(names("name = %s", anna), [anna], "= on one that is not")
        same(names("name = ANY(%s)", [anna, "x"]), [anna], "= ANY(list) on it")
        same(names("born = %s", ANNA["born"]), [anna], "= with a date")
        same(names("born < %s", ANNA["born"]), [bertil], "< with a date")
        same(names("born BETWEEN %s AND %s", BERTIL["born"], ANNA["born"]),
             [bertil, anna], "BETWEEN dates")
        same(names("active = %s", False), [bertil], "= with a boolean")
        same(names("points > %s", 0), [anna], "> with an integer")
        same(names("weight >= %s", BERTIL["weight"]), [bertil],
             ">= with a decimal")
        same(names("seen < %s", ANNA["seen"]), [bertil], "< with a time")
        same(names("token = %s", ANNA["token"]), [anna], "= with a uuid")
        same(names("name LIKE %s", "%Öberg%"), [anna], "LIKE")
        same(names("name ILIKE %s", "BERT%"), [bertil], "ILIKE")
        same([born for born, in connection.execute(
            "SELECT born FROM person WHERE born IS NOT NULL "
            "ORDER BY born DESC")],
            [ANNA["born"], BERTIL["born"]], "ORDER BY a date")
        same(connection.execute(
            "SELECT max(born)::date, min(points)::int FROM person").fetchone(),
            (ANNA["born"], -7), "max and min; they lose the modifier")


def statements(connection):
    """psycopg prepares a statement at its fifth use; each school's values
    must be its own."""
    for i in range(12):
        school = "north" if i % 2 else "south"
        with nomp.tenant(connection, school):
            connection.execute(
                "INSERT INTO person (name, born, ssn) VALUES (%s, %s, %s)",
                [f"{school} {i}", datetime.date(2000, 1, 1 + i), f"same {i // 2}"],
                prepare=i > 2)
    found = []
    for i in range(12):
        school = "north" if i % 2 else "south"
        with nomp.tenant(connection, school):
            found += connection.execute(
                "SELECT name, born FROM person WHERE ssn = %s",
                [f"same {i // 2}"], prepare=i > 2).fetchall()
    same(found, [(f"{'north' if i % 2 else 'south'} {i}",
                  datetime.date(2000, 1, 1 + i)) for i in range(12)],
         "prepared statements that change schools")
    with nomp.tenant(connection, "south"):
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO person (name, active) VALUES (%s, %s)",
                [(f"many {i}", i % 2 == 0) for i in range(20)])
        same(connection.execute(
            "SELECT count(*) FROM person WHERE school = 'south' "
            "AND name LIKE 'many%%' AND active = true").fetchone(), (10,),
            "executemany")
        with connection.cursor() as cursor:
            with cursor.copy("COPY person (name, born) FROM STDIN") as copy:
                copy.write_row(("copied", ANNA["born"]))
        with connection.cursor(name="named") as cursor:
            cursor.execute("SELECT born FROM person WHERE school = 'south' "
                           "AND name = 'copied'")
            same(cursor.fetchall(), [(ANNA["born"],)],
                 "COPY, and a cursor of the server's")
    with nomp.tenant(connection, "north"), connection.pipeline():
        cursors = [connection.execute(
            "SELECT born FROM person WHERE ssn = %s", [person["ssn"]])
            for person in (ANNA, BERTIL)]
        same([cursor.fetchone() for cursor in cursors],
             [(ANNA["born"],), (BERTIL["born"],)], "a pipeline")


def errors(connection, conninfo):
    def duplicate():
        with nomp.tenant(connection, "north"):
            connection.execute("INSERT INTO person (ssn) VALUES (%s)",
                               [ANNA["ssn"]])

    found = error(psycopg.Error, duplicate)
    ok(isinstance(found, psycopg.errors.UniqueViolation),
       "a duplicate is a UniqueViolation", found)
    with nomp.tenant(connection, "south"):
        connection.execute("INSERT INTO person (name, ssn) VALUES ('x', %s)",
                           [ANNA["ssn"]])
    ok(True, "another school's is none")
    found = error(psycopg.Error, lambda: connection.execute(
        "INSERT INTO person (name) VALUES (%s)", ["nobody's"]))
    connection.rollback()
    ok(found is not None and found.sqlstate == "NC006"
       and "nomp_crypt.tenant" in str(found),
       "without a tenant: NC006, and what to do", found)
    value, = connection.execute(
        "SELECT born FROM person WHERE born IS NOT NULL").fetchone()
    connection.rollback()
    ok(value.startswith("nc1:"), "without a tenant a date is ciphertext", value)
    with psycopg.connect(conninfo) as other:
        nomp.register(other)
        with nomp.tenant(other, "north"):
            found = error(psycopg.NotSupportedError, lambda: other.cursor(
                binary=True).execute("SELECT born FROM person"))
            ok(found is not None and "cast" in str(found),
               "a binary cursor is told to cast", found)
            same(other.cursor(binary=True).execute(
                "SELECT born::date FROM person WHERE ssn = %s",
                [ANNA["ssn"]]).fetchone(), (ANNA["born"],),
                "and with the cast it has native types")
    with connection.transaction():
        found = error(psycopg.ProgrammingError,
                      lambda: nomp.tenant(connection, "north").__enter__())
    ok(found is not None, "tenant() in a transaction is refused", found)


def main():
    conninfo = sys.argv[2]
    with psycopg.connect(conninfo) as connection:
        nomp.register(connection)
        connection.commit()
        write_and_read(connection)
        compare(connection)
        statements(connection)
        errors(connection, conninfo)
    finish()


if __name__ == "__main__":
    main()
