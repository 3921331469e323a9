"""Transactions on a campaign's data base: opened at its latest schema, one writer at a time, all or nothing.

SQLite: write-ahead log, so that readers do not wait; ``BEGIN IMMEDIATE``, so that writers exclude one another from
their first statement on; foreign keys on; every commit is on disk when it returns. PostgreSQL: writers lock the row
of ``campaign``. A writer waits for another up to :data:`PATIENCE`, and is then refused. Nothing is held between
transactions, so a process may be killed at any moment: what it had not committed never was.

There is no statement here or elsewhere in ``campaigns`` that changes or deletes a row.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, insert, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from difftilt.campaigns.schema import CAMPAIGN
from difftilt.errors import ConfigError, StateError

PATIENCE = 30
"""Seconds that a writer waits for another."""
FILE = "campaign.db"
"""Name of the data base in a campaign's folder."""
WRITES = {"writes": True}


def now() -> str:
    """The time, as rows have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Store:
    """A campaign's data base; :meth:`create` or :meth:`open` one.

    Attributes:
        url: where it is.
        folder: of a SQLite file, the folder that it is in, where the campaign's other files are kept too; else
            ``None``.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.folder = Path(url.database).parent if _is_file(url) and url.database else None
        self._engine = _engine(url)

    @classmethod
    def create(cls, place: str | Path, settings: str) -> Store:
        """Make the tables, and the campaign's one row.

        Args:
            place: a folder, in which ``campaign.db`` is made, or an SQLAlchemy URL of one's own data base.
            settings: of the campaign, as text.

        Raises:
            ConfigError: not a URL, or its driver is not installed.
            StateError: a campaign is there already, or the place cannot be written.
        """
        store = cls(_url(place))
        if store.folder is not None:
            try:
                store.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StateError(
                    f"expected to make the folder '{store.folder}'; got '{error.strerror}'; choose another place"
                ) from error
        with store._transaction(**WRITES) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('difftilt'))"))
            _upgrade(connection)
            if connection.execute(select(CAMPAIGN.c.id)).first() is not None:
                raise StateError(
                    f"expected a place without a campaign; got {store.name}, which holds one; open it, or choose "
                    "another"
                )
            connection.execute(insert(CAMPAIGN).values(id=1, settings=settings, created=now()))
        return store

    @classmethod
    def open(cls, place: str | Path) -> Store:
        """A data base that :meth:`create` made; an older one is upgraded.

        Raises:
            ConfigError: not a URL, or its driver is not installed.
            StateError: there is no campaign, or a newer difftilt made it.
        """
        store = cls(_url(place))
        if store.folder is not None and not Path(str(store.url.database)).is_file():
            raise StateError(
                f"expected a campaign at '{store.name}'; got no such file; make one with `difftilt campaign new`"
            )
        with store._transaction() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
        known = [script.revision for script in _scripts().walk_revisions()]
        if revision not in known:
            came = "no campaign in it" if revision is None else f"revision {revision}, which a newer difftilt made"
            raise StateError(f"expected a campaign at '{store.name}'; got {came}; check the place, or upgrade difftilt")
        if revision != known[0]:
            with store._transaction(**WRITES) as connection:
                connection.execute(select(CAMPAIGN.c.id).with_for_update())
                _upgrade(connection)
        return store

    @property
    def name(self) -> str:
        """The place, for messages; without a password."""
        return str(self.url.database) if self.folder is not None else self.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """One consistent state; nobody is kept waiting."""
        with self._transaction() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """One transaction, committed at the end of the block and undone by any error in it; no other writer is in one.

        What is read in the block is the latest state.
        """
        with self._transaction(**WRITES) as connection:
            connection.execute(select(CAMPAIGN.c.id).with_for_update())  # FOR UPDATE is left out on SQLite
            yield connection

    @contextmanager
    def _transaction(self, **options: Any) -> Generator[Connection]:
        try:
            with self._engine.connect() as connection:
                connection.execution_options(**options)
                with connection.begin():
                    yield connection
        except DBAPIError as error:
            said = str(error.orig).strip().splitlines()[0]
            busy = "locked" in said or "lock timeout" in said
            do = "another process is writing: try again" if busy else "check the place, its disk and its rights"
            raise StateError(f"expected to read and write '{self.name}'; got '{said}'; {do}") from error


def _url(place: str | Path) -> URL:
    """The URL of a place; a folder means the SQLite file in it, which may be named itself."""
    if "://" not in str(place):
        path = Path(place)
        return URL.create("sqlite", database=str(path if path.name == FILE else path / FILE))
    try:
        url = make_url(str(place))
    except ArgumentError:
        raise ConfigError(
            f"expected a folder or a URL; got '{place}'; write sqlite:///PATH or postgresql://..."
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if _is_file(url) and url.database in (None, "", ":memory:"):
        raise ConfigError("expected a file for SQLite; got none; write sqlite:///PATH, a campaign has to last")
    return url


def _is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _engine(url: URL) -> Engine:
    patience = {"timeout": PATIENCE} if _is_file(url) else {}
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=patience)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"expected a data base whose driver is installed; got '{url.drivername}' ({error}); for PostgreSQL run: "
            "pip install 'difftilt[postgres]'"
        ) from None
    if _is_file(url):
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    if url.get_backend_name() == "postgresql":
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{PATIENCE}s'")
    if not connection.get_execution_options().get("writes"):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "difftilt.campaigns:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
