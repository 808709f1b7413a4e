"""The soak's clients: they know what they have written, and check what they read."""
import random
import time

import psycopg2

NAMES = ("Anna", "Åke", "Örjan", "Fatima", "Elsa", "O'Brien", "nc1:", "", " x ", "李", "a" * 300)


class Worker:
    """A thread with a session of its own; repeats step() until the world stops."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.random = random.Random(f"{world.args.seed} {number}")
        self.connection = None
        self.rows = {}              # id -> school, name, born, ssn

    def __repr__(self):
        return f"{type(self).__name__} {self.number}"

    def run(self):
        while not self.world.stop.is_set():
            try:
                if self.connection is None or self.connection.closed:
                    self.connection = self.world.connect(application_name=f"soak{self.number}",
                                                         statement_timeout="60s")
                self.step()
            except psycopg2.Error as error:
                # raised outside an operation: while connecting, or looking around
                if not self.world.sabotaged:
                    self.world.check(False, f"{self}: {error}")
                if self.connection is not None:
                    self.connection.close()
                time.sleep(0.5)
            except Exception as error:  # a mistake of the soak's own
                self.world.check(False, f"{self}: {type(error).__name__} {error}")
                self.world.stop.set()

    def step(self):
        raise NotImplementedError

    def attempt(self, school, what, work, also=()):
        """Run work(cursor); its result, or None after an error that is explained, or one of "also"."""
        since = time.monotonic()
        try:
            with self.connection.cursor() as cursor:
                result = work(cursor)
            self.world.count(what)
            return result
        except psycopg2.Error as error:
            self.world.check(error.pgcode in also or self.world.expected(school, error.pgcode, since),
                             f"{self}: {what} in {school}: {error.pgcode} {error}")
            self.world.count(f"{what} failed")
            if error.pgcode is None or error.pgcode[:2] in ("57", "08"):
                self.connection.close()
            return None


class Client(Worker):
    """Rows of its own, by ids that nobody else uses."""

    def __init__(self, world, number):
        super().__init__(world, number)
        self.next_id = number * 10 ** 9
        self.unsure = {}            # id -> rows it may be: a commit whose answer was lost

    def invent(self, school):
        self.next_id += 1
        number = f"{self.random.randint(2005, 2015)}{self.random.randint(1, 12):02}-{self.next_id}"
        return (school, self.random.choice(NAMES) + str(self.random.randint(0, 9)),
                f"{self.random.randint(2005, 2015)}-{self.random.randint(1, 12):02}-{self.random.randint(1, 28):02}",
                number)

    def step(self):
        self.resolve()
        self.random.choice((self.insert, self.insert, self.update, self.read, self.read, self.find, self.scan,
                            self.delete))()

    def in_tenant(self, school, statement, arguments=()):
        """A transaction of one statement inside the school; its rows."""
        def work(cursor):
            cursor.execute("BEGIN")
            try:
                cursor.execute("SELECT set_config('nomp_crypt.tenant', %s, true)", (school,))
                cursor.execute(statement, arguments)
                rows = cursor.fetchall() if cursor.description else cursor.rowcount
                cursor.execute("COMMIT")
                return rows
            except psycopg2.Error:
                if not self.connection.closed:
                    try:
                        cursor.execute("ROLLBACK")
                    except psycopg2.Error:
                        pass
                raise
        return work

    def write(self, what, school, key, statement, arguments, after):
        """One write; what the row is then: as before, as after, or not known."""
        done = self.attempt(school, what, self.in_tenant(school, statement, arguments))
        if done is not None:
            self.world.check(done == 1, f"{self}: {what} of row {key} changed {done} rows")
            self.become(key, after)
        elif self.connection.closed:
            self.unsure[key] = (school, self.rows.get(key), after)

    def become(self, key, row):
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row

    def resolve(self):
        """What became of the rows whose commit was not answered?"""
        for key, (school, before, after) in list(self.unsure.items()):
            with self.connection.cursor() as cursor:
                cursor.execute("SELECT id, school, name::text, born::date::text, ssn::text FROM pupil WHERE id = %s"
                               if after is not None and before is not None else
                               "SELECT id FROM pupil WHERE id = %s", (key,))
                found = cursor.fetchone()
            del self.unsure[key]
            if after is None or before is None:
                self.become(key, (after or before) if found else None)
            else:
                self.world.check(found is not None and found[1:] in (before, after),
                                 f"{self}: row {key} of {school} is {found}")
                self.become(key, found[1:] if found else None)

    def own(self):
        return self.random.choice(list(self.rows)) if self.rows else None

    def insert(self):
        row = self.invent(self.random.choice(self.world.schools))
        self.write("insert", row[0], self.next_id, "INSERT INTO pupil VALUES (%s, %s, %s, %s, %s)",
                   (self.next_id, *row), row)

    def update(self):
        key = self.own()
        if key is not None:
            old = self.rows[key]
            row = self.invent(old[0])
            self.write("update", old[0], key, "UPDATE pupil SET name = %s, born = %s, ssn = %s WHERE id = %s",
                       (*row[1:], key), row)

    def delete(self):
        key = self.own()
        if key is not None and len(self.rows) > 100:
            self.write("delete", self.rows[key][0], key, "DELETE FROM pupil WHERE id = %s", (key,), None)

    def expect(self, what, school, statement, arguments, rows):
        found = self.attempt(school, what, self.in_tenant(school, statement, arguments))
        if found is not None:
            self.world.check(found == rows, f"{self}: {what} gave {found}, not {rows}")

    def read(self):
        key = self.own()
        if key is not None:
            row = self.rows[key]
            self.expect("read", row[0], "SELECT school, name, born, ssn FROM pupil WHERE id = %s", (key,), [row])

    def find(self):
        key = self.own()
        if key is not None:
            row = self.rows[key]
            self.expect("find", row[0], "SELECT id, name FROM pupil WHERE school = %s AND ssn = %s",
                        (row[0], row[3]), [(key, row[1])])

    def scan(self):
        school = self.random.choice(self.world.schools)
        first, last = self.number * 10 ** 9, (self.number + 1) * 10 ** 9
        self.expect("scan", school, "SELECT id, name FROM pupil WHERE school = %s AND id BETWEEN %s AND %s "
                    "AND born < '2010-01-01' ORDER BY id", (school, first, last),
                    sorted((key, row[1]) for key, row in self.rows.items()
                           if row[0] == school and row[2] < "2010-01-01"))
