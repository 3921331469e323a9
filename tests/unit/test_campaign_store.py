"""The store: append-only in the data base itself, writers one at a time, opened at its latest schema."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url, text

from campaign_parts import FINISHED, begin, fork, letters, results, rows, wait
from difftilt.campaigns import store as stores
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.schema import METADATA
from difftilt.campaigns.store import Store
from difftilt.errors import ConfigError, StateError


@pytest.mark.parametrize("change", ["UPDATE {} SET {} = {}", "DELETE FROM {}"])
@pytest.mark.parametrize("table", list(METADATA.tables))
def test_no_row_of_any_table_can_be_changed_or_deleted(place: str, tmp_path: Path, table: str, change: str) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    campaign.record(results(tmp_path / "r.csv", {"d00001": 0.5}))
    campaign.withdraw(["d00002"], "lost")
    before = rows(campaign)
    assert all(before.values()), "every table has a row to lose"
    column = next(iter(METADATA.tables[table].c)).name
    with pytest.raises(StateError, match="append-only"), campaign._store.writing() as connection:
        connection.execute(text(change.format(table, column, column)))
    assert rows(campaign) == before


def unique_keys() -> list[tuple[str, tuple[str, ...]]]:
    """Every table with each set of columns that no two of its rows share."""
    keys = []
    for name, table in METADATA.tables.items():
        keys.append((name, tuple(column.name for column in table.primary_key)))
        keys += [(name, (column.name,)) for column in table.c if column.unique]
        keys += [(name, tuple(column.name for column in index.columns)) for index in table.indexes if index.unique]
    return keys


def replaceable(folder: Path) -> Campaign:
    """A campaign on SQLite with a row in each table, corrections too."""
    campaign = begin(str(folder / "lab"))
    campaign.propose(proposer=letters)
    campaign.record(results(folder / "r.csv", {"d00001": 0.5, "d00003": 0.2}))
    campaign.record(results(folder / "s.csv", {"d00001": 0.7}), correct=True)
    campaign.withdraw(["d00002"], "lost")
    return campaign


def replace_row(campaign: Campaign, table: str, key: tuple[str, ...]) -> None:
    """Take the place of a table's last row by one key alone, and tell another story."""
    others = {other for name, keys in unique_keys() if name == table for other in keys} - set(key)
    free = {"id": 99, "digest": "other", "corrects": None, "design": 3, "replicate": "other"}
    which = "WHERE corrects IS NULL" if key == ("design", "replicate") else ""
    with campaign._store.writing() as connection:
        row = connection.execute(text(f"SELECT * FROM {table} {which} ORDER BY 1 DESC LIMIT 1")).mappings().one()
        new = {**row, **{name: free[name] for name in others}}
        new |= {name: "another" for name in ("reason", "created") if name in row}
        names = ", ".join(f'"{name}"' for name in new)
        connection.execute(
            text(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({', '.join(f':{n}' for n in new)})"), new
        )


@pytest.mark.parametrize(("table", "key"), unique_keys())
def test_no_row_can_take_the_place_of_another(tmp_path: Path, table: str, key: tuple[str, ...]) -> None:
    """REPLACE deletes without a trigger's notice; PostgreSQL has no such statement."""
    campaign = replaceable(tmp_path)
    before = rows(campaign)
    with pytest.raises(StateError, match="append-only"):
        replace_row(campaign, table, key)
    with pytest.raises(StateError, match="append-only"), campaign._store.writing() as connection:
        connection.execute(text(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"))
    assert rows(campaign) == before


def test_a_data_base_of_the_first_revision_refuses_from_its_opening_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin: at the first revision each row is gone."""
    with monkeypatch.context() as old:
        upgrade = stores.command.upgrade
        old.setattr(stores.command, "upgrade", lambda config, revision: upgrade(config, "0001"))
        first = replaceable(tmp_path)
    before = rows(first)
    opened = Campaign.open(shutil.copytree(tmp_path / "lab", tmp_path / "copy"))
    assert rows(opened) == before
    for table, key in unique_keys():
        with pytest.raises(StateError, match="append-only"):
            replace_row(opened, table, key)
    assert rows(opened) == before
    assert len(opened.propose(proposer=letters)) == 4
    for table, key in unique_keys():
        if (table, key) != ("imports", ("digest",)):  # its measurements hold this one
            shutil.copy(tmp_path / "lab" / "campaign.db", tmp_path / "again.db")
            first._store = Store(make_url(f"sqlite:///{tmp_path}/again.db"))
            replace_row(first, table, key)
            assert len(before[table] - rows(first)[table]) == 1


@pytest.mark.parametrize(
    ("broken", "values"),
    [
        ("a value and a failure", "(9, 1, '2', 0.5, 'why', 1, 2, NULL, '')"),
        ("neither value nor failure", "(9, 1, '2', NULL, NULL, 1, 2, NULL, '')"),
        ("an infinite value", "(9, 1, '2', {inf}, NULL, 1, 2, NULL, '')"),
        ("a replicate measured twice", "(9, 1, '1', 0.6, NULL, 1, 2, NULL, '')"),
        ("a design that was not proposed", "(9, 77, '1', 0.6, NULL, 1, 2, NULL, '')"),
        ("a file that was not read", "(9, 1, '2', 0.6, NULL, 5, 2, NULL, '')"),
        ("a correction of nothing", "(9, 1, '1', 0.6, NULL, 1, 2, 55, '')"),
        ("a second correction", "(9, 1, '1', 0.6, NULL, 1, 2, 1, '')"),
    ],
)
def test_the_data_base_itself_refuses(place: str, tmp_path: Path, broken: str, values: str) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    campaign.record(results(tmp_path / "r.csv", {"d00001": 0.5}))
    campaign.record(results(tmp_path / "s.csv", {"d00001": 0.7}), correct=True)
    infinite = "9e999" if campaign._store.folder else "'Infinity'"
    columns = "(id, design, replicate, value, failure, import, line, corrects, created)"
    with pytest.raises(StateError), campaign._store.writing() as connection:
        connection.execute(text(f"INSERT INTO measurements {columns} VALUES {values.format(inf=infinite)}"))
    fine = "(9, 1, '2', 0.5, NULL, 1, 2, NULL, '')"  # what the others are one change away from
    with campaign._store.writing() as connection:
        connection.execute(text(f"INSERT INTO measurements {columns} VALUES {fine}"))


def test_the_migrations_make_the_schema_that_the_code_reads(place: str) -> None:
    with begin(place)._store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


@pytest.mark.skipif("DIFFTILT_TEST_POSTGRES" not in os.environ, reason="DIFFTILT_TEST_POSTGRES names no server")
def test_these_tests_run_on_postgresql_too(request: pytest.FixtureRequest) -> None:
    assert any("[postgresql" in item.name for item in request.session.items)


def test_a_place_holds_one_campaign(place: str) -> None:
    first = begin(place)
    with pytest.raises(StateError, match="holds one"):
        begin(place, budget=1)
    assert Campaign.open(place).settings == first.settings


def test_an_error_in_a_transaction_undoes_all_of_it(place: str) -> None:
    campaign = begin(place)
    before = rows(campaign)

    def insert_twice() -> None:
        with campaign._store.writing() as connection:
            for _ in range(2):
                connection.execute(text("INSERT INTO rounds (number, model, facts, created) VALUES (1, 'm', '{}', '')"))

    with pytest.raises(StateError):
        insert_twice()
    assert rows(campaign) == before


def test_a_writer_waits_for_another_and_a_reader_does_not(place: str) -> None:
    campaign = begin(place)

    def hold() -> None:
        with Campaign.open(place)._store.writing():
            time.sleep(1.0)

    child = fork(hold)
    time.sleep(0.4)
    began = time.monotonic()
    assert campaign.history().designs == ()
    read = time.monotonic() - began
    assert len(campaign.propose(proposer=letters)) == 4
    wrote = time.monotonic() - began
    assert wait(child) == FINISHED
    assert read < 0.3 < wrote


def test_a_writer_that_waited_long_enough_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(place)
    monkeypatch.setattr(stores, "PATIENCE", 1)
    campaign = Campaign.open(place)
    with (
        Campaign.open(place)._store.writing(),
        pytest.raises(StateError, match="another process is writing"),
        campaign._store.writing(),
    ):
        pass
    assert len(campaign.propose(proposer=letters)) == 4


def test_a_campaign_of_a_newer_difftilt_is_refused(place: str) -> None:
    store = begin(place)._store
    with store._transaction(writes=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'none of ours'"))
    with pytest.raises(StateError, match="newer difftilt"):
        Store.open(place)


NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", "0002"


def upgrade():
    op.add_column("rounds", sa.Column("note", sa.Text))
"""


def test_an_older_schema_is_upgraded_when_opened(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    before = campaign.history()
    newer = shutil.copytree(Path(stores.__file__).parent / "migrations", tmp_path / "migrations")
    (newer / "versions" / "9999_next.py").write_text(NEXT)
    config = stores._config()
    config.set_main_option("script_location", str(newer))
    monkeypatch.setattr(stores, "_config", lambda: config)
    opened = Campaign.open(place)
    with opened._store.reading() as connection:
        assert connection.execute(text("SELECT note FROM rounds")).all() == [(None,)]
        assert MigrationContext.configure(connection).get_current_revision() == "9999"
    assert opened.history() == before


def test_nothing_is_made_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="difftilt campaign new"):
        Campaign.open(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "campaign.db").write_text("no data base, but a note of some length that is no SQLite file at all\n" * 9)
    with pytest.raises(StateError, match="not a database"):
        Campaign.open(tmp_path)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.commit()
    with pytest.raises(StateError, match="no campaign in it"):
        Campaign.open(f"sqlite:///{tmp_path}/other.db")


@pytest.mark.parametrize(
    ("url", "said"),
    [("nosuch://x/y", "driver"), ("sqlite://", "has to last"), ("://", "URL"), ("oracle+absent://h/d", "driver")],
)
def test_places_that_are_none(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Campaign.open(url)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(StateError) as caught:
        Campaign.open("postgresql+psycopg://someone:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_importing_difftilt_imports_no_sqlalchemy() -> None:
    code = "import sys, difftilt, difftilt.build, difftilt.cli; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sqlite_syncs_every_commit_and_holds_foreign_keys(tmp_path: Path) -> None:
    with begin(str(tmp_path))._store.reading() as connection:
        pragmas = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in (
            "journal_mode", "synchronous", "foreign_keys", "busy_timeout",
        )}  # fmt: skip
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": stores.PATIENCE * 1000,
    }
