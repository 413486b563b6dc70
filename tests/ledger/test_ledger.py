"""The ledger's rules one by one: quota under concurrency, zombies, immutability, and the check itself."""

from __future__ import annotations

import asyncio
import sqlite3

import psycopg
import pytest

from danqing.db.rows import CHARACTERS_MAX
from danqing.domain.errors import InvalidField, NotFound, QuotaExceeded
from danqing.domain.ids import uuid7
from danqing.service.ledger import StaleTask
from tests.ledger.plain import damage, new_image, new_task, open_plain, raw, rows


@pytest.mark.parametrize("attempt", range(3))
def test_a_thousand_holds_on_a_balance_for_five_hundred(database_url: str, attempt: int) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(500 * 7 + 6)
            results = await asyncio.gather(
                *(books.hold(account_id, 7) for _ in range(1000)), return_exceptions=True
            )
            taken = [task_id for task_id in results if isinstance(task_id, str)]
            assert len(taken) == 500
            assert sum(isinstance(result, QuotaExceeded) for result in results) == 500
            assert await books.ledger.balance(account_id) == 6
            await asyncio.gather(
                *(books.settle(task_id, 1, post=7, state="succeeded") for task_id in taken)
            )
            assert await books.ledger.balance(account_id) == 6
            assert (await books.ledger.open_holds()).count == 0
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_of_many_that_settle_one_wins(database_url: str) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(100)
            task_id = await books.hold(account_id, 100)
            results = await asyncio.gather(
                *(books.settle(task_id, 1, post=post, state="succeeded") for post in range(20)),
                return_exceptions=True,
            )
            winners = [post for post, result in enumerate(results) if result is None]
            assert len(winners) == 1
            assert sum(isinstance(result, StaleTask) for result in results) == 19
            assert await books.ledger.balance(account_id) == 100 - winners[0]
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_a_zombie_changes_nothing(database_url: str) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(100)
            task_id = await books.hold(account_id, 40, lease_s=5)
            books.clock.now_ms += 6000
            assert await books.expire_overdue() == [task_id]
            before = rows(database_url)
            with pytest.raises(StaleTask):
                await books.settle(
                    task_id,
                    1,
                    post=40,
                    state="succeeded",
                    images=[new_image(task_id, account_id)],
                )
            assert rows(database_url) == before
            task = await books.ledger.task(task_id)
            assert task is not None
            assert (task.state, task.charged) == ("failed", 0)
            assert task.error is not None
            assert await books.ledger.balance(account_id) == 100

    asyncio.run(main())


def test_settle_writes_the_end_and_the_images(database_url: str) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(100)
            task_id = await books.hold(account_id, 100)
            rows = [new_image(task_id, account_id, index) for index in range(2)]
            await books.settle(
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
            kinds = [(row.kind, row.amount) for row in await books.ledger.statement(account_id)]
            assert kinds == [("grant", 100), ("hold", 100), ("post", 60)]

    asyncio.run(main())


def test_expiry_goes_through_more_than_one_batch(database_url: str) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(250)
            opened = await asyncio.gather(*(books.hold(account_id, 1, 1) for _ in range(250)))
            assert await books.expire_overdue() == []
            books.clock.now_ms += 2000
            assert sorted(await books.expire_overdue()) == sorted(opened)
            assert await books.ledger.balance(account_id) == 250
            assert await books.ledger.check() == []

    asyncio.run(main())


@pytest.mark.parametrize("characters", [0, -1, 1.5, True, CHARACTERS_MAX + 1, 10**400])
def test_what_is_no_amount_is_refused(database_url: str, characters: int) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(100)
            with pytest.raises(InvalidField):
                await books.ledger.grant(account_id, characters, "bad")
            if characters:
                with pytest.raises(InvalidField):
                    await books.ledger.open_task(new_task(account_id), uuid7(), characters, 30)
            assert await books.ledger.balance(account_id) == 100

    asyncio.run(main())


def test_a_balance_has_a_maximum(database_url: str) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(1)
            with pytest.raises(InvalidField):
                await books.ledger.grant(account_id, CHARACTERS_MAX, "huge")
            assert (
                await books.ledger.grant(account_id, CHARACTERS_MAX - 1, "huge") == CHARACTERS_MAX
            )
            task_id = await books.hold(account_id, CHARACTERS_MAX)
            await books.settle(task_id, 1, post=1, state="succeeded")
            assert await books.ledger.balance(account_id) == CHARACTERS_MAX - 1
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_no_such_account(database_url: str) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            for deed in (
                books.ledger.grant("nobody", 1, "g"),
                books.ledger.balance("nobody"),
                books.hold("nobody", 1),
            ):
                with pytest.raises(NotFound):
                    await deed

    asyncio.run(main())


REFUSALS = (
    sqlite3.IntegrityError,
    psycopg.errors.CheckViolation,
    psycopg.errors.RaiseException,
)


async def refused(url: str, statement: str) -> None:
    async with open_plain(url) as books:
        await books.account(100)
        with raw(url) as connection:
            connection.execute("INSERT INTO audit_log VALUES (1, 1, 'cli', 'd', 's', '{}', 'm')")
            before = rows(url)
            with pytest.raises(REFUSALS):
                connection.execute(statement)
        assert rows(url) == before
        assert await books.ledger.check() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transfers SET amount = 1 WHERE kind = 'grant'",
        "UPDATE transfers SET reason = NULL",
        "DELETE FROM transfers",
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "UPDATE accounts SET balance = -1",
        "INSERT INTO transfers SELECT 'x', account_id, 'grant', 0, NULL, NULL, NULL, 1 FROM transfers",
        "INSERT INTO transfers SELECT 'x', account_id, 'post', 1, NULL, 't', NULL, 1 FROM transfers",
        "INSERT INTO transfers SELECT 'x', account_id, 'gift', 1, NULL, NULL, NULL, 1 FROM transfers",
    ],
)
def test_the_store_itself_refuses(database_url: str, statement: str) -> None:
    asyncio.run(refused(database_url, statement))


@pytest.mark.parametrize("table", ["transfers", "audit_log", "transfers CASCADE"])
def test_postgresql_refuses_to_truncate(postgres_url: str, table: str) -> None:
    asyncio.run(
        refused(postgres_url, f"TRUNCATE {'tasks, images, ' * (table == 'transfers')}{table}")
    )


@pytest.mark.parametrize(
    ("statement", "found"),
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
def test_check_finds_damage(database_url: str, statement: str, found: str) -> None:
    async def main() -> None:
        async with open_plain(database_url) as books:
            account_id = await books.account(100)
            posted = await books.hold(account_id, 40)
            images = [new_image(posted, account_id)]
            await books.settle(posted, 1, post=30, state="succeeded", images=images)
            voided = await books.hold(account_id, 10)
            await books.settle(voided, 1, post=0, state="failed")
            assert await books.ledger.check() == []
            damage(database_url, statement)
            faults = await books.ledger.check()
            assert any(found in fault for fault in faults), faults

    asyncio.run(main())
