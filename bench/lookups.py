"""Short transactions: looking a person up, one value, no value of ours at all."""
import data

LOOP = r"""
CREATE PROCEDURE touch(source text, n int) LANGUAGE plpgsql AS $$
DECLARE
    v text;
BEGIN
    FOR i IN 1..n LOOP
        CASE source
            WHEN 'plain' THEN SELECT name INTO v FROM look_plain WHERE id = i % 1000;
            WHEN 'own' THEN SELECT name::text INTO v FROM look_own WHERE id = i % 1000;
        END CASE;
        COMMIT;
    END LOOP;
END
$$;
"""


def rate_all(bench, script, seconds):
    """Transactions per second of a lookup in each of the three tables, and the ratios."""
    return bench.rates({
        name: lambda n=name: bench.pgbench(script.format(n), 2, seconds,
                                           tenant="" if n == "plain" else "s1")
        for name in ("plain", "own", "hash")})


def equality(bench):
    rows, seconds = min(bench.args.rows, 100000), bench.args.seconds
    bench.begin("lookup", f"A person looked up by the personal number among {rows:,}, prepared, "
                          f"two clients, {seconds} s a turn")
    bench.sql("CREATE TABLE look_plain AS SELECT id, 's1'::text AS school, name, ssn, email, note "
              "FROM plain WHERE id < %s", rows)
    data.table(bench, "look_own", data.SEARCHABLE, "")
    data.fill(bench, "look_own", "look_plain")
    bench.sql("CREATE TABLE look_hash AS TABLE look_own")
    for name in ("plain", "own", "hash"):
        bench.sql(f"ALTER TABLE look_{name} ADD PRIMARY KEY (id)")
        bench.sql(f"CREATE INDEX ON look_{name} USING {'hash' if name == 'hash' else 'btree'} (ssn)")
    data.frozen(bench, "look_plain", "look_own", "look_hash")
    found = (f"\\set n random(0, {rows - 1})\n"
             "SELECT id FROM look_{} WHERE ssn = to_char(date '2005-01-01' + :n % 4000, "
             "'YYYYMMDD') || '-' || lpad((:n / 4000)::text, 4, '0');\n")
    rates, ratios = rate_all(bench, found, seconds)
    bench.record("lookup_plain", "found, plain, btree", rates["plain"], "tps")
    for name, result, kind in (("own", "lookup_btree", "btree"), ("hash", "lookup_hash", "hash")):
        bench.record(result, f"found, searchable, {kind}", rates[name], "tps",
                     ratios[name], "plain")
    # a bare parameter, as drivers send it: it is encrypted when it is bound
    rates, ratios = rate_all(bench, "\\set ssn random(20050101, 20151231)\n"
                            "SELECT id FROM look_{} WHERE ssn = :ssn;\n", seconds)
    bench.record("parameter_plain", "not found, plain, btree", rates["plain"], "tps")
    for name, result, kind in (("own", "parameter_btree", "btree"),
                               ("hash", "parameter_hash", "hash")):
        bench.record(result, f"not found, a bare parameter, {kind}", rates[name], "tps",
                     ratios[name], "plain")

    loops = 20000 if bench.args.rows >= 100000 else 2000
    bench.sql(LOOP)
    bench.tenant("s1")
    times = bench.times({name: lambda n=name: bench.call_ms(
        bench.sql, f"CALL touch('{n}', {loops})") for name in ("plain", "own")})
    bench.record("added_latency", "a transaction that reads one value, warm key: added",
                 (times["own"] - times["plain"]) * 1000 / loops, "us")
    bench.tenant("")


def hook(bench):
    seconds = bench.args.seconds
    bench.begin("hook", "Queries without encrypted columns, in a database with the extension and "
                        "in one without")
    bench.sql("CREATE DATABASE bench_without TEMPLATE template0")
    for dbname in ("bench", "bench_without"):
        connection = bench.connect(dbname)
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE ordinary (id bigint PRIMARY KEY, a text, b text, c int); "
                           "INSERT INTO ordinary SELECT i, i::text, 'x', i FROM "
                           "generate_series(1, 1000) i")
            cursor.execute("VACUUM ANALYZE ordinary")
        connection.close()
    script = "\\set id random(1, 1000)\nSELECT a, b FROM ordinary WHERE id = :id;\n"
    rates, ratios = bench.rates({
        dbname: lambda d=dbname: bench.pgbench(script, 1, seconds, d, "simple")
        for dbname in ("bench_without", "bench")})
    bench.record("hook_tps", "SELECT by key, parsed and planned each time", rates["bench"], "tps",
                 ratios["bench"], "without")

    loops = 3000 if bench.args.rows >= 100000 else 300
    queries = {
        "hook_point": "SELECT a, b FROM ordinary WHERE id = 1",
        "hook_join": "SELECT t.a, u.b, count(*) FROM ordinary t JOIN ordinary u ON t.id = u.c "
                     "LEFT JOIN ordinary v ON v.id = u.id WHERE t.a LIKE ''x%'' AND u.b IN "
                     "(''a'', ''b'') AND EXISTS (SELECT FROM ordinary w WHERE w.c = t.c) "
                     "GROUP BY 1, 2 ORDER BY 3 LIMIT 5"}
    for name, query in queries.items():
        connections = {dbname: bench.connect(dbname) for dbname in ("bench", "bench_without")}

        def plans(dbname):
            with connections[dbname].cursor() as cursor:
                return bench.call_ms(cursor.execute, f"DO $$ BEGIN FOR i IN 1..{loops} LOOP "
                                                     f"EXECUTE 'EXPLAIN {query}'; END LOOP; END $$")

        times = bench.times({dbname: lambda d=dbname: plans(d) for dbname in connections})
        bench.record(name, f"parsing and planning, {name[5:]}: added",
                     (times["bench"] - times["bench_without"]) * 1000 / loops, "us",
                     times["bench"] / times["bench_without"], "without")
        for connection in connections.values():
            connection.close()


SECTIONS = {"lookup": equality, "hook": hook}
