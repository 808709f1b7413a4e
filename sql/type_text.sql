--
-- encrypted(text), which stands for all types (types.sql): plaintext inside a
-- school, ciphertext outside; bad input first.
--
\set VERBOSITY sqlstate
SET ROLE regress_app;

-- a stored column says what is inside
CREATE TABLE t (a encrypted);
CREATE TABLE t (a int);
ALTER TABLE t ADD b encrypted;
ALTER TABLE t ADD b encrypted(text);
ALTER TABLE t ALTER b TYPE encrypted;
DROP TABLE t;
CREATE TABLE t AS SELECT id, coalesce(name, school) AS a FROM pupil;
CREATE MATERIALIZED VIEW m AS SELECT coalesce(name, school) AS a FROM pupil;
CREATE TABLE t AS SELECT id, coalesce(name, school)::encrypted(text) AS a FROM pupil WHERE false;
\d t
DROP TABLE t;
-- unknown, garbage, truncated, extended, not canonical: outside, nothing but
-- a well-formed value is taken, and only with the right to
INSERT INTO pupil VALUES (500, 'x', 'Anna');
INSERT INTO pupil VALUES (500, 'x', '');
INSERT INTO pupil VALUES (500, 'x', 'nc1:');
INSERT INTO pupil VALUES (500, 'x', 'nc1:AAAA');
INSERT INTO pupil VALUES (500, 'x', 'nc2:EAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL');
RESET ROLE;
INSERT INTO pupil VALUES (500, 'x', 'nc1:EAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL');
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 500;
DELETE FROM pupil WHERE id = 500;
-- a line break, a blank, a missing or a superfluous sign, another version, a
-- reserved bit, another type, an unknown type
INSERT INTO pupil VALUES (500, 'x', E'nc1:EAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL\n');
INSERT INTO pupil VALUES (500, 'x', 'nc1: EAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL');
INSERT INTO pupil VALUES (500, 'x', 'nc1:EAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyo');
INSERT INTO pupil VALUES (500, 'x', 'nc1:EAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL=');
INSERT INTO pupil VALUES (500, 'x', 'nc1:IAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL');
INSERT INTO pupil VALUES (500, 'x', 'nc1:EgGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL');
INSERT INTO pupil VALUES (500, 'x', 'nc1:EAKKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL');
INSERT INTO pupil VALUES (500, 'x', 'nc1:EB2KdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dRRXyhLG7d3Wbbkh3YD2XyKiMB7GYyoL');
INSERT INTO pupil VALUES (500, 'x', 'nc1:EAGKdjNBFMHJOCexu/+7KCENC9HXtxIng116WzHArbZO05Wo1Fy9dR==');

-- inside a school
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (501, 'ribersborg', 'Anna-Karin Lindström-Öberg', E'två\nrader, "citat" och ''apostrof''');
INSERT INTO pupil VALUES (502, 'ribersborg', '', NULL);
INSERT INTO pupil VALUES (503, 'ribersborg', 'nc1:not ciphertext, so plaintext', 'nc1:AAAA');
INSERT INTO pupil VALUES (504, 'ribersborg', '名前 😀 ' || chr(160), repeat('å', 100000));
SELECT name, notes FROM pupil WHERE id IN (501, 502, 503) ORDER BY id;
SELECT name, length(notes::text) AS "100000", notes::text = repeat('å', 100000) AS same FROM pupil WHERE id = 504;
-- every write draws a new nonce
SELECT count(DISTINCT encrypted_send(nomp_crypt.encrypt('same', 'ribersborg'))) AS "100" FROM generate_series(1, 100);
-- COPY, both ways, NULL and empty kept apart
COPY pupil (id, school, name, notes) FROM stdin;
505	ribersborg	Kopierad	\N
506	ribersborg		tom
\.
COPY (SELECT id, name, notes FROM pupil WHERE id IN (502, 505, 506) ORDER BY id) TO stdout;
-- UPDATE and RETURNING, UPSERT, INSERT ... SELECT from text
UPDATE pupil SET name = 'Ändrad' WHERE id = 505 RETURNING name;
INSERT INTO pupil VALUES (505, 'ribersborg', 'Igen') ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING name;
INSERT INTO pupil SELECT 510 + i, 'ribersborg', 'Elev ' || i FROM generate_series(1, 3) i RETURNING name;
-- ciphertext is refused: nothing is encrypted twice
RESET nomp_crypt.tenant;
SELECT format('%s', name) AS cipher FROM pupil WHERE id = 501 \gset
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (520, 'ribersborg', :'cipher');
INSERT INTO pupil SELECT 520, 'ribersborg', :'cipher'::text;

-- outside again: ciphertext of the size that was promised
RESET nomp_crypt.tenant;
SELECT id, octet_length(encrypted_send(name)) AS bytes, format('%s', name) ~ '^nc1:[A-Za-z0-9+/]+={0,2}$' AS text_form
FROM pupil WHERE id IN (501, 502, 505) ORDER BY id;
COPY (SELECT name FROM pupil WHERE id = 505) TO '/dev/null';
SELECT (nomp_crypt.key_info(name)).format, (nomp_crypt.key_info(name)).type,
	(nomp_crypt.key_info(name)).searchable, (nomp_crypt.key_info(name)).tenant,
	(nomp_crypt.key_info(name)).version, (nomp_crypt.key_info(name)).state
FROM pupil WHERE id = 501;
-- ciphertext dumped and loaded by who may, is the same value
RESET ROLE;
CREATE TABLE loaded (name encrypted(text));
INSERT INTO loaded VALUES (:'cipher');
GRANT SELECT ON loaded TO regress_app;
SET ROLE regress_app;
SELECT name::text FROM loaded;
-- casts: from text implicit, to text explicit only
SELECT length(name) FROM pupil;
SELECT length(name::text) FROM pupil WHERE id = 505;
SELECT pg_typeof(name::varchar) FROM pupil WHERE id = 505;
RESET ROLE;
DROP TABLE loaded;
DELETE FROM pupil WHERE id >= 500;
