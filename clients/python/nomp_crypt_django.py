"""nomp_crypt for Django: encrypted model fields, and the tenant of a request.

    from nomp_crypt_django import (
        EncryptedBooleanField, EncryptedDateField, EncryptedTextField, tenant)

    class Pupil(models.Model):
        name = EncryptedTextField()
        born = EncryptedDateField(null=True)
        ssn = EncryptedTextField(unique=True, searchable=True)

    with tenant("s-0180-42"):
        Pupil.objects.get(ssn="20140501-1234").born   # a datetime.date

A field takes what Django's field of that name takes, and searchable: False,
True, "nocase" or "digits".  Its column is encrypted(<what Django would use>).
encrypted_field() makes such a class of any other field class.

What it does: names the column's type, turns the text that the server answers
into what the field holds, and casts the column to its plain type where a
lookup is not a comparison (icontains, year, JSON keys).  Values are sent as
Django sends them; the server encrypts.  Copy the file into your project, it
needs Django 3.2 or later with psycopg2.
"""

import importlib
from contextlib import contextmanager

from django.conf import settings
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections, models, transaction
from django.db.models.functions import Cast
from django.db.models.lookups import Exact
from django.utils import timezone

# The server compares encrypted columns in these; others get the plain type.
COMPARISONS = {"exact", "in", "gt", "gte", "lt", "lte", "range", "isnull"}


class EncryptedExact(Exact):
    """col = true, where Django would write the column alone: a condition
    must be boolean, and an encrypted boolean is not."""

    def as_sql(self, compiler, connection):
        return super(Exact, self).as_sql(compiler, connection)


class EncryptedMixin:
    """Makes a field of a plain one; see encrypted_field."""

    plain_class = None

    def __init__(self, *args, searchable=False, **kwargs):
        if searchable not in (False, True, "nocase", "digits"):
            raise ValueError(
                'searchable is False, True, "nocase" or "digits"')
        self.searchable = searchable
        super().__init__(*args, **kwargs)

    def deconstruct(self):
        name, path, args, kwargs = super().deconstruct()
        if self.searchable:
            kwargs["searchable"] = self.searchable
        return name, path, args, kwargs

    def check(self, **kwargs):
        found = super().check(**kwargs)
        if not self.searchable and (self.unique or self.db_index):
            found.append(checks.Error(
                "An encrypted column can be unique or indexed only if it is "
                "searchable.",
                hint="Add searchable=True.", obj=self,
                id="nomp_crypt.E001"))
        if self.has_default() and not callable(self.default):
            found.append(checks.Warning(
                "Adding this field to a table with rows fails: a default of "
                "the column would be encrypted for one tenant.",
                hint="Add it with null=True first; fill it school by school.",
                obj=self, id="nomp_crypt.W001"))
        return found

    # The column

    def plain_field(self):
        """The field that this one would be without encryption."""
        _, _, args, kwargs = self.deconstruct()
        kwargs.pop("searchable", None)
        return self.plain_class(*args, **kwargs)

    def db_type(self, connection):
        plain = super().db_type(connection)
        if not plain.isalpha():
            plain = f"'{plain}'"
        search = {False: "", True: ", searchable"}.get(
            self.searchable, f", searchable, {self.searchable}")
        return f"encrypted({plain}{search})"

    def db_check(self, connection):
        # Django's (n >= 0) would need a tenant at every write.
        return None

    # Values

    def from_db_value(self, value, expression, connection):
        """Text from an encrypted column; ciphertext, which is what there is
        outside a tenant, is handed on."""
        if not isinstance(value, str) or value.startswith("nc1:"):
            return value
        if isinstance(self, models.BinaryField):
            return memoryview(bytes.fromhex(value[2:]))
        if hasattr(self.plain_class, "from_db_value"):
            return super().from_db_value(value, expression, connection)
        value = self.to_python(value)
        if (isinstance(self, models.DateTimeField) and value.tzinfo
                and not settings.USE_TZ):
            value = timezone.make_naive(value, connection.timezone)
        return value

    # Lookups

    def get_lookup(self, lookup_name):
        lookup = super().get_lookup(lookup_name)
        if lookup is None:
            return None
        if lookup_name in COMPARISONS:
            return EncryptedExact if lookup is Exact else lookup
        return lambda lhs, rhs: lookup(Cast(lhs, self.plain_field()), rhs)

    def get_transform(self, lookup_name):
        transform = super().get_transform(lookup_name)
        if transform is None:
            return None
        return lambda lhs, *args: transform(
            Cast(lhs, self.plain_field()), *args)


def encrypted_field(plain, name, module):
    """A field class like plain whose column is encrypted.  name and module
    say where migrations find it."""
    return type(name, (EncryptedMixin, plain),
                {"plain_class": plain, "__module__": module,
                 "__doc__": f"{plain.__name__} with an encrypted column."})


EncryptedTextField = encrypted_field(
    models.TextField, "EncryptedTextField", __name__)
EncryptedCharField = encrypted_field(
    models.CharField, "EncryptedCharField", __name__)
EncryptedEmailField = encrypted_field(
    models.EmailField, "EncryptedEmailField", __name__)
EncryptedBooleanField = encrypted_field(
    models.BooleanField, "EncryptedBooleanField", __name__)
EncryptedDateField = encrypted_field(
    models.DateField, "EncryptedDateField", __name__)
EncryptedDateTimeField = encrypted_field(
    models.DateTimeField, "EncryptedDateTimeField", __name__)
EncryptedTimeField = encrypted_field(
    models.TimeField, "EncryptedTimeField", __name__)
EncryptedDurationField = encrypted_field(
    models.DurationField, "EncryptedDurationField", __name__)
EncryptedSmallIntegerField = encrypted_field(
    models.SmallIntegerField, "EncryptedSmallIntegerField", __name__)
EncryptedIntegerField = encrypted_field(
    models.IntegerField, "EncryptedIntegerField", __name__)
EncryptedBigIntegerField = encrypted_field(
    models.BigIntegerField, "EncryptedBigIntegerField", __name__)
EncryptedFloatField = encrypted_field(
    models.FloatField, "EncryptedFloatField", __name__)
EncryptedDecimalField = encrypted_field(
    models.DecimalField, "EncryptedDecimalField", __name__)
EncryptedUUIDField = encrypted_field(
    models.UUIDField, "EncryptedUUIDField", __name__)
EncryptedBinaryField = encrypted_field(
    models.BinaryField, "EncryptedBinaryField", __name__)
EncryptedJSONField = encrypted_field(
    models.JSONField, "EncryptedJSONField", __name__)


# The tenant

def _set_tenant(connection, tenant_id):
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('nomp_crypt.tenant', %s, true)",
                       [tenant_id])


@contextmanager
def tenant(tenant_id, using=DEFAULT_DB_ALIAS):
    """A transaction (or savepoint) inside that tenant; afterwards the tenant
    is again what it was before."""
    connection = connections[using]
    with transaction.atomic(using=using):
        with connection.cursor() as cursor:
            # not the setting, which another client may have left behind
            cursor.execute("SELECT coalesce(nomp_crypt.current_tenant(), '')")
            before, = cursor.fetchone()
        _set_tenant(connection, tenant_id)
        yield
        # Whatever is rolled back takes the setting with it.
        if not connection.needs_rollback:
            _set_tenant(connection, before)


class TenantMiddleware:
    """Runs each request in a transaction inside its tenant.

    settings.NOMP_CRYPT_TENANT names a function, "package.module.function",
    that says a request's tenant, or None for a request without one.  With
    ATOMIC_REQUESTS the view's own transaction is a savepoint in this one.  An
    answer of 500 or more rolls back.  A streamed answer is made later,
    outside: use tenant() in what makes it.
    """

    def __init__(self, get_response):
        module, _, function = settings.NOMP_CRYPT_TENANT.rpartition(".")
        self.tenant_of = getattr(importlib.import_module(module), function)
        self.get_response = get_response

    def __call__(self, request):
        tenant_id = self.tenant_of(request)
        if tenant_id is None:
            return self.get_response(request)
        with tenant(tenant_id):
            response = self.get_response(request)
            if response.status_code >= 500:
                transaction.set_rollback(True)
            return response
