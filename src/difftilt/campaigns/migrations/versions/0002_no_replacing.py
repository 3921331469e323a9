"""SQLite refuses rows that would take the place of others: INSERT OR REPLACE deletes, and no trigger of 0001 sees it.

PostgreSQL has no such statement, and those of 0001 see its ON CONFLICT DO UPDATE.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

TAKEN = {
    "campaign": "id = NEW.id",
    "rounds": "number = NEW.number",
    "designs": "id = NEW.id OR digest = NEW.digest",
    "imports": "id = NEW.id OR digest = NEW.digest",
    "measurements": "id = NEW.id OR corrects = NEW.corrects"
    " OR (design = NEW.design AND replicate = NEW.replicate AND corrects IS NULL AND NEW.corrects IS NULL)",
    "withdrawals": "design = NEW.design",
}
"""Where a row stands in the place of a new one: every unique column or index of a table."""


def upgrade() -> None:
    """Add the triggers."""
    if op.get_bind().dialect.name == "sqlite":
        for table, taken in TAKEN.items():
            op.execute(
                f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
                f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {taken}) "
                "BEGIN SELECT RAISE(ABORT, 'this table is append-only, and has such a row'); END"
            )
