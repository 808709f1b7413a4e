--
-- A requested erasure suspends the school at once, and can be withdrawn until
-- it is executed. (The grace period itself is in t/.)
--
\set VERBOSITY terse
SELECT nomp_crypt.create_tenant('second-thoughts') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('second-thoughts', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
INSERT INTO pupil VALUES (700, 'second-thoughts', nomp_crypt.encrypt('Vera', 'second-thoughts'));
RESET ROLE;
SELECT nomp_crypt.withdraw_erasure('second-thoughts');
SELECT nomp_crypt.withdraw_erasure('nowhere');
SELECT nomp_crypt._erase_request('second-thoughts', 'test', 'PUB-1') IS NOT NULL AS requested;
SELECT state FROM nomp_crypt.tenants WHERE id = 'second-thoughts';
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 700;
SELECT nomp_crypt.withdraw_erasure('second-thoughts');
RESET ROLE;
SELECT nomp_crypt.withdraw_erasure('second-thoughts');
SELECT t.state, e.state AS "case", e.reference FROM nomp_crypt.tenants t JOIN nomp_crypt.erasure e ON e.tenant = t.uuid
WHERE t.id = 'second-thoughts';
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 700;
RESET ROLE;
-- asked again, it is a new case; executed, it is final
CALL nomp_crypt.erase_tenant('second-thoughts', 'test', 'PUB-2');
SELECT nomp_crypt.withdraw_erasure('second-thoughts');
SELECT e.state AS "case", e.reference FROM nomp_crypt.erasure e JOIN nomp_crypt.tenants t ON e.tenant = t.uuid
WHERE t.id = 'second-thoughts' ORDER BY e.requested_at;
DELETE FROM pupil WHERE id = 700;
-- the school comes back; repeating the old call does not touch it
SELECT nomp_crypt.create_tenant('second-thoughts') IS NOT NULL AS created;
SET client_min_messages = warning;
CALL nomp_crypt.erase_tenant('second-thoughts', 'test', 'PUB-2');
RESET client_min_messages;
SELECT state FROM nomp_crypt.tenants WHERE id = 'second-thoughts' ORDER BY created_at;
CALL nomp_crypt.erase_tenant('second-thoughts', 'test', 'PUB-3');
SELECT state FROM nomp_crypt.tenants WHERE id = 'second-thoughts' ORDER BY created_at;
