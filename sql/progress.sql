--
-- nomp_crypt.progress: what long commands say of themselves. Commands in SQL
-- report through _progress; a commit hides what does not report again.
--
BEGIN;
SELECT nomp_crypt._progress('count', 'pupil', 'first', 'rows', 1, 4);
SELECT pid = pg_backend_pid() AS mine, command, object, phase, done, total, unit, rate > 0 AS rate,
	time_left > '0' AS time_left, started <= clock_timestamp() AS started FROM nomp_crypt.progress;
SELECT started FROM nomp_crypt.progress \gset
SELECT nomp_crypt._progress('count', 'pupil', 'first', 'rows', 3, 4);
SELECT phase, done FROM nomp_crypt.progress;
COMMIT;
SELECT count(*) AS after_a_commit FROM nomp_crypt.progress;
-- the same command goes on
BEGIN;
SELECT nomp_crypt._progress('count', 'pupil', 'second', 'steps', 0, NULL);
SELECT phase, done, total, unit, rate, time_left, started = :'started' AS same_command FROM nomp_crypt.progress;
-- another does not
SELECT nomp_crypt._progress('count', 'mark', 'second', 'steps', 0, 0);
SELECT object, started > :'started' AS later FROM nomp_crypt.progress;
-- an error that is caught does not end it, one that is not does
DO $$ BEGIN PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN NULL; END $$;
SELECT count(*) AS after_a_caught_error FROM nomp_crypt.progress;
SELECT 1/0;
ROLLBACK;
SELECT count(*) AS after_an_error FROM nomp_crypt.progress;
BEGIN;
SELECT nomp_crypt._progress(repeat('å', 200), repeat('ö', 200), repeat('ä', 200), repeat('y', 200), 1, 2);
SELECT length(command) > 20 AND command ~ '^å+$' AND object ~ '^ö+$' AND phase ~ '^ä+$' AND unit ~ '^y+$' AS cut_in_whole_characters FROM nomp_crypt.progress;
SELECT nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
SELECT count(*) AS after_its_end FROM nomp_crypt.progress;
COMMIT;
-- for administrators
SET ROLE regress_other;
SELECT outcome('SELECT * FROM nomp_crypt.progress') AS "42501", outcome('SELECT nomp_crypt._progress_read()') AS "42501";
RESET ROLE;
