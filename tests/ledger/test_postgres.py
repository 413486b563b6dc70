"""What only a database server can do to us: die, come back, drop a connection, lose the answer to a COMMIT."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from danqing.db import checks
from danqing.domain.errors import Unavailable
from danqing.domain.ids import uuid7
from danqing.service.ledger import StaleTask
from tests.ledger.plain import PlainBooks, new_task, open_plain, raw, scalar
from tests.postgres import PostgresServer

T = TypeVar("T")


async def until_it_is_back(deed: Callable[[], Awaitable[T]]) -> T:
    """As the pipeline does: the same ids again."""
    while True:
        try:
            return await deed()
        except Unavailable:
            await asyncio.sleep(0.05)


def test_killed_and_restarted_under_load(postgres: PostgresServer, postgres_url: str) -> None:
    answered: set[str] = set()
    posted: set[str] = set()
    refused: list[str] = []

    async def patient(books: PlainBooks, account_id: str, stop: asyncio.Event) -> None:
        """Never lets go of what it began: it is done once, however often it is asked."""
        while not stop.is_set():
            task, hold_id, transfer_id = new_task(account_id), uuid7(), uuid7()
            how = {
                "account_id": account_id,
                "post": 7,
                "transfer_id": transfer_id,
                "state": "succeeded",
            }
            await until_it_is_back(partial(books.ledger.open_task, task, hold_id, 10, 30))
            answered.add(task.id)
            await until_it_is_back(partial(books.ledger.settle, task.id, 1, **how))
            posted.add(task.id)

    async def hasty(books: PlainBooks, account_id: str, stop: asyncio.Event) -> None:
        """Asks once; what was refused may be there or not, but never half."""
        while not stop.is_set():
            task = new_task(account_id)
            try:
                await books.ledger.open_task(task, uuid7(), 10, 30)
                answered.add(task.id)
            except Unavailable:
                refused.append(task.id)
                await asyncio.sleep(0.01)

    async def main() -> None:
        async with open_plain(postgres_url) as books:
            account_id = await books.account(10**9)
            stop = asyncio.Event()
            workers = [
                asyncio.create_task(kind(books, account_id, stop))
                for kind in (patient, hasty)
                for _ in range(8)
            ]
            for _ in range(3):
                before = len(answered)
                while len(answered) < before + 100:
                    await asyncio.sleep(0.02)
                await asyncio.to_thread(postgres.kill)
                with pytest.raises(Unavailable):
                    await books.ledger.balance(account_id)
                await asyncio.to_thread(postgres.start)
            stop.set()
            await asyncio.gather(*workers)
            assert refused
            assert await books.ledger.check() == []
            statement = await books.ledger.statement(account_id, rows_max=100_000)
            held = [row.task_id for row in statement if row.kind == "hold"]
            assert len(held) == len(set(held))
            assert answered <= set(held) <= answered | set(refused)
            assert {row.task_id for row in statement if row.kind == "post"} == posted
            balance = 10**9 - 10 * (len(held) - len(posted)) - 7 * len(posted)
            assert await books.ledger.balance(account_id) == balance

    asyncio.run(main())


def kill_connections(url: str) -> int:
    """How many of ours there were."""
    with raw(url) as connection:
        kill = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return connection.execute(kill).fetchone()[0]


def test_a_stale_connection_is_nobodys_business(postgres_url: str) -> None:
    async def main() -> None:
        async with open_plain(postgres_url) as books:
            account_id = await books.account(100)
            await books.ledger.balance(account_id)
            assert kill_connections(postgres_url) >= 2  # the writer's and a reader's
            await books.hold(account_id, 40)
            kill_connections(postgres_url)
            assert await books.ledger.balance(account_id) == 60

    asyncio.run(main())


def test_a_connection_lost_in_the_middle(postgres_url: str) -> None:
    """Nothing was committed, so it is all done again."""
    tries: list[int] = []

    def work(conn) -> None:
        conn.execute(text("UPDATE accounts SET balance = balance"))
        tries.append(kill_connections(postgres_url) if not tries else 0)
        conn.execute(text("UPDATE accounts SET balance = balance"))

    async def main() -> None:
        async with open_plain(postgres_url) as books:
            account_id = await books.account(100)
            await asyncio.gather(books.db.write(work), books.hold(account_id, 40))
            assert len(tries) == 2
            assert await books.ledger.balance(account_id) == 60
            assert await books.ledger.check() == []

    asyncio.run(main())


class Proxy:
    """Between us and PostgreSQL. Armed, it passes the next COMMIT on and cuts the line before its answer."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.armed = threading.Event()
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                cut = threading.Event()
                for source, sink, up in ((client, server, True), (server, client, False)):
                    arguments = (source, sink, up, cut)
                    threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, up: bool, cut: threading.Event
    ) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(65536):
                if up and b"COMMIT\0" in data and self.armed.is_set():
                    self.armed.clear()
                    cut.set()
                if not up and cut.is_set():
                    self.cuts += 1
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)


@contextmanager
def proxied(url: str) -> Iterator[tuple[Proxy, str]]:
    where = urlsplit(url)
    proxy = Proxy((where.hostname, where.port))
    yield proxy, url.replace(f":{where.port}/", f":{proxy.port}/")
    proxy.close()


def test_a_commit_whose_answer_got_lost(postgres_url: str) -> None:
    async def main(proxy: Proxy, url: str) -> None:
        async with open_plain(url) as books:
            account_id = await books.account(100)
            task, hold_id, transfer_id = new_task(account_id), uuid7(), uuid7()
            how = {"account_id": account_id, "post": 30, "state": "succeeded"}

            proxy.armed.set()
            with pytest.raises(Unavailable):
                await books.ledger.open_task(task, hold_id, 40, 30)
            assert await books.ledger.balance(account_id) == 60  # it was done
            assert (await books.ledger.open_task(task, hold_id, 40, 30)).id == task.id
            assert await books.ledger.balance(account_id) == 60

            proxy.armed.set()
            with pytest.raises(Unavailable):
                await books.ledger.settle(task.id, 1, transfer_id=transfer_id, **how)
            await books.ledger.settle(task.id, 1, transfer_id=transfer_id, **how)
            with pytest.raises(StaleTask):
                await books.ledger.settle(task.id, 1, transfer_id=uuid7(), **how)

            proxy.armed.set()
            grant_id = uuid7()
            with pytest.raises(Unavailable):
                await books.ledger.grant(account_id, 5, "g", grant_id)
            assert await books.ledger.grant(account_id, 5, "g", grant_id) == 75
            assert proxy.cuts == 3
            assert await books.ledger.check() == []

    with proxied(postgres_url) as (proxy, url):
        asyncio.run(main(proxy, url))


def test_a_commit_is_never_done_twice_by_itself(postgres_url: str) -> None:
    """A grant without an id: trying it again behind the caller's back would double it."""

    async def main(proxy: Proxy, url: str) -> None:
        async with open_plain(url) as books:
            account_id = await books.account(100)
            proxy.armed.set()
            with pytest.raises(Unavailable):
                await books.ledger.grant(account_id, 5, "g")
            assert proxy.cuts == 1
            assert await books.ledger.balance(account_id) == 105

    with proxied(postgres_url) as (proxy, url):
        asyncio.run(main(proxy, url))


def test_the_writer_finds_by_index_whatever_the_statistics_say(postgres_url: str) -> None:
    """A plan made for an empty table is kept, and would read the whole of it when it is full."""

    async def main() -> None:
        async with open_plain(postgres_url) as books:
            account_id = await books.account(10**6)
            for _ in range(8):  # until psycopg has prepared the statements
                await books.settle(await books.hold(account_id, 1), 1, post=1, state="succeeded")
            read = scalar("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'tasks'")
            before = await books.db.read(read)
            for _ in range(30):
                await books.settle(await books.hold(account_id, 1), 1, post=1, state="succeeded")
            await books.db.write(scalar("SELECT pg_stat_force_next_flush()"))
            await asyncio.sleep(0.1)
            assert await books.db.read(read) == before

    asyncio.run(main())


def test_a_long_book_has_the_time_it_needs(postgres_url: str) -> None:
    """Reading all of it takes minutes; what serves a request must not."""

    async def main() -> None:
        async with open_plain(postgres_url) as books:
            timeout = scalar("SHOW statement_timeout")

            def check(conn) -> str:
                assert checks.faults(conn) == []
                return timeout(conn)

            assert await books.db.read(check) == "0"
            assert await books.db.read(timeout) == "1min"
            assert await books.db.write(timeout) == "1min"

    asyncio.run(main())
