"""What only SQLite can do to us: files that are shared, locked, read-only, full, deleted or replaced."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from danqing.db.session import Database
from danqing.domain.errors import Unavailable
from tests.ledger.plain import one_batch, open_plain, raw, rows, scalar
from tests.ledger.test_session import ROOT, insert, notes_db, stored


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'books.db'}"


def test_a_batch_is_one_commit(tmp_path: Path, url: str) -> None:
    async def main() -> None:
        db = notes_db(url)
        wal = tmp_path / "books.db-wal"
        before = wal.stat().st_size
        await db.write(insert(1000))
        alone = wal.stat().st_size - before
        await one_batch(db, lambda: map(db.write, map(insert, range(100))))
        # A commit writes each changed page once: a hundred of them would write a hundred.
        assert wal.stat().st_size - before - alone < 10 * alone
        await db.close()

    asyncio.run(main())
    assert len(stored(url)) == 101


def test_the_file_is_private_and_the_pragmas_hold(tmp_path: Path, url: str) -> None:
    async def main() -> None:
        db = notes_db(url)
        await db.write(insert(1))
        for file in tmp_path.glob("books.db*"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        for access in (db.read, db.write):
            for name, value in {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": 15_000,
            }.items():
                assert await access(scalar(f"PRAGMA {name}")) == value
        await db.close()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["a b.db", "100%.db", "#1.db", "é丹.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with open_plain(f"sqlite:///{tmp_path / 'under' / name}") as books:
            assert await books.ledger.balance(await books.account(7)) == 7

    asyncio.run(main())
    assert (tmp_path / "under" / name).stat().st_size > 0


def test_what_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is a text file, not a database" * 100)
    with pytest.raises(Unavailable):
        Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(Unavailable):
        Database.open(f"sqlite:///{tmp_path}")


def test_closing_a_second_database_of_the_process_keeps_the_firsts_writes(
    tmp_path: Path, url: str
) -> None:
    """The second's opening must drop no lock of the first: its closing would delete the live WAL."""

    async def check() -> None:
        first = notes_db(url)
        await first.write(insert(1))
        await Database.open(url).close()
        # Another process comes and goes, as the command line does.
        read = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall())"
        path = str(tmp_path / "books.db")
        query = [sys.executable, "-c", read, path, "SELECT id FROM notes ORDER BY id"]
        assert subprocess.check_output(query, text=True).strip() == "[(1,)]"
        await first.write(insert(2))
        assert subprocess.check_output(query, text=True).strip() == "[(1,), (2,)]"
        await first.close()

    asyncio.run(check())


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


@contextmanager
def locked_by_another(path: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOCKER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"
    yield
    process.communicate(b"\n")


def test_locked_by_another_process_for_longer_than_we_wait(tmp_path: Path, url: str) -> None:
    async def main() -> None:
        async with open_plain(url, busy_timeout_ms=300) as books:
            account_id = await books.account(100)
            task_id = await books.hold(account_id, 40)
            before = rows(url)
            transaction, begun = books.db._engines.transaction, []

            def counted():
                begun.append(1)
                return transaction()

            books.db._engines.transaction = counted
            with locked_by_another(tmp_path / "books.db"):
                results = await asyncio.gather(
                    books.hold(account_id, 1),
                    books.settle(task_id, 1, post=40, state="succeeded"),
                    books.ledger.grant(account_id, 5, "g"),
                    return_exceptions=True,
                )
                assert [type(result) for result in results] == [Unavailable] * 3
                # One wait for the batch and one for what came meanwhile, none of them twice.
                assert len(begun) <= 2
                assert await books.ledger.balance(account_id) == 60
            assert rows(url) == before
            await books.settle(task_id, 1, post=40, state="succeeded")
            assert await books.ledger.balance(account_id) == 60
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_a_lock_that_ends_in_time_is_waited_for(tmp_path: Path, url: str) -> None:
    async def main() -> None:
        async with open_plain(url) as books:
            account_id = await books.account(100)
            with closing(sqlite3.connect(tmp_path / "books.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                hold = asyncio.create_task(books.hold(account_id, 40))
                await asyncio.sleep(0.3)
                assert not hold.done()
                other.execute("ROLLBACK")
            await hold
            assert await books.ledger.balance(account_id) == 60

    asyncio.run(main())


def test_a_deleted_database_takes_no_more_writes(tmp_path: Path, url: str) -> None:
    """SQLite itself would go on writing into the deleted file, and lose it all at the end."""

    async def main() -> None:
        aside = tmp_path / "aside"
        aside.mkdir()
        async with open_plain(url) as books:
            account_id = await books.account(100)
            before = rows(url)
            for file in tmp_path.glob("books.db*"):
                file.rename(aside / file.name)
            for deed in (books.hold(account_id, 40), books.ledger.balance(account_id)):
                with pytest.raises(Unavailable):
                    await deed
            assert list(tmp_path.glob("books.db*")) == []
            for file in aside.iterdir():
                file.rename(tmp_path / file.name)
            assert rows(url) == before
            await books.hold(account_id, 40)
            assert await books.ledger.balance(account_id) == 60

    asyncio.run(main())
    with raw(url) as connection:
        assert connection.execute("SELECT balance FROM accounts").fetchone() == (60,)


def test_a_replaced_database_is_the_one_that_counts(tmp_path: Path, url: str) -> None:
    async def main() -> None:
        async with open_plain(url) as books:
            account_id = await books.account(100)
            with raw(url) as connection:
                connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
            await books.hold(account_id, 40)
            for file in tmp_path.glob("books.db*"):
                file.unlink()
            (tmp_path / "backup.db").rename(tmp_path / "books.db")
            assert await books.ledger.balance(account_id) == 100
            await books.hold(account_id, 30)
            assert await books.ledger.check() == []
        with raw(url) as connection:
            assert connection.execute("SELECT balance FROM accounts").fetchone() == (70,)

    asyncio.run(main())


def set_writer(db: Database, pragma: str) -> None:
    """Set a pragma of the writer's one connection, which is kept until something breaks."""
    kept = db._engines._kept
    if kept is not None:
        kept.connection.cursor().execute(pragma)
        return
    with closing(db._engines.writer.raw_connection()) as connection:
        connection.cursor().execute(pragma)


def test_a_full_disk(url: str) -> None:
    async def main() -> None:
        async with open_plain(url) as books:
            account_id = await books.account(10**6)
            task_id = await books.hold(account_id, 40)
            pages = await books.db.read(scalar("PRAGMA page_count"))
            set_writer(books.db, f"PRAGMA max_page_count = {pages + 8}")
            held = [task_id]
            while True:
                results = await asyncio.gather(
                    *(books.hold(account_id, 1) for _ in range(20)), return_exceptions=True
                )
                held += [result for result in results if isinstance(result, str)]
                failed = [result for result in results if not isinstance(result, str)]
                if failed:
                    break
            assert {type(result) for result in failed} == {Unavailable}
            assert await books.ledger.check() == []
            holds = await books.ledger.open_holds()
            assert holds.count == len(held)
            set_writer(books.db, "PRAGMA max_page_count = 1000000")
            await books.settle(task_id, 1, post=40, state="succeeded")
            await books.hold(account_id, 1)
            assert await books.ledger.check() == []

    asyncio.run(main())


LIMITED = """
import asyncio, json, os, resource, sys
from pathlib import Path
from danqing.domain.errors import Unavailable
from tests.ledger.plain import open_plain, scalar

async def main():
    async with open_plain(sys.argv[1], "FULL") as books:
        account_id = await books.account(10**6)
        wal = Path(sys.argv[1].removeprefix("sqlite:///") + "-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 200_000, -1))
        held, refused = [], []
        while len(refused) < 100:
            results = await asyncio.gather(
                *(books.hold(account_id, 1) for _ in range(20)), return_exceptions=True
            )
            held += [one for one in results if isinstance(one, str)]
            refused += [type(one).__name__ for one in results if not isinstance(one, str)]
        faults = await books.ledger.check()
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        again = await books.hold(account_id, 1)
        print(json.dumps({"held": held + [again], "refused": sorted(set(refused)), "faults": faults}))

asyncio.run(main())
"""


def test_a_log_that_cannot_grow(url: str) -> None:
    """A limit on the size of files: writing the WAL fails in the middle of a commit."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, url], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["refused"] == ["Unavailable"]
    assert told["faults"] == []
    with raw(url) as connection:
        stored_ids = {row[0] for row in connection.execute("SELECT id FROM tasks")}
    assert stored_ids == set(told["held"])


READ_ONLY = """
import asyncio, os, sys, time
from danqing.domain.errors import Unavailable
from danqing.db.session import Database

asyncio.run(Database.open(sys.argv[1]).close())  # all that is imported on the way
if os.getuid() == 0:  # root may write whatever the mode says
    os.setgid(65534)
    os.setuid(65534)
began_s = time.monotonic()
try:
    Database.open(sys.argv[2])
except Unavailable as error:
    print(error.message)
    print(time.monotonic() - began_s)
"""


def test_a_read_only_folder_is_told_at_once(url: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        folder = Path(name)
        shut = f"sqlite:///{folder / 'shut.db'}"

        async def fill() -> None:
            async with open_plain(shut) as books:
                await books.account(100)

        asyncio.run(fill())
        (folder / "shut.db").chmod(0o444)
        folder.chmod(0o555)
        program = [sys.executable, "-c", READ_ONLY, url, shut]
        done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=240)
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    told, took_s = done.stdout.splitlines()
    assert "shut.db cannot be opened" in told
    assert float(took_s) < 12  # it waits 15 for who holds a lock


def test_a_database_that_became_read_only(url: str) -> None:
    async def main() -> None:
        async with open_plain(url) as books:
            account_id = await books.account(100)
            before = rows(url)
            set_writer(books.db, "PRAGMA query_only = 1")
            with pytest.raises(Unavailable):
                await books.hold(account_id, 40)
            assert rows(url) == before
            assert await books.ledger.balance(account_id) == 100
            set_writer(books.db, "PRAGMA query_only = 0")
            await books.hold(account_id, 40)
            assert await books.ledger.check() == []

    asyncio.run(main())
