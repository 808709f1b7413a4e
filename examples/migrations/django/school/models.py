"""The model as it is after the migrations."""

from django.db import models

from nomp_crypt_django import EncryptedTextField


class Pupil(models.Model):
    school = models.TextField()
    name = EncryptedTextField()
    ssn = EncryptedTextField(unique=True, searchable=True)
