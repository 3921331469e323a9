"""Alembic's entry: upgrades the data base of the connection that ``store`` hands over, in its transaction.

To add a migration: a file in ``versions/`` with the next number; the tests compare the outcome with ``schema``.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
