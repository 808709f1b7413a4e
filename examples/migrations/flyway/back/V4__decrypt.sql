-- Back to plain columns: in Flyway a version of its own.
SELECT nomp_crypt.decrypt_column('pupil', 'ssn');
SELECT nomp_crypt.decrypt_column('pupil', 'name');
