--
-- encrypted(<type> [, searchable [, nocase | digits] [, force]]): spellings,
-- how they are shown (and so dumped), and refusals.
--
CREATE TABLE spelled (
	a1 encrypted(text), a2 encrypted(TEXT), a3 encrypted('text'), a4 encrypted(" text "),
	b1 encrypted(varchar), b2 encrypted('varchar(30)'), b3 encrypted('character varying (30)'),
	c1 encrypted(bpchar), c2 encrypted(char), c3 encrypted('char(5)'), c4 encrypted('character(5)'),
	d1 encrypted(int), d2 encrypted(integer), d3 encrypted(smallint), d4 encrypted(bigint), d5 encrypted(int8),
	e1 encrypted(real), e2 encrypted('double precision'), e3 encrypted(float), e4 encrypted('float(20)'),
	f1 encrypted(numeric), f2 encrypted(decimal), f3 encrypted('numeric(10)'), f4 encrypted('numeric(10,2)'),
	f5 encrypted('numeric(1000,1000)'), f6 encrypted('numeric(1,-1000)'),
	g1 encrypted(boolean), g2 encrypted(bool), g3 encrypted(bytea), g4 encrypted(money), g5 encrypted(uuid), g6 encrypted(inet),
	h1 encrypted(date), h2 encrypted(time), h3 encrypted('time(0)'), h4 encrypted(timetz), h5 encrypted('time(6) with time zone'),
	h6 encrypted(timestamp), h7 encrypted('timestamp(3)'), h8 encrypted(timestamptz), h9 encrypted('timestamp(3) with time zone'),
	h10 encrypted('timestamp without time zone'), h11 encrypted('timestamptz(0)'),
	i1 encrypted(interval), i2 encrypted('interval(3)'), i3 encrypted('interval year to month'), i4 encrypted('interval day to second(2)'),
	j1 encrypted(json), j2 encrypted(jsonb),
	k1 encrypted(int4range), k2 encrypted(int8range), k3 encrypted(numrange), k4 encrypted(daterange), k5 encrypted(tsrange), k6 encrypted(tstzrange),
	l1 encrypted('text[]'), l2 encrypted('text[][]'), l3 encrypted('text[3]'), l4 encrypted('int array'), l5 encrypted('numeric(10,2)[]'),
	l6 encrypted('timestamp(3) with time zone[]'), l7 encrypted(_int4),
	m1 encrypted(text, searchable), m2 encrypted(text, searchable, nocase), m3 encrypted(text, 'searchable digits'),
	m4 encrypted('varchar(12)', SEARCHABLE, DIGITS), m5 encrypted(date, searchable), m6 encrypted('numeric(10,2)', searchable),
	m7 encrypted(bool, searchable, force), m8 encrypted('char(2)', 'searchable nocase force'), m9 encrypted(text, searchable, force)
);
\d spelled
-- read again as it is shown, each is the same
DO $$
BEGIN
	EXECUTE (SELECT format('CREATE TABLE again (%s)', string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum))
			 FROM pg_attribute WHERE attrelid = 'spelled'::regclass AND attnum > 0);
END
$$;
SELECT count(*) AS columns, count(*) FILTER (WHERE s.atttypmod <> a.atttypmod) AS "0 differ"
FROM pg_attribute s JOIN pg_attribute a ON a.attname = s.attname AND a.attrelid = 'again'::regclass
WHERE s.attrelid = 'spelled'::regclass AND s.attnum > 0;
DROP TABLE spelled, again;

-- other types: cast to text or bytea
\set VERBOSITY default
CREATE TABLE t (a encrypted(point));
CREATE TABLE t (a encrypted('"char"'));
CREATE TABLE t (a encrypted(int4multirange));
CREATE TABLE t (a encrypted(encrypted));
CREATE DOMAIN short AS varchar(3);
CREATE TABLE t (a encrypted(short));
DROP DOMAIN short;
CREATE TABLE t (a encrypted(nonsense));
CREATE TABLE t (a encrypted(''));
CREATE TABLE t (a encrypted('text; DROP TABLE pupil'));
CREATE TABLE t (a encrypted(1));
CREATE TABLE t (a encrypted(numeric(10,2)));
CREATE TABLE t (a encrypted('numeric(1001)'));
CREATE TABLE t (a encrypted('varchar(2097151)'), b encrypted('varchar(2097152)'));
-- flags
CREATE TABLE t (a encrypted(searchable));
CREATE TABLE t (a encrypted(text, unique));
CREATE TABLE t (a encrypted(text, fast));
CREATE TABLE t (a encrypted(varchar, 30));
CREATE TABLE t (a encrypted(text, nocase));
CREATE TABLE t (a encrypted(text, searchable, searchable));
CREATE TABLE t (a encrypted(text, searchable, nocase, digits));
CREATE TABLE t (a encrypted(date, searchable, nocase));
-- too few values to hide
CREATE TABLE t (a encrypted(bool, searchable));
CREATE TABLE t (a encrypted(char, searchable));
CREATE TABLE t (a encrypted('varchar(2)', searchable));
-- no canonical text
CREATE TABLE t (a encrypted(json, searchable));
CREATE TABLE t (a encrypted('text[]', searchable));
-- which types can be searchable
SELECT inside, outcome(format('CREATE TEMP TABLE t (a encrypted(%s, searchable, force)) ON COMMIT DROP; DROP TABLE t', inside))
FROM unnest('{text,varchar,bpchar,bytea,bool,int2,int4,int8,float4,float8,numeric,money,date,time,timetz,timestamp,
	timestamptz,interval,uuid,inet,json,jsonb,int4range,int8range,numrange,daterange,tsrange,tstzrange}'::text[]) inside;
