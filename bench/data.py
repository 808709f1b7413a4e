"""The pupils: one table per variant, all with the same content.

Plain columns are what everything is compared with.  "bulk" is loaded school by
school, one transaction each; "rows" has one transaction for each row, so that
every value has a derived key of its own; "updated" is bulk after a third of
its rows were updated at random, a hundred to a transaction.  The others hold
pgcrypto's bytea.
"""
COLUMNS = ("name", "ssn", "email", "note")

ENCRYPTED = ("name encrypted(text), ssn encrypted(text), "
             "email encrypted(text), note encrypted(text)")
SEARCHABLE = ("name encrypted(text), ssn encrypted(text, searchable), "
              "email encrypted(text), note encrypted(text)")

FUNCTIONS = r"""
CREATE EXTENSION pgcrypto;
CREATE EXTENSION nomp_crypt;
CREATE PROCEDURE load_bulk(target regclass, source regclass) LANGUAGE plpgsql AS $$
DECLARE
    tenant text;
BEGIN
    FOR tenant IN EXECUTE format('SELECT DISTINCT school FROM %s', source) LOOP
        PERFORM set_config('nomp_crypt.tenant', tenant, true);
        EXECUTE format('INSERT INTO %s SELECT * FROM %s WHERE school = $1', target, source)
            USING tenant;
        COMMIT;
    END LOOP;
END
$$;
CREATE PROCEDURE load_rows() LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT * FROM plain ORDER BY id LOOP
        PERFORM set_config('nomp_crypt.tenant', r.school, true);
        INSERT INTO rows VALUES (r.id, r.school, r.name, r.ssn, r.email, r.note);
        COMMIT;
    END LOOP;
END
$$;
-- every third row, in an order that has nothing to do with where it is
CREATE PROCEDURE update_at_random() LANGUAGE plpgsql AS $$
DECLARE
    n bigint := 0;
    r record;
BEGIN
    FOR r IN SELECT p.* FROM plain p WHERE id % 3 = 0 ORDER BY hashint8(id) LOOP
        IF n % 100 = 0 THEN
            COMMIT;
        END IF;
        n := n + 1;
        PERFORM set_config('nomp_crypt.tenant', r.school, true);
        UPDATE updated SET name = r.name, ssn = r.ssn, email = r.email, note = r.note
        WHERE id = r.id;
    END LOOP;
    COMMIT;
END
$$;
"""

# Names of 8 to 17 letters, about 12 on average; personal numbers that are none.
PUPILS = r"""
SELECT i::bigint AS id, 's' || (i * {schools} / {rows} + 1) AS school,
    (ARRAY['Anna','Erik','Lars','Karin','Maria','Sven','Nils','Elsa','Åke','Örjan','Johanna',
           'Ali','Fatima','Wilma','Hannes','Alexandra'])[i * 7 % 16 + 1] || ' ' ||
    (ARRAY['Berg','Lind','Holm','Svensson','Andersson','Nyström','Öberg','Hassan','Ek','Dahl',
           'Sundqvist','Åkesson'])[i * 11 % 12 + 1] AS name,
    to_char(date '2005-01-01' + (i % 4000)::int, 'YYYYMMDD') || '-' || lpad((i / 4000)::text, 4, '0') AS ssn,
    'pupil' || i || '@skola' || i % 100 || '.example' AS email,
    left(repeat(md5(i::text) || ' ', 7), 200) AS note
FROM generate_series(0, {rows} - 1) AS i
"""


def schools(bench, wanted):
    """Create the schools s1 to sN that are not there yet."""
    bench.sql("SELECT count(nomp_crypt.create_tenant('s' || i)) FROM generate_series(1, %s) AS i "
              "WHERE NOT EXISTS (SELECT FROM nomp_crypt.tenants WHERE id = 's' || i)", wanted)


def table(bench, name, columns, key="PRIMARY KEY"):
    bench.sql(f"CREATE TABLE {name} (id bigint {key}, school text NOT NULL, {columns})")


def fill(bench, name, source="plain"):
    bench.sql(f"CALL load_bulk('{name}', '{source}')")


def frozen(bench, *names):
    for name in names:
        bench.sql(f"VACUUM (FREEZE, ANALYZE) {name}")


def pgcrypto(bench, name, expression, rows):
    """A table whose columns are made by an expression with $ for the text."""
    table(bench, name, ", ".join(f"{column} bytea" for column in COLUMNS))
    bench.sql(f"INSERT INTO {name} SELECT id, school, "
              + ", ".join(expression.replace("$", column) for column in COLUMNS)
              + f" FROM plain WHERE id < {rows}")


AES = "encrypt(convert_to($, 'UTF8'), decode(repeat('2b', 32), 'hex'), 'aes')"
# as it must be used: an iv of its own for each value, stored in front of it
AES_IV = ("(SELECT iv || encrypt_iv(convert_to($, 'UTF8'), decode(repeat('2b', 32), 'hex'), iv, "
          "'aes') FROM gen_random_bytes(16 + 0 * octet_length($)) AS iv)")
PGP = "pgp_sym_encrypt($, 'a password of some length')"
PGP_FAST = "pgp_sym_encrypt($, 'a password of some length', 's2k-mode=1')"


def load(bench):
    """Everything that more than one section uses."""
    args = bench.args
    bench.sql(FUNCTIONS)
    bench.sql("SELECT nomp_crypt.grant_all_tenants('postgres', '{encrypt,decrypt,search}')")
    schools(bench, args.schools)
    bench.sql("SET synchronous_commit = off")
    table(bench, "plain", ", ".join(f"{column} text" for column in COLUMNS))
    bench.sql("INSERT INTO plain " + PUPILS.format(rows=args.rows, schools=args.schools))
    bench.sql("CREATE INDEX ON plain (school)")
    bench.sql("ANALYZE plain")
    for name in ("bulk", "rows", "updated"):
        table(bench, name, ENCRYPTED)
    fill(bench, "bulk")
    bench.sql("CREATE INDEX ON bulk (school)")
    bench.sql("CALL load_rows()")
    fill(bench, "updated")
    bench.sql("CALL update_at_random()")
    pgcrypto(bench, "aes", AES, args.rows)
    pgcrypto(bench, "aes_iv", AES_IV, args.rows)
    pgcrypto(bench, "pgp", PGP, args.pgp_rows)
    pgcrypto(bench, "pgp_fast", PGP_FAST, args.pgp_rows * 10)
    frozen(bench, "plain", "bulk", "rows", "updated", "aes", "aes_iv", "pgp", "pgp_fast")
    bench.settle()
