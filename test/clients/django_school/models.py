"""The models of django_app.py."""

from django.db import models
from nomp_crypt_django import (
    EncryptedBinaryField, EncryptedBooleanField, EncryptedCharField,
    EncryptedDateField, EncryptedDateTimeField, EncryptedDecimalField,
    EncryptedDurationField, EncryptedEmailField, EncryptedFloatField,
    EncryptedIntegerField, EncryptedJSONField, EncryptedTextField,
    EncryptedTimeField, EncryptedUUIDField, encrypted_field)

EncryptedPositiveIntegerField = encrypted_field(
    models.PositiveIntegerField, "EncryptedPositiveIntegerField", __name__)


class Pupil(models.Model):
    name = EncryptedTextField()
    born = EncryptedDateField(null=True, blank=True)
    active = EncryptedBooleanField(default=True)
    points = EncryptedIntegerField(null=True, blank=True)
    age = EncryptedPositiveIntegerField(null=True, blank=True)
    weight = EncryptedDecimalField(max_digits=6, decimal_places=2, null=True,
                                   blank=True)
    height = EncryptedFloatField(null=True, blank=True)
    seen = EncryptedDateTimeField(null=True, blank=True)
    wakes = EncryptedTimeField(null=True, blank=True)
    sleeps = EncryptedDurationField(null=True, blank=True)
    token = EncryptedUUIDField(null=True, blank=True)
    photo = EncryptedBinaryField(null=True, blank=True)
    notes = EncryptedJSONField(null=True, blank=True)
    city = EncryptedCharField(max_length=30, blank=True)
    ssn = EncryptedTextField(unique=True, searchable=True)
    email = EncryptedEmailField(searchable="nocase", null=True, blank=True,
                                db_index=True)

    class Meta:
        ordering = ["name"]

    def __str__(self):
        return self.name


class Guardian(models.Model):
    pupil = models.ForeignKey(Pupil, to_field="ssn", on_delete=models.CASCADE)
    phone = EncryptedTextField(searchable="digits")

    class Meta:
        ordering = ["-pupil__born", "phone"]
        unique_together = [("pupil", "phone")]
