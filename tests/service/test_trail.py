"""The audit trail: nobody edits it unseen, and many may write it at once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError
from tests.ledger.books import Books, open_books, with_books

from danqing.domain.errors import QuotaExceeded
from danqing.service import changes
from danqing.service.trail import Trail


async def some_deeds(books: Books) -> None:
    for n in range(5):
        await books.accounts.create(f"a{n}", 10)
    await books.accounts.grant("a1", 5, "猫 😀", by="account:boss")


def forge(path: Path, statements: Sequence[str]) -> None:
    """What the owner of the file can do: everything."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for deed in ("update", "delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS audit_log_no_{deed}")
        for statement in statements:
            connection.execute(statement)


def test_rows_are_as_they_were_written(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        await some_deeds(books)
        rows = await books.trail.rows()
        assert [row.seq for row in rows] == [1, 2, 3, 4, 5, 6]
        account = await books.accounts.get("a1")
        assert [row.seq for row in await books.trail.rows(subject=f"account:{account.id}")] == [
            2,
            6,
        ]
        assert [row.seq for row in await books.trail.rows(2, 2)] == [3, 4]
        last = rows[-1]
        assert (last.actor, last.deed, last.at_ms) == (
            "account:boss", "account.grant", books.clock.now_ms
        )  # fmt: skip
        assert last.detail == {"characters": 5, "reason": "猫 😀", "balance": 15}
        assert await books.trail.verify() == []
        assert len(await Trail(books.db, b"another key", books.clock).verify()) == 6

    with_books(tmp_path, deed, url=database_url)


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
def test_the_database_refuses_changes(tmp_path: Path, database_url: str, statement: str) -> None:
    async def deed(books: Books) -> None:
        await some_deeds(books)
        with pytest.raises(DBAPIError, match="immutable"):
            await books.db.write(lambda conn: conn.exec_driver_sql(statement).rowcount)
        assert await books.trail.verify() == []

    with_books(tmp_path, deed, url=database_url)


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["UPDATE audit_log SET actor = 'cli ' WHERE seq = 3"], ["row 3,"]),
        (["UPDATE audit_log SET deed = 'account.delete' WHERE seq = 1"], ["row 1,"]),
        (["UPDATE audit_log SET subject = 'keys' WHERE seq = 6"], ["row 6,"]),
        (["UPDATE audit_log SET at_ms = at_ms + 1 WHERE seq = 2"], ["row 2,"]),
        (["UPDATE audit_log SET detail = replace(detail, '5', '6') WHERE seq = 6"], ["row 6,"]),
        (["UPDATE audit_log SET mac = replace(mac, 'a', 'b') WHERE seq = 2"], ["row 2,", "row 3,"]),
        (["DELETE FROM audit_log WHERE seq = 1"], ["rows 1 to 1 are missing"]),
        (["DELETE FROM audit_log WHERE seq IN (3, 4)"], ["rows 3 to 4 are missing"]),
        (
            [
                "UPDATE audit_log SET seq = -2 WHERE seq = 2",
                "UPDATE audit_log SET seq = 2 WHERE seq = 3",
                "UPDATE audit_log SET seq = 3 WHERE seq = -2",
            ],
            ["row 2,", "row 3,", "row 4,"],
        ),
        (
            [
                "DELETE FROM audit_log WHERE seq = 3",
                "UPDATE audit_log SET seq = seq - 1 WHERE seq > 3",
            ],
            ["row 3,", "row 4,", "row 5,"],
        ),
        (
            [
                "INSERT INTO audit_log SELECT 7, at_ms, actor, deed, subject, detail, mac "
                "FROM audit_log WHERE seq = 6"
            ],
            ["row 7,"],
        ),
    ],
)
def test_a_forgery_is_seen(tmp_path: Path, statements: list[str], words: list[str]) -> None:
    async def write(books: Books) -> None:
        await some_deeds(books)

    async def look(books: Books) -> None:
        faults = await books.trail.verify()
        assert len(faults) == len(words)
        for fault, word in zip(faults, words, strict=True):
            assert word in fault

    with_books(tmp_path, write)
    forge(tmp_path / "danqing.db", statements)
    with_books(tmp_path, look)


def test_a_deed_that_fails_leaves_no_row(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a", 10)
        results = await asyncio.gather(
            books.accounts.adjust("a", -16, "too much", by="t"),
            books.accounts.grant("a", 5, "gift", by="t"),
            return_exceptions=True,
        )
        assert isinstance(results[0], QuotaExceeded)
        assert [row.deed for row in await books.trail.rows()] == ["account.create", "account.grant"]
        assert await books.trail.verify() == []

    with_books(tmp_path, deed, url=database_url)


def test_two_gateways_write_one_chain(tmp_path: Path, database_url: str) -> None:
    """All kinds of deeds at once, beside holds: none waits for ever, none is lost."""

    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url) as books,
            open_books(tmp_path, url=database_url) as others,
        ):
            ids = [(await books.accounts.create(f"a{n}", 1000)).id for n in range(4)]
            secrets = [await books.tokens.create(f"a{n}", by="t") for n in range(4)]
            tokens = [token.removeprefix("sk-").partition(".")[0] for token in secrets]

            async def work(each: Books, start: int) -> None:
                authenticator = each.authenticator()
                for n in range(start, start + 12):
                    name, account_id = f"a{n % 4}", ids[n % 4]
                    each.clock.now_ms += 61_000
                    await asyncio.gather(
                        each.accounts.grant(name, 1, "gift", by="t"),
                        authenticator.authenticate(f"Bearer {secrets[n % 4]}"),
                        each.accounts.change(name, changes.price(1000 + n), by="t"),
                        each.hold(account_id, 2, token_id=tokens[n % 4]),
                        each.accounts.create(f"new-{start}-{n}", 5),
                        each.blocks.block(f"user-{n % 3}", account_id=None, reason="x", by="t"),
                        each.tokens.revoke(await each.tokens.create(name, by="t"), by="t"),
                    )

            await asyncio.gather(
                *(work(books, n) for n in (0, 1)), *(work(others, n) for n in (2, 3))
            )
            rows = await books.trail.rows(0, 1000)
            assert len(rows) == 8 + 4 * 12 * 6
            assert await books.trail.verify() == []
            assert await books.ledger.check() == []
            assert [await books.ledger.balance(one) for one in ids] == [1000 + 12 - 24] * 4

    asyncio.run(main())
