"""The soak's other sessions: keys change, schools come and go, processes die."""
import os
import signal
import time

import psycopg2

from clients import Client, Worker


class Keeper(Worker):
    """Rotates, rewraps, re-encrypts, verifies, suspends and resumes."""

    def step(self):
        school = self.random.choice(self.world.schools)
        self.random.choice((self.rotate, self.rewrap, self.reencrypt, self.index_key, self.expire,
                            self.verify, self.suspend))(school)
        self.world.stop.wait(self.random.random())

    def call(self, what, school, statement, *arguments, also=()):
        def work(cursor):
            cursor.execute(statement, arguments)
            return cursor.fetchone() if cursor.description else True
        return self.attempt(school, what, work, also)

    def rotate(self, school):
        self.call("rotate", school, "SELECT nomp_crypt.rotate_tenant(%s)", school)

    def rewrap(self, school):
        self.call("rewrap", school, "SELECT nomp_crypt.rewrap_tenant(%s)", school)

    def index_key(self, school):
        self.call("index key", school, "SELECT nomp_crypt.rotate_index_key(%s)", school)

    def reencrypt(self, school):
        self.call("reencrypt", school, "CALL nomp_crypt.reencrypt('pupil', batch_size => 50, patience => '1s')")

    def expire(self, school):
        # refused while the standby is behind, as it may be after a crash
        self.call("expire", school, "CALL nomp_crypt.destroy_expired_keks()", also=("55000",))

    def verify(self, school):
        """Nothing is corrupt or of unknown key, whatever goes on."""
        def work(cursor):
            cursor.execute("SELECT tenant, status, rows FROM nomp_crypt.verify_values('pupil') "
                           "WHERE status NOT IN ('opens', 'suspended', 'erased')")
            return cursor.fetchall()
        bad = self.attempt(school, "verify", work)
        if bad is not None:
            self.world.check(bad == [], f"{self}: verify found {bad}")

    def suspend(self, school):
        if self.random.random() < 0.5:
            return
        self.world.disturb(school, "suspended")
        if self.call("suspend", school, "CALL nomp_crypt.suspend_tenant(%s)", school):
            self.refused(school)
            self.world.stop.wait(self.random.random())
        while not self.world.stop.is_set() and not self.connection.closed:
            if self.call("resume", school, "CALL nomp_crypt.resume_tenant(%s)", school):
                break
        else:
            return                  # check_everything resumes it
        self.world.disturb(school, None)

    def refused(self, school):
        """Suspended is unreadable, at once: unless another session has resumed it."""
        with self.world.lock:
            state = self.world.disturbed[school]
        try:
            with self.connection.cursor() as cursor:
                cursor.execute("SELECT nomp_crypt.encrypt('x', %s)", (school,))
            got = "data"
        except psycopg2.Error as error:
            got = error.pgcode
        with self.world.lock:
            same = self.world.disturbed[school] == state
        if same:
            self.world.check(got in ("NC002", "57P01", None, "57P02"), f"{self}: suspended {school}: {got}")


class Mover(Client):
    """A client whose rows change schools."""

    def step(self):
        self.resolve()
        if self.rows and self.random.random() < 0.3:
            self.move()
        else:
            self.random.choice((self.insert, self.read, self.find))()

    def move(self):
        key = self.own()
        row = self.rows[key]
        target = self.random.choice([s for s in self.world.schools if s != row[0]])
        since = time.monotonic()
        try:
            with self.connection.cursor() as cursor:
                cursor.execute("CALL nomp_crypt.move_rows('pupil', %s, %s)", (f"id = {key}", target))
                moved = cursor.fetchone()[0]
            self.world.count("move")
            if self.world.check(moved == 1, f"{self}: {moved} rows moved"):
                self.become(key, (target, *row[1:]))
        except psycopg2.Error as error:
            self.world.check(self.world.expected(row[0], error.pgcode, since) or
                             self.world.expected(target, error.pgcode, since),
                             f"{self}: move from {row[0]} to {target}: {error.pgcode} {error}")
            if error.pgcode is None or error.pgcode[:2] in ("57", "08"):
                self.connection.close()
                self.unsure[key] = (row[0], row, (target, *row[1:]))


class Eraser(Keeper):
    """Schools of its own come, are used, and leave."""

    def __init__(self, world, number):
        super().__init__(world, number)
        self.schools = 0

    def step(self):
        self.world.stop.wait(2 + 4 * self.random.random())
        self.schools += 1
        school = f"e{self.schools}"
        with self.world.lock:
            self.world.disturbed[school] = ("erased", time.monotonic())
        if not self.call("create", school, "SELECT nomp_crypt.create_tenant(%s)", school):
            return
        value = self.call("encrypt", school, "SELECT nomp_crypt.encrypt('Anna', %s)::encrypted", school)
        tenant = self.call("uuid", school, "SELECT uuid FROM nomp_crypt.tenants WHERE id = %s", school)
        if value is None or tenant is None:
            return
        for change in self.random.sample((self.rotate, self.rewrap, self.rewrap, self.suspend), 2):
            change(school)
        while not self.world.stop.is_set():
            if self.connection.closed:
                self.connection = self.world.connect(application_name=f"soak{self.number}")
            if self.call("erase", school, "CALL nomp_crypt.erase_tenant(%s, reason => 'test')", school):
                with self.world.lock:
                    self.world.erased[tenant[0]] = [value[0]]
                return


class Saboteur(Worker):
    """Kills the helper, now and then the broker's politely, and a backend for good."""

    def step(self):
        self.world.stop.wait(20 + 20 * self.random.random())
        if self.world.stop.is_set():
            return
        self.world.sabotaged = time.monotonic()
        self.random.choice((self.helper, self.helper, self.broker, self.crash))()
        self.world.sabotaged = time.monotonic()

    def pids(self, query):
        with self.connection.cursor() as cursor:
            cursor.execute(query)
            return [row[0] for row in cursor.fetchall()]

    def helper(self):
        self.world.count("helper killed")
        for broker in self.pids("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'nomp_crypt broker%'"):
            for child in children(broker):
                # not SIGKILL: SoftHSM may lose its token by it (docs/decisions.md)
                os.kill(child, signal.SIGTERM)

    def broker(self):
        self.world.count("broker ended")
        self.pids("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                  "WHERE backend_type LIKE 'nomp_crypt broker%'")

    def crash(self):
        """A backend dies without a word: the server restarts."""
        self.world.count("server crashed")
        victims = self.pids("SELECT pid FROM pg_stat_activity WHERE application_name = 'soak0'")
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        for _ in range(300):
            try:
                self.connection = self.world.connect(application_name=f"soak{self.number}")
                return
            except psycopg2.OperationalError:
                time.sleep(0.1)


def children(pid):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii") as stat:
                    if int(stat.read().rpartition(")")[2].split()[1]) == pid:
                        found.append(int(entry))
            except OSError:
                pass
    return found
