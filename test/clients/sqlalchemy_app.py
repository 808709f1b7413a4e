#!/usr/bin/python3
"""SQLAlchemy, Core and ORM, as an application uses them.

    sqlalchemy_app.py FOLDER-OF-NOMP_CRYPT_SQLALCHEMY CONNINFO POOLER-CONNINFO
"""

import sys
import warnings

import psycopg2
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.orm import declarative_base, relationship, sessionmaker

from tap import ANNA, BERTIL, error, finish, ok, same

sys.path.insert(0, sys.argv[1])
from nomp_crypt_sqlalchemy import (  # noqa: E402
    Encrypted, set_tenant, tenant, tenant_per_transaction)

Base = declarative_base()
COLUMNS = list(ANNA)


class Pupil(Base):
    __tablename__ = "sa_pupil"
    id = sa.Column(sa.BigInteger, primary_key=True)
    name = sa.Column(Encrypted(sa.Text))
    born = sa.Column(Encrypted(sa.Date))
    active = sa.Column(Encrypted(sa.Boolean))
    points = sa.Column(Encrypted(sa.Integer))
    weight = sa.Column(Encrypted(sa.Numeric(6, 2)))
    seen = sa.Column(Encrypted(sa.DateTime(timezone=True)))
    token = sa.Column(Encrypted(UUID(as_uuid=True)))
    photo = sa.Column(Encrypted(sa.LargeBinary))
    notes = sa.Column(Encrypted(JSONB))
    tags = sa.Column(Encrypted(ARRAY(sa.Text)))
    city = sa.Column(Encrypted(sa.String(30)))
    lasts = sa.Column(Encrypted(sa.Interval))
    ssn = sa.Column(Encrypted(sa.Text, searchable=True), unique=True)
    email = sa.Column(Encrypted(sa.Text, searchable="nocase"), index=True)
    guardians = relationship("Guardian", back_populates="pupil")


class Guardian(Base):
    __tablename__ = "sa_guardian"
    id = sa.Column(sa.BigInteger, primary_key=True)
    phone = sa.Column(Encrypted(sa.Text, searchable="digits"))
    pupil_ssn = sa.Column(Encrypted(sa.Text, searchable=True),
                          sa.ForeignKey("sa_pupil.ssn"))
    pupil = relationship("Pupil", back_populates="guardians")


def connect(conninfo):
    return sa.create_engine("postgresql+psycopg2://",
                            creator=lambda: psycopg2.connect(conninfo))


def core(engine):
    table = Pupil.__table__
    with tenant(engine, "north") as connection:
        key = connection.execute(
            table.insert(), dict(ANNA, email="Asa@Example.org", city="Malmö")
        ).inserted_primary_key[0]
        connection.execute(table.insert(), [
            dict(BERTIL), dict({c: None for c in COLUMNS}, points=None)])
    with tenant(engine, "north") as connection:
        row = connection.execute(
            sa.select(*[table.c[c] for c in COLUMNS]).where(table.c.id == key)
        ).one()
        for name, got, expected in zip(COLUMNS, row, ANNA.values()):
            same(got, expected, f"Core: {name} comes back as it went in")
        same(connection.scalar(sa.select(sa.func.max(table.c.born))),
             ANNA["born"], "Core: max")
        connection.execute(table.update().where(table.c.id == key)
                           .values(points=43, tags=["a", 'b "c"', "ä,{}"]))
        same(tuple(connection.execute(
            sa.select(table.c.points, table.c.tags, table.c.email)
            .where(table.c.id == key)).one()),
            (43, ["a", 'b "c"', "ä,{}"], "Asa@Example.org"),
            "Core: an update, an array")


def queries(sessions):
    anna, bertil = ANNA["name"], BERTIL["name"]

    with sessions(info={"tenant": "north"}) as session:
        def names(*where):
            return [n for n, in session.query(Pupil.name).filter(*where)
                    .order_by(Pupil.name)]

        same(names(Pupil.ssn == ANNA["ssn"]), [anna], "== on searchable")
        same(names(Pupil.ssn.in_([ANNA["ssn"], BERTIL["ssn"], "x"])),
             [bertil, anna], "in_ on searchable")
        same(names(Pupil.ssn.not_in([ANNA["ssn"]])), [bertil],
             "not_in on searchable")
        same(names(Pupil.email == "ASA@example.ORG"), [anna],
             "== on searchable nocase")
        same(names(Pupil.name == anna), [anna], "== on others")
        same(names(Pupil.name.in_([anna, "x"])), [anna], "in_ on others")
        same(names(Pupil.born == ANNA["born"]), [anna], "== with a date")
        same(names(Pupil.born.between(BERTIL["born"], ANNA["born"])),
             [bertil, anna], "between dates")
        same(names(Pupil.active == False), [bertil],  # noqa: E712
             "== with a boolean")
        same(names(Pupil.points > 0), [anna], "> with an integer")
        same(names(Pupil.weight < ANNA["weight"]), [], "< with a decimal")
        same(names(Pupil.seen < ANNA["seen"]), [bertil], "< with a time")
        same(names(Pupil.token == ANNA["token"]), [anna], "== with a uuid")
        same(names(Pupil.born.is_(None)), [None], "is_(None)")
        same(names(Pupil.name.like("%Öberg%")), [anna], "like")
        same(names(Pupil.name.ilike("BERT%")), [bertil], "ilike")
        same(names(Pupil.name.contains("Öberg")), [anna], "contains")
        same(names(Pupil.name.startswith("Ber")), [bertil], "startswith")
        same(names(sa.cast(Pupil.notes, JSONB)["ok"].as_boolean()), [anna],
             "a JSON key, by a cast")
        same([b for b, in session.query(Pupil.born).filter(
            Pupil.born.isnot(None)).order_by(Pupil.born.desc())],
            [ANNA["born"], BERTIL["born"]], "order_by a date")


def orm(sessions):
    with sessions(info={"tenant": "north"}) as session:
        pupil = session.query(Pupil).filter_by(ssn=ANNA["ssn"]).one()
        pupil.guardians = [Guardian(phone="070-123 45 67"),
                           Guardian(phone="08 11 22")]
        pupil.name = "Åsa, gift Ek"
        session.commit()
        same(pupil.name, "Åsa, gift Ek", "ORM: an object reads what it wrote")
        same(pupil.born, ANNA["born"], "ORM: in a new transaction too")
        same([g.phone for g in session.query(Guardian).join(Pupil)
              .filter(Guardian.phone == "0701234567")], ["070-123 45 67"],
             "ORM: a join by an encrypted foreign key")
        pupil.notes = {"changed": [1, 2]}
        session.commit()
        same(session.query(Pupil.notes).filter_by(id=pupil.id).scalar(),
             {"changed": [1, 2]}, "ORM: JSON is written again")
        session.add(Pupil(name="again", ssn=ANNA["ssn"]))
        found = error(sa.exc.DBAPIError, session.commit)
        ok(isinstance(found, sa.exc.IntegrityError)
           and found.orig.pgcode == "23505",
           "ORM: a duplicate is an IntegrityError", found)
        session.rollback()
        session.add(Guardian(pupil_ssn="nobody"))
        found = error(sa.exc.DBAPIError, session.commit)
        ok(isinstance(found, sa.exc.IntegrityError)
           and found.orig.pgcode == "23503",
           "ORM: so is a key that leads nowhere", found)
    with sessions(info={"tenant": "south"}) as session:
        session.add(Pupil(name="Åsa in the south", ssn=ANNA["ssn"]))
        session.commit()
        same(session.query(Pupil.name).filter_by(ssn=ANNA["ssn"]).scalar(),
             "Åsa in the south", "ORM: another school's is no duplicate")
    with sessions() as session:
        session.add(Pupil(name="nobody's"))
        found = error(sa.exc.DBAPIError, session.commit)
        ok(found is not None and found.orig.pgcode == "NC006"
           and "nomp_crypt.tenant" in str(found),
           "ORM: without a tenant: NC006, and what to do", found)
        session.rollback()
        value = session.query(Pupil.born).filter(Pupil.born.isnot(None)).first()
        ok(value[0].startswith("nc1:"),
           "ORM: without a tenant a date is ciphertext", value)


def reflection(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sa.Table("sa_pupil", sa.MetaData(), autoload_with=engine)
    for column in Pupil.__table__.c:
        if isinstance(column.type, Encrypted):
            same(found.c[column.name].type.compile(dialect=engine.dialect),
                 column.type.compile(dialect=engine.dialect),
                 f"reflected: {column.name}")
    with tenant(engine, "north") as connection:
        same(connection.scalar(sa.select(found.c.born)
                               .where(found.c.ssn == ANNA["ssn"])),
             ANNA["born"], "a reflected column has its type")


def pooled(conninfo):
    """pgbouncer in transaction mode, one server session for all."""
    engine = connect(conninfo)
    sessions = sessionmaker(engine)
    tenant_per_transaction(sessions)
    seen = []
    with sessions(info={"tenant": "north"}) as north, \
            sessions(info={"tenant": "south"}) as south, \
            sessions() as nobody:
        for _ in range(3):
            for session in north, south, nobody:
                seen.append([n[:3] for n, in session.query(Pupil.name)
                             .filter_by(ssn=ANNA["ssn"])] if session is not nobody
                            else session.query(Pupil.name).first()[0][:3])
                session.commit()
    same(seen, [["Åsa"], ["Åsa"], "nc1"] * 3,
         "pgbouncer: each transaction is its school's")
    engine.dispose()


def main():
    engine = connect(sys.argv[2])
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    tenant_per_transaction(sessions)
    core(engine)
    queries(sessions)
    orm(sessions)
    reflection(engine)
    with engine.begin() as connection:
        set_tenant(connection, "north")
        same(connection.scalar(sa.text(
            "SELECT current_setting('nomp_crypt.tenant')")), "north",
            "set_tenant on a connection")
    pooled(sys.argv[3])
    finish()


if __name__ == "__main__":
    main()
