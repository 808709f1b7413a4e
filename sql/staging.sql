--
-- Made-up values: what they look like, that they are of every type and differ
-- where they must; and that nothing is replaced here, where the keys are.
-- A copy that is staging: t/staging_has_made_up_values.pl.
--
\set SHOW_CONTEXT never
SELECT kind, nomp_crypt.made_up(kind, 0) AS first, nomp_crypt.made_up(kind, 1000000) AS later
FROM unnest('{name,given name,surname,personnummer,email,phone,street,postcode,city,digits,text}'::text[]) kind;
SELECT kind, count(DISTINCT nomp_crypt.made_up(kind, n)) AS differ_5000
FROM unnest('{name,given name,surname,personnummer,email,phone,street,postcode,city,digits,text}'::text[]) kind, generate_series(0, 4999) n
GROUP BY kind ORDER BY kind;
SELECT nomp_crypt.made_up('shoe size', 1);
SELECT nomp_crypt.made_up('name', -1);
SELECT nomp_crypt.made_up('personnummer', 14594391);

-- by the names of columns
SELECT name, nomp_crypt._made_up_kind(name, 'text', false) AS kind, nomp_crypt._made_up_kind(name, 'text', true) AS of_digits
FROM unnest('{ssn,pnr,personNummer,personal_identity_number,pupil_ssn,email,E-post,mobil,firstName,fornamn,tilltalsnamn,
	efternamn,surname,name,namn,gatuadress,postnr,ort,import,passport}'::text[]) name;

-- of every type, as the column wants it
CREATE FUNCTION pg_temp.made(type text, n bigint, wide boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	EXECUTE format('SELECT (%L::%s)::text', nomp_crypt._made_up(nomp_crypt._made_up_kind('x', type, false), n, type,
		substring(type FROM '^char.*\(([0-9]+)\)')::int, wide), type) INTO said;
	RETURN said;
END
$$;
SET datestyle = ISO; SET timezone = 'UTC';
SELECT type, pg_temp.made(type, 7, false) AS plain, pg_temp.made(type, 7, true) AS wide,
	(SELECT count(DISTINCT pg_temp.made(type, n, true)) FROM generate_series(0, 999) n) AS differ_1000
FROM unnest('{text,"character varying(4)",character(3),bytea,smallint,integer,bigint,real,double precision,numeric,"numeric(5,2)","numeric(3,-2)",
	money,date,time without time zone,time with time zone,timestamp(0) without time zone,timestamp with time zone,interval,uuid,inet,json,jsonb,
	int4range,int8range,numrange,daterange,tsrange,tstzrange,text[],integer[],date[],jsonb[]}'::text[]) WITH ORDINALITY u(type, place) ORDER BY place;
SELECT pg_temp.made('boolean', 0, true), pg_temp.made('boolean', 1, true), pg_temp.made('boolean', 7, false);
SELECT pg_temp.made('boolean', 2, true);
SELECT pg_temp.made('character varying(1)', 10, true);
SELECT room, nomp_crypt._made_up('personnummer', 20000, 'text', room, true) FROM unnest('{13,12,11,10}'::int[]) room;
SELECT nomp_crypt._made_up('personnummer', NULL, 'text', NULL, true);

-- this is no copy
\set VERBOSITY sqlstate
CALL nomp_crypt.begin_staging();
CALL nomp_crypt.replace_values('seed');
CALL nomp_crypt.replace_values(NULL);
CALL nomp_crypt.replace_values('seed', batch_size => 0);
SET ROLE regress_app;
CALL nomp_crypt.begin_staging();
CALL nomp_crypt.replace_values('seed');
RESET ROLE;
SELECT count(*) FROM nomp_crypt.original_key;
