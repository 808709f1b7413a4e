"""What the sections of the benchmark share: the server, clocks, results.

A section measures through Bench: times() runs variants in turns, so that
what disturbs the machine disturbs all of them; record() keeps a number with
what it is compared with, and its target (targets.py).  Nothing is hard-coded:
what could not be measured is an error of the run.
"""
import os
import re
import statistics
import subprocess
import sys
import time

import psycopg2

from targets import TARGETS


class Failed(Exception):
    """Something could not be measured."""


class Bench:
    def __init__(self, args):
        self.args = args
        self.results = []
        self.section = None
        self.connection = None

    # The server.

    def connect(self, dbname="bench", **settings):
        connection = psycopg2.connect(
            host=self.args.socket, port=self.args.port, user="postgres", dbname=dbname,
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()))
        connection.autocommit = True
        return connection

    def reconnect(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = self.connect()
        self.sql("SET max_parallel_workers_per_gather = 0")

    def sql(self, statement, *arguments):
        """Run it; its rows, if it has any."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement, *arguments):
        return self.sql(statement, *arguments)[0][0]

    def tenant(self, name):
        """The session's tenant from now on; '' for none."""
        self.sql("SELECT set_config('nomp_crypt.tenant', %s, false)", name)

    def restart(self):
        self.connection.close()
        subprocess.run([f"{self.args.bin}/pg_ctl", "-D", self.args.data, "-m", "fast", "-w",
                        "-l", self.args.log, "restart"], check=True, stdout=subprocess.DEVNULL)
        self.connection = None
        self.reconnect()

    def settle(self):
        """Nothing left over from before: what is measured next is measured alone."""
        self.sql("CHECKPOINT")

    # Clocks.

    def query_ms(self, statement):
        """Execution time by the server's clock, without sending rows."""
        plan = self.sql("EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) " + statement)
        return float(re.search(r"Execution Time: ([\d.]+)", plan[-1][0]).group(1))

    def call_ms(self, function, *arguments):
        start = time.perf_counter()
        function(*arguments)
        return (time.perf_counter() - start) * 1000

    def times(self, variants, repeats=None):
        """Each variant (name: a function that returns a time) in turns; medians."""
        times = {name: [] for name in variants}
        for _ in range(repeats or self.args.repeats):
            for name, measure in variants.items():
                times[name].append(measure())
        return {name: statistics.median(values) for name, values in times.items()}

    def queries(self, variants, repeats=None):
        return self.times({name: lambda q=query: self.query_ms(q)
                           for name, query in variants.items()}, repeats)

    def rates(self, variants):
        """Transactions per second, and each as a ratio to the first variant's.

        Short turns, every other round backwards, and the median of the rounds'
        ratios: what else the machine does in a minute then meets all alike.
        """
        rounds = []
        for number in range(self.args.rounds):
            names = list(variants)[::-1 if number % 2 else 1]
            rounds.append({name: variants[name]() for name in names})
        first = next(iter(variants))
        return ({name: statistics.median(one[name] for one in rounds) for name in variants},
                {name: statistics.median(one[name] / one[first] for one in rounds)
                 for name in variants})

    def pgbench(self, script, clients, seconds, dbname="bench", mode="prepared", tenant=""):
        """Transactions per second."""
        environment = dict(os.environ, PGOPTIONS=f"-c nomp_crypt.tenant={tenant}" if tenant else "")
        path = os.path.join(self.args.work, "script.sql")
        with open(path, "w", encoding="utf-8") as file:
            file.write(script)
        done = subprocess.run(
            [f"{self.args.bin}/pgbench", "-n", "-h", self.args.socket, "-p", str(self.args.port),
             "-U", "postgres", "-M", mode, "-c", str(clients), "-j", str(clients),
             "-T", str(seconds), "-f", path, dbname],
            check=False, env=environment, capture_output=True, text=True)
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if done.returncode != 0 or not found or "failed" in done.stderr:
            raise Failed(f"pgbench: {done.stderr.strip()}")
        return float(found.group(1))

    # Results.

    def record(self, name, what, value, unit, ratio=None, against=None):
        """One number.  The target, if there is one, is for the ratio if it has one."""
        target = TARGETS.get(name)
        judged = ratio if ratio is not None else value
        self.results.append({
            "section": self.section, "name": name, "what": what,
            "value": round(value, 4), "unit": unit,
            "ratio": None if ratio is None else round(ratio, 4), "against": against,
            "target": None if target is None else target.text,
            "met": None if target is None else target.met(judged)})
        self.show(self.results[-1])

    def compare(self, name, what, times, variant, against, unit="ms", scale=1.0):
        """A variant's time and how many times the other's it is."""
        self.record(name, what, times[variant] * scale, unit,
                    times[variant] / times[against], against)

    @staticmethod
    def show(row):
        met = {None: "", True: "met", False: "missed"}[row["met"]]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} x {row['against']}"
        print(f"  {row['what'][:58]:58} {row['value']:>12,.2f} {row['unit']:8} {ratio:22}"
              f" {row['target'] or '':14} {met}".rstrip(), flush=True)

    def begin(self, section, title):
        self.section = section
        print(f"\n{title}", flush=True)
        self.reconnect()


def machine(bench):
    """What this was measured on."""
    def output(*command):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = re.search(r"model name\s*: (.*)", file.read())
    with open("/proc/meminfo", encoding="utf-8") as file:
        memory = int(re.search(r"MemTotal:\s*(\d+)", file.read()).group(1)) // 1024
    return {
        "cpu": cpu.group(1) if cpu else os.uname().machine, "cores": os.cpu_count(),
        "memory_mb": memory, "kernel": os.uname().release,
        "file_system": output("stat", "-f", "-c", "%T", bench.args.data),
        "postgresql": bench.value("SHOW server_version"),
        "openssl": output("openssl", "version"),
        "python": sys.version.split()[0],
        "settings": {name: bench.value(f"SHOW {name}") for name in
                     ("shared_buffers", "fsync", "synchronous_commit", "jit", "max_wal_size",
                      "wal_level", "full_page_writes", "server_encoding")},
        "collation": bench.value("SELECT coalesce(daticulocale, datcollate) FROM pg_database "
                                 "WHERE datname = current_database()"),
    }
