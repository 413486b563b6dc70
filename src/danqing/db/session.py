"""One database: a writer thread with group commit, and a few readers. Knows transactions, not what is written.

The same on SQLite and PostgreSQL: one writer per process makes one transaction of all that queued
up while the last one was being committed, so a commit's wait is shared. Several processes take
turns: on SQLite over the file, on PostgreSQL over the accounts they touch.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from danqing.db import schema
from danqing.db.book_queries import lock_accounts
from danqing.db.engines import Engines, Synchronous
from danqing.db.tables import accounts
from danqing.domain.errors import Busy, DanqingError, Unavailable

__all__ = ["Connection", "Database", "Synchronous"]

T = TypeVar("T")
Item = TypeVar("Item")

_BATCH_MAX = 128
_WRITES_MAX = 1024
_READS_MAX = 1024
_READ_THREADS = 4
_SLOT_WAIT_S = 30.0
_PAUSE_S_MAX = 0.05
_OWN_FAULTS = (IntegrityError, DataError, ProgrammingError)
"""Errors of a statement that the database itself is well with."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An outcome that is an error."""

    error: Exception


Batch = Callable[[Connection, Sequence[Item]], Sequence[T | Failed]]
"""Does many alike things in one go: one outcome for each item, in order. What it raises undoes the
whole transaction, and each is tried again by itself, so that one bad item takes down no other."""
_Done = tuple[asyncio.Future[Any], Any]
"""A caller's future and what becomes of it: a value or `Failed`."""


@dataclass(frozen=True, slots=True)
class _Write(Generic[Item, T]):
    batch: Batch[Item, T]
    item: Item
    accounts: Sequence[str]
    future: asyncio.Future[Any]


class Database:
    """An open database. Belongs to one event loop; several may be open on one file, in any process."""

    def __init__(self, engines: Engines) -> None:
        """Start the threads. Use `open`."""
        self._engines = engines
        self._queue: queue.SimpleQueue[_Write[Any, Any] | None] = queue.SimpleQueue()
        self._write_slots = asyncio.Semaphore(_WRITES_MAX)
        self._read_slots = asyncio.Semaphore(_READS_MAX)
        self._readers = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="db-read")
        self._thread = threading.Thread(target=self._write_forever, name="db-write", daemon=True)
        self._closed = False
        self._thread.start()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout_ms: int = 15_000,
        create: bool = True,
    ) -> Database:
        """Open `sqlite:///PATH` (mode 0600) or `postgresql://…`, making the tables in an empty one.

        Raises ValueError for another kind of URL, Unavailable when it cannot be used, OldSchema
        when an older version made it.
        """
        engines = Engines(
            url, synchronous=synchronous, busy_timeout_ms=busy_timeout_ms, create=create
        )
        try:
            schema.prepare(engines.writer)
        except DBAPIError as error:
            engines.dispose()
            raise Unavailable(f"The database {engines.shown} cannot be opened.") from error
        except BaseException:
            engines.dispose()
            raise
        return cls(engines)

    async def write(self, fn: Callable[[Connection], T], accounts: Sequence[str] = ()) -> T:
        """Run `fn` in the writer thread, in a savepoint of a shared transaction; durable on return.

        It may run twice, the first time undone: it does nothing but read and write the database.
        `accounts` whose balance it moves are locked before anything of the transaction is done.
        What `fn` raises undoes only its own work and is raised here. Raises Unavailable when the
        transaction could not be begun or committed (then nothing of it is on disk, unless the
        connection broke while it was being committed), Busy when no slot came free in 30 s. A
        caller cancelled while waiting cannot know whether `fn` ran.
        """
        return await self.write_batched(_single, fn, accounts)

    async def write_batched(
        self, batch: Batch[Item, T], item: Item, accounts: Sequence[str] = ()
    ) -> T:
        """As `write`, together with all others that wait with the same `batch` function."""
        async with _Slot(self._write_slots):
            self._refuse_if_closed()
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._queue.put(_Write(batch, item, accounts, future))
            return await future

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a reader thread on one snapshot of what is committed. Raises Unavailable."""
        async with _Slot(self._read_slots):
            self._refuse_if_closed()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._readers, self._read, fn)

    async def answers(self, seconds_max: float) -> bool:
        """Whether the database answers a read in time."""
        try:
            async with asyncio.timeout(seconds_max):
                await self.read(lambda conn: conn.execute(select(accounts.c.id).limit(1)).all())
        except (DanqingError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Finish what is queued, then close. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._engines.dispose()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Unavailable("The database is closed.")

    def _read(self, fn: Callable[[Connection], T]) -> T:
        try:
            with self._engines.reader.connect() as connection:
                return fn(connection)
        except DBAPIError as error:
            raise _unavailable(error) from error

    def _write_forever(self) -> None:
        """The writer thread: whatever queued up while one commit was under way is the next batch."""
        while (first := self._queue.get()) is not None:
            batch: list[_Write[Any, Any]] = [first]
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

    def _commit(self, writes: list[_Write[Any, Any]]) -> None:
        accounts = sorted({one for write in writes for one in write.accounts})
        done: list[_Done] = []
        for number, run in enumerate(_TRIES):
            again = False
            # At once, whoever was ended for a deadlock takes its rows back before the other one wakes.
            if number:
                time.sleep(number * random.uniform(0, _PAUSE_S_MAX))
            try:
                with self._engines.transaction() as connection:
                    again = run is not _TRIES[-1]
                    # All of them first and in order: two gateways then never wait for each other.
                    lock_accounts(connection, accounts)
                    done = run(connection, writes)
                    again = False  # what breaks from here on may be on disk all the same
            except Exception as error:
                # Also those whose own work had failed: they may have seen work that is now undone.
                done = [(write.future, Failed(_unavailable(error))) for write in writes]
            if not again:
                break
        by_loop: dict[asyncio.AbstractEventLoop, list[_Done]] = {}
        for future, outcome in done:
            by_loop.setdefault(future.get_loop(), []).append((future, outcome))
        for loop, resolved in by_loop.items():
            # A loop that closed meanwhile has nobody left to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, resolved)


def _single(connection: Connection, fns: Sequence[Callable[[Connection], T]]) -> list[T]:
    """The batch function of single writes, which only ever gets one."""
    return [fn(connection) for fn in fns]


def _together(connection: Connection, writes: Sequence[_Write[Any, Any]]) -> list[_Done]:
    """The first try: alike things in one go. A bad one, a deadlock, a lost connection undo it all."""
    groups: dict[Batch[Any, Any], list[_Write[Any, Any]]] = {}
    for write in writes:
        groups.setdefault(write.batch, []).append(write)
    done: list[_Done] = []
    for batch, group in groups.items():
        if batch is _single:
            done += [(write.future, _alone(connection, write, last_try=False)) for write in group]
        else:
            outcomes = batch(connection, [write.item for write in group])
            done += zip((write.future for write in group), outcomes, strict=True)
    return done


def _one_by_one(
    connection: Connection, writes: Sequence[_Write[Any, Any]], *, last_try: bool
) -> list[_Done]:
    """The later tries: what is one's own fault takes down no other; in the last one, whatever it is."""
    return [(write.future, _alone(connection, write, last_try=last_try)) for write in writes]


_TRIES = (_together, partial(_one_by_one, last_try=False), partial(_one_by_one, last_try=True))


def _alone(connection: Connection, write: _Write[Any, Any], *, last_try: bool) -> Any | Failed:
    """One write in a savepoint of its own. Raises what is not its own fault where it may be tried again."""
    savepoint = connection.begin_nested()
    try:
        (outcome,) = write.batch(connection, [write.item])
    except Exception as error:
        if not isinstance(error, DBAPIError) or isinstance(error, _OWN_FAULTS):
            outcome = Failed(error)
        elif last_try:
            outcome = Failed(_unavailable(error))
        else:
            raise
        savepoint.rollback()  # raises when the whole transaction has ended (disk full)
        return outcome
    savepoint.commit()
    return outcome


class _Slot:
    """One of a semaphore's slots, held for a block; waited for 30 s at most. Raises Busy."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore

    async def __aenter__(self) -> None:
        if not self._semaphore.locked():
            await self._semaphore.acquire()  # at once
            return
        try:
            async with asyncio.timeout(_SLOT_WAIT_S):
                await self._semaphore.acquire()
        except TimeoutError:
            raise Busy(retry_after_s=1.0) from None

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release()


def _resolve(resolved: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in resolved:
        if future.done():
            continue
        if isinstance(outcome, Failed):
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome)


def _unavailable(cause: Exception) -> Unavailable:
    error = Unavailable("The database is unavailable. Please retry later.")
    error.__cause__ = cause
    return error
