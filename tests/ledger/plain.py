"""The ledger on a database and nothing above it, with a clock that tests can move, and ways to do to the database what the product never does."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from typing import Any

import psycopg
from sqlalchemy import MetaData, create_engine, make_url, select, text

from danqing.db import queries
from danqing.db.engines import Synchronous
from danqing.db.rows import AccountRow, ImageRow, NewTask, TokenRow
from danqing.db.session import Database
from danqing.domain.ids import uuid7
from danqing.service.delivery import new_image_id
from danqing.service.ledger import Ledger


def processes() -> ForkServerContext:
    """Makes processes that share nothing, without a second's imports each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ledger.books"])
    return context


@dataclass
class Clock:
    now_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    def __call__(self) -> int:
        return self.now_ms


class Deeds:
    """What tests do all the time with a `ledger`."""

    ledger: Ledger

    async def hold(
        self, account_id: str, characters: int, lease_s: float = 30, token_id: str | None = None
    ) -> str:
        """Open a task and return its id."""
        task = new_task(account_id, token_id)
        await self.ledger.open_task(task, uuid7(), characters, lease_s)
        return task.id

    async def settle(self, task_id: str, epoch: int, **how: Any) -> None:
        """`Ledger.settle`, of whichever account the task is."""
        task = await self.ledger.task(task_id)
        account_id = task.account_id if task else "nobody"
        await self.ledger.settle(task_id, epoch, account_id=account_id, **how)

    async def expire_overdue(self) -> list[str]:
        """What a sweep does of tasks that nothing was stored of."""
        expired = []
        while overdue := await self.ledger.overdue():
            for row in overdue:
                claimed = await self.ledger.claim(row, 30)
                assert claimed is not None
                await self.ledger.expire(claimed)
                expired.append(row.id)
        return expired


@dataclass(frozen=True)
class PlainBooks(Deeds):
    db: Database
    url: str
    clock: Clock
    ledger: Ledger

    async def account(self, characters: int = 0, **columns: Any) -> str:
        """A new account; its id."""
        account_id = uuid7()
        row = AccountRow(account_id, account_id, 0, False, self.clock.now_ms, **columns)
        await self.db.write(lambda conn: queries.insert_account(conn, row))
        if characters:
            await self.ledger.grant(account_id, characters, "first")
        return account_id

    async def token(self, account_id: str, **limits: Any) -> str:
        """A new token; its id."""
        token_id = uuid7()[:32]
        row = TokenRow(token_id, account_id, 1, None, self.clock.now_ms, **limits)
        await self.db.write(lambda conn: queries.insert_token(conn, row))
        return token_id


@asynccontextmanager
async def open_plain(
    url: str, synchronous: Synchronous = "NORMAL", **options: Any
) -> AsyncIterator[PlainBooks]:
    """NORMAL by default: most tests are about the rules, and would wait for the disk all day."""
    db = Database.open(url, synchronous=synchronous, **options)
    try:
        clock = Clock()
        yield PlainBooks(db, url, clock, Ledger(db, clock))
    finally:
        await db.close()


def new_task(account_id: str, token_id: str | None = None, **columns: Any) -> NewTask:
    request = {"prompt": "一只猫"}
    return NewTask(uuid7(), account_id, token_id, "openai", "pocket", request, **columns)


def new_image(task_id: str, account_id: str, idx: int = 0) -> ImageRow:
    return ImageRow(
        id=new_image_id(),
        task_id=task_id,
        account_id=account_id,
        idx=idx,
        format="png",
        width=64,
        height=64,
        bytes=100,
        sha256="0" * 64,
        seed=7,
        blob_key=f"a/{task_id}/{idx}.png",
        label_visible=True,
        label_metadata=True,
        created_ms=1,
        expires_ms=2,
    )


@contextmanager
def raw(url: str) -> Iterator[Any]:
    """A plain connection of the driver's that commits every statement by itself."""
    if is_sqlite(url):
        path = make_url(url).database
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            yield connection
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection


def damage(url: str, *statements: str) -> None:
    """Change what nobody can change: triggers and foreign keys look away."""
    with raw(url) as connection:
        if is_sqlite(url):
            triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for (name,) in connection.execute(triggers).fetchall():
                connection.execute(f"DROP TRIGGER {name}")
        else:
            connection.execute("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(statement)


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that is in the database, by table."""
    engine = create_engine(make_url(url).set(drivername=driver(url)))
    metadata = MetaData()
    try:
        metadata.reflect(engine)
        with engine.connect() as connection:
            return {
                name: sorted(map(tuple, connection.execute(select(table))), key=repr)
                for name, table in metadata.tables.items()
            }
    finally:
        engine.dispose()


def driver(url: str) -> str:
    return "sqlite" if is_sqlite(url) else "postgresql+psycopg"


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite:")


def scalar(sql: str) -> Any:
    """For `Database.read` and `write`: the one value that a statement answers."""
    return lambda conn: conn.execute(text(sql)).scalar()


async def one_batch(db: Database, deeds: Callable[[], Iterable[Awaitable[Any]]]) -> list[Any]:
    """Do all `deeds` in one commit: they queue up behind a write that waits for them."""
    blocked, go = threading.Event(), threading.Event()

    def block(_conn: object) -> None:
        blocked.set()
        go.wait(120)

    first = asyncio.create_task(db.write(block))
    await asyncio.to_thread(blocked.wait, 60)
    rest = [asyncio.ensure_future(deed) for deed in deeds()]
    await asyncio.sleep(0.05)
    go.set()
    await first
    return await asyncio.gather(*rest, return_exceptions=True)
