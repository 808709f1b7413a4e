#!/usr/bin/python3
"""convert_client.py CONNINFO FIRST MARKER SCHOOL...: an application whose table is converted.

Inserts, updates, deletes and looks up rows of table "pupil" whose ids begin
with FIRST, each in a transaction inside the row's school, and COPYs some in;
knows what each row must say, and compares. It sends the same statements before
and after the conversion. Until its standard input ends; then it reads all that
it has written.

A lost connection is retried, and what became of the transaction is looked up.
Any other error, or a wrong answer, ends the program with status 1. Prints a
line at the end, in JSON: rounds, errors by SQLSTATE, rows.
"""

import io
import json
import random
import select
import sys
import time

import psycopg2

LOST = {None, "08000", "08001", "08003", "08006", "57P01", "57P02", "57P03", "57P05"}


def finished():
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Application:
    def __init__(self, conninfo, first, marker, schools):
        self.conninfo = conninfo
        self.marker = marker
        self.schools = schools
        self.next = first
        self.rows = {}  # id -> (school, name, ssn)
        self.errors = {}
        self.rounds = 0
        self.connection = None

    def lost(self, error):
        if error.pgcode not in LOST:
            sys.exit(f"an error that is not to be retried: {error.pgcode} {error}")
        name = error.pgcode or "connection"
        self.errors[name] = self.errors.get(name, 0) + 1
        try:
            if self.connection is not None:
                self.connection.close()
        except psycopg2.Error:
            pass
        self.connection = None
        time.sleep(0.1)

    def transact(self, school, work):
        """The work's result; raises psycopg2.Error."""
        if self.connection is None:
            self.connection = psycopg2.connect(self.conninfo, connect_timeout=5)
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute("SET LOCAL nomp_crypt.tenant = %s", (school,))
            return work(cursor)

    def read(self, school, number):
        """(name, ssn) or None, however often the connection is lost."""
        def work(cursor):
            cursor.execute("SELECT name, ssn FROM pupil WHERE id = %s", (number,))
            return cursor.fetchone()
        while True:
            try:
                return self.transact(school, work)
            except psycopg2.Error as error:
                self.lost(error)

    def change(self, school, changes, work):
        """Rows to what they shall be (None: deleted), and "work" does it."""
        try:
            self.transact(school, work)
        except psycopg2.Error as error:
            self.lost(error)
            # committed and not acknowledged, or not committed: all of it or nothing
            now = {number: self.read(school, number) for number in changes}
            done = {number: row and row[1:] for number, row in changes.items()}
            before = {number: self.rows[number][1:] if number in self.rows else None for number in changes}
            if now == before:
                return
            if now != done:
                sys.exit(f"half of a transaction is there: {now} of {before} to {done}")
        for number, row in changes.items():
            if row is None:
                self.rows.pop(number, None)
            else:
                self.rows[number] = row

    def value(self, number):
        return f"{self.marker} Åsa {number} {self.rounds}" + ("x" * 3000 if number % 50 == 0 else "")

    def insert(self):
        school = random.choice(self.schools)
        number, self.next = self.next, self.next + 1
        row = (school, self.value(number), f"{self.marker}-{number}")
        self.change(school, {number: row}, lambda cursor: cursor.execute(
            "INSERT INTO pupil (id, school, name, ssn) VALUES (%s, %s, %s, %s)", (number, *row)))

    def copy(self):
        school = random.choice(self.schools)
        new = {n: (school, self.value(n), f"{self.marker}-{n}") for n in range(self.next, self.next + 5)}
        self.next += 5
        lines = "".join(f"{n}\t{row[0]}\t{row[1]}\t{row[2]}\n" for n, row in new.items())
        self.change(school, new, lambda cursor: cursor.copy_expert(
            "COPY pupil (id, school, name, ssn) FROM STDIN", io.StringIO(lines)))

    def update(self):
        number = random.choice(list(self.rows))
        school, _, ssn = self.rows[number]
        row = (school, self.value(number), ssn)
        self.change(school, {number: row}, lambda cursor: cursor.execute(
            "UPDATE pupil SET name = %s WHERE ssn = %s AND school = %s", (row[1], ssn, school)))

    def touch(self):
        number = random.choice(list(self.rows))
        row = self.rows[number]
        self.change(row[0], {number: row}, lambda cursor: cursor.execute(
            "UPDATE pupil SET class = class + 1 WHERE id = %s", (number,)))

    def delete(self):
        number = random.choice(list(self.rows))
        self.change(self.rows[number][0], {number: None}, lambda cursor: cursor.execute(
            "DELETE FROM pupil WHERE id = %s", (number,)))

    def check(self, number):
        school, name, ssn = self.rows[number]
        found = self.read(school, number)
        if found != (name, ssn):
            sys.exit(f"row {number} of {school} says {found} and not {(name, ssn)}")

    def round(self):
        self.rounds += 1
        if len(self.rows) < 20:
            self.insert()
            return
        random.choice((self.insert, self.copy, self.update, self.update, self.touch, self.delete))()
        self.check(random.choice(list(self.rows)))


def main():
    application = Application(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    while not finished():
        application.round()
        time.sleep(0.005)
    for number in application.rows:
        application.check(number)
    print(json.dumps({"rounds": application.rounds, "errors": application.errors, "rows": len(application.rows)}),
          flush=True)


main()
