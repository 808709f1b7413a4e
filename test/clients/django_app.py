#!/usr/bin/python3
"""Django, with migrations, the admin and a request, as a site uses them.

    django_app.py FOLDER-OF-NOMP_CRYPT_DJANGO HOST PORT
"""

import datetime
import decimal
import io
import pathlib
import sys
import tempfile

import django
from django.conf import settings

from tap import ANNA, BERTIL, error, finish, ok, same

MIGRATIONS = tempfile.mkdtemp()
sys.path[:0] = [sys.argv[1], MIGRATIONS]
pathlib.Path(MIGRATIONS, "school_migrations").mkdir()
pathlib.Path(MIGRATIONS, "school_migrations", "__init__.py").touch()
settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": "postgres",
        "HOST": sys.argv[2], "PORT": sys.argv[3], "USER": "app",
        "ATOMIC_REQUESTS": True}},
    INSTALLED_APPS=[
        "django.contrib.admin", "django.contrib.auth",
        "django.contrib.contenttypes", "django.contrib.messages",
        "django.contrib.sessions", "django_school"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "nomp_crypt_django.TenantMiddleware"],
    TEMPLATES=[{
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True, "OPTIONS": {"context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages"]}}],
    NOMP_CRYPT_TENANT="django_school.site.tenant_of",
    MIGRATION_MODULES={"django_school": "school_migrations"},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    ROOT_URLCONF="django_school.site", SECRET_KEY="for a test",
    ALLOWED_HOSTS=["*"], USE_TZ=True, STATIC_URL="/static/")
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.exceptions import ValidationError  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import (  # noqa: E402
    DatabaseError, IntegrityError, connection, models, transaction)
from django.db.models.functions import Cast  # noqa: E402
from django.test import Client  # noqa: E402
from django_school.models import Guardian, Pupil  # noqa: E402
from nomp_crypt_django import EncryptedTextField, tenant  # noqa: E402

VALUES = dict(
    ANNA, height=1.5, age=9, wakes=datetime.time(6, 30),
    sleeps=datetime.timedelta(days=1, hours=2, seconds=3),
    city="Malmö", email="Asa@Example.org")


def migrations():
    call_command("makemigrations", "django_school", verbosity=0)
    call_command("migrate", verbosity=0)
    said = io.StringIO()
    same(error(SystemExit, lambda: call_command(
        "makemigrations", check=True, dry_run=True, stdout=said)), None,
        "a second makemigrations finds nothing")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname, format_type(atttypid, atttypmod) "
            "FROM pg_attribute WHERE attrelid = 'django_school_pupil'::regclass "
            "AND atttypid = 'encrypted'::regtype AND attname = ANY(%s)",
            [["born", "ssn", "weight"]])
        types = dict(cursor.fetchall())
    ok("date" in types["born"] and "searchable" in types["ssn"]
       and "numeric(6" in types["weight"], "the columns' types", types)

    class Careless(models.Model):
        name = EncryptedTextField(unique=True)

        class Meta:
            app_label = "careless"

    same([e.id for e in Careless.check() if e.is_serious()],
         ["nomp_crypt.E001"], "unique without searchable is an error of check")


def write_and_read():
    with tenant("north"):
        key = Pupil.objects.create(**VALUES).pk
        Pupil.objects.bulk_create([Pupil(**BERTIL),
                                   Pupil(name="Ceasar", ssn="c")])
    with tenant("north"):
        pupil = Pupil.objects.get(pk=key)
        for name, expected in VALUES.items():
            got = getattr(pupil, name)
            got = bytes(got) if name == "photo" else got
            ok(got == expected and type(got) is type(expected),
               f"{name} comes back as it went in", got, expected)
        same(Pupil.objects.values_list("born", "notes", "email").get(ssn="c"),
             (None, None, None), "NULL is None")
        pupil.points += 1
        pupil.save()
        Pupil.objects.filter(ssn="c").update(born=ANNA["born"], active=False)
        changed = list(Pupil.objects.filter(ssn__in=["c", BERTIL["ssn"]]))
        for each in changed:
            each.city = f"City of {each.name}"
        Pupil.objects.bulk_update(changed, ["city"])
        same(list(Pupil.objects.values_list("points", "born", "city")),
             [(-7, BERTIL["born"], "City of Bertil"),
              (None, ANNA["born"], "City of Ceasar"),
              (43, ANNA["born"], "Malmö")],
             "save, update and bulk_update, by Meta.ordering")


def save_unchanged():
    """save() writes all columns; the trigger keeps what is the same."""
    columns = [f.column for f in Pupil._meta.fields if f.column != "id"]

    def stored():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT " + ", ".join(f"encrypted_send({c})" for c in columns)
                + " FROM django_school_pupil WHERE id = %s", [pupil.pk])
            return dict(zip(columns, map(
                lambda v: v if v is None else bytes(v), cursor.fetchone())))

    def changed_by_save():
        before = stored()
        pupil.save()
        after = stored()
        return [c for c in columns if after[c] != before[c]]

    with tenant("north"):
        pupil = Pupil.objects.get(ssn=ANNA["ssn"])
        same(changed_by_save(), columns, "save() writes all columns anew")
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE TRIGGER keep BEFORE UPDATE ON django_school_pupil "
                "FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged()")
        same(changed_by_save(), [], "with keep_unchanged it writes none")
        pupil.points += 1
        pupil.email = pupil.email.upper()
        same(changed_by_save(), ["points", "email"], "or what has changed")
        pupil = Pupil.objects.get(ssn=ANNA["ssn"])
        same((pupil.points, pupil.email), (44, "ASA@EXAMPLE.ORG"),
             "which is what it reads")
        pupil.points, pupil.email = 43, VALUES["email"]
        pupil.save()


def lookups():
    anna, bertil = ANNA["name"], "Bertil"

    def names(*args, **kwargs):
        return [p.name for p in Pupil.objects.filter(*args, **kwargs)]

    with tenant("north"):
        for expected, lookup in [
                ([anna], {"ssn": ANNA["ssn"]}),
                ([bertil, anna], {"ssn__in": [ANNA["ssn"], BERTIL["ssn"]]}),
                ([anna], {"email": "ASA@EXAMPLE.ORG"}),
                ([anna], {"name": anna}),
                ([bertil], {"name__in": [bertil, "x"]}),
                ([bertil], {"born": BERTIL["born"]}),
                ([bertil], {"born__lt": ANNA["born"]}),
                (["Ceasar", anna], {"born__range": (ANNA["born"],
                                                    datetime.date(2015, 1, 1))}),
                (["Ceasar", anna], {"born__year": 2014}),
                ([bertil], {"born__month__gte": 6}),
                ([anna], {"active": True}),
                ([bertil, "Ceasar"], {"active": False}),
                ([anna], {"active__in": [True]}),
                ([anna], {"points__gt": 0}),
                ([anna], {"age": 9}),
                ([bertil], {"weight__gte": decimal.Decimal("32")}),
                ([anna], {"height": 1.5}),
                ([anna], {"seen__gt": BERTIL["seen"]}),
                ([anna], {"wakes": datetime.time(6, 30)}),
                ([anna], {"sleeps__gt": datetime.timedelta(days=1)}),
                ([anna], {"token": ANNA["token"]}),
                ([anna], {"token": str(ANNA["token"])}),
                ([anna], {"notes": ANNA["notes"]}),
                ([anna], {"notes__ok": True}),
                ([anna], {"notes__allergy__contains": ["nuts"]}),
                ([bertil, anna], {"notes__has_key": "allergy"}),
                ([anna], {"name__contains": "Öberg"}),
                ([anna], {"name__icontains": "öBERG"}),
                ([bertil], {"name__startswith": "Bert"}),
                ([bertil], {"name__iexact": "BERTIL"}),
                ([bertil], {"name__iregex": "^b.*l$"}),
                ([bertil, "Ceasar"], {"email__isnull": True})]:
            same(names(**lookup), expected, f"filter {lookup}")
        same([p.name for p in Pupil.objects.exclude(active=True)],
             [bertil, "Ceasar"], "exclude a boolean")
        same([p.name for p in Pupil.objects.order_by("-born", "-name")],
             [anna, "Ceasar", bertil], "order_by")
        same(Pupil.objects.aggregate(models.Max("born"), models.Count("born")),
             {"born__max": ANNA["born"], "born__count": 3}, "Max and Count")
        same(Pupil.objects.aggregate(total=models.Sum(
            Cast("points", models.IntegerField())))["total"], 36,
            "Sum, by a cast")
        same(Pupil.objects.first().name, bertil, "first")
        same(Pupil.objects.filter(ssn="c").exists(), True, "exists")


def relations():
    with tenant("north"):
        pupil = Pupil.objects.get(ssn=ANNA["ssn"])
        for phone in "070-123 45 67", "08 11 22":
            Guardian.objects.create(pupil=pupil, phone=phone)
        same([g.pupil.name for g in Guardian.objects.select_related("pupil")
              .filter(phone="0701234567")], [ANNA["name"]],
             "a join by an encrypted foreign key")
        same([p.guardian_set.count() for p in Pupil.objects
              .prefetch_related("guardian_set")], [0, 0, 2], "prefetch_related")
        Guardian.objects.filter(phone="081122").delete()
        same([g.phone for g in Guardian.objects.all()], ["070-123 45 67"],
             "delete")
        found, created = Pupil.objects.get_or_create(
            ssn=ANNA["ssn"], defaults={"name": "new"})
        same((found.pk, created), (pupil.pk, False), "get_or_create gets")
        found, created = Pupil.objects.get_or_create(
            ssn="d", defaults={"name": "David"})
        same((found.name, created), ("David", True), "get_or_create creates")
        found, created = Pupil.objects.update_or_create(
            ssn="d", defaults={"name": "Doris", "born": ANNA["born"]})
        same((Pupil.objects.get(ssn="d").name, created), ("Doris", False),
             "update_or_create")


def unique():
    with tenant("north"):
        twin = Pupil(name="twin", ssn=ANNA["ssn"])
        found = error(ValidationError, twin.full_clean)
        ok(found is not None and list(found.message_dict) == ["ssn"],
           "full_clean says that it is not unique", found)

        def save():
            with transaction.atomic():
                twin.save()

        found = error(DatabaseError, save)
        ok(isinstance(found, IntegrityError)
           and found.__cause__.pgcode == "23505",
           "saving it is an IntegrityError", found)
    with tenant("south"):
        twin.full_clean()
        twin.save()
        same([p.name for p in Pupil.objects.filter(ssn=ANNA["ssn"])
              .extra(where=["nomp_crypt.tenant_of(ssn) = 'south'"])],
             ["twin"], "in another school it is none")
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_school_pupil "
                           "WHERE nomp_crypt.tenant_of(ssn) = 'south'")


def tenants():
    def current():
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('nomp_crypt.tenant')")
            return cursor.fetchone()[0]

    def nested():
        with tenant("north"):
            with tenant("south"):
                inside = current()
            after = current()
            with transaction.atomic():
                pass
        return inside, after, current()

    same(nested(), ("south", "north", ""), "a tenant ends with its block")
    found = error(DatabaseError, lambda: Pupil.objects.create(
        name="nobody's", ssn="x"))
    ok(found is not None and found.__cause__.pgcode == "NC006"
       and "nomp_crypt.tenant" in str(found),
       "without a tenant: NC006, and what to do", found)
    values = Pupil.objects.order_by("pk").values_list("born", "name")[0]
    ok(all(v.startswith("nc1:") for v in values),
       "without a tenant there is ciphertext", values)


def requests():
    User.objects.create_superuser("admin")
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.get())

    def page(path):
        return client.get(path, HTTP_X_SCHOOL="north").content.decode()

    same(page("/names"), f"Bertil,Ceasar,Doris,{ANNA['name']}",
         "a request reads its school's")
    same(client.get("/fails", HTTP_X_SCHOOL="north").status_code, 500,
         "a view that fails")
    same(page("/names").count("half done"), 0, "is rolled back")
    listed = "/admin/django_school/pupil/"
    for query, present, absent in [
            ("", ["Bertil", "Öberg", "May 1, 2014"], []),
            ("?q=öberg", ["Öberg"], ["Bertil"]),
            ("?active__exact=0", ["Bertil"], ["Öberg"]),
            ("?born__gte=2014-01-01&born__lt=2015-01-01", ["Öberg"], ["Bertil"]),
            ("?o=-2", ["Bertil", "Öberg"], [])]:
        answer = page(listed + query)
        ok(all(p in answer for p in present)
           and not any(a in answer for a in absent),
           f"the admin's list {query}", answer[:300])
    key = page("/key")
    form = {"name": "Åke", "ssn": ANNA["ssn"], "email": "", "city": ""}
    answer = client.post(f"{listed}add/", form, HTTP_X_SCHOOL="north")
    ok("already exists" in answer.content.decode(),
       "the admin's form finds the duplicate", answer.status_code)
    answer = client.post(f"{listed}{key}/change/",
                         dict(form, born="2014-05-02"), HTTP_X_SCHOOL="north")
    same(answer.status_code, 302, "the admin saves a change")
    same(page("/names"), "Bertil,Ceasar,Doris,Åke", "which is there")


def main():
    migrations()
    write_and_read()
    save_unchanged()
    lookups()
    relations()
    unique()
    tenants()
    requests()
    finish()


if __name__ == "__main__":
    main()
