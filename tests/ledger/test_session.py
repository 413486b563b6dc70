"""The database floor on both databases: group commit, what a failure spoils, several writers, SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import uuid
from dataclasses import fields
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from danqing.db import rows as row_types
from danqing.db import tables
from danqing.db.book_queries import lock_accounts
from danqing.db.session import Database
from danqing.domain.errors import Unavailable
from danqing.domain.ids import uuid7
from tests.ledger.books import open_books
from tests.ledger.plain import is_sqlite, one_batch, open_plain, processes, raw, scalar

ROOT = Path(__file__).parents[2]
NOTE = text("INSERT INTO notes VALUES (:id)")


def notes_db(url: str, **options: object) -> Database:
    db = Database.open(url, **options)
    with raw(url) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
        connection.execute(
            "CREATE TABLE links (id INTEGER REFERENCES notes(id) DEFERRABLE INITIALLY DEFERRED)"
        )
    return db


def stored(url: str) -> list[int]:
    with raw(url) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM notes ORDER BY id")]


def insert(number: int):
    return lambda conn: conn.execute(NOTE, {"id": number}).rowcount


def test_a_failing_write_spoils_only_itself(database_url: str) -> None:
    def half_done(conn) -> None:
        conn.execute(NOTE, {"id": 50})
        raise KeyError("no")

    async def main() -> None:
        db = notes_db(database_url)
        deeds = insert(1), half_done, insert(2), insert(2), insert(3)
        results = await one_batch(db, lambda: map(db.write, deeds))
        await db.close()
        assert [results[0], results[2], results[4]] == [1, 1, 1]
        assert isinstance(results[1], KeyError)
        assert isinstance(results[3], IntegrityError)

    asyncio.run(main())
    assert stored(database_url) == [1, 2, 3]


def test_a_bad_item_spoils_only_itself(database_url: str) -> None:
    def note_all(conn, numbers) -> list[str]:
        conn.execute(NOTE, [{"id": number} for number in numbers])
        return [f"noted {number}" for number in numbers]

    async def main() -> None:
        db = notes_db(database_url)
        numbers = [1, 2, 2, 3]
        results = await one_batch(
            db, lambda: [db.write(insert(9)), *(db.write_batched(note_all, one) for one in numbers)]
        )
        await db.close()
        assert results[:3] == [1, "noted 1", "noted 2"]
        assert isinstance(results[3], IntegrityError)
        assert results[4] == "noted 3"

    asyncio.run(main())
    assert stored(database_url) == [1, 2, 3, 9]


def test_a_failed_commit_fails_the_whole_batch(database_url: str) -> None:
    def dangling(conn) -> None:
        conn.execute(text("INSERT INTO links VALUES (999)"))

    async def main() -> None:
        db = notes_db(database_url)
        deeds = insert(1), dangling, insert(2)
        results = await one_batch(db, lambda: map(db.write, deeds))
        assert [type(result) for result in results] == [Unavailable] * 3
        assert await db.write(insert(3)) == 1
        await db.close()

    asyncio.run(main())
    assert stored(database_url) == [3]


def test_a_write_cancelled_in_the_queue_is_not_run(database_url: str) -> None:
    async def main() -> None:
        db = notes_db(database_url)
        begun, go = threading.Event(), threading.Event()
        first = asyncio.create_task(db.write(lambda _conn: begun.set() or go.wait(120)))
        await asyncio.to_thread(begun.wait, 60)
        second = asyncio.create_task(db.write(insert(1)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        go.set()
        await first
        await db.close()

    asyncio.run(main())
    assert stored(database_url) == []


def test_a_read_is_one_snapshot(database_url: str) -> None:
    async def main() -> None:
        db = notes_db(database_url)
        count = scalar("SELECT COUNT(*) FROM notes")
        counted, written = threading.Event(), threading.Event()

        def twice(conn) -> tuple[int, int]:
            first = count(conn)
            counted.set()
            written.wait(60)
            return first, count(conn)

        reading = asyncio.create_task(db.read(twice))
        await asyncio.to_thread(counted.wait, 60)
        await db.write(insert(1))
        written.set()
        assert await reading == (0, 0)
        assert await db.read(count) == 1
        await db.close()

    asyncio.run(main())


def test_closed_means_closed(database_url: str) -> None:
    async def main() -> None:
        db = notes_db(database_url)
        last = asyncio.create_task(db.write(insert(1)))
        await asyncio.sleep(0)
        await db.close()
        assert await last == 1
        await db.close()
        for deed in (db.write(insert(2)), db.read(scalar("SELECT 1"))):
            with pytest.raises(Unavailable):
                await deed

    asyncio.run(main())
    assert stored(database_url) == [1]


def test_two_that_wait_for_each_other_both_get_on(postgres_url: str) -> None:
    """Rows that no lock on an account guards: PostgreSQL ends one of the two, which is done again."""

    def touch(first: int, second: int, met: threading.Barrier):
        tries = 0

        def work(conn) -> None:
            nonlocal tries
            tries += 1
            for number in (first, second):
                conn.execute(text("UPDATE notes SET id = id WHERE id = :id"), {"id": number})
                if number == first and tries == 1:  # the second try meets nobody
                    met.wait(60)
            conn.execute(NOTE, {"id": first * 10})

        return work

    async def main() -> None:
        one = notes_db(postgres_url)
        other = Database.open(postgres_url)
        await one.write(lambda conn: conn.execute(NOTE, [{"id": 1}, {"id": 2}]))
        met = threading.Barrier(2)
        await asyncio.gather(one.write(touch(1, 2, met)), other.write(touch(2, 1, met)))
        await one.close()
        await other.close()

    asyncio.run(main())
    assert stored(postgres_url) == [1, 2, 10, 20]


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://localhost/x", "nonsense"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///PATH"):
        Database.open(url)


def test_a_server_that_is_not_there_is_unavailable_and_its_password_not_told() -> None:
    with pytest.raises(Unavailable) as caught:
        Database.open("postgresql://me:hunter2@127.0.0.1:9/none")
    assert "127.0.0.1" in caught.value.message
    assert "hunter2" not in caught.value.message


def test_rows_are_their_tables() -> None:
    """`values_of` and `every` go by the names."""
    for table, row, left_out in (
        (tables.accounts, row_types.AccountRow, set()),
        (tables.waivers, row_types.WaiverRow, set()),
        (tables.tokens, row_types.TokenRow, set()),
        (tables.transfers, row_types.TransferRow, set()),
        (tables.tasks, row_types.TaskRow, set()),
        (tables.images, row_types.ImageRow, set()),
        (tables.redeem_codes, row_types.RedeemCodeRow, set()),
        (tables.audit_log, row_types.AuditRow, set()),
        (tables.outbox, row_types.OutboxRow, {"next_ms", "delivered_ms", "failed_ms", "note"}),
    ):
        names = {column.name for column in table.columns} - left_out
        assert {field.name for field in fields(row)} == names, table.name


def test_uuid7_is_one_and_rises() -> None:
    made = [uuid7() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert all(uuid.UUID(one).version == 7 for one in made[:100])
    assert all(uuid.UUID(one).variant == uuid.RFC_4122 for one in made[:100])


def test_locks_are_taken_in_order(postgres_url: str) -> None:
    """Two writers, each with what the other waits for, if it were not so."""

    async def main() -> None:
        async with open_plain(postgres_url) as books:
            ids = sorted([await books.account(10) for _ in range(3)])
            with raw(postgres_url) as other:
                other.execute("BEGIN")
                other.execute("SELECT 1 FROM accounts WHERE id = %s FOR UPDATE", (ids[0],))
                write = asyncio.create_task(books.db.write(lambda _conn: 1, [ids[2], ids[0]]))
                await asyncio.sleep(0.2)
                # It waits for the first, so it has not got the last.
                other.execute("SELECT 1 FROM accounts WHERE id = %s FOR UPDATE NOWAIT", (ids[2],))
                assert not write.done()
                other.execute("COMMIT")
                assert await write == 1
            await books.db.write(lambda conn: lock_accounts(conn, []))

    asyncio.run(main())


def _open_new(folder: str, url: str, start, results) -> None:
    async def main() -> str | None:
        start.wait()
        async with open_books(Path(folder), url=url) as books:
            return await books.accounts.ensure_operator()

    results.put(asyncio.run(main()))


def test_of_servers_that_start_at_once_one_gets_the_token(
    database_url: str, tmp_path: Path
) -> None:
    context = processes()
    start, results = context.Barrier(3), context.Queue()
    arguments = (str(tmp_path), database_url, start, results)
    workers = [context.Process(target=_open_new, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    tokens = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(10)
    assert sum(token is not None for token in tokens) == 1

    async def look() -> None:
        async with open_books(tmp_path, url=database_url) as books:
            token = next(token for token in tokens if token is not None)
            principal = await books.authenticator().authenticate(f"Bearer {token}", None)
            assert await books.ledger.balance(principal.account_id) == 1_000_000

    asyncio.run(look())


CRASHER = """
import asyncio, sys
from tests.ledger.plain import open_plain

async def main():
    async with open_plain(sys.argv[1], "FULL") as books:
        account_id = await books.account(10**9)
        print("account", account_id, flush=True)
        async def work():
            while True:
                task_id = await books.hold(account_id, 10, lease_s=1)
                print("held", task_id, flush=True)
                await books.settle(task_id, 1, post=7, state="succeeded")
                print("posted", task_id, flush=True)
        await asyncio.gather(*(work() for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("attempt", range(3))
def test_what_was_answered_survives_sigkill(database_url: str, attempt: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHER, database_url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    lines: list[list[str]] = []
    for line in process.stdout:
        if line.endswith("\n"):
            lines.append(line.split())
        if len(lines) == 100 + 37 * attempt:
            os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    account_id = lines[0][1]
    held = {task for kind, task in lines[1:] if kind == "held"}
    posted = {task for kind, task in lines[1:] if kind == "posted"}
    assert len(posted) > 10

    async def look() -> None:
        async with open_plain(database_url) as books:
            if not is_sqlite(database_url):  # its server may still be at the last transaction
                await books.db.write(lambda _conn: None, [account_id])
            assert await books.ledger.check() == []
            statement = await books.ledger.statement(account_id, rows_max=10_000)
            assert held <= {row.task_id for row in statement if row.kind == "hold"}
            assert posted <= {row.task_id for row in statement if row.kind == "post"}
            books.clock.now_ms += 60_000
            await books.expire_overdue()
            assert (await books.ledger.open_holds()).count == 0
            assert await books.ledger.check() == []
            n_posts = sum(row.kind == "post" for row in statement)
            assert await books.ledger.balance(account_id) == 10**9 - 7 * n_posts

    asyncio.run(look())
