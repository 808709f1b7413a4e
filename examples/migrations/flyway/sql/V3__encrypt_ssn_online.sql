-- Encrypt the personnummer while others write. The procedure commits: it is
-- alone in its file, and V3__encrypt_ssn_online.sql.conf takes the transaction
-- away. If it is interrupted: flyway repair, and migrate again.
CALL nomp_crypt.encrypt_column_online('pupil', 'ssn', 'school', searchable => true);
