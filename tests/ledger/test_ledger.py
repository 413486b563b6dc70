"""The ledger's rules one by one: quota under concurrency, zombies, immutability, and the check itself."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from danqing.db.tables import CHARACTERS_MAX
from danqing.domain.errors import InvalidField, NotFound, QuotaExceeded
from danqing.domain.ids import uuid7
from danqing.service.ledger import StaleTask
from tests.ledger.books import new_image, new_task, open_books


@pytest.mark.parametrize("attempt", range(3))
def test_a_thousand_holds_on_a_balance_for_five_hundred(tmp_path: Path, attempt: int) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 500 * 7 + 6)
            results = await asyncio.gather(
                *(books.hold(account.id, 7) for _ in range(1000)), return_exceptions=True
            )
            taken = [task_id for task_id in results if isinstance(task_id, str)]
            assert len(taken) == 500
            assert sum(isinstance(result, QuotaExceeded) for result in results) == 500
            assert await books.ledger.balance(account.id) == 6
            await asyncio.gather(
                *(books.ledger.settle(task_id, 1, post=7, state="succeeded") for task_id in taken)
            )
            assert await books.ledger.balance(account.id) == 6
            assert (await books.ledger.open_holds()).count == 0
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_of_many_that_settle_one_wins(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 100)
            task_id = await books.hold(account.id, 100)
            results = await asyncio.gather(
                *(
                    books.ledger.settle(task_id, 1, post=post, state="succeeded")
                    for post in range(20)
                ),
                return_exceptions=True,
            )
            winners = [post for post, result in enumerate(results) if result is None]
            assert len(winners) == 1
            assert sum(isinstance(result, StaleTask) for result in results) == 19
            assert await books.ledger.balance(account.id) == 100 - winners[0]
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_a_zombie_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 100)
            task_id = await books.hold(account.id, 40, lease_s=5)
            books.clock.now_ms += 6000
            assert await books.ledger.expire_overdue() == [task_id]
            before = books.path.with_name("before.db")
            with sqlite3.connect(books.path) as live, sqlite3.connect(before) as copy:
                live.backup(copy)
            with pytest.raises(StaleTask):
                await books.ledger.settle(
                    task_id,
                    1,
                    post=40,
                    state="succeeded",
                    images=[new_image(task_id, account.id)],
                )
            with sqlite3.connect(books.path) as live, sqlite3.connect(before) as copy:
                assert list(live.iterdump()) == list(copy.iterdump())
            task = await books.ledger.task(task_id)
            assert task is not None
            assert (task.state, task.charged) == ("failed", 0)
            assert task.error is not None
            assert await books.ledger.balance(account.id) == 100

    asyncio.run(main())


def test_settle_writes_the_end_and_the_images(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 100)
            task_id = await books.hold(account.id, 100)
            rows = [new_image(task_id, account.id, index) for index in range(2)]
            await books.ledger.settle(
                task_id, 1, post=60, state="succeeded", result={"词": [1]}, images=rows
            )
            task = await books.ledger.task(task_id)
            assert task is not None
            assert (task.state, task.charged, task.result) == ("succeeded", 60, {"词": [1]})
            assert task.finished_ms == books.clock.now_ms
            assert task.request == {"prompt": "一只猫"}
            assert await books.ledger.images(task_id) == rows
            assert await books.ledger.image(rows[1].id) == rows[1]
            assert await books.ledger.image("none") is None
            kinds = [(row.kind, row.amount) for row in await books.ledger.statement(account.id)]
            assert kinds == [("grant", 100), ("hold", 100), ("post", 60)]

    asyncio.run(main())


def test_expiry_goes_through_more_than_one_batch(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 250)
            opened = await asyncio.gather(*(books.hold(account.id, 1, 1) for _ in range(250)))
            assert await books.ledger.expire_overdue() == []
            books.clock.now_ms += 2000
            assert sorted(await books.ledger.expire_overdue()) == sorted(opened)
            assert await books.ledger.balance(account.id) == 250
            assert await books.ledger.check() == []

    asyncio.run(main())


@pytest.mark.parametrize("characters", [0, -1, 1.5, True, CHARACTERS_MAX + 1, 10**400])
def test_what_is_no_amount_is_refused(tmp_path: Path, characters: int) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 100)
            with pytest.raises(InvalidField):
                await books.ledger.grant(account.id, characters, "bad")
            if characters:
                with pytest.raises(InvalidField):
                    await books.ledger.open_task(new_task(account.id), uuid7(), characters, 30)
            assert await books.ledger.balance(account.id) == 100

    asyncio.run(main())


def test_a_balance_has_a_maximum(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 1)
            with pytest.raises(InvalidField):
                await books.ledger.grant(account.id, CHARACTERS_MAX, "huge")
            assert (
                await books.ledger.grant(account.id, CHARACTERS_MAX - 1, "huge") == CHARACTERS_MAX
            )
            task_id = await books.hold(account.id, CHARACTERS_MAX)
            await books.ledger.settle(task_id, 1, post=1, state="succeeded")
            assert await books.ledger.balance(account.id) == CHARACTERS_MAX - 1
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_no_such_account(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            for deed in (
                books.ledger.grant("nobody", 1, "g"),
                books.ledger.balance("nobody"),
                books.hold("nobody", 1),
            ):
                with pytest.raises(NotFound):
                    await deed

    asyncio.run(main())


def raw(path: Path, *statements: str) -> None:
    """Do to the file what the product never does."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transfers SET amount = 1 WHERE kind = 'grant'",
        "DELETE FROM transfers",
        "UPDATE accounts SET balance = -1",
        "INSERT INTO transfers SELECT 'x', account_id, 'grant', 0, NULL, NULL, NULL, 1 FROM transfers",
        "INSERT INTO transfers SELECT 'x', account_id, 'post', 1, NULL, 't', NULL, 1 FROM transfers",
        "INSERT INTO transfers SELECT 'x', account_id, 'gift', 1, NULL, NULL, NULL, 1 FROM transfers",
    ],
)
def test_the_store_itself_refuses(tmp_path: Path, statement: str) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            await books.accounts.create("a", 100)
            with pytest.raises(sqlite3.IntegrityError):
                raw(books.path, statement)
            assert await books.ledger.check() == []

    asyncio.run(main())


FREE = ("DROP TRIGGER transfers_no_update", "DROP TRIGGER transfers_no_delete")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE accounts SET balance = balance + 1", "balance"),
        ("UPDATE transfers SET amount = amount + 1 WHERE kind = 'grant'", "balance"),
        ("UPDATE transfers SET amount = 41 WHERE kind = 'post'", "its hold of"),
        ("UPDATE transfers SET amount = 9 WHERE kind = 'void'", "its hold of"),
        ("DELETE FROM transfers WHERE kind = 'post'", "its hold says"),
        ("DELETE FROM transfers WHERE kind = 'hold'", "has no hold"),
        ("UPDATE tasks SET charged = 1 WHERE state = 'succeeded'", "charged 1"),
        ("UPDATE tasks SET state = 'queued', finished_ms = NULL", "is queued"),
        ("DELETE FROM tasks WHERE state = 'failed'", "no task"),
        ("UPDATE images SET task_id = 'none'", "no ended task"),
    ],
)
def test_check_finds_damage(tmp_path: Path, damage: str, found: str) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            account = await books.accounts.create("a", 100)
            posted = await books.hold(account.id, 40)
            images = [new_image(posted, account.id)]
            await books.ledger.settle(posted, 1, post=30, state="succeeded", images=images)
            voided = await books.hold(account.id, 10)
            await books.ledger.settle(voided, 1, post=0, state="failed")
            assert await books.ledger.check() == []
            raw(books.path, *FREE, damage)
            faults = await books.ledger.check()
            assert any(found in fault for fault in faults), faults

    asyncio.run(main())
