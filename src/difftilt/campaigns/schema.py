"""Tables of a campaign. Facts are added and never changed: states, budget and history are derived from them.

.. code-block:: text

    campaign      one row: its settings. Writers lock it, so that they exclude one another.
    rounds        one row for each plate proposed, with the model that proposed it.
    designs       one row for each design ever proposed; a design stands in one campaign once.
    imports       one row for each results file, by the hash of its content.
    measurements  one row for each value or failure; a correction is a new row that names the one it corrects.
    withdrawals   one row for each design that will not be measured.

Laws that the data base itself keeps: no row is changed, deleted or replaced (triggers, on SQLite and PostgreSQL); a
design is not proposed twice; a replicate of a design has one measurement, and a measurement one correction; a
measurement is a finite number or a failure with a reason, never both. ``migrations/`` makes these tables, and a test
holds both to be equal.
"""

from __future__ import annotations

import sys

from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

METADATA = MetaData()
TIME = String(32)
"""When a row was written: ISO 8601, UTC."""
LARGEST = sys.float_info.max

CAMPAIGN = Table(
    "campaign",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("settings", Text, nullable=False),
    Column("created", TIME, nullable=False),
    CheckConstraint("id = 1", name="one_campaign"),
)
ROUNDS = Table(
    "rounds",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("model", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("created", TIME, nullable=False),
)
DESIGNS = Table(
    "designs",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("design", Text, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # of `design`, which may be too long for an index
    Column("round", Integer, ForeignKey("rounds.number"), nullable=False, index=True),
    Column("well", String(16), nullable=False),
    Column("mean", Float(53)),
    Column("std", Float(53)),
    Column("reason", Text, nullable=False),
)
IMPORTS = Table(
    "imports",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created", TIME, nullable=False),
)
MEASUREMENTS = Table(
    "measurements",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("design", Integer, ForeignKey("designs.id"), nullable=False),
    Column("replicate", Text, nullable=False),
    Column("value", Float(53)),
    Column("failure", Text),
    Column("unit", Text),
    Column("import", Integer, ForeignKey("imports.id"), nullable=False),
    Column("line", Integer, nullable=False),
    Column("corrects", Integer, ForeignKey("measurements.id"), unique=True),
    Column("created", TIME, nullable=False),
    CheckConstraint("(value IS NULL) <> (failure IS NULL)", name="value_or_failure"),
    CheckConstraint(f"value BETWEEN {-LARGEST!r} AND {LARGEST!r}", name="finite"),
)
Index(
    "one_measurement",
    MEASUREMENTS.c.design,
    MEASUREMENTS.c.replicate,
    unique=True,
    sqlite_where=text("corrects IS NULL"),
    postgresql_where=text("corrects IS NULL"),
)
WITHDRAWALS = Table(
    "withdrawals",
    METADATA,
    Column("design", Integer, ForeignKey("designs.id"), primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    Column("created", TIME, nullable=False),
)
