--
-- What an erasure waits for, in the words that people see; every refusal with
-- its SQLSTATE. (Approvals by other people, nodes, purging and many schools
-- are in t/.)
--
\set VERBOSITY terse
SELECT nomp_crypt.create_tenant('case-school') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('case-school', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
INSERT INTO pupil VALUES (800, 'case-school', nomp_crypt.encrypt('Vera', 'case-school'), NULL);
-- nothing of it is for everybody
SELECT outcome($$SELECT nomp_crypt.approve_erasure('case-school')$$) AS approve, outcome($$SELECT nomp_crypt.hold_tenant('case-school', 'T-1')$$) AS hold,
	outcome($$SELECT nomp_crypt.release_hold('case-school', 'T-1')$$) AS release, outcome($$SELECT nomp_crypt.data_returned('case-school', 'not wanted')$$) AS returned,
	outcome($$SELECT * FROM nomp_crypt.erasure_preview('case-school')$$) AS preview, outcome($$CALL nomp_crypt.run_due_erasures()$$) AS run,
	outcome($$CALL nomp_crypt.erase_agreement('x', 'test')$$) AS agreement, outcome($$CALL nomp_crypt.purge_tenant('case-school')$$) AS purge,
	outcome($$CALL nomp_crypt.certify_erasure('case-school')$$) AS certify, outcome($$SELECT nomp_crypt.acknowledge_lease(NULL)$$) AS acknowledge,
	outcome($$SELECT * FROM nomp_crypt.exposure_report(now())$$) AS exposure, outcome($$SELECT * FROM nomp_crypt.tenant_report('case-school')$$) AS report,
	outcome($$SELECT * FROM nomp_crypt.erasures$$) AS erasures;
RESET ROLE;
-- a hold, and the preview of what waits behind it
SELECT nomp_crypt.hold_tenant('case-school', 'T-1');
SELECT kind, object, column_name, amount FROM nomp_crypt.erasure_preview('case-school') WHERE kind <> 'not reached';
CALL nomp_crypt.erase_agreement('no-such-agreement', 'test');
DO $$ BEGIN PERFORM nomp_crypt._erase_request('case-school', 'test', 'PUB-1'); END $$;
CALL nomp_crypt.run_due_erasures();
SELECT state, reference, approvals, approvals_needed, held, data_returned, regexp_replace(next, ' at .*', ' at (time)') AS next
FROM nomp_crypt.erasures WHERE tenant = 'case-school';
SELECT outcome($$SELECT nomp_crypt._erase_fence((SELECT case_id FROM nomp_crypt.erasures WHERE tenant = 'case-school'))$$) AS "55000";
SELECT outcome($$SELECT nomp_crypt.data_returned('case-school', 'X')$$) AS "22023", outcome($$SELECT nomp_crypt.hold_tenant('case-school', 'a b')$$) AS "22023",
	outcome($$SELECT nomp_crypt.release_hold('case-school', 'T-2')$$) AS "42704", outcome($$SELECT nomp_crypt.approve_erasure('case-school')$$) AS "42704";
SELECT nomp_crypt.data_returned('case-school', 'not wanted');
SELECT nomp_crypt.release_hold('case-school', 'T-1');
SELECT held, data_returned, next FROM nomp_crypt.erasures WHERE tenant = 'case-school';
SELECT outcome($$CALL nomp_crypt.purge_tenant('case-school')$$) AS "2D000";
CALL nomp_crypt.purge_tenant('case-school');
-- due, executed by the one call and certified by another
SET client_min_messages = warning;
CALL nomp_crypt.run_due_erasures();
RESET client_min_messages;
SELECT t.state FROM nomp_crypt.tenants t WHERE t.id = 'case-school';
SELECT nomp_crypt.acknowledge_lease(case_id) FROM nomp_crypt.erasures WHERE tenant = 'case-school';
CALL nomp_crypt.certify_erasure('case-school');
SELECT state, next FROM nomp_crypt.erasures WHERE tenant = 'case-school';
SELECT e.verification ->> 'sample' AS sample, starts_with(e.sample, 'nc1:') AS "is a ciphertext", e.verification -> 'not_asked' AS not_asked
FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'case-school';
SELECT outcome($$SELECT nomp_crypt.hold_tenant('case-school', 'T-1')$$) AS "55000", outcome($$SELECT nomp_crypt.data_returned('case-school', 'not wanted')$$) AS "55000",
	outcome($$SELECT nomp_crypt.acknowledge_lease(case_id) FROM nomp_crypt.erasures WHERE tenant = 'case-school'$$) AS "55000";
-- the values go, with nothing in the search_path and with traps in it
CALL nomp_crypt.purge_tenant('case-school', 'neither');
SET search_path = '';
CALL nomp_crypt.purge_tenant('case-school');
RESET search_path;
SELECT name IS NULL AS removed FROM pupil WHERE id = 800;
DELETE FROM pupil WHERE id = 800;
SELECT section, item, regexp_replace(value, ', granted .*', '') AS value FROM nomp_crypt.tenant_report('case-school', 'en')
WHERE section IN ('School', 'Who may read') AND item IN ('Id', 'State', 'regress_app');
SELECT outcome($$SELECT * FROM nomp_crypt.tenant_report('case-school', 'xx')$$) AS "22023", outcome($$SELECT * FROM nomp_crypt.exposure_report('infinity')$$) AS "22023";
