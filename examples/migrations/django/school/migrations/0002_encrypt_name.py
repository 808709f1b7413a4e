"""Encrypt the names, while the table is locked.

AlterField alone would not do: PostgreSQL would have to know whose each row is.
"""

from django.db import migrations

from nomp_crypt_django import EncryptedTextField


class Migration(migrations.Migration):
    dependencies = [("school", "0001_initial")]
    operations = [
        migrations.SeparateDatabaseAndState(
            [migrations.RunSQL(
                "SELECT nomp_crypt.encrypt_column('school_pupil', 'name', 'school')",
                "SELECT nomp_crypt.decrypt_column('school_pupil', 'name')")],
            [migrations.AlterField("Pupil", "name", EncryptedTextField())]),
    ]
