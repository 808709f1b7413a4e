--
-- Columns that are not encrypted are none of the extension's business: its
-- operators and casts take no comparison away from other types, with a tenant
-- or without one.
--
CREATE TYPE mood AS ENUM ('glad', 'tired');
CREATE DOMAIN word AS varchar(10);
CREATE TABLE plain (
	v	varchar(10) CHECK (v <> 'never'),
	c	char(3),
	t	text CHECK (t ~ '^t'),
	n	name,
	d	word,
	i	smallint CHECK (i >= 0),
	m	mood CHECK (m = 'glad'),
	r	regclass,
	a	text[] CHECK (a <> '{never}'),
	j	jsonb,
	e	inet CHECK (e = '10.0.0.1'),
	b	date CHECK (b > '2000-01-01'),
	CHECK (v = ANY ('{v,w}'::varchar[]))
);
INSERT INTO plain VALUES ('v', 'c', 't', 'n', 'd', 1, 'glad', 'pg_class', '{a}', '{}', '10.0.0.1', '2014-05-01');
PREPARE by_varchar(varchar) AS SELECT count(*) FROM plain WHERE v = $1;

CREATE VIEW comparisons AS
SELECT v = 'v' AS v, v IN ('v', 'w') AS v_in, v < 'w' AS v_less, v = t AS v_t, v LIKE 'v%' AS v_like,
	v = c AS v_c, c = 'c' AS c, t = 't' AS t, t IN ('t', 'u') AS t_in, n = 'n' AS n, d = 'd' AS d,
	i = '1' AS i, m = 'glad' AS m, m IN ('glad', 'tired') AS m_in, r = 'pg_class'::regclass AS r,
	a = '{a}' AS a, 'a' = ANY (a) AS a_any, j = '{}' AS j, e = '10.0.0.1' AS e, b < '2015-01-01' AS b,
	CASE v WHEN 'v' THEN 'v' END AS v_case, nullif(v, 'w') AS v_nullif, v IS DISTINCT FROM 'w' AS v_distinct
FROM plain;
\x on
SELECT * FROM comparisons;
\x off
EXECUTE by_varchar('v');
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT whole = ROW (true, true, true, false, true, false, true, true, true, true, true, true, true, true, true,
	true, true, true, true, true, 'v', 'v', true)::comparisons AS the_same_inside
FROM comparisons whole;
EXECUTE by_varchar('v');
COMMIT;

-- A cheap condition on a plain column comes before one that decrypts, in
-- whatever order they are written.
CREATE TABLE ordered (school text, active encrypted(boolean), name encrypted(text));
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
EXPLAIN (COSTS off)
SELECT FROM ordered WHERE active = true AND name LIKE 'A%' AND name::text <> 'B' AND school = 's';
COMMIT;
DROP TABLE plain, ordered CASCADE;
DROP TYPE mood;
DROP DOMAIN word;
