"""Encrypt the personnummer while others write.

The procedure commits: no transaction around it, and nothing beside it. If it
is interrupted, migrate again.  The index that Django made for LIKE must go.
"""

from django.db import migrations

from nomp_crypt_django import EncryptedTextField


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("school", "0002_encrypt_name")]
    operations = [
        migrations.SeparateDatabaseAndState(
            [migrations.RunSQL(
                "CALL nomp_crypt.encrypt_column_online('school_pupil', 'ssn', 'school',"
                " searchable => true, drop_dependents => true)",
                "SELECT nomp_crypt.decrypt_column('school_pupil', 'ssn')")],
            [migrations.AlterField("Pupil", "ssn", EncryptedTextField(unique=True, searchable=True))]),
    ]
