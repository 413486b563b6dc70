"""Codes and invites: their kinds, their end, and that each is used once, whoever asks at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.ledger.books import Books, open_books, with_books

from danqing.domain.errors import InvalidField, NotFound, RequestError
from danqing.service.redeem import digest, new_code


def test_kinds_and_expiry(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 0)
        (invite,) = await books.codes.create(5, kind="invite", by="t")
        (late,) = await books.codes.create(5, expires_ms=books.clock.now_ms + 10, by="t")
        (credit,) = await books.codes.create(5, by="account:boss")
        books.clock.now_ms += 10
        for code, message in ((invite, "kind"), (late, "expired"), (new_code(), "no such code")):
            with pytest.raises(RequestError, match=message):
                await books.codes.redeem(code, "a", by="t")
        assert await books.codes.redeem(credit, "a", by="account:a") == 5
        rows = {row.digest: row for row in await books.codes.list()}
        assert len(rows) == 3
        used = rows[digest(credit)]
        assert (used.account_id, used.used_ms) == (account.id, books.clock.now_ms)
        assert used.created_by == "account:boss"
        assert rows[digest(late)].used_ms is None
        last = (await books.trail.rows())[-1]
        assert (last.actor, last.deed) == ("account:a", "code.redeem")
        assert last.subject == f"account:{account.id}"
        text = str(await books.trail.rows())
        assert not any(code in text for code in (invite, late, credit))

    with_books(tmp_path, deed, url=database_url)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"kind": "gift"}, "kind"),
        ({"expires_ms": 5}, "expires"),
        ({"characters": 1.5}, "characters"),
        ({"count": 1.5}, "count"),
    ],
)
def test_codes_that_are_refused(tmp_path: Path, changes: dict, param: str) -> None:
    async def deed(books: Books) -> None:
        with pytest.raises(InvalidField) as caught:
            await books.codes.create(**({"characters": 5, "by": "t"} | changes))
        assert caught.value.param == param
        assert await books.codes.list() == []

    with_books(tmp_path, deed)


def test_used_once_by_two_gateways_at_once(tmp_path: Path, database_url: str) -> None:
    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url) as books,
            open_books(tmp_path, url=database_url) as others,
        ):
            for name in ("a", "b"):
                await books.accounts.create(name, 0)
            for code in await books.codes.create(7, 10, by="t"):
                results = await asyncio.gather(
                    *(
                        where.codes.redeem(code, name, by="t")
                        for where in (books, others)
                        for name in ("a", "b", "a")
                    ),
                    return_exceptions=True,
                )
                losers = [result for result in results if not isinstance(result, int)]
                assert len(losers) == 5
                assert all("used already" in str(error) for error in losers)
            assert sum(row.balance for row in await books.accounts.all()) == 10 * 7
            assert await books.ledger.check() == []
            assert await books.trail.verify() == []

    asyncio.run(main())


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        (code,) = await books.codes.create(5, by="t")
        with pytest.raises(NotFound):
            await books.codes.redeem(code, "a\0", by="t")
        await books.accounts.create("a", 0)
        assert await books.codes.redeem(code, "A", by="t") == 5

    with_books(tmp_path, deed)
