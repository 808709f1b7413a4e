"""The table as it was: plain."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Pupil", [
            ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
            ("school", models.TextField()),
            ("name", models.TextField()),
            ("ssn", models.TextField(unique=True)),
        ]),
    ]
