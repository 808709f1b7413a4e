--
-- Equal values have equal fingerprints, on every machine and under all
-- settings; different values have different ones. Checked on what a column
-- would be compared with: a probe shows the fingerprint of any value.
--
\set VERBOSITY terse
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', '{search}');
CREATE FUNCTION modifier(code int, kind text) RETURNS int LANGUAGE sql IMMUTABLE
RETURN code | (array_position('{exact,nocase,digits}'::text[], kind) << 8);
CREATE FUNCTION fingerprint(value anyelement, code int, kind text DEFAULT 'exact') RETURNS text LANGUAGE sql
AS $$SELECT encode(substr(encrypted_send(nomp_crypt._probe(value, modifier(code, kind))), 35, 16), 'hex')$$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';

-- text and varchar alike; char(n) without its blanks; nothing else is ignored
SELECT fingerprint('Anna'::text, 1) = fingerprint('Anna'::varchar, 2) AS yes,
	fingerprint('Anna'::char(10), 3) = fingerprint('Anna'::char(5), 3) AS yes,
	fingerprint('Anna'::char(10), 3) = fingerprint('Anna'::text, 1) AS yes,
	fingerprint('Anna '::text, 1) = fingerprint('Anna'::text, 1) AS no,
	fingerprint('anna'::text, 1) = fingerprint('Anna'::text, 1) AS no,
	fingerprint(''::text, 1) = fingerprint(' '::text, 1) AS no;

-- nocase: case, composed and decomposed; by Unicode's rules, not a locale's
SELECT fingerprint('ÅSA'::text, 1, 'nocase') = fingerprint('åsa'::text, 1, 'nocase') AS yes,
	fingerprint('Straße'::text, 1, 'nocase') = fingerprint('STRASSE'::text, 1, 'nocase') AS yes,
	fingerprint(U&'Ren\00E9'::text, 1, 'nocase') = fingerprint(U&'RENE\0301'::text, 1, 'nocase') AS yes,
	fingerprint(U&'A\030A'::text, 1, 'nocase') = fingerprint(U&'\212B'::text, 1, 'nocase') AS angstrom,
	fingerprint('ΌΣΟΣ'::text, 1, 'nocase') = fingerprint('όσος'::text, 1, 'nocase') AS final_sigma,
	fingerprint('ANNA   '::char(9), 3, 'nocase') = fingerprint('anna'::char(5), 3, 'nocase') AS yes;
SELECT fingerprint('I'::text, 1, 'nocase') = fingerprint('i'::text, 1, 'nocase') AS yes,
	fingerprint('ı'::text, 1, 'nocase') = fingerprint('i'::text, 1, 'nocase') AS no,
	fingerprint('İ'::text, 1, 'nocase') = fingerprint('i'::text, 1, 'nocase') AS no,
	fingerprint('Asa'::text, 1, 'nocase') = fingerprint('Åsa'::text, 1, 'nocase') AS no;
-- exact means exact: two spellings of one letter differ, as they do in text
SELECT fingerprint(U&'Ren\00E9'::text, 1) = fingerprint(U&'Rene\0301'::text, 1) AS no;

-- digits
SELECT fingerprint('20140501-1234'::text, 1, 'digits') = fingerprint('20140501 1234'::text, 1, 'digits') AS yes,
	fingerprint('20140501-1234'::text, 1, 'digits') = fingerprint('201405011234'::text, 1) AS yes,
	fingerprint('20140501-1234'::text, 1, 'digits') = fingerprint('20140501-1235'::text, 1, 'digits') AS no,
	fingerprint('20140501-123٤'::text, 1, 'digits') = fingerprint('20140501-1234'::text, 1, 'digits') AS no;

-- numbers
SELECT fingerprint(1.0, 11) = fingerprint(1.00, 11) AS yes,
	fingerprint(100, 11) = fingerprint(1e2, 11) AS yes,
	fingerprint(0.0, 11) = fingerprint(-0.000, 11) AS yes,
	fingerprint('NaN'::numeric, 11) = fingerprint('NaN'::float8, 11) AS yes,
	fingerprint(1.01, 11) = fingerprint(1.0, 11) AS no,
	fingerprint(0.1, 11) = fingerprint(-0.1, 11) AS no;
SELECT fingerprint(5::int2, 6) = fingerprint(5::int8, 8) AS yes,
	fingerprint(-5, 7) = fingerprint(5, 7) AS no,
	fingerprint('-0'::float8, 10) = fingerprint('0'::float8, 10) AS yes,
	fingerprint('-0'::float4, 9) = fingerprint('0'::float4, 9) AS yes,
	fingerprint('-NaN'::float8, 10) = fingerprint('NaN'::float8, 10) AS yes,
	fingerprint('Infinity'::float8, 10) = fingerprint('-Infinity'::float8, 10) AS no,
	fingerprint(0.1::float8 + 0.2::float8, 10) = fingerprint(0.3::float8, 10) AS no;
SELECT fingerprint(0.1::float4, 9) AS before, fingerprint(pi(), 10) AS pi \gset
SET extra_float_digits = -15;
SELECT fingerprint(0.1::float4, 9) = :'before' AS yes, fingerprint(pi(), 10) = :'pi' AS yes;
RESET extra_float_digits;

-- what no value of the column's type equals finds nothing, and is not rounded
SELECT fingerprint(1.5, 7) = fingerprint(2, 7) AS no,
	fingerprint(2.0, 7) = fingerprint(2, 7) AS yes,
	fingerprint('2014-05-01 12:00'::timestamp, 13) = fingerprint('2014-05-01'::date, 13) AS no,
	fingerprint('2014-05-01 00:00'::timestamp, 13) = fingerprint('2014-05-01'::date, 13) AS yes;

-- bytes and bool; a text is the type's input
SELECT fingerprint('\xdeadbeef'::bytea, 4) AS bytes \gset
SET bytea_output = 'escape';
SELECT fingerprint('\xDEADBEEF'::bytea, 4) = :'bytes' AS yes,
	fingerprint(true, 5) = fingerprint('yes'::text, 5) AS yes,
	fingerprint(true, 5) = fingerprint(false, 5) AS no;
RESET bytea_output;

-- dates and times, whatever the session's zone and style
SELECT fingerprint('2014-05-01'::date, 13) AS date, fingerprint('2014-05-01 08:30'::timestamp, 16) AS stamp,
	fingerprint('2014-05-01 08:30+00'::timestamptz, 17) AS instant, fingerprint('08:30:00.5'::time, 14) AS time,
	fingerprint('08:30+02'::timetz, 15) AS timetz \gset
SET timezone = 'Europe/Stockholm';
SET datestyle = 'German';
SELECT fingerprint('01.05.2014'::date, 13) = :'date' AS yes,
	fingerprint('2014-05-01 08:30'::timestamp, 16) = :'stamp' AS yes,
	fingerprint('2014-05-01 10:30'::timestamptz, 17) = :'instant' AS yes,
	fingerprint('01.05.2014 10:30:00'::text, 17) = :'instant' AS yes,
	fingerprint('08:30:00.500'::time, 14) = :'time' AS yes,
	fingerprint('08:30+02'::timetz, 15) = :'timetz' AS yes,
	fingerprint('06:30+00'::timetz, 15) = :'timetz' AS no;
RESET datestyle;
RESET timezone;
SELECT fingerprint('infinity'::date, 13) = fingerprint('-infinity'::date, 13) AS no,
	fingerprint('0044-03-15 BC'::date, 13) = fingerprint('0044-03-15'::date, 13) AS no,
	fingerprint('infinity'::timestamptz, 17) = fingerprint('infinity'::timestamp, 16) AS yes;

-- money under another lc_monetary: the stored number counts
SELECT fingerprint('12.34'::money, 12) AS money \gset
SET lc_monetary = 'C.UTF-8';
SELECT fingerprint('12.34'::money, 12) = :'money' AS yes, fingerprint('12.35'::money, 12) = :'money' AS no;
RESET lc_monetary;

-- uuid, inet
SELECT fingerprint('{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}'::uuid, 19) = fingerprint('a0eebc999c0b4ef8bb6d6bb9bd380a11'::uuid, 19) AS yes,
	fingerprint('10.0.0.1/32'::inet, 20) = fingerprint('10.0.0.1'::inet, 20) AS yes,
	fingerprint('::FFFF:1'::inet, 20) = fingerprint('::ffff:0.0.0.1'::inet, 20) AS no,
	fingerprint('2001:DB8::1'::inet, 20) = fingerprint('2001:db8:0:0::1'::inet, 20) AS yes;

-- types that have no canonical text, normalisations that are not for the type,
-- and a modifier that is not searchable
\set VERBOSITY default
SELECT fingerprint('1 day'::text, 18);
SELECT fingerprint('{}'::text, 22);
SELECT fingerprint('{1}'::text, 135);
SELECT fingerprint(1, 7, 'nocase');
SELECT nomp_crypt._probe('Anna'::text, 1);
SELECT fingerprint('not a number'::text, 7);

RESET ROLE;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_app', '{search}');
DROP FUNCTION fingerprint, modifier;
