"""Reading: scans of one and of four columns, patterns, order, joins, storage."""
import json
import subprocess

import data


def floor(bench):
    bench.begin("floor", "OpenSSL alone: AES-256-GCM of 16 bytes, nanoseconds a value")
    done = subprocess.run([bench.args.floor], check=True, capture_output=True, text=True)
    for name, value in json.loads(done.stdout).items():
        bench.record(f"evp_{name}", name.replace("_", ", "), value, "ns")


def one_column(bench):
    rows = bench.args.rows
    bench.begin("scan", f"Scan of one column, {rows:,} rows: max(length(name))")
    own = "SELECT max(length(name::text)) FROM "
    times = bench.queries({
        "plain": "SELECT max(length(name)) FROM plain",
        "bulk": own + "bulk", "rows": own + "rows", "updated": own + "updated",
        "aes": "SELECT max(length(convert_from(decrypt(name, decode(repeat('2b', 32), 'hex'), "
               "'aes'), 'UTF8'))) FROM aes"})
    for name, what in (("bulk", "loaded in bulk"), ("rows", "one row per transaction"),
                       ("updated", "a third updated at random")):
        bench.compare(f"scan_1_{name}", what, times, name, "plain", "ns/row", 1e6 / rows)
    bench.compare("scan_1_aes", "pgcrypto decrypt, AES-CBC", times, "aes", "plain",
                  "ns/row", 1e6 / rows)
    bench.record("scan_1_plain", "plain column", times["plain"] * 1e6 / rows, "ns/row")
    extra = {name: times[name] - times["plain"] for name in times}
    bench.record("decrypt_value", "one value's decryption, loaded in bulk",
                 extra["bulk"] * 1e6 / rows, "ns")
    bench.record("faster_than_aes", "pgcrypto's AES-CBC takes", extra["aes"] * 1e6 / rows, "ns",
                 extra["aes"] / extra["bulk"], "ours")

    key = "'a password of some length'"
    pgp_rows = bench.args.pgp_rows
    iv = bench.queries({"iv": "SELECT max(length(convert_from(decrypt_iv(substr(name, 17), "
                              "decode(repeat('2b', 32), 'hex'), substr(name, 1, 16), 'aes'), "
                              "'UTF8'))) FROM aes_iv"}, 3)
    bench.compare("scan_1_aes_iv", "pgcrypto decrypt_iv, AES-CBC",
                  dict(iv, plain=times["plain"]), "iv", "plain", "ns/row", 1e6 / rows)
    pgp = bench.queries({"pgp": f"SELECT max(length(pgp_sym_decrypt(name, {key}))) FROM pgp",
                         "fast": f"SELECT max(length(pgp_sym_decrypt(name, {key}))) FROM pgp_fast"},
                        3)
    own = extra["bulk"] / rows
    bench.record("faster_than_pgp", "pgp_sym_decrypt, default, takes",
                 pgp["pgp"] * 1e6 / pgp_rows, "ns", pgp["pgp"] / pgp_rows / own, "ours")
    bench.record("pgp_fast", "pgp_sym_decrypt, s2k-mode=1, takes",
                 pgp["fast"] * 1e5 / pgp_rows, "ns", pgp["fast"] / pgp_rows / 10 / own, "ours")


def four_columns(bench):
    rows = bench.args.rows
    bench.begin("scan4", f"Scan of four columns, {rows:,} rows")

    def lengths(cast):
        return ", ".join(f"max(length({column}{cast}))" for column in data.COLUMNS)

    times = bench.queries({"plain": f"SELECT {lengths('')} FROM plain",
                           "bulk": f"SELECT {lengths('::text')} FROM bulk",
                           "rows": f"SELECT {lengths('::text')} FROM rows"})
    bench.compare("scan_4_bulk", "loaded in bulk", times, "bulk", "plain", "ns/row", 1e6 / rows)
    bench.compare("scan_4_rows", "one row per transaction", times, "rows", "plain",
                  "ns/row", 1e6 / rows)

    times = bench.queries({"plain": "SELECT school, count(*), avg(length(note)) FROM plain GROUP BY 1",
                           "bulk": "SELECT school, count(*), avg(length(note::text)) FROM bulk "
                                   "GROUP BY 1"})
    bench.compare("aggregate", "avg(length(note)) by school, 200 characters", times, "bulk",
                  "plain", "ns/row", 1e6 / rows)


def parallel(bench):
    bench.begin("parallel", "Two workers, the leader takes part")
    query = {"plain": "SELECT max(length(name)) FROM plain",
             "bulk": "SELECT max(length(name::text)) FROM bulk"}
    one = bench.queries(query)
    bench.sql("SET max_parallel_workers_per_gather = 2")
    bench.sql("SET min_parallel_table_scan_size = 0")
    bench.sql("SET parallel_setup_cost = 0")
    bench.sql("SET parallel_tuple_cost = 0")
    two = bench.queries(query)
    bench.compare("parallel_scan", "max(length(name))", two, "bulk", "plain")
    for name in query:
        bench.record(f"speed_up_{name}", f"speed-up by workers, {name}", one[name] / two[name], "x")
    times = bench.queries({
        "plain": "SELECT count(*) FROM plain WHERE name ILIKE '%ann%'",
        "bulk": "SELECT count(*) FROM bulk WHERE name::text ILIKE '%ann%'"})
    bench.compare("ilike_all", "ILIKE '%ann%' over all schools", times, "bulk", "plain")
    times = bench.queries({
        "plain": "SELECT count(*) FROM plain WHERE name LIKE '%ann%'",
        "bulk": "SELECT count(*) FROM bulk WHERE name::text LIKE '%ann%'"})
    bench.compare("like_all", "LIKE '%ann%' over all schools", times, "bulk", "plain")


def one_school(bench):
    pupils = min(5000, bench.args.rows // 4)
    bench.begin("school", f"Within one school of {pupils:,} pupils, an index on the school")
    bench.sql("CREATE TABLE school_plain AS SELECT id, 's' || (id / %s + 1) AS school, name, ssn, "
              "email, note FROM plain WHERE id < %s", pupils, 4 * pupils)
    data.table(bench, "school_own", data.SEARCHABLE, "")
    data.fill(bench, "school_own", "school_plain")
    for table in ("school_plain", "school_own"):
        bench.sql(f"CREATE INDEX ON {table} (school)")
    data.frozen(bench, "school_plain", "school_own")
    bench.tenant("s1")

    def pair(query):
        return {"plain": query.format("school_plain"), "own": query.format("school_own")}

    def fetched(query):
        """With the rows: what is sent is decrypted as well."""
        return {name: lambda q=text: bench.call_ms(bench.sql, q)
                for name, text in pair(query).items()}

    times = bench.queries(pair("SELECT count(*) FROM {} WHERE school = 's1' "
                               "AND name ILIKE '%ann%'"))
    bench.compare("ilike_school_ratio", "ILIKE '%ann%'", times, "own", "plain")
    bench.record("ilike_school", "ILIKE '%ann%'", times["own"], "ms")
    times = bench.queries(pair("SELECT count(*) FROM {} WHERE school = 's1' AND name = 'Anna Berg'"))
    bench.compare("equal_school", "name = 'Anna Berg', not searchable", times, "own", "plain")
    times = bench.times(fetched("SELECT name FROM {} WHERE school = 's1'"))
    bench.compare("fetch_school", "SELECT name, rows fetched", times, "own", "plain")
    times = bench.times(fetched("SELECT name FROM {} WHERE school = 's1' ORDER BY name"))
    bench.compare("order_school", "ORDER BY name, in the database's order", times, "own", "plain")
    times = bench.times(fetched("SELECT name FROM {} WHERE school = 's1' "
                                'ORDER BY name COLLATE "C"'))
    bench.compare("order_school_c", 'ORDER BY name COLLATE "C"', times, "own", "plain")
    bench.tenant("")


def joins(bench):
    bench.begin("join", "Join on searchable columns")
    rows = min(bench.args.rows // 5, 200000)
    bench.sql("CREATE TABLE join_plain AS SELECT id, 's1'::text AS school, name, ssn, email, note "
              "FROM plain WHERE id < %s", rows)
    data.table(bench, "join_own", data.SEARCHABLE)
    data.fill(bench, "join_own", "join_plain")
    data.frozen(bench, "join_plain", "join_own")
    bench.tenant("s1")
    times = bench.queries({name: f"SELECT count(*) FROM join_{name} a JOIN join_{name} b USING (ssn)"
                           for name in ("plain", "own")})
    bench.compare("join", f"{rows:,} rows with themselves", times, "own", "plain")
    times = bench.queries({name: f"SELECT count(DISTINCT ssn) FROM join_{name}"
                           for name in ("plain", "own")})
    bench.compare("distinct", "count(DISTINCT ssn)", times, "own", "plain")
    bench.tenant("")


def storage(bench):
    bench.begin("storage", "Storage")
    bench.record("bytes_12", "a name of 12 characters, stored",
                 bench.value("SELECT max(pg_column_size(name)) FROM bulk "
                             "WHERE length(name::text) = 12 AND octet_length(name::text) = 12"),
                 "bytes")
    sizes = {name: bench.value(f"SELECT pg_table_size('{name}')") / bench.args.rows
             for name in ("plain", "bulk", "aes", "aes_iv")}
    sizes["pgp"] = bench.value("SELECT pg_table_size('pgp')") / bench.args.pgp_rows
    bench.record("table_plain", "a row of the plain table", sizes["plain"], "bytes")
    for name in ("bulk", "aes", "aes_iv", "pgp"):
        bench.compare(f"table_{name}", f"a row of table {name}", sizes, name, "plain", "bytes")
    indexes = {name: bench.value(f"SELECT pg_relation_size(indexrelid) FROM pg_index WHERE "
                                 f"indexrelid = '{name}'::regclass")
               for name in index_pair(bench)}
    bench.compare("index", "btree on the personal number", indexes, "own_ssn", "plain_ssn",
                  "MB", 1 / 1048576)


def index_pair(bench):
    rows = min(bench.args.rows, 100000)
    bench.sql("CREATE TEMP TABLE t_plain AS SELECT ssn FROM plain WHERE id < %s", rows)
    bench.sql("CREATE TEMP TABLE t_own (ssn encrypted(text, searchable))")
    bench.tenant("s1")
    bench.sql("INSERT INTO t_own SELECT ssn FROM t_plain")
    bench.tenant("")
    bench.sql("CREATE INDEX plain_ssn ON t_plain (ssn)")
    bench.sql("CREATE INDEX own_ssn ON t_own (ssn)")
    return ("plain_ssn", "own_ssn")


SECTIONS = {"floor": floor, "scan": one_column, "scan4": four_columns, "parallel": parallel,
            "school": one_school, "join": joins, "storage": storage}
