"""The database floor: group commit, what a failure spoils, several writers, SIGKILL."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from dataclasses import fields
from pathlib import Path

import pytest
from sqlalchemy import text

from danqing.db import tables
from danqing.db.session import Database
from danqing.domain.errors import Unavailable
from danqing.domain.ids import uuid7
from tests.ledger.books import open_books

ROOT = Path(__file__).parents[2]
NOTE = text("INSERT INTO notes VALUES (:id)")


def notes_db(folder: Path, **options: object) -> Database:
    db = Database.open(f"sqlite:///{folder / 'notes.db'}", **options)
    with sqlite3.connect(folder / "notes.db") as connection:
        connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
        connection.execute(
            "CREATE TABLE links (id REFERENCES notes(id) DEFERRABLE INITIALLY DEFERRED)"
        )
    connection.close()
    return db


def stored(folder: Path) -> list[int]:
    connection = sqlite3.connect(folder / "notes.db")
    rows = [row[0] for row in connection.execute("SELECT id FROM notes ORDER BY id")]
    connection.close()
    return rows


async def one_batch(db: Database, *deeds) -> list[object]:
    """Run `deeds` in one commit: they queue up behind a write that waits for them all."""
    blocked, go = threading.Event(), threading.Event()

    def block(_conn: object) -> None:
        blocked.set()
        go.wait(10)

    first = asyncio.create_task(db.write(block))
    await asyncio.to_thread(blocked.wait, 10)
    rest = [asyncio.create_task(db.write(deed)) for deed in deeds]
    await asyncio.sleep(0.05)
    go.set()
    await first
    return await asyncio.gather(*rest, return_exceptions=True)


def insert(number: int):
    return lambda conn: conn.execute(NOTE, {"id": number}).rowcount


def test_a_failing_write_spoils_only_itself(tmp_path: Path) -> None:
    def half_done(conn) -> None:
        conn.execute(NOTE, {"id": 50})
        raise KeyError("no")

    async def main() -> None:
        db = notes_db(tmp_path)
        results = await one_batch(db, insert(1), half_done, insert(2), insert(2), insert(3))
        await db.close()
        assert [results[0], results[2], results[4]] == [1, 1, 1]
        assert isinstance(results[1], KeyError)
        assert "UNIQUE" in str(results[3])

    asyncio.run(main())
    assert stored(tmp_path) == [1, 2, 3]


def test_a_failed_commit_fails_the_whole_batch(tmp_path: Path) -> None:
    def dangling(conn) -> None:
        conn.execute(text("INSERT INTO links VALUES (999)"))

    async def main() -> None:
        db = notes_db(tmp_path)
        results = await one_batch(db, insert(1), dangling, insert(2))
        assert [type(result) for result in results] == [Unavailable] * 3
        assert await db.write(insert(3)) == 1
        await db.close()

    asyncio.run(main())
    assert stored(tmp_path) == [3]


def test_a_batch_is_one_commit(tmp_path: Path) -> None:
    async def main() -> None:
        db = notes_db(tmp_path)
        wal = tmp_path / "notes.db-wal"
        before = wal.stat().st_size
        await db.write(insert(1000))
        alone = wal.stat().st_size - before
        await one_batch(db, *map(insert, range(100)))
        # A commit writes each changed page once: a hundred of them would write a hundred.
        assert wal.stat().st_size - before - alone < 10 * alone
        await db.close()

    asyncio.run(main())
    assert len(stored(tmp_path)) == 101


def test_a_write_cancelled_in_the_queue_is_not_run(tmp_path: Path) -> None:
    async def main() -> None:
        db = notes_db(tmp_path)
        go = threading.Event()
        first = asyncio.create_task(db.write(lambda _conn: go.wait(10)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(db.write(insert(1)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        go.set()
        await first
        await db.close()

    asyncio.run(main())
    assert stored(tmp_path) == []


def test_a_locked_database_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        db = notes_db(tmp_path, busy_timeout_ms=100)
        other = sqlite3.connect(tmp_path / "notes.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await db.write(insert(1))
        assert await db.read(lambda conn: conn.execute(text("SELECT 7")).scalar()) == 7
        other.execute("ROLLBACK")
        other.close()
        assert await db.write(insert(2)) == 1
        await db.close()
        with pytest.raises(Unavailable):
            await db.write(insert(3))

    asyncio.run(main())
    assert stored(tmp_path) == [2]


def test_a_read_is_one_snapshot(tmp_path: Path) -> None:
    async def main() -> None:
        db = notes_db(tmp_path)
        count = text("SELECT COUNT(*) FROM notes")
        counted, written = threading.Event(), threading.Event()

        def twice(conn) -> tuple[int, int]:
            first = conn.execute(count).scalar()
            counted.set()
            written.wait(10)
            return first, conn.execute(count).scalar()

        reading = asyncio.create_task(db.read(twice))
        await asyncio.to_thread(counted.wait, 10)
        await db.write(insert(1))
        written.set()
        assert await reading == (0, 0)
        assert await db.read(lambda conn: conn.execute(count).scalar()) == 1
        await db.close()

    asyncio.run(main())


def test_the_file_is_private_and_the_pragmas_hold(tmp_path: Path) -> None:
    async def main() -> None:
        db = notes_db(tmp_path)
        await db.write(insert(1))
        for file in tmp_path.glob("notes.db*"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        for access in (db.read, db.write):
            for name, value in {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": 15_000,
            }.items():
                pragma = text(f"PRAGMA {name}")
                assert await access(lambda conn, p=pragma: conn.execute(p).scalar()) == value
        await db.close()

    asyncio.run(main())


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://localhost/x"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///PATH"):
        Database.open(url)


def test_what_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is a text file, not a database" * 100)
    with pytest.raises(Unavailable):
        Database.open(f"sqlite:///{tmp_path / 'a.db'}")


def test_rows_are_their_tables() -> None:
    for table, row in (
        (tables.accounts, tables.AccountRow),
        (tables.tokens, tables.TokenRow),
        (tables.transfers, tables.TransferRow),
        (tables.tasks, tables.TaskRow),
        (tables.images, tables.ImageRow),
    ):
        assert [field.name for field in fields(row)] == [column.name for column in table.columns]


def test_uuid7_is_one_and_rises() -> None:
    made = [uuid7() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert all(uuid.UUID(one).version == 7 for one in made[:100])
    assert all(uuid.UUID(one).variant == uuid.RFC_4122 for one in made[:100])


def _hold_many(folder: str, account_id: str, start, results) -> None:
    async def main() -> int:
        async with open_books(Path(folder)) as books:
            await asyncio.to_thread(start.wait)
            done = await asyncio.gather(
                *(books.hold(account_id, 1) for _ in range(200)), return_exceptions=True
            )
            return sum(isinstance(one, str) for one in done)

    results.put(asyncio.run(main()))


def test_closing_a_second_database_of_the_process_keeps_the_firsts_writes(tmp_path: Path) -> None:
    """The second's opening must drop no lock of the first: its closing would delete the live WAL."""
    path = tmp_path / "notes.db"

    async def check() -> None:
        first = notes_db(tmp_path)
        await first.write(lambda conn: conn.execute(NOTE, {"id": 1}))
        await Database.open(f"sqlite:///{path}").close()
        # Another process comes and goes, as the command line does.
        read = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall())"
        query = [sys.executable, "-c", read, str(path), "SELECT id FROM notes ORDER BY id"]
        assert subprocess.check_output(query, text=True).strip() == "[(1,)]"
        await first.write(lambda conn: conn.execute(NOTE, {"id": 2}))
        assert subprocess.check_output(query, text=True).strip() == "[(1,), (2,)]"
        await first.close()

    asyncio.run(check())


def test_two_processes_open_and_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()

    async def prepare() -> str:
        async with open_books(tmp_path) as books:
            return (await books.accounts.create("a", 300)).id

    account_id = asyncio.run(prepare())
    workers = [
        context.Process(target=_hold_many, args=(str(tmp_path), account_id, start, results))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    assert sum(results.get(timeout=30) for _ in workers) == 300
    for worker in workers:
        worker.join(10)

    async def look() -> None:
        async with open_books(tmp_path) as books:
            assert await books.ledger.balance(account_id) == 0
            assert (await books.ledger.open_holds()).count == 300
            assert await books.ledger.check() == []

    asyncio.run(look())


def _open_new(folder: str, start, results) -> None:
    async def main() -> str | None:
        start.wait()
        async with open_books(Path(folder)) as books:
            return await books.accounts.ensure_operator()

    results.put(asyncio.run(main()))


def test_of_servers_that_start_at_once_one_gets_the_token(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_open_new, args=(str(tmp_path), start, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    tokens = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(10)
    assert sum(token is not None for token in tokens) == 1

    async def look() -> None:
        async with open_books(tmp_path) as books:
            token = next(token for token in tokens if token is not None)
            principal = await books.authenticator().authenticate(f"Bearer {token}")
            assert await books.ledger.balance(principal.account_id) == 1_000_000

    asyncio.run(look())


CRASHER = """
import asyncio, sys
from pathlib import Path
from tests.ledger.books import open_books

async def main():
    async with open_books(Path(sys.argv[1]), "FULL") as books:
        account = await books.accounts.create(sys.argv[2], 10**9)
        print("account", account.id, flush=True)
        async def work():
            while True:
                task_id = await books.hold(account.id, 10, lease_s=1)
                print("held", task_id, flush=True)
                await books.ledger.settle(task_id, 1, post=7, state="succeeded")
                print("posted", task_id, flush=True)
        await asyncio.gather(*(work() for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("attempt", range(3))
def test_what_was_answered_survives_sigkill(tmp_path: Path, attempt: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHER, str(tmp_path), "a"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    lines: list[list[str]] = []
    for line in process.stdout:
        if line.endswith("\n"):
            lines.append(line.split())
        if len(lines) == 100 + 37 * attempt:
            os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    account_id = lines[0][1]
    held = {task for kind, task in lines[1:] if kind == "held"}
    posted = {task for kind, task in lines[1:] if kind == "posted"}
    assert len(posted) > 10

    async def look() -> None:
        async with open_books(tmp_path) as books:
            assert await books.ledger.check() == []
            statement = await books.ledger.statement(account_id, rows_max=10_000)
            assert held <= {row.task_id for row in statement if row.kind == "hold"}
            assert posted <= {row.task_id for row in statement if row.kind == "post"}
            books.clock.now_ms += 60_000
            await books.ledger.expire_overdue()
            assert (await books.ledger.open_holds()).count == 0
            assert await books.ledger.check() == []
            n_posts = sum(row.kind == "post" for row in statement)
            assert await books.ledger.balance(account_id) == 10**9 - 7 * n_posts

    asyncio.run(look())
