"""Redeem codes: typed in any way, kept as digests alone, used once whoever asks at once."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ledger.books import open_books

from danqing.db.rows import CHARACTERS_MAX
from danqing.domain.errors import InvalidField, NotFound
from danqing.service.codes import CODES_MAX
from danqing.service.redeem import digest, new_code


def test_a_code_is_long_random_and_easy_to_type() -> None:
    codes = {new_code() for _ in range(500)}
    assert len(codes) == 500
    symbols = "".join(codes).replace("-", "")
    assert len(symbols) == 500 * 20
    assert len(set(symbols)) == 32  # 20 symbols of 5 bits: 100 bits
    assert not set(symbols) & set("ILOU")


@given(
    lower=st.lists(st.booleans(), min_size=20, max_size=20),
    gaps=st.lists(st.sampled_from(["", " ", "-", "–", "\u3000", "\t", "_"]), min_size=20, max_size=20),
    wide=st.booleans(),
)  # fmt: skip
def test_the_way_it_is_typed_does_not_matter(
    lower: list[bool], gaps: list[str], wide: bool
) -> None:
    code = "01ABC-DEFGH-JKMNP-QRSTV"
    typed = ""
    for symbol, down, gap in zip(code.replace("-", ""), lower, gaps, strict=True):
        sign = symbol.lower() if down else symbol
        typed += (chr(ord(sign) + 0xFEE0) if wide else sign) + gap
    assert digest(typed) == digest(code)
    assert digest("Ol" + code[2:]) == digest("oI" + code[2:]) == digest(code)
    assert digest(new_code()) != digest(code)


@given(st.text(st.characters(), max_size=200))
def test_what_is_no_code_is_refused_not_broken(text: str) -> None:
    try:
        found = digest(text)
    except InvalidField:
        return
    assert len(found) == 64


@pytest.mark.parametrize("text", ["", "A" * 19, "A" * 21, "U" * 20, "\ud800" * 20, "A" * 10**6])
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidField):
        digest(text)


def test_used_once_and_kept_as_a_digest(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            await books.accounts.create("a", 10)
            first, second = await books.codes.create(500, 2, by="test")
            assert await books.codes.redeem(first.lower().replace("-", " "), "a", by="test") == 510
            for name in ("a", "nobody"):
                with pytest.raises((InvalidField, NotFound)):
                    await books.codes.redeem(first, name, by="test")
            with pytest.raises(NotFound):  # and this leaves the code unused
                await books.codes.redeem(second, "nobody", by="test")
            assert await books.codes.redeem(second, "a", by="test") == 1010
            with pytest.raises(NotFound, match="no such code"):
                await books.codes.redeem(new_code(), "a", by="test")
            account = await books.accounts.get("a")
            grants = await books.ledger.statement(account.id)
            assert [(row.kind, row.amount) for row in grants[1:]] == [("grant", 500)] * 2
            assert await books.ledger.check() == []
        kept = b"".join(path.read_bytes() for path in tmp_path.glob("danqing.db*")).upper()
        for code in (first, second):
            assert code.encode() not in kept
            assert code.replace("-", "").encode() not in kept
            assert digest(code).upper().encode() in kept

    asyncio.run(main())


def test_of_many_at_once_in_two_databases_one_wins(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books, open_books(tmp_path) as others:
            for name in ("a", "b"):
                await books.accounts.create(name, 0)
            for code in await books.codes.create(7, 5, by="test"):
                results = await asyncio.gather(
                    *(
                        where.codes.redeem(code, name, by="test")
                        for where in (books, others)
                        for name in ("a", "b", "a")
                    ),
                    return_exceptions=True,
                )
                assert sum(isinstance(result, int) for result in results) == 1
                losers = [result for result in results if not isinstance(result, int)]
                assert all("used already" in str(error) for error in losers)
            assert sum(row.balance for row in await books.accounts.all()) == 5 * 7
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_a_grant_that_fails_leaves_the_code_good(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            await books.accounts.create("full", CHARACTERS_MAX)
            await books.accounts.create("a", 0)
            (code,) = await books.codes.create(5, by="test")
            with pytest.raises(InvalidField, match="balance"):
                await books.codes.redeem(code, "full", by="test")
            assert await books.codes.redeem(code, "a", by="test") == 5

    asyncio.run(main())


@pytest.mark.parametrize(
    ("characters", "count"),
    [(0, 1), (-5, 1), (CHARACTERS_MAX + 1, 1), (5, 0), (5, CODES_MAX + 1)],
)
def test_codes_that_are_not_made(tmp_path: Path, characters: int, count: int) -> None:
    async def main() -> None:
        async with open_books(tmp_path) as books:
            with pytest.raises(InvalidField):
                await books.codes.create(characters, count, by="test")

    asyncio.run(main())
    with sqlite3.connect(tmp_path / "danqing.db") as connection:
        assert connection.execute("SELECT count(*) FROM redeem_codes").fetchone() == (0,)
    connection.close()
