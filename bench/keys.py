"""Keys: cold schools, calls to the keystore, erasure, memory, growth.

How often the keystore is asked shows in how often its helper wakes up: that
is what it does once for each request at least, and at no other time.
"""
import re
import statistics
import time

import data


def helper_pid(bench):
    """The keystore helper, a child of the broker."""
    broker = bench.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'nomp_crypt broker'")
    with open(f"/proc/{broker}/task/{broker}/children", encoding="utf-8") as file:
        return int(file.read().split()[0])


def wakeups(bench):
    with open(f"/proc/{helper_pid(bench)}/status", encoding="utf-8") as file:
        return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", file.read(), re.M).group(1))


def private_kb(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
        text = file.read()
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty):\s*(\d+)", text, re.M))


def cold(bench):
    count = bench.args.cold
    bench.begin("cold", f"{count:,} schools in the token, none opened yet")
    before = bench.value("SELECT count(*) FROM nomp_crypt.tenants")
    start = time.perf_counter()
    data.schools(bench, count)
    made = bench.value("SELECT count(*) FROM nomp_crypt.tenants") - before
    if made > 0:
        bench.record("create_school", "creating a school",
                     (time.perf_counter() - start) * 1000 / made, "ms")
    data.table(bench, "everywhere", "name encrypted(text)")
    bench.sql("CREATE TABLE everywhere_plain AS SELECT i AS id, 's' || i AS school, "
              "'Anna Andersson'::text AS name FROM generate_series(1, %s) i", count)
    data.fill(bench, "everywhere", "everywhere_plain")
    data.frozen(bench, "everywhere")

    bench.restart()
    first = [bench.query_ms(f"SELECT name::text FROM everywhere WHERE school = 's{i}'")
             for i in range(1, 21)]
    again = [bench.query_ms(f"SELECT name::text FROM everywhere WHERE school = 's{i}'")
             for i in range(1, 21)]
    bench.record("open_token", "the server's very first value: the token is opened", first[0], "ms")
    bench.record("first_touch", "first value of a school: added",
                 statistics.median(first[1:]) - statistics.median(again[1:]), "ms")

    bench.restart()
    read = "SELECT max(length(name::text)) FROM everywhere"
    bench.record("cold_schools", f"one value of each of {count:,} schools, cold, in all",
                 bench.query_ms(read) / 1000, "s")
    before = wakeups(bench)
    warm = bench.query_ms(read)
    bench.record("warm_schools", "the same, warm", warm, "ms")
    bench.record("warm_wakeups", "wake-ups of the keystore helper meanwhile", wakeups(bench) - before, "")
    bench.record("search_everywhere", "search_values over all of them",
                 bench.query_ms("SELECT nomp_crypt.search_values('20140501-1234')"), "ms")

    interval = 10 if bench.args.rows >= 100000 else 3
    bench.sql(f"ALTER SYSTEM SET nomp_crypt.key_check_interval = {interval}")
    bench.sql("SELECT pg_reload_conf()")
    time.sleep(interval)
    before = wakeups(bench)
    time.sleep(2 * interval)
    checks = (wakeups(bench) - before) / 2
    bench.sql("ALTER SYSTEM RESET nomp_crypt.key_check_interval")
    bench.sql("SELECT pg_reload_conf()")
    bench.record("steady_calls", f"helper wake-ups a minute, {count:,} schools in use, keys "
                                 "checked every 5 min", checks / 5, "/min")


def erase(bench):
    rows = bench.args.rows
    bench.begin("erase", f"Erasing a school of 100 rows and one of {rows:,}")
    data.schools(bench, bench.args.schools)
    took = {}
    for name, count in (("small", 100), ("large", rows)):
        bench.sql(f"SELECT nomp_crypt.create_tenant('erase_{name}')")
        data.table(bench, f"erase_{name}", "name encrypted(text)")
        bench.tenant(f"erase_{name}")
        bench.sql(f"INSERT INTO erase_{name} SELECT id, 'x', name FROM plain WHERE id < %s", count)
        bench.tenant("")
        bench.settle()
    for name, count in (("small", 100), ("large", rows)):
        wal = bench.value("SELECT pg_current_wal_insert_lsn()")
        took[name] = bench.call_ms(
            bench.sql, f"CALL nomp_crypt.erase_tenant('erase_{name}', reason => 'test')") / 1000
        wal = bench.value("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", wal)
        bench.record(f"erase_{name}", f"a school of {count:,} rows", took[name], "s")
        bench.record(f"erase_wal_{name}", "WAL written for it", float(wal) / 1024, "kB")
    bench.record("erase_ratio", "the large one takes", took["large"], "s",
                 took["large"] / took["small"], "small")


def memory(bench):
    bench.begin("memory", "Memory")
    sizes = {}
    for name, query, tenant in (
            ("plain", "SELECT max(length(name)) FROM plain", ""),
            ("one school", "SELECT max(length(name::text)) FROM bulk WHERE school = 's1'", "s1"),
            ("all schools", "SELECT max(length(name::text)) FROM bulk", "")):
        connection = bench.connect()
        with connection.cursor() as cursor:
            cursor.execute("SET max_parallel_workers_per_gather = 0")
            cursor.execute("SELECT set_config('nomp_crypt.tenant', %s, false), pg_backend_pid()",
                           (tenant,))
            pid = cursor.fetchone()[1]
            cursor.execute(query)
            cursor.fetchall()
            cursor.execute("SELECT 1")
            sizes[name] = private_kb(pid)
        connection.close()
    bench.record("memory_plain", "a connection that has read plain columns", sizes["plain"], "kB")
    bench.record("memory_one", "more, when it has read one school",
                 sizes["one school"] - sizes["plain"], "kB")
    bench.record("memory_all", f"more, when it has read {bench.args.schools:,} schools",
                 sizes["all schools"] - sizes["plain"], "kB")
    bench.record("memory_shared", "shared memory for 20,000 keys", float(bench.value(
        "SELECT sum(allocated_size) / 1048576.0 FROM pg_shmem_allocations "
        "WHERE name LIKE 'nomp\\_crypt%%'")), "MB")


def growth(bench):
    rows = min(bench.args.rows, 100000)
    counts = [n for n in (1, 10, 100, 1000, 5000, 10000) if n <= bench.args.grow_schools]
    bench.begin("growth", f"Cost as schools grow ({rows:,} rows, mixed) and as rows grow")
    data.schools(bench, counts[-1])
    bench.sql("SET synchronous_commit = off")
    for count in counts:
        # row after row of another school, as classes of a municipality may lie
        bench.sql("CREATE TABLE mixed_plain AS SELECT id, 's' || (id %% %s + 1) AS school, name "
                  "FROM plain WHERE id < %s", count, rows)
        data.table(bench, "mixed_sorted", "name encrypted(text)", "")
        data.fill(bench, "mixed_sorted", "mixed_plain")
        bench.sql("CREATE TABLE mixed AS SELECT * FROM mixed_sorted ORDER BY id")
        data.frozen(bench, "mixed_plain", "mixed")
        bench.query_ms("SELECT max(length(name::text)) FROM mixed")
        times = bench.queries({"plain": "SELECT max(length(name)) FROM mixed_plain",
                               "mixed": "SELECT max(length(name::text)) FROM mixed"}, 3)
        bench.compare(f"schools_{count}", f"{count:,} school{'s' * (count > 1)}, mixed row by row", times, "mixed",
                      "plain", "ns/row", 1e6 / rows)
        bench.sql("DROP TABLE mixed, mixed_sorted, mixed_plain")
    for many in [n for n in (10 ** 3, 10 ** 4, 10 ** 5, 10 ** 6, 10 ** 7)
                 if n <= bench.args.grow_rows]:
        bench.sql("CREATE TABLE grown_plain AS SELECT id, 's' || (id %% %s + 1) AS school, name "
                  "FROM plain, generate_series(1, %s) WHERE id < %s", bench.args.schools,
                  max(many // bench.args.rows, 1), many)
        data.table(bench, "grown", "name encrypted(text)", "")
        data.fill(bench, "grown", "grown_plain")
        data.frozen(bench, "grown_plain", "grown")
        times = bench.queries({"plain": "SELECT max(length(name)) FROM grown_plain",
                               "grown": "SELECT max(length(name::text)) FROM grown"}, 3)
        bench.compare(f"rows_{many}", f"{many:,} rows, {bench.args.schools} schools", times, "grown", "plain",
                      "ns/row", 1e6 / many)
        bench.sql("DROP TABLE grown, grown_plain")


SECTIONS = {"memory": memory, "growth": growth, "erase": erase, "cold": cold}
