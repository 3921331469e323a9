"""The first tables, and the triggers that keep them append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

LARGEST = "1.7976931348623157e+308"
TABLES = ("campaign", "rounds", "designs", "imports", "measurements", "withdrawals")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "campaign",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.CheckConstraint("id = 1", name="one_campaign"),
    )
    op.create_table(
        "rounds",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "designs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("design", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("round", sa.Integer, sa.ForeignKey("rounds.number"), nullable=False),
        sa.Column("well", sa.String(16), nullable=False),
        sa.Column("mean", sa.Float(53)),
        sa.Column("std", sa.Float(53)),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("ix_designs_round", "designs", ["round"])
    op.create_table(
        "imports",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("design", sa.Integer, sa.ForeignKey("designs.id"), nullable=False),
        sa.Column("replicate", sa.Text, nullable=False),
        sa.Column("value", sa.Float(53)),
        sa.Column("failure", sa.Text),
        sa.Column("unit", sa.Text),
        sa.Column("import", sa.Integer, sa.ForeignKey("imports.id"), nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("corrects", sa.Integer, sa.ForeignKey("measurements.id"), unique=True),
        sa.Column("created", sa.String(32), nullable=False),
        sa.CheckConstraint("(value IS NULL) <> (failure IS NULL)", name="value_or_failure"),
        sa.CheckConstraint(f"value BETWEEN -{LARGEST} AND {LARGEST}", name="finite"),
    )
    first = sa.text("corrects IS NULL")
    op.create_index(
        "one_measurement",
        "measurements",
        ["design", "replicate"],
        unique=True,
        sqlite_where=first,
        postgresql_where=first,
    )
    op.create_table(
        "withdrawals",
        sa.Column("design", sa.Integer, sa.ForeignKey("designs.id"), primary_key=True, autoincrement=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    _forbid_changes(op.get_bind().dialect.name)


def _forbid_changes(dialect: str) -> None:
    if dialect == "sqlite":
        for table in TABLES:
            for action in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'this table is append-only'); END"
                )
    if dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'this table is append-only'; END $$"
        )
        for table in TABLES:
            op.execute(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            )
