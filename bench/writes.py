"""Writing: in bulk, row by row, and what an ORM does when it saves."""
import os

import data

TEXT = ", ".join(f"{column} text" for column in data.COLUMNS)


def bulk(bench):
    rows = min(bench.args.rows, 200000)
    bench.begin("bulk", f"Bulk writing, {rows:,} rows of four columns, a primary key")
    bench.sql("CREATE TABLE source AS SELECT id, 's1'::text AS school, name, ssn, email, note "
              "FROM plain WHERE id < %s", rows)
    data.table(bench, "into_plain", TEXT)
    data.table(bench, "into_own", data.ENCRYPTED)
    data.table(bench, "into_searchable", data.SEARCHABLE)
    data.table(bench, "into_aes", ", ".join(f"{column} bytea" for column in data.COLUMNS))
    columns = {"aes": ", ".join(data.AES.replace("$", column) for column in data.COLUMNS)}
    bench.tenant("s1")
    names = ("plain", "own", "searchable", "aes")

    def insert(name):
        bench.sql(f"TRUNCATE into_{name}")
        bench.settle()
        return bench.call_ms(
            bench.sql, f"INSERT INTO into_{name} SELECT id, school, "
                       f"{columns.get(name, ', '.join(data.COLUMNS))} FROM source")

    def speeds(times, prefix, what, names):
        for name, label in names:
            bench.record(f"{prefix}_{name}", f"{what}, {label}", rows / times[name] * 1000, "rows/s",
                         times["plain"] / times[name], "plain")

    times = bench.times({name: lambda n=name: insert(n) for name in names}, bench.args.slow_repeats)
    bench.record("insert_select_plain", "INSERT ... SELECT, plain", rows / times["plain"] * 1000,
                 "rows/s")
    speeds({"plain": times["plain"], "4": times["own"], "searchable": times["searchable"],
            "aes": times["aes"]}, "insert_select", "INSERT ... SELECT",
           (("4", "encrypted"), ("searchable", "one of them searchable"),
            ("aes", "pgcrypto encrypt")))

    path = os.path.join(bench.args.data, "bench.copy")
    bench.sql(f"COPY source TO '{path}'")

    def copy(name):
        bench.sql(f"TRUNCATE into_{name}")
        bench.settle()
        return bench.call_ms(bench.sql, f"COPY into_{name} FROM '{path}'")

    times = bench.times({name: lambda n=name: copy(n) for name in names[:3]},
                        bench.args.slow_repeats)
    speeds({"plain": times["plain"], "4": times["own"], "searchable": times["searchable"]},
           "copy", "COPY FROM", (("4", "encrypted"), ("searchable", "one of them searchable")))
    times = bench.times({name: lambda n=name: bench.call_ms(
        bench.sql, f"COPY into_{n} TO '{os.devnull}'") for name in names[:2]},
                        bench.args.slow_repeats)
    bench.compare("copy_to", "COPY TO, decrypted", times, "own", "plain")
    bench.tenant("")


def single(bench):
    seconds = bench.args.seconds
    bench.begin("single", f"One row a transaction, prepared, two clients, {seconds} s a turn; "
                          f"fsync {bench.value('SHOW fsync')}")
    for name, columns in (("plain", TEXT), ("own", data.SEARCHABLE)):
        bench.sql(f"CREATE TABLE single_{name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
                  f"school text NOT NULL, {columns})")
    script = ("\\set n random(1, 1000000000)\n"
              "INSERT INTO single_{} (school, name, ssn, email, note) VALUES ('s1', 'Anna Andersson',"
              " (:n)::text, 'anna@example.org', 'none');\n")
    bench.settle()
    rates, ratios = bench.rates({
        "plain": lambda: bench.pgbench(script.format("plain"), 2, seconds),
        "own": lambda: bench.pgbench(script.format("own"), 2, seconds, tenant="s1")})
    bench.record("insert_one_plain", "INSERT, plain", rates["plain"], "tps")
    bench.record("insert_one", "INSERT of four encrypted columns, one searchable", rates["own"],
                 "tps", ratios["own"], "plain")


def saves(bench):
    """UPDATE of every column to what it was: time, WAL, HOT updates, growth."""
    rows = min(bench.args.rows // 10, 20000)
    bench.begin("saves", f"A row saved by an ORM with nothing changed: {rows:,} rows, "
                         "all columns written, ssn indexed")
    for name, columns in (("plain", TEXT), ("own", data.SEARCHABLE), ("kept", data.SEARCHABLE)):
        bench.sql(f"CREATE TABLE save_{name} (id bigint PRIMARY KEY, school text NOT NULL, {columns})"
                  " WITH (fillfactor = 50, autovacuum_enabled = off)")
        bench.sql(f"CREATE INDEX ON save_{name} (ssn)")
    bench.sql("CREATE TRIGGER keep BEFORE UPDATE ON save_kept FOR EACH ROW "
              "EXECUTE FUNCTION nomp_crypt.keep_unchanged()")
    bench.tenant("s1")
    result = {}
    for name in ("plain", "own", "kept"):
        bench.sql(f"INSERT INTO save_{name} SELECT id, 's1', name, ssn, email, note FROM plain "
                  "WHERE id < %s", rows)
        bench.sql(f"VACUUM (FREEZE, ANALYZE) save_{name}")
        bench.settle()
        size = bench.value(f"SELECT pg_total_relation_size('save_{name}')")
        wal = bench.value("SELECT pg_current_wal_insert_lsn()")
        update = (f"UPDATE save_{name} s SET name = p.name, ssn = p.ssn, email = p.email, "
                  "note = p.note FROM plain p WHERE p.id = s.id")
        took = bench.call_ms(bench.sql, update)
        wal = float(bench.value("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", wal))
        hot = bench.value(f"SELECT pg_stat_get_xact_tuples_hot_updated('save_{name}'::regclass)")
        if hot == 0:
            bench.sql("SELECT pg_stat_force_next_flush()")
            bench.reconnect()
            bench.tenant("s1")
            hot = bench.value(f"SELECT pg_stat_get_tuples_hot_updated('save_{name}'::regclass)")
        grown = bench.value(f"SELECT pg_total_relation_size('save_{name}')") - size
        result[name] = (took, wal, hot, grown)
    for name, label in (("plain", "plain"), ("own", "encrypted anew"),
                        ("kept", "with the trigger keep_unchanged")):
        took, wal, hot, grown = result[name]
        ratio = None if name == "plain" else took / result["plain"][0]
        wal_ratio = None if name == "plain" else wal / result["plain"][1]
        against = None if name == "plain" else "plain"
        bench.record(f"save_time_{name}", f"time of a row, {label}", took * 1000 / rows, "us",
                     ratio, against)
        bench.record(f"save_wal_{name}", f"WAL of a row, {label}", wal / rows, "bytes",
                     wal_ratio, against)
        bench.record(f"save_hot_{name}", f"HOT updates, {label}", 100 * hot / rows, "%")
        bench.record(f"save_growth_{name}", f"table and indexes grow by, {label}",
                     grown / 1048576, "MB")
    bench.tenant("")


SECTIONS = {"bulk": bulk, "single": single, "saves": saves}
