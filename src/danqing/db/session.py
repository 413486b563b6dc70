"""One database: a writer thread with group commit, and a few readers. Knows connections, not what is written.

SQLite in WAL mode. SQLAlchemy leaves BEGIN to the driver, which on Python 3.11 emits it too late
for savepoints and reads, so the driver is told to keep out (`isolation_level = None`) and the
"begin" event emits it (SQLAlchemy docs, "Enabling Non-Legacy SQLite Transactional Modes").
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from danqing.db.tables import metadata
from danqing.domain.errors import Busy, Unavailable

__all__ = ["Connection", "Database", "Synchronous"]

T = TypeVar("T")
Synchronous = Literal["FULL", "NORMAL"]

_BATCH_MAX = 128
_WRITES_MAX = 1024
_READS_MAX = 1024
_READ_THREADS = 2
_SLOT_WAIT_S = 30.0


class _Failed:
    """An outcome that is an error."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class _Write:
    fn: Callable[[Connection], Any]
    future: asyncio.Future[Any]


class Database:
    """An open database. Belongs to one event loop; several may be open on one file, in any process."""

    def __init__(self, path: Path, *, synchronous: Synchronous, busy_timeout_ms: int) -> None:
        self._writer = _engine(path, "BEGIN IMMEDIATE", synchronous, busy_timeout_ms)
        self._reader = _engine(path, "BEGIN", synchronous, busy_timeout_ms)
        with self._writer.begin() as connection:
            metadata.create_all(connection)
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._write_slots = asyncio.Semaphore(_WRITES_MAX)
        self._read_slots = asyncio.Semaphore(_READS_MAX)
        self._readers = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="db-read")
        self._thread = threading.Thread(target=self._write_forever, name="db-write", daemon=True)
        self._closed = False
        self._thread.start()

    @classmethod
    def open(
        cls, url: str, *, synchronous: Synchronous = "FULL", busy_timeout_ms: int = 15_000
    ) -> Database:
        """Open `sqlite:///path`, making the file (mode 0600) and the tables where missing.

        Raises ValueError for another kind of URL, Unavailable when the file cannot be used.
        """
        try:
            where = make_url(url)
        except ArgumentError:
            raise ValueError("the database URL must be sqlite:///PATH, a file") from None
        if where.get_backend_name() != "sqlite" or where.database in (None, "", ":memory:"):
            raise ValueError("the database URL must be sqlite:///PATH, a file")
        path = Path(where.database)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives its -wal and -shm files the mode of the database file. An existing file is
            # not touched: closing a descriptor of it drops every lock this process has on it, and a
            # WAL that others still write to would be deleted (sqlite.org/howtocorrupt.html, 2.2).
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            return cls(path, synchronous=synchronous, busy_timeout_ms=busy_timeout_ms)
        except (DBAPIError, sqlite3.Error, OSError) as error:
            raise Unavailable(f"The database {path} cannot be opened.") from error

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in the writer thread, in a savepoint of a shared transaction; durable on return.

        What `fn` raises undoes only its own work and is raised here. Raises Unavailable when the
        transaction could not be begun or committed (then nothing of it is on disk), Busy when no
        slot came free in 30 s. A caller cancelled while waiting cannot know whether `fn` ran.
        """
        async with _slot(self._write_slots):
            self._refuse_if_closed()
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._queue.put(_Write(fn, future))
            return await future

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a reader thread on one snapshot of what is committed. Raises Unavailable."""
        async with _slot(self._read_slots):
            self._refuse_if_closed()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._readers, self._read, fn)

    async def close(self) -> None:
        """Finish what is queued, then close. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._reader.dispose()
        self._writer.dispose()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Unavailable("The database is closed.")

    def _read(self, fn: Callable[[Connection], T]) -> T:
        try:
            with self._reader.connect() as connection:
                return fn(connection)
        except DBAPIError as error:
            raise _unavailable(error) from error

    def _write_forever(self) -> None:
        """The writer thread: whatever queued up while one commit was under way is the next batch."""
        while (first := self._queue.get()) is not None:
            batch: list[_Write] = [first]
            last = False
            while len(batch) < _BATCH_MAX and not last:
                try:
                    write = self._queue.get_nowait()
                except queue.Empty:
                    break
                if write is None:
                    last = True
                else:
                    batch.append(write)
            self._commit([write for write in batch if not write.future.cancelled()])
            if last:
                return

    def _commit(self, batch: list[_Write]) -> None:
        outcomes: list[Any]
        try:
            with self._writer.begin() as connection:
                outcomes = [_run(connection, write.fn) for write in batch]
        except Exception as error:
            # Also those whose own fn had failed: they may have seen work that is now undone.
            outcomes = [_Failed(_unavailable(error)) for _ in batch]
        groups: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for write, outcome in zip(batch, outcomes, strict=True):
            groups.setdefault(write.future.get_loop(), []).append((write.future, outcome))
        for loop, resolved in groups.items():
            # A loop that closed meanwhile has nobody left to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, resolved)


@asynccontextmanager
async def _slot(semaphore: asyncio.Semaphore) -> AsyncGenerator[None]:
    """Hold one slot, waiting 30 s at most. Raises Busy."""
    try:
        async with asyncio.timeout(_SLOT_WAIT_S):
            await semaphore.acquire()
    except TimeoutError:
        raise Busy(retry_after_s=1.0) from None
    try:
        yield
    finally:
        semaphore.release()


def _run(connection: Connection, fn: Callable[[Connection], Any]) -> Any:
    """The value of `fn`, or its failure, its savepoint released or rolled back."""
    savepoint = connection.begin_nested()
    try:
        outcome = fn(connection)
    except Exception as error:
        # Raises when SQLite has ended the whole transaction (disk full): then the batch fails.
        savepoint.rollback()
        return _Failed(_unavailable(error) if isinstance(error, OperationalError) else error)
    savepoint.commit()
    return outcome


def _resolve(resolved: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in resolved:
        if future.done():
            continue
        if isinstance(outcome, _Failed):
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome)


def _unavailable(cause: Exception) -> Unavailable:
    error = Unavailable("The database is unavailable. Please retry later.")
    error.__cause__ = cause
    return error


def _engine(path: Path, begin: str, synchronous: Synchronous, busy_timeout_ms: int) -> Engine:
    engine = create_engine(f"sqlite:///{path}")

    def connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        _pragma(connection, "busy_timeout", busy_timeout_ms, busy_timeout_ms)
        _use_wal(connection, busy_timeout_ms)
        _pragma(connection, "synchronous", synchronous, {"FULL": 2, "NORMAL": 1}[synchronous])
        _pragma(connection, "foreign_keys", "ON", 1)

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    return engine


def _use_wal(connection: sqlite3.Connection, timeout_ms: int) -> None:
    """Switch to WAL. SQLite does not wait on its busy timeout here when two processes switch at once."""
    give_up_s = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            _pragma(connection, "journal_mode", "WAL", "wal")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_s:
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
