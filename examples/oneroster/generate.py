#!/usr/bin/python3
"""generate.py [FOLDER]: writes an invented OneRoster 1.1 CSV bundle.

The same bundle every time, with nothing but Python's standard library.  All
people in it are invented; see README.md for what makes their data certainly
nobody's.
"""
import csv
import pathlib
import random
import sys
import unicodedata
import uuid

SEED = 20240817
NAMESPACE = uuid.UUID("6f6e6572-6f73-4465-8d65-6578616d706c")

# 9999 is no municipality's code.
DISTRICT = ("d-9999", "Exempelköpings kommun")
SCHOOLS = [                     # sourcedId, name, number of pupils
    ("s-9999-01", "Åsängsskolan", 1150),
    ("s-9999-02", "Östra Björkskolan", 900),
    ("s-9999-03", "Näckrosskolan", 700),
    ("s-9999-04", "Friskolan Älvdalen-Sjö", 450),
]
PUPILS_PER_CLASS = 24
GRADES = range(1, 10)           # the Swedish grundskola

GIVEN = """
Alice Maja Elsa Astrid Vera Freja Ebba Alma Selma Olivia Wilma Saga Ellen Stella Märta Åsa Görel
Anna-Karin Eva-Lena Ann-Sofie Britt-Marie Maj-Britt Lisa-Örjana Linnéa Zoë Chloé Désirée
Noah William Hugo Liam Adam Lucas Elias Oliver Axel Björn Åke Örjan Göran Sören Håkan Märten Pär Mårten
Carl-Åke Jan-Erik Per-Ola Lars-Göran Sven-Åke Karl-Ämbjörn André René
Áila Niillas Ánte Láilá Biret-Elle Máret Ráste Jovnna Sárá-Ánne
Fātima Mūsā Ḥasan ʿAlī Yāsīn Amīna Layla Omar
Łucja Żaneta Świętosława Małgorzata Bożena Michał Paweł Jędrzej Łukasz
Şükran İlayda Çağla Zsófia Győző Željko Đorđe Ngọc-Ánh Íris Þór
محمد فاطمة نور
""".split()
FAMILY = """
Andersson Johansson Karlsson Nilsson Eriksson Larsson Olsson Persson Svensson Gustafsson
Lindström Öberg Åkesson Ängström Sjöberg Björklund Håkansson Söderström Nyström Blomqvist Wallén
Lindström-Öberg Ek-Nyqvist Berg-Åström Holm-Lindqvist Åkerblom-Sjö Von-Öster
Sara Kuhmunen Utsi Gáhppe-Labba Päiviö Nutti Blind-Valkeapää
al-Ḥaddād Özdemir Yılmaz Hāshimī Kurdī
Kowalczyk Wójcik Dąbrowska Wiśniewski Zielińska-Łęcka Kaźmierczak
Nguyễn Kovačević Đukić Szőke Brâncuș Müller Guðmundsdóttir
الحداد
""".split()

SHORT_NOTES = [
    "Glutenintolerant, egen matlåda vid utflykter.",
    "Nötallergi; adrenalinpenna finns hos skolsköterskan.",
    "Behöver längre tid vid nationella prov.",
    "Har skyddade personuppgifter: lämna aldrig ut adress eller skola.",
    "Bor växelvis hos föräldrarna; udda veckor hämtar mormor.",
    "Modersmålsundervisning i nordsamiska, torsdagar.",
    "Modersmålsundervisning i arabiska, måndagar kl. 14.20.",
    "Åtgärdsprogram i matematik, följs upp före lovet.",
    "Använder hörapparat; ska sitta långt fram.",
    "Vårdnadshavare önskar kontakt per telefon, \"inte e-post\".",
    "Diabetes typ 1, blodsocker kontrolleras före idrotten.",
    "Läser med förstoring; allt material även digitalt.",
]
JOURNAL = [
    "Samtal med vårdnadshavare om frånvaron; överenskommelse, se ovan.",
    "Elevhälsoteamet möttes; kurator och specialpedagog deltog.",
    "Ny placering i klassrummet prövas under tre veckor.",
    "Läraren beskriver att arbetsron är bättre efter höstlovet.",
    "Remiss till logoped skickad, svar väntas inom två månader.",
    "Konflikt på rasten utredd; båda eleverna hörda var för sig.",
    "Prov i svenska: godkänt. Prov i engelska: görs om muntligt.",
    "Föräldramöte per video; tolk (tigrinja) bokad.",
]

# The columns of OneRoster 1.1 (CSV tables); metadata.notes is an extension.
HEADERS = {
    "manifest": "propertyName value",
    "academicSessions": "sourcedId status dateLastModified title type startDate endDate"
                        " parentSourcedId schoolYear",
    "orgs": "sourcedId status dateLastModified name type identifier parentSourcedId",
    "courses": "sourcedId status dateLastModified schoolYearSourcedId title courseCode grades"
               " orgSourcedId subjects subjectCodes",
    "classes": "sourcedId status dateLastModified title grades courseSourcedId classCode"
               " classType location schoolSourcedId termSourcedIds subjects subjectCodes"
               " periods",
    "users": "sourcedId status dateLastModified enabledUser orgSourcedIds role username"
             " userIds givenName familyName middleName identifier email sms phone"
             " agentSourcedIds grades password metadata.notes",
    "enrollments": "sourcedId status dateLastModified classSourcedId schoolSourcedId"
                   " userSourcedId role primary beginDate endDate",
}
ABSENT = ["categories", "classResources", "courseResources", "demographics", "lineItems",
          "resources", "results"]

YEAR, TERM = "year-2024", "term-2024-ht"
TERM_BEGIN, TERM_END = "2024-08-19", "2024-12-20"


def ascii_part(name):
    """A name as the local part of an address: letters a to z and hyphens."""
    name = name.translate(str.maketrans("ŁłĐđØøıʿÞþ", "LlDdOoi Tt"))
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return "".join(c for c in name if c.isalpha() or c == "-")


def personal_number(rng, grade, taken):
    """A personnummer with a check digit that is wrong on purpose: nobody's."""
    while True:
        year = 2024 - 6 - grade
        digits = f"{year % 100:02}{rng.randint(1, 12):02}{rng.randint(1, 28):02}" \
                 f"{rng.randint(0, 999):03}"
        total = 0
        for i, digit in enumerate(digits):
            product = int(digit) * (2 - i % 2)
            total += product // 10 + product % 10
        wrong = (-total + rng.randint(1, 9)) % 10
        number = f"{year // 100}{digits[:6]}-{digits[6:]}{wrong}"
        if number not in taken:
            taken.add(number)
            return number


def note(rng, serial):
    """Mostly nothing, often a line, sometimes a journal of up to 10 kB."""
    kind = rng.random()
    if serial % 128 == 7:
        size = 10_000 if serial % 512 == 7 else rng.randint(1_500, 9_000)
        lines = [f"Journal för elev nr {serial}."]
        while len("\n".join(lines).encode()) < size:
            day = f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            lines.append(f"{day}: {rng.choice(JOURNAL)} (dnr {serial}/{len(lines)})")
        return "\n".join(lines).encode()[:size].decode(errors="ignore")
    if kind < 0.45:
        return ""
    if kind < 0.93:
        return f"{rng.choice(SHORT_NOTES)} (elevakt {serial:05})"
    return f"{rng.choice(SHORT_NOTES)}\n{rng.choice(SHORT_NOTES)} (elevakt {serial:05})"


def names(rng, serial):
    """Given and family name; now and then the same ones again."""
    if serial % 400 in (3, 4):
        return "Anna-Karin", "Lindström-Öberg"
    return rng.choice(GIVEN), rng.choice(FAMILY)


def sourced_id(kind, serial):
    return str(uuid.uuid5(NAMESPACE, f"{kind} {serial}"))


class Bundle:
    def __init__(self):
        self.rows = {name: [] for name in HEADERS}
        self.rng = random.Random(SEED)
        self.numbers = set()
        self.serial = 0

    def add(self, table, /, **values):
        """In a bulk file status and dateLastModified stay empty."""
        if "metadata_notes" in values:
            values["metadata.notes"] = values.pop("metadata_notes")
        columns = HEADERS[table].split()
        assert not set(values) - set(columns), values
        self.rows[table].append([values.get(column, "") for column in columns])

    def add_user(self, school, role, grade=None):
        self.serial += 1
        given, family = names(self.rng, self.serial)
        local = ".".join(filter(None, (ascii_part(given), ascii_part(family)))) or "elev"
        user = sourced_id("user", self.serial)
        extra = {}
        if role == "student":
            number = personal_number(self.rng, grade, self.numbers)
            extra = {"userIds": f"{{personnummer:{number}}}", "grades": f"{grade:02}",
                     "metadata_notes": note(self.rng, self.serial)}
        self.add("users", sourcedId=user, enabledUser="true", orgSourcedIds=school, role=role,
                 username=f"u{self.serial:05}", givenName=given, familyName=family,
                 identifier=f"{self.serial:05}", email=f"{local}.{self.serial}@example.org",
                 **extra)
        return user

    def enroll(self, user, class_id, school, role):
        self.add("enrollments", sourcedId=f"e-{len(self.rows['enrollments']) + 1:05}",
                 classSourcedId=class_id, schoolSourcedId=school, userSourcedId=user, role=role,
                 primary="true" if role == "teacher" else "false",
                 beginDate=TERM_BEGIN, endDate=TERM_END)

    def add_school(self, school, name, pupils):
        self.add("orgs", sourcedId=school, name=name, type="school", identifier=school,
                 parentSourcedId=DISTRICT[0])
        count = -(-pupils // PUPILS_PER_CLASS)
        for number in range(count):
            grade = GRADES[number % len(GRADES)]
            title = f"{grade}{'ABCDEFG'[number // len(GRADES)]}"
            class_id = f"c-{school[2:]}-{title}"
            self.add("classes", sourcedId=class_id, title=title, grades=f"{grade:02}",
                     courseSourcedId=f"course-{grade:02}", classCode=title,
                     classType="homeroom", schoolSourcedId=school, termSourcedIds=TERM)
            self.enroll(self.add_user(school, "teacher"), class_id, school, "teacher")
            for _ in range(pupils // count + (number < pupils % count)):
                user = self.add_user(school, "student", grade)
                self.enroll(user, class_id, school, "student")

    def fill(self):
        self.add("academicSessions", sourcedId=YEAR, title="Läsåret 2024/25",
                 type="schoolYear", startDate="2024-08-19", endDate="2025-06-13",
                 schoolYear="2025")
        self.add("academicSessions", sourcedId=TERM, title="Höstterminen 2024", type="term",
                 startDate=TERM_BEGIN, endDate=TERM_END, parentSourcedId=YEAR,
                 schoolYear="2025")
        self.add("orgs", sourcedId=DISTRICT[0], name=DISTRICT[1], type="district",
                 identifier=DISTRICT[0])
        for grade in GRADES:
            self.add("courses", sourcedId=f"course-{grade:02}", schoolYearSourcedId=YEAR,
                     title=f"Klassens tid, årskurs {grade}", courseCode=f"KT{grade}",
                     grades=f"{grade:02}", orgSourcedId=DISTRICT[0])
        for school in SCHOOLS:
            self.add_school(*school)
        manifest = {"manifest.version": "1.0", "oneroster.version": "1.1"}
        files = {name: "bulk" for name in HEADERS if name != "manifest"}
        files.update({name: "absent" for name in ABSENT})
        manifest.update({f"file.{name}": files[name] for name in sorted(files)})
        manifest.update({"source.systemName": "nomp_crypt example",
                         "source.systemCode": "nomp_crypt"})
        for name, value in manifest.items():
            self.add("manifest", propertyName=name, value=value)

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(HEADERS[name].split())
                writer.writerows(rows)


def main():
    default = pathlib.Path(__file__).resolve().parent / "bundle"
    bundle = Bundle()
    bundle.fill()
    bundle.write(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)


if __name__ == "__main__":
    main()
