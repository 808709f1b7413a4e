--
-- What ANALYZE knows of an encrypted column: how many are null, how wide they
-- are, and how many differ, by their fingerprints. No value, and no key.
--
CREATE TABLE counted (plain int, few encrypted(text, searchable), many encrypted(text, searchable), each_one encrypted(text, searchable), unsearchable encrypted(text), empty encrypted(text, searchable));
SELECT nomp_crypt.grant_tenant('monbijou', 'regress_app', '{search}');
GRANT ALL ON counted TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'monbijou';
INSERT INTO counted
SELECT i % 7, CASE WHEN i % 4 > 0 THEN (i % 7)::text END, (i % 900)::text, i::text, 'the same', NULL
FROM generate_series(1, 2000) i;
RESET nomp_crypt.tenant;
RESET ROLE;
ANALYZE counted;
SELECT attname, null_frac, avg_width, n_distinct, most_common_vals IS NULL AS no_values,
	histogram_bounds IS NULL AS no_histogram, correlation IS NULL AS no_correlation
FROM pg_stats WHERE tablename = 'counted' AND attname <> 'plain' ORDER BY attname;
-- the planner's guess of an equality's rows follows from it
SELECT abs(n_distinct - 7) < 1 AS as_the_plain_column FROM pg_stats WHERE tablename = 'counted' AND attname = 'plain';

-- a sample: the estimate is near the truth
ALTER TABLE counted ALTER many SET STATISTICS 1, ALTER few SET STATISTICS 1;
SET default_statistics_target = 1;
ANALYZE counted (few, many);
RESET default_statistics_target;
SELECT attname, CASE attname WHEN 'few' THEN n_distinct = 7
	ELSE (CASE WHEN n_distinct < 0 THEN -n_distinct * 2000 ELSE n_distinct END) BETWEEN 300 AND 2000 END AS near
FROM pg_stats WHERE tablename = 'counted' AND attname IN ('few', 'many') ORDER BY attname;

SELECT nomp_crypt.revoke_tenant('monbijou', 'regress_app', '{search}');
DROP TABLE counted;
