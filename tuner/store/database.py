"""Opens the database: engine, migrations, one clear sentence for each error.

In: a SQLAlchemy URL. Out: Database, whose `session()` is a transaction. SQLite runs in WAL mode;
read-only opening never writes a byte, not even a migration.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import exc
from sqlalchemy.orm import Session

from tuner.errors import OldStoreError, StoreError, StoreLostError
from tuner.store.contents import parse_json
from tuner.store.tables import Base
from tuner.store.url import SQLITE, parse_url, shown_url, sqlite_path

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "expertune_version"
BUSY_TIMEOUT_S = 30.0
MOST_BYTES = 256 << 20  # of one value; a definition carries its prompts
OURS = {VERSION_TABLE, *Base.metadata.tables}
BEFORE_NAMES = tuple(f"000{number}" for number in range(1, 7))  # versions before the first release


@dataclass(frozen=True)
class Database:
    """An open store. url: as the user wrote it; held: the transaction of `read_snapshot`; file:
    which file an SQLite database is, as device and inode; roll_back: see `rolling_back`."""

    url: str
    engine: sa.Engine
    read_only: bool
    held: Session | None = None
    file: tuple[int, int] | None = None
    roll_back: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an error.

        Raises StoreError with one sentence for a locked, full or read-only database.
        """
        if self.held is not None:
            with explained(self.url):
                yield self.held
            return
        with explained(self.url), Session(self.engine, expire_on_commit=False) as session:
            yield session
            if not self.read_only:
                session.commit()

    @contextlib.contextmanager
    def read_snapshot(self) -> Iterator[Database]:
        """The same store as one consistent read snapshot, unaffected by concurrent writes. Requires
        a database opened read-only."""
        assert self.read_only, "a writer would hold others up"
        with self.session() as session:
            yield replace(self, held=session)

    def lost(self) -> StoreLostError | None:
        """The error to raise if the file of an SQLite database was removed or replaced since it was
        opened: what is written then goes nowhere."""
        if self.file is None or _file_id(self.url) == self.file:
            return None
        return StoreLostError(
            f"the database {shown_url(self.url)} was removed or replaced while it was open, so "
            "nothing of this run is kept there: run it again, and leave the file alone"
        )

    def check_present(self) -> None:
        """Raises StoreLostError if `lost`."""
        if (error := self.lost()) is not None:
            raise error

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Opens for writing; creates and migrates what is missing."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        _check_folder(parsed)
    with explained(url), contextlib.ExitStack() as undo:
        engine = _make_engine(parsed)
        undo.callback(engine.dispose)
        roll_back = rolling_back(engine)
        version = _version(engine, url)
        _check_version(version, url)
        if version != _head():
            _migrate(engine)
        undo.pop_all()
    return Database(url, engine, read_only=False, file=_file_id(url), roll_back=roll_back)


def rolling_back(engine: sa.Engine) -> Callable[[], None]:
    """Returns what ends the transactions of this engine's connections.

    An interrupt between two statements can leave one open that nobody else knows of, and whose lock
    keeps this process, too, from writing how the study ended.
    """
    taken: list[Any] = []  # from the pool

    def give_back(connection: Any, _: Any) -> None:
        if connection in taken:
            taken.remove(connection)

    mute_interrupts(engine)
    sa.event.listen(engine, "checkout", lambda connection, *_: taken.append(connection))
    sa.event.listen(engine, "checkin", give_back)

    def roll_back() -> None:
        for connection in tuple(taken):
            with contextlib.suppress(engine.dialect.loaded_dbapi.Error):
                connection.rollback()

    return roll_back


def mute_interrupts(engine: sa.Engine) -> None:
    """Keeps an interrupt that comes while a connection is closed or reset out of the log, where
    SQLAlchemy writes its traceback; it is raised again, and ends the command in one sentence."""
    name = f"{type(engine.pool).__module__}.{type(engine.pool).__name__}"
    logging.getLogger(name).addFilter(_is_no_interrupt)


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt))


def open_read_only(url: str) -> Database:
    """Opens without writing; StoreError when there is no database of ours, or a later version,
    OldStoreError for an earlier one."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database or "")
        if not path.is_file():
            raise StoreError(
                f"there is no database {path} yet: run a study first, or name another "
                "with --storage"
            )
        engine = _make_read_only_engine(path)
    else:
        engine = _make_engine(parsed).execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
    mute_interrupts(engine)
    with explained(url), contextlib.ExitStack() as undo:
        undo.callback(engine.dispose)
        version = _version(engine, url)
        _check_version(version, url)
        if version != _head():
            raise OldStoreError(_old_sentence(url, version))
        undo.pop_all()
    return Database(url, engine, read_only=True)


def _old_sentence(url: str, version: str | None) -> str:
    if version is None:
        return f"the database {shown_url(url)} holds no study yet: run one, which makes its tables"
    return (
        f"{shown_url(url)} was written by an earlier version ({version}): any study that is run "
        "with this program brings it up to date, and keeps what it holds"
    )


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns driver errors into StoreError with one sentence."""
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error) as error:
        raise StoreError(_sentence(url, error)) from error


def _sentence(url: str, error: Exception) -> str:
    causes = {
        "locked": "is locked by another program: wait for it or end it, then run this again",
        "is full": "cannot grow: the disk is full; free some space and run this again (finished "
        "trials are kept)",
        "readonly": "cannot be written: it or its folder is read-only; name another with --storage",
        "unable to open": "cannot be opened: check that its folder exists and may be written",
        "not a database": "is not a database: name another file with --storage",
        "malformed": "is damaged: restore a copy, or name another file with --storage",
        "i/o error": "cannot be read or written: the disk reports an error",
    }
    told = _told(error)
    for text in told:
        for sign, sentence in causes.items():
            if sign in text.lower():
                return f"the database {shown_url(url)} {sentence}"
    return f"the database {shown_url(url)} does not answer as it should: {told[0]}"


def _told(error: BaseException) -> list[str]:
    """The message of this error and of those before it: rolling back a failure may fail too."""
    found: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        found.append(str(getattr(cause, "orig", None) or cause).strip().split("\n")[0])
        cause = cause.__cause__ or cause.__context__
    return found


def _file_id(url: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        if url.startswith(SQLITE):
            found = sqlite_path(url).stat()
            return found.st_dev, found.st_ino
    return None


def _check_folder(parsed: sa.URL) -> None:
    folder = Path(parsed.database or "").absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the folder {folder} of the database cannot be created: {error.strerror}"
        ) from None


def _make_engine(parsed: sa.URL) -> sa.Engine:
    if parsed.get_backend_name() == "sqlite":
        arguments = {"timeout": BUSY_TIMEOUT_S}
        engine = sa.create_engine(parsed, connect_args=arguments, json_deserializer=parse_json)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return sa.create_engine(parsed, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise StoreError(
            f"PostgreSQL needs the module {error.name}: pip install 'expertune[postgres]'"
        ) from None


def _make_read_only_engine(path: Path) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
        except sqlite3.OperationalError:
            # A read-only folder cannot take the WAL's shared memory file; nobody can write there
            # either, so the file cannot change while it is open.
            connection.close()
            connection = sqlite3.connect(f"{uri}&immutable=1", uri=True, check_same_thread=False)
        connection.isolation_level = None  # the driver would leave SELECT outside of transactions
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
        connection.execute("PRAGMA trusted_schema=OFF")
        return connection

    engine = sa.create_engine(
        "sqlite://", creator=connect, poolclass=sa.NullPool, json_deserializer=parse_json
    )
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
    connection.isolation_level = None  # _begin_sqlite begins; the driver would leave DDL outside


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _alembic() -> Config:
    config = Config()
    # a percent sign begins an interpolation; Jenkins names folders feature%2Fname
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic())


@functools.cache
def _revisions() -> tuple[str, ...]:
    """All revisions, the newest first; read once, since every opening asks for them."""
    return tuple(script.revision for script in _scripts().walk_revisions())


def _head() -> str:
    return _revisions()[0]


def _version(engine: sa.Engine, url: str) -> str | None:
    """The version in the database; None for an empty one, or one with Optuna's tables only."""
    with engine.connect() as connection:
        inspected = sa.inspect(connection)
        names = set(inspected.get_table_names())
        if views := sorted(OURS & set(inspected.get_view_names())):  # which may never end
            raise StoreError(
                f"the database {shown_url(url)} has a view in place of the table "
                f"'{views[0]}': name another with --storage"
            )
        if VERSION_TABLE not in names:
            if {"study", "trial", "sample"} & names:
                raise StoreError(
                    f"the database {shown_url(url)} holds tables of another program "
                    "under our names: name another with --storage"
                )
            return None
        rows = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).all()
    return str(rows[0][0]) if rows else None


def _check_version(version: str | None, url: str) -> None:
    if version in BEFORE_NAMES:
        raise StoreError(
            f"the database {shown_url(url)} was written before settings and states got their "
            "present names, and is left as it is: name another with --storage and run the study "
            "again"
        )
    if version is not None and version not in _revisions():
        raise StoreError(
            f"the database {shown_url(url)} has version '{version}', which this program does not "
            f"know (it knows up to {_head()}): update expertune, or name another with --storage"
        )


def _migrate(engine: sa.Engine) -> None:
    config = _alembic()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
