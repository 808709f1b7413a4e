#!/usr/bin/python3
"""failover_client.py CONNINFO SCHOOL... : a client that retries, and checks.

Writes values that it knows into table "pupil", one transaction each, in turn
for the schools given, and reads one of those it has written before; until its
standard input ends.  An error that a client may retry makes it connect again;
every other error, a wrong answer, or a value that was committed and is not
there, ends the program with status 1.  Then it reads all that it has written.
Prints a line for every hundred rounds and at the end, in JSON: rounds, errors
by SQLSTATE, the longest row of retries.
"""

import json
import random
import select
import sys
import time

import psycopg2

# Connection lost, server starting or stopping, read-only now, keystore away.
RETRY = {None, "08000", "08001", "08003", "08006", "57P01", "57P02", "57P03", "57P05", "25006", "NC004"}


def finished():
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Client:
    def __init__(self, conninfo):
        self.conninfo = conninfo
        self.connection = None
        self.errors = {}
        self.in_a_row = self.longest = 0

    def attempt(self, work):
        """The work's result in a transaction, or None after an error that may be retried."""
        try:
            if self.connection is None:
                self.connection = psycopg2.connect(self.conninfo, connect_timeout=5)
            with self.connection, self.connection.cursor() as cursor:
                result = work(cursor)
            self.in_a_row = 0
            return result
        except psycopg2.Error as error:
            if error.pgcode not in RETRY:
                sys.exit(f"an error that is not to be retried: {error.pgcode} {error}")
            name = error.pgcode or "connection"
            self.errors[name] = self.errors.get(name, 0) + 1
            self.in_a_row += 1
            self.longest = max(self.longest, self.in_a_row)
            if self.connection is not None:
                try:
                    self.connection.close()
                except psycopg2.Error:
                    pass
            self.connection = None
            time.sleep(0.1)
            return None


def write(school, number, value):
    def work(cursor):
        cursor.execute("SET LOCAL nomp_crypt.tenant = %s", (school,))
        # what was committed and not acknowledged is written again
        cursor.execute("INSERT INTO pupil (id, school, name) VALUES (%s, %s, %s)"
                       " ON CONFLICT (id) DO NOTHING", (number, school, value))
        return True
    return work


def read(school, number):
    def work(cursor):
        cursor.execute("SET LOCAL nomp_crypt.tenant = %s", (school,))
        cursor.execute("SELECT name FROM pupil WHERE id = %s", (number,))
        return cursor.fetchall()
    return work


def check(client, written, number):
    """Read a row that was written; False if it cannot be read just now."""
    school, value = written[number]
    rows = client.attempt(read(school, number))
    if rows is None:
        return False
    if rows != [(value,)]:
        sys.exit(f"row {number} of {school} is {rows} and not {value}")
    return True


def main():
    client = Client(sys.argv[1])
    schools = sys.argv[2:]
    written = {}
    number = 1000

    def report():
        print(json.dumps({"rounds": len(written), "errors": client.errors, "longest": client.longest}),
              flush=True)

    while not finished():
        number += 1
        school = schools[number % len(schools)]
        value = f"Åsa {number} i {school}"
        while not client.attempt(write(school, number, value)):
            if finished():
                break
        else:
            written[number] = (school, value)
            check(client, written, random.choice(list(written)))
            if len(written) % 100 == 0:
                report()
        time.sleep(0.005)
    for number in written:
        while not check(client, written, number):
            pass
    report()


main()
