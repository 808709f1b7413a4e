#!/usr/bin/python3
"""load.py schools|pupils [FOLDER]: prints SQL for psql that loads a bundle.

"schools" fills the table school; "pupils" fills the table pupil, one
transaction per school with nomp_crypt.tenant set, and COPY as anybody would
write it.  Nothing is staged on the server, where a staging table would leave
plaintext in the data directory and the WAL.

The same SQL loads a table without encryption: there the setting means nothing.
"""
import csv
import pathlib
import re
import sys

COPY_PUPIL = ("COPY pupil (id, school, class, name, email, personnummer, notes) FROM STDIN"
              " (FORMAT csv, FORCE_NOT_NULL (notes));")


def read(folder, name):
    with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def schools(folder):
    return [org for org in read(folder, "orgs") if org["type"] == "school"]


def pupils(folder):
    """School id -> rows of table pupil, by way of the enrollments."""
    users = {user["sourcedId"]: user for user in read(folder, "users")}
    classes = {row["sourcedId"]: row["title"] for row in read(folder, "classes")}
    rows = {school["sourcedId"]: [] for school in schools(folder)}
    for enrollment in read(folder, "enrollments"):
        if enrollment["role"] != "student":
            continue
        user = users[enrollment["userSourcedId"]]
        number = re.search(r"\{personnummer:([^}]*)\}", user["userIds"]).group(1)
        school = enrollment["schoolSourcedId"]
        rows[school].append([
            user["identifier"].lstrip("0"), school, classes[enrollment["classSourcedId"]],
            f"{user['givenName']} {user['familyName']}", user["email"], number,
            user["metadata.notes"]])
    return rows


def print_copy(statement, rows):
    print(statement)
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    print("\\.")


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def main():
    what = sys.argv[1]
    here = pathlib.Path(__file__).resolve().parent
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else here / "bundle"
    if what == "schools":
        print_copy("COPY school (id, name) FROM STDIN (FORMAT csv);",
                   [[org["sourcedId"], org["name"]] for org in schools(folder)])
    elif what == "pupils":
        for school, rows in pupils(folder).items():
            print("BEGIN;")
            print(f"SET LOCAL nomp_crypt.tenant = {quoted(school)};")
            print_copy(COPY_PUPIL, rows)
            print("COMMIT;")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
