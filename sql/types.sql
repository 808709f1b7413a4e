--
-- Every type that can be inside encrypted(...), and its array. Each is
-- declared, written as a literal, read back, and cast back; a plain column of
-- the type beside it says what is right. Bad input first.
--
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SET TimeZone = 'Europe/Stockholm';
SET DateStyle = ISO;

-- The outcome of storing that text in a column of that type: the value as it
-- is read, or the error.
CREATE FUNCTION pg_temp.stored(inside text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE format('CREATE TEMP TABLE one (value encrypted(%L)) ON COMMIT DROP', inside);
	EXECUTE format('INSERT INTO one VALUES (%L)', value);
	EXECUTE 'SELECT format(''%s'', value) FROM one' INTO result;
	DROP TABLE one;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

-- invalid input is refused with the type's own error
SELECT inside, pg_temp.stored(inside, value) FROM (VALUES
	('bytea', '\xzz'), ('bool', 'perhaps'), ('int2', '32768'), ('int4', '1.5'), ('int8', 'x'),
	('float4', '1e99'), ('float8', 'x'), ('numeric', 'x'), ('money', 'x'), ('date', '2014-02-30'),
	('time', '25:00'), ('timetz', '25:00'), ('timestamp', 'x'), ('timestamptz', 'x'), ('interval', 'x'),
	('uuid', 'x'), ('inet', '1.2.3.256'), ('json', '{'), ('jsonb', '{'), ('int4range', '[2,1]'),
	('int8range', 'x'), ('numrange', 'x'), ('daterange', '[2014-02-30,)'), ('tsrange', 'x'),
	('tstzrange', 'x'), ('int4[]', '{1,x}'), ('date[]', '2014-01-01'), ('jsonb[]', '{"{"}')
) AS v (inside, value);
-- one dimension only
SELECT pg_temp.stored('text[]', '{{a,b},{c,d}}');
-- what the type's modifier says, is done or refused
SELECT inside, value, pg_temp.stored(inside, value) FROM (VALUES
	('varchar(3)', 'åäö'), ('varchar(3)', 'åäö   '), ('varchar(3)', 'åäöx'), ('char(5)', 'ab'), ('char(5)', 'abcdef'),
	('numeric(5,2)', '1.005'), ('numeric(5,2)', '1000'), ('numeric(3,-2)', '12345'), ('numeric(2,3)', '0.0125'),
	('timestamp(0)', '2014-05-01 12:00:00.5'), ('timestamp(3) with time zone', '2014-05-01 12:00:00.12345+00'),
	('time(1)', '12:00:00.25'), ('time(0) with time zone', '12:00:00.5+00'),
	('interval(1)', '1.25 seconds'), ('interval day', '3'), ('interval hour to minute', '1:30'), ('interval second(2)', '1.239'),
	('varchar(2)[]', '{ab,c}'), ('varchar(2)[]', '{abc}'), ('numeric(4,1)[]', '{1.25,NULL,3}')
) AS v (inside, value);

--
-- Round trips. For each type: as the column is shown, as the value is read
-- (the plain column's text), and equal when cast back.
--
CREATE FUNCTION pg_temp.round_trip(inside text, value text, OUT declared text, OUT read text,
	OUT same_text boolean, OUT same_value boolean, OUT code text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE TEMP TABLE twin (secret encrypted(%L), plain %s) ON COMMIT DROP', inside, inside);
	SELECT format_type(atttypid, atttypmod) INTO declared FROM pg_attribute
	WHERE attrelid = 'pg_temp.twin'::regclass AND attname = 'secret';
	EXECUTE format('INSERT INTO twin VALUES (%1$L, %1$L)', value);
	-- json has no "=", so there the text must do
	EXECUTE format('SELECT format(''%%s'', secret), format(''%%s'', secret) = format(''%%s'', plain), %s,
		(nomp_crypt.key_info(secret)).type FROM twin',
		CASE WHEN inside LIKE 'json%' AND inside NOT LIKE 'jsonb%'
			THEN format('(secret::%s)::text = plain::text', inside)
			ELSE format('secret::%s = plain', inside) END)
	INTO read, same_text, same_value, code;
	-- what a dump would write declares the same column again
	EXECUTE format('CREATE TEMP TABLE again (secret %s) ON COMMIT DROP', declared);
	IF declared IS DISTINCT FROM (SELECT format_type(atttypid, atttypmod) FROM pg_attribute
		WHERE attrelid = 'pg_temp.again'::regclass AND attname = 'secret') THEN
		declared := declared || ' CHANGES WHEN DUMPED';
	END IF;
	DROP TABLE twin, again;
END
$$;
CREATE TEMP TABLE sample (inside text, value text);
INSERT INTO sample VALUES
	('text', 'Anna Ström'), ('text', ''), ('varchar', 'Anna'), ('varchar(10)', 'Anna'), ('bpchar', 'Anna  '), ('char(7)', 'Anna'),
	('bytea', '\x00ff10'), ('bool', 'false'), ('int2', '-32768'), ('int4', '2147483647'), ('int8', '-9223372036854775808'),
	('float4', '1.1'), ('float4', '-0'), ('float8', '0.1'), ('float8', 'NaN'), ('float8', '-Infinity'),
	('numeric', '123456789012345678901234567890.000100'), ('numeric', 'NaN'), ('numeric', 'Infinity'), ('numeric(10,2)', '3.14159'),
	('money', '-12.34'), ('date', '2014-05-01'), ('date', '0044-03-15 BC'), ('date', 'infinity'),
	('time', '23:59:59.999999'), ('time', '24:00'), ('timetz', '12:34:56+02'), ('timestamp', '2014-05-01 12:34:56.789'),
	('timestamptz', '2014-05-01 12:34:56+00'), ('timestamptz', '-infinity'),
	('interval', '1 year 2 mons -3 days 04:05:06.7'), ('interval', '24:00'), ('uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'),
	('inet', '192.168.0.1/24'), ('inet', '2001:db8::1'), ('json', '{ "b" : 1, "a": "å" }'), ('jsonb', '{ "b" : 1.50, "a": ["å", null] }'),
	('jsonb', '"\u00e5"'), ('int4range', '[1,5]'), ('int4range', 'empty'), ('int8range', '(,7)'), ('numrange', '[1.5,2.50)'),
	('daterange', '[2014-01-01,2014-12-31]'), ('tsrange', '[2014-01-01 00:00,)'), ('tstzrange', '[2014-01-01 00:00+00,2015-01-01 00:00+00)'),
	('text[]', '{}'), ('text[]', '{NULL}'), ('text[]', '[3:5]={a,"b,\"c",NULL}'), ('text[][]', '{å,""}');
-- an array of each scalar's sample, and a NULL
INSERT INTO sample SELECT inside || '[]', ARRAY[value, NULL]::text
FROM (SELECT DISTINCT ON (inside) inside, value FROM sample WHERE inside !~ '\[' ORDER BY inside, value COLLATE "C") s ORDER BY inside COLLATE "C";
SELECT s.inside, r.declared, r.read, r.same_text, r.same_value, r.code
FROM sample s, pg_temp.round_trip(s.inside, s.value) r;

-- Payloads do not follow the session: what one session's settings wrote,
-- another's read as they would a plain column.
CREATE TEMP TABLE twin (secret encrypted(timestamptz), plain timestamptz, money encrypted(money), interval encrypted(interval),
	float encrypted(float8), bytes encrypted(bytea), names encrypted('text[]'), doc encrypted(jsonb));
INSERT INTO twin VALUES ('2014-05-01 12:00', '2014-05-01 12:00', '1234.5', '1 day 02:00', '0.30000000000000004', 'å', '{å,ö}', '{"å": "ö"}');
SET TimeZone = 'Asia/Tokyo';
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'iso_8601';
SET bytea_output = 'escape';
SET extra_float_digits = 0;
SELECT * FROM twin;
RESET TimeZone; RESET DateStyle; RESET IntervalStyle; RESET bytea_output; RESET extra_float_digits;
-- written by a client with another encoding, the stored bytes are UTF-8 still
SET client_encoding = 'LATIN1';
INSERT INTO twin (names, doc) VALUES (ARRAY[chr(229)], format('{"%s": 1}', chr(229))::jsonb);
SET client_encoding = 'UTF8';
SELECT names, doc, octet_length(encrypted_send(names)) - 50 AS "26", octet_length(encrypted_send(doc)) - 50 AS "10"
FROM twin WHERE secret IS NULL;

-- NULL stays NULL; large values are kept whole
CREATE TEMP TABLE large (doc encrypted(jsonb), list encrypted('int4[]'), bytes encrypted(bytea), n encrypted(numeric));
INSERT INTO large VALUES (NULL, NULL, NULL, NULL),
	((SELECT jsonb_object_agg('key' || i, repeat('å', 20)) FROM generate_series(1, 5000) i),
	 (SELECT array_agg(i) FROM generate_series(1, 50000) i), decode(repeat('00ff', 100000), 'hex'), 10::numeric ^ 1000);
SELECT (doc::jsonb ->> 'key5000') = repeat('å', 20) AS doc, (list::int[])[50000] AS list,
	bytes::bytea = decode(repeat('00ff', 100000), 'hex') AS bytes, n::numeric = 10::numeric ^ 1000 AS n
FROM large;

-- rows as JSON: like the plain twin inside, ciphertext outside
CREATE TEMP TABLE person (name encrypted(text), born encrypted(date), height encrypted(numeric), vip encrypted(bool),
	tags encrypted('text[]'), doc encrypted(jsonb), none encrypted(int4));
INSERT INTO person VALUES ('Anna "A" Ström', '2014-05-01', 1.75, true, '{a,b}', '{"x": [1]}', NULL);
SET DateStyle = 'SQL, DMY';
SELECT to_jsonb(p), row_to_json(p) FROM person p;
RESET DateStyle;
RESET nomp_crypt.tenant;
SELECT key, left(value, 4) AS value FROM person p, jsonb_each_text(to_jsonb(p)) ORDER BY key;
SET nomp_crypt.tenant = 'slottsstaden';
SELECT to_jsonb(p) FROM person p;
SET nomp_crypt.other_tenants = 'ciphertext';
SELECT left(to_jsonb(p) ->> 'name', 4) FROM person p;
RESET nomp_crypt.other_tenants;
RESET nomp_crypt.tenant;
RESET ROLE;
