"""Who is told that a balance is low: once each time it falls below the line, by whatever it falls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import select

from danqing.db import tables
from danqing.service import changes
from tests.ledger.books import Books, with_books
from tests.ledger.plain import one_batch

URL = "https://example.com/hook"


async def told(books: Books) -> list[int]:
    """The balances that the webhook was told."""
    waiting = select(tables.outbox.c.payload).order_by(tables.outbox.c.id)
    return await books.db.read(lambda conn: [row[0]["balance"] for row in conn.execute(waiting)])


def with_line(folder: Path, url: str, deed: Callable[[Books, str], Awaitable[None]]) -> None:
    """Run `deed` on an account of 100 characters whose line is 50."""

    async def main(books: Books) -> None:
        account_id = (await books.accounts.create("a", 100)).id
        line = (changes.webhook(URL), changes.low_balance(50))
        await books.accounts.change(account_id, *line, by="t")
        assert await told(books) == []
        await deed(books, account_id)
        assert await books.ledger.check() == []

    with_books(folder, main, url=url)


def test_a_hold_then_silence_until_above_again(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books, account_id: str) -> None:
        await books.hold(account_id, 50)
        assert await told(books) == []  # at the line is not below it
        await books.hold(account_id, 1)
        await books.hold(account_id, 1)
        await books.ledger.grant(account_id, 1, "still below")
        await books.hold(account_id, 1)
        assert await told(books) == [49]
        await books.ledger.grant(account_id, 3, "above")
        await books.hold(account_id, 2)
        assert await told(books) == [49, 49]

    with_line(tmp_path, database_url, deed)


def test_what_a_settlement_gives_back_counts(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books, account_id: str) -> None:
        tasks = [await books.hold(account_id, 20) for _ in range(4)]
        assert await told(books) == [40]
        await books.settle(tasks[0], 1, post=0, state="failed")
        await books.hold(account_id, 1)
        assert await told(books) == [40]  # 39: below all the while
        await one_batch(
            books.db, lambda: [books.settle(task, 1, post=0, state="failed") for task in tasks[1:]]
        )
        await books.hold(account_id, 60)
        assert await told(books) == [40, 39]

    with_line(tmp_path, database_url, deed)


def test_an_adjustment(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books, account_id: str) -> None:
        await books.accounts.adjust("a", -60, "mistake", by="t")
        await books.hold(account_id, 1)
        assert await told(books) == [40]

    with_line(tmp_path, database_url, deed)


def test_a_line_set_above_the_balance(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books, account_id: str) -> None:
        await books.accounts.change("a", changes.low_balance(500), by="t")
        await books.hold(account_id, 1)
        assert await told(books) == [100]
        await books.accounts.change("a", changes.low_balance(None), by="t")
        await books.hold(account_id, 90)
        assert await told(books) == [100]

    with_line(tmp_path, database_url, deed)


def test_nobody_counts_as_told_where_there_was_no_address(
    tmp_path: Path, database_url: str
) -> None:
    async def deed(books: Books, account_id: str) -> None:
        await books.accounts.change("a", changes.webhook(None), by="t")
        await books.hold(account_id, 60)
        assert await told(books) == []
        await books.accounts.change("a", changes.webhook(URL), by="t")
        assert await told(books) == [40]

    with_line(tmp_path, database_url, deed)
