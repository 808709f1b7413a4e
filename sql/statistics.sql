--
-- What ANALYZE knows of an encrypted column: how many are null, how wide they
-- are, and how many differ, by their fingerprints. No value, and no key.
--
CREATE TABLE counted (
	few				encrypted(text, searchable),
	many			encrypted(text, searchable),
	each_one		encrypted(text, searchable),
	unsearchable	encrypted(text),
	empty			encrypted(text, searchable)
);
GRANT ALL ON counted TO regress_app;
SELECT nomp_crypt.grant_tenant('monbijou', 'regress_app', '{encrypt}');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'monbijou';
INSERT INTO counted
SELECT CASE WHEN i % 4 > 0 THEN (i % 7)::text END, (i % 900)::text, i::text, 'the same', NULL
FROM generate_series(1, 2000) i;
RESET nomp_crypt.tenant;
RESET ROLE;

-- all rows are looked at: exact, as the fraction of the rows where that is large
ANALYZE counted;
SELECT attname, null_frac, avg_width, n_distinct, most_common_vals IS NULL AS no_values,
	histogram_bounds IS NULL AS no_histogram, correlation IS NULL AS no_correlation
FROM pg_stats WHERE tablename = 'counted' ORDER BY attname;

-- a sample of 300: an estimate, of 900
SET default_statistics_target = 1;
ANALYZE counted;
RESET default_statistics_target;
SELECT attname, CASE WHEN attname = 'many' THEN -n_distinct * 2000 BETWEEN 400 AND 1800 ELSE n_distinct = 7 END AS near
FROM pg_stats WHERE tablename = 'counted' AND attname IN ('few', 'many') ORDER BY attname;

SELECT nomp_crypt.revoke_tenant('monbijou', 'regress_app', '{encrypt}');
DROP TABLE counted;
