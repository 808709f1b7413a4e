"""What the soak's sessions share: the schools, what was checked, the memory."""
import collections
import threading
import time
from contextlib import closing

import psycopg2


class World:
    def __init__(self, args):
        self.args = args
        self.schools = [f"s{i}" for i in range(args.schools)]
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.passed = self.failed = 0
        self.done = collections.Counter()
        # school -> when its last suspension or erasure may have begun, None: none
        self.disturbed = dict.fromkeys(self.schools)
        self.erased = {}            # uuid -> ciphertexts of it that must stay unreadable
        self.sizes = collections.defaultdict(list)
        self.sabotaged = 0.0        # when something was last killed

    def connect(self, standby=False, autocommit=True, **settings):
        connection = psycopg2.connect(
            host=self.args.socket, port=self.args.port + standby, user="postgres", dbname="postgres",
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()))
        connection.autocommit = autocommit
        return connection

    def create(self):
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE EXTENSION nomp_crypt")
            cursor.execute("CALL nomp_crypt.create_tenants(%s)", (self.schools,))
            cursor.execute("SELECT nomp_crypt.grant_all_tenants('postgres', '{encrypt,decrypt,search,load}')")
            cursor.execute("CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL, "
                           "name encrypted(text), born encrypted(date), "
                           "ssn encrypted(text, searchable), UNIQUE (school, ssn))")
            cursor.execute("CREATE INDEX ON pupil (ssn)")
            cursor.execute("CREATE TRIGGER enforce BEFORE INSERT OR UPDATE ON pupil FOR EACH ROW "
                           "EXECUTE FUNCTION nomp_crypt.enforce_tenant('school')")

    def check(self, good, what):
        with self.lock:
            self.passed += bool(good)
            self.failed += not good
        if not good:
            print(f"not ok - {what}", flush=True)
        return good

    def count(self, name):
        with self.lock:
            self.done[name] += 1

    # Which errors a client may meet, and why.

    def disturb(self, school, state):
        """'suspended', 'erased', or None; from now on, and a little before."""
        with self.lock:
            self.disturbed[school] = (state, time.monotonic())

    def expected(self, school, sqlstate, since):
        """May an operation on that school that began then have met that error?"""
        if sqlstate in ("40P01", "55P03", "57014"):     # deadlock, lock and statement timeouts
            return True
        # something was killed: connections end, and the helper is replaced
        if self.sabotaged >= since - 15 and (sqlstate is None or sqlstate[:2] in ("57", "08") or
                                             sqlstate in ("NC004", "25006")):
            return True
        state, changed = self.disturbed[school] or (None, 0)
        allowed = {"suspended": ("NC002",), "erased": ("NC001", "NC002", "NC003", "42704", "57P01"),
                   None: ("NC002",)}[state]
        # told before it begins, and for a while after it is over
        return sqlstate in allowed and (state is not None or changed >= since - 5)

    # Memory.

    def watch_memory(self):
        """The anonymous memory of this server's long-lived processes, in kB."""
        try:
            with closing(self.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pid, backend_type, application_name FROM pg_stat_activity")
                rows = cursor.fetchall()
        except psycopg2.Error:
            return
        for pid, kind, name in rows:
            if kind != "client backend" or name.startswith("soak"):
                with self.lock:
                    self.sizes[(pid, name or kind)].append(anonymous(pid))

    def check_memory(self):
        """Flat: the end of a process's life against its middle, where both are known."""
        for (pid, name), sizes in self.sizes.items():
            sizes = [size for size in sizes if size is not None]
            if len(sizes) < 8:
                continue
            middle = max(sizes[len(sizes) // 3:len(sizes) * 2 // 3])
            self.check(sizes[-1] <= middle * 1.25 + 2048,
                       f"memory of {name} ({pid}) is flat: {middle} kB in the middle, {sizes[-1]} at the end")

    # The end.

    def check_everything(self, workers):
        """Every row is there, on both nodes, and no other."""
        expected = {}
        for worker in workers:
            expected.update(worker.rows)
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            for school, state in self.disturbed.items():
                if state is not None and state[0] == "suspended":
                    cursor.execute("CALL nomp_crypt.resume_tenant(%s)", (school,))
            cursor.execute("CALL nomp_crypt.verify('pupil')")
            self.check(cursor.fetchone()[0] == 0, "verify finds nothing")
            cursor.execute("SELECT pg_current_wal_lsn()")
            lsn = cursor.fetchone()[0]
        with closing(self.connect(standby=True)) as connection, connection.cursor() as cursor:
            self.check(replayed(cursor, lsn), "the standby has replayed everything")
        for standby in (False, True):
            self.check_rows(expected, standby)

    def check_rows(self, expected, standby):
        node = "standby" if standby else "primary"
        with closing(self.connect(standby)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id, school, nomp_crypt.decrypt(name), born::date::text, ssn::text FROM pupil")
            found = {row[0]: row[1:] for row in cursor.fetchall()}
            for key in expected.keys() | found.keys():
                self.check(expected.get(key) == found.get(key),
                           f"row {key} on the {node}: {found.get(key)}, not {expected.get(key)}")
            for ssn in [row[3] for row in expected.values()][:200]:
                cursor.execute("SELECT count(*) FROM pupil WHERE ssn = ANY (nomp_crypt.search_values(%s))", (ssn,))
                self.check(cursor.fetchone()[0] == sum(row[3] == ssn for row in expected.values()),
                           f"{ssn} is found on the {node}")
            for tenant, values in self.erased.items():
                for value in values:
                    self.check(outcome(cursor, value) == "NC001",
                               f"a value of the erased school {tenant} stays erased on the {node}")


def outcome(cursor, value):
    try:
        cursor.execute("SELECT nomp_crypt.decrypt(%s::encrypted)", (value,))
        return "data"
    except psycopg2.Error as error:
        return error.pgcode


def replayed(cursor, lsn):
    for _ in range(600):
        cursor.execute("SELECT pg_last_wal_replay_lsn() >= %s", (lsn,))
        if cursor.fetchone()[0]:
            return True
        time.sleep(0.1)
    return False


def anonymous(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return None
