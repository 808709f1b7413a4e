#!/usr/bin/python3
"""manage.py migrate: against the database of libpq's environment variables."""

import os
import pathlib
import sys

from django.conf import settings
from django.core.management import execute_from_command_line

ROOT = pathlib.Path(__file__).resolve().parent
# yours has nomp_crypt_django.py in the project
sys.path[:0] = [str(ROOT), str(ROOT.parents[2] / "clients" / "python")]
settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"],
        "USER": os.environ["PGUSER"], "NAME": os.environ["PGDATABASE"]}},
    INSTALLED_APPS=["school"], DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
execute_from_command_line(sys.argv)
