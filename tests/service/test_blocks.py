"""Blocked end users: of one account, everywhere, and free again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.ledger.books import Books, with_books

from danqing.domain.errors import EndUserBlocked, InvalidField, NotFound, PermissionDenied
from danqing.service import blocks


def test_of_one_account_and_everywhere(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        a, b = [(await books.accounts.create(name)).id for name in ("a", "b")]
        await books.blocks.block("user-123", account_id=a, reason="abuse", by="account:a")
        with pytest.raises(EndUserBlocked):
            await books.blocks.require_free(a, "user-123")
        await books.blocks.require_free(b, "user-123")
        await books.blocks.require_free(a, "USER-123")
        for nobody in (None, "", "user-\0", "\ud800"):
            await books.blocks.require_free(a, nobody)
        books.clock.now_ms += 1
        await books.blocks.block("用户", account_id=None, reason="court order", by="cli")
        for account_id in (a, b):
            with pytest.raises(EndUserBlocked):
                await books.blocks.require_free(account_id, "用户")
        assert [row.end_user for row in await books.blocks.list(b)] == ["用户"]
        mine, everywhere = await books.blocks.list(None)
        assert (mine.account_id, mine.reason, mine.created_by) == (a, "abuse", "account:a")
        assert everywhere.account_id is None
        await books.blocks.unblock("user-123", account_id=a, by="t")
        await books.blocks.require_free(a, "user-123")
        with pytest.raises(NotFound):
            await books.blocks.unblock("用户", account_id=a, by="t")
        await books.blocks.unblock("用户", account_id=None, by="t")
        await books.blocks.require_free(a, "用户")
        deeds = [(row.deed, row.subject) for row in await books.trail.rows(2)]
        assert deeds == [
            ("user.block", f"account:{a}"),
            ("user.block", "everywhere"),
            ("user.unblock", f"account:{a}"),
            ("user.unblock", "everywhere"),
        ]

    with_books(tmp_path, deed, url=database_url)


def test_blocking_again_replaces_the_reason(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        for reason in ("first", "second"):
            await books.blocks.block("u", account_id=None, reason=reason, by="t")
        assert [row.reason for row in await books.blocks.list(None)] == ["second"]

    with_books(tmp_path, deed)


def test_so_many_of_one_account_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCKS_MAX", 2)

    async def deed(books: Books) -> None:
        a, b = [(await books.accounts.create(name)).id for name in ("a", "b")]

        async def block(end_user: str, account_id: str | None) -> None:
            await books.blocks.block(end_user, account_id=account_id, reason="r", by="t")

        for end_user in ("u1", "u2", "u1"):  # again is no other
            await block(end_user, a)
        with pytest.raises(PermissionDenied, match="2 blocked"):
            await block("u3", a)
        await books.blocks.require_free(a, "u3")
        for account_id in (b, None):
            await block("u3", account_id)
        await books.blocks.unblock("u2", account_id=a, by="t")
        await block("u4", a)

    with_books(tmp_path, deed)


@pytest.mark.parametrize("end_user", ["", " ", "x" * 513, "a\0", "\ud800"])
def test_what_is_no_end_user(tmp_path: Path, end_user: str) -> None:
    async def deed(books: Books) -> None:
        with pytest.raises(InvalidField, match="end_user"):
            await books.blocks.block(end_user, account_id=None, reason="x", by="t")
        with pytest.raises(InvalidField, match="reason"):
            await books.blocks.block("u", account_id=None, reason="", by="t")
        with pytest.raises(NotFound):
            await books.blocks.block("u", account_id="nobody", reason="x", by="t")
        with pytest.raises(NotFound):
            await books.blocks.unblock(end_user, account_id=None, by="t")
        assert await books.trail.rows() == []

    with_books(tmp_path, deed)
