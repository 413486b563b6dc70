"""How each kind of database is opened: one engine to write, one to read. Knows drivers, no tables.

SQLite in WAL mode. SQLAlchemy leaves BEGIN to the driver, which on Python 3.11 emits it too late
for savepoints and reads, so the driver is told to keep out (`isolation_level = None`) and the
"begin" event emits it (SQLAlchemy docs, "Enabling Non-Legacy SQLite Transactional Modes").
PostgreSQL through psycopg 3; reads see one snapshot (REPEATABLE READ).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from danqing.db.prepared import run
from danqing.domain.errors import Unavailable

Synchronous = Literal["FULL", "NORMAL"]

_FILE = "danqing.file"
"""In a SQLite connection's info: the path, and which file was there when it was opened."""
_KINDS = "the database URL must be sqlite:///PATH, a file, or postgresql://USER@HOST/NAME"
_CONNECT_S_MAX = 5
# A transaction of ours takes milliseconds: whoever holds a lock longer is gone, and a server that
# cannot be reached must fail while the client still waits.
_POSTGRES = (
    "-c lock_timeout=15000 -c statement_timeout=60000 -c idle_in_transaction_session_timeout=30000"
)
# What is written is found by an index. Plans are kept: one made while a table was small would read
# all of it when it has grown.
_BY_INDEX = " -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"


class Engines:
    """A writing and a reading engine on one database. `shown` names it without its password."""

    def __init__(
        self, url: str, *, synchronous: Synchronous, busy_timeout_ms: int, create: bool = True
    ) -> None:
        """Raises ValueError for another kind of URL, Unavailable when a file cannot be made."""
        try:
            where = make_url(url)
        except ArgumentError:
            raise ValueError(_KINDS) from None
        kind = where.get_backend_name()
        if kind == "postgresql":
            self.shown = where.render_as_string(hide_password=True)
            self.writer = _postgres(where, read=False)
            self.reader = _postgres(where, read=True)
        elif kind == "sqlite" and where.database not in (None, "", ":memory:"):
            path = Path(str(where.database))
            self.shown = str(path)
            if create:
                _make_file(path)
            elif not path.exists():
                raise Unavailable(f"The database {path} is not there.")
            self.writer = _sqlite(path, "BEGIN IMMEDIATE", synchronous, busy_timeout_ms)
            self.reader = _sqlite(path, "BEGIN", synchronous, busy_timeout_ms)
        else:
            raise ValueError(_KINDS)
        self._kept: Connection | None = None

    @contextmanager
    def transaction(self) -> Generator[Connection]:
        """A transaction of the writer, which has but one thread. Its connection is kept for the next one."""
        kept, self._kept = self._kept, None
        if kept is None or not _is_current(kept.info):
            if kept is not None:
                kept.close()
            kept = self.writer.connect()
        try:
            with kept.begin():
                yield kept
        except BaseException:
            kept.close()
            raise
        self._kept = kept

    def dispose(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self.reader.dispose()
        self.writer.dispose()


def patient(connection: Connection) -> None:
    """Let this transaction's statements take the time that a long book needs."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")


def _postgres(where: URL, *, read: bool) -> Engine:
    # Any driver the URL names is read as "PostgreSQL": ours is psycopg.
    return create_engine(
        where.set(drivername="postgresql+psycopg"),
        isolation_level="REPEATABLE READ" if read else "READ COMMITTED",
        # A write whose connection is stale is tried again; a read is not.
        pool_pre_ping=read,
        connect_args={
            "connect_timeout": _CONNECT_S_MAX,
            "options": _POSTGRES if read else _POSTGRES + _BY_INDEX,
            "keepalives_idle": 10,
            "tcp_user_timeout": 20_000,
            "application_name": "danqing",
        },
    )


def _make_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm files the mode of the database file. An existing file is
        # not touched: closing a descriptor of it drops every lock this process has on it, and a
        # WAL that others still write to would be deleted (sqlite.org/howtocorrupt.html, 2.2).
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise Unavailable(f"The database {path} cannot be opened.") from error


def _sqlite(path: Path, begin: str, synchronous: Synchronous, busy_timeout_ms: int) -> Engine:
    # mode=rw: a file that is gone is not made anew, empty.
    query = {"mode": "rw", "uri": "true"}
    name = str(path)
    engine = create_engine(URL.create("sqlite", database=f"file:{quote(name)}", query=query))

    def connected(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        record.info[_FILE] = name, _file_id(name)
        connection.isolation_level = None
        _pragma(connection, "busy_timeout", busy_timeout_ms, busy_timeout_ms)
        _use_wal(connection, busy_timeout_ms)
        _pragma(connection, "synchronous", synchronous, {"FULL": 2, "NORMAL": 1}[synchronous])
        _pragma(connection, "foreign_keys", "ON", 1)

    def lent(_connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        # What is written to a deleted file succeeds and is lost: the pool opens what is there now.
        if not _is_current(record.info):
            raise DisconnectionError("The database file has been deleted or replaced.")

    def begun(connection: Connection) -> None:
        run(connection, begin)

    event.listen(engine, "connect", connected)
    event.listen(engine, "checkout", lent)
    event.listen(engine, "begin", begun)
    return engine


def _is_current(info: Mapping[Any, Any]) -> bool:
    """Whether a connection that has been there for a while is to the file that is there now."""
    if _FILE not in info:
        return True
    name, opened = info[_FILE]
    return opened == _file_id(name)


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _use_wal(connection: sqlite3.Connection, timeout_ms: int) -> None:
    """Switch to WAL. SQLite does not wait on its busy timeout here when two processes switch at once."""
    give_up_s = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            _pragma(connection, "journal_mode", "WAL", "wal")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                raise
            time.sleep(0.01)


def _pragma(
    connection: sqlite3.Connection, name: str, value: str | int, expected: str | int
) -> None:
    """Set a pragma and read it back: SQLite ignores one it cannot honour."""
    connection.execute(f"PRAGMA {name} = {value}")
    (actual,) = connection.execute(f"PRAGMA {name}").fetchone()
    if actual != expected:
        raise sqlite3.DatabaseError(f"PRAGMA {name} is {actual!r}, not {expected!r}")
