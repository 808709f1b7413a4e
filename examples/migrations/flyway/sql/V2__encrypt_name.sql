-- Encrypt the names, while the table is locked.
SELECT nomp_crypt.encrypt_column('pupil', 'name', 'school');
