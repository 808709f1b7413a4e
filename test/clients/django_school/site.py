"""The site of django_app.py: the school comes in a header."""

from django.contrib import admin
from django.http import HttpResponse
from django.urls import path

from .models import Pupil


class PupilAdmin(admin.ModelAdmin):
    list_display = ["name", "born", "active"]
    list_filter = ["active", "born"]
    search_fields = ["name", "ssn"]
    fields = ["name", "born", "ssn", "email", "city"]


admin.site.register(Pupil, PupilAdmin)


def tenant_of(request):
    return request.headers.get("X-School")


def names(request):
    return HttpResponse(",".join(p.name for p in Pupil.objects.all()))


def key(request):
    return HttpResponse(str(Pupil.objects.get(ssn="20140501-1234").pk))


def fails(request):
    Pupil.objects.create(name="half done", ssn="half")
    raise RuntimeError("half done")


urlpatterns = [path("admin/", admin.site.urls), path("names", names),
               path("key", key), path("fails", fails)]
