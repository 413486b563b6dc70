"""Tokens: what each may do, whose they are, what their budgets count, and the keys behind them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from tests.ledger.books import Books, open_books, with_books

from danqing.db import log_queries
from danqing.db.rows import CHARACTERS_MAX
from danqing.domain.errors import (
    AuthError,
    ConcurrencyExceeded,
    ExpiredToken,
    InvalidField,
    NotFound,
    PermissionDenied,
    TokenBudgetExceeded,
)
from danqing.service import changes, tokens
from danqing.service.tokens import TokenLimits

DAY_MS = 86_400_000


def id_of(token: str) -> str:
    return token.removeprefix("sk-").partition(".")[0]


def test_made_listed_revoked(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        await books.accounts.create("b")
        first = await books.tokens.create("a", name="laptop", by="account:a")
        second = await books.tokens.create("b", expires_ms=books.clock.now_ms + 1000, by="t")
        assert first != second
        assert {row.id for row in await books.tokens.list()} == {id_of(first), id_of(second)}
        (row,) = await books.tokens.list("a")
        assert row == await books.tokens.get(row.id)
        assert (row.name, row.expires_ms, row.revoked_ms, row.scopes) == (
            "laptop",
            None,
            None,
            "draw",
        )
        await books.tokens.revoke(row.id, by="t")
        revoked_ms = books.clock.now_ms
        books.clock.now_ms += 5
        await books.tokens.revoke(f"sk-{row.id}", by="t")
        await books.tokens.revoke(first, by="t")
        assert (await books.tokens.list("a"))[0].revoked_ms == revoked_ms
        deeds = [(row.actor, row.deed) for row in await books.trail.rows(2)]
        assert deeds == [
            ("account:a", "token.create"), ("t", "token.create"), ("t", "token.revoke")
        ]  # fmt: skip
        secrets = [token.split(".")[1] for token in (first, second)]
        written = str(await books.trail.rows())
        assert not any(secret in written for secret in secrets)

    with_books(tmp_path, deed, url=database_url)


def test_what_there_is_not(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        for failing in (
            books.tokens.revoke("sk-none", by="t"),
            books.tokens.revoke("\0", by="t"),
            books.tokens.revoke("0" * 32, by="t"),
            books.tokens.get("\ud800"),
            books.tokens.update("0" * 32, TokenLimits(), by="t"),
            books.tokens.create("nobody", by="t"),
            books.tokens.list("nobody"),
        ):
            with pytest.raises(NotFound):
                await failing
        for expires_ms in (books.clock.now_ms, -1, 10**40, 1.5):
            with pytest.raises(InvalidField, match="expire"):
                await books.tokens.create("a", expires_ms=expires_ms, by="t")
        with pytest.raises(InvalidField):
            await books.tokens.create("a", name="\n", by="t")
        assert await books.tokens.list() == []

    with_books(tmp_path, deed, url=database_url)


def test_anothers_token_is_none(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        mine = await books.accounts.create("a")
        await books.accounts.create("b")
        token_id = id_of(await books.tokens.create("b", by="t"))
        for failing in (
            books.tokens.revoke(token_id, by="account:a", account_id=mine.id),
            books.tokens.update(
                token_id, TokenLimits(("account",)), by="account:a", account_id=mine.id
            ),
        ):
            with pytest.raises(NotFound):
                await failing
        row = await books.tokens.get(token_id)
        assert (row.revoked_ms, row.scopes) == (None, "draw")

    with_books(tmp_path, deed)


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"scopes": ()}, "scopes"),
        ({"scopes": ("draw", "root")}, "scopes"),
        ({"scopes": "draw"}, "scopes"),
        ({"models": ()}, "models"),
        ({"models": ("x",) * 101}, "models"),
        ({"models": ("",)}, "models"),
        ({"models": ("a\0",)}, "models"),
        ({"networks": ()}, "networks"),
        ({"networks": ("192.0.2.0/33",)}, "networks"),
        ({"networks": ("localhost",)}, "networks"),
        ({"budget_day": -1}, "budget_day"),
        ({"budget_month": 1.5}, "budget_month"),
        ({"budget_total": CHARACTERS_MAX + 1}, "budget_total"),
        ({"budget_total": True}, "budget_total"),
        ({"concurrency_max": 0}, "concurrency_max"),
        ({"rate_per_minute": 0}, "rate_per_minute"),
        ({"rate_per_minute": 10**12}, "rate_per_minute"),
    ],
)
def test_limits_that_are_refused(tmp_path: Path, limits: dict, param: str) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        token_id = id_of(await books.tokens.create("a", by="t"))
        before = await books.tokens.get(token_id)
        for failing in (
            books.tokens.create("a", limits=TokenLimits(**limits), by="t"),
            books.tokens.update(token_id, TokenLimits(**limits), by="t"),
        ):
            with pytest.raises(InvalidField) as caught:
                await failing
            assert caught.value.param == param
        assert await books.tokens.list() == [before]

    with_books(tmp_path, deed)


def test_limits_are_kept_and_seen(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        limits = TokenLimits(
            scopes=("account", "draw", "draw"),
            models=("CogView-4", "pocket", "cogview-4"),
            networks=("192.0.2.7", "2001:db8::1/64"),
            budget_day=10,
            concurrency_max=2,
            rate_per_minute=3,
        )
        token = await books.tokens.create("a", limits=limits, by="t")
        row = await books.tokens.get(id_of(token))
        assert (row.scopes, row.models) == ("draw account", ["cogview-4", "pocket"])
        assert row.networks == ["192.0.2.7/32", "2001:db8::/64"]
        assert (row.budget_day, row.budget_total, row.concurrency_max) == (10, None, 2)
        principal = await books.authenticator().authenticate(f"Bearer {token}", "192.0.2.7")
        assert principal.scopes == {"draw", "account"}
        assert principal.models == {"cogview-4", "pocket"}
        assert principal.rate_per_minute == 3
        await books.tokens.update(row.id, TokenLimits(), by="t")
        row = await books.tokens.get(row.id)
        assert (row.scopes, row.models, row.networks, row.budget_day) == ("draw", None, None, None)
        assert await books.trail.verify() == []

    with_books(tmp_path, deed, url=database_url)


def test_only_admins_have_admin_tokens(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        await books.accounts.create("boss", is_admin=True)
        limits = TokenLimits(scopes=("draw", "admin"))
        plain = id_of(await books.tokens.create("a", by="t"))
        for failing in (
            books.tokens.create("a", limits=limits, by="t"),
            books.tokens.update(plain, limits, by="t"),
        ):
            with pytest.raises(PermissionDenied, match="admin"):
                await failing
        token = await books.tokens.create("boss", limits=limits, by="t")
        principal = await books.authenticator().authenticate(f"Bearer {token}")
        assert principal.scopes == {"draw", "admin"}
        await books.accounts.change("boss", changes.admin(False), by="t")
        principal = await books.authenticator().authenticate(f"Bearer {token}")
        assert principal.scopes == {"draw"}

    with_books(tmp_path, deed)


def test_budgets_are_kept_by_the_hold(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 1000)
        limits = TokenLimits(budget_day=100, budget_total=150, concurrency_max=2)
        token_id = id_of(await books.tokens.create("a", limits=limits, by="t"))
        books.clock.now_ms += DAY_MS - books.clock.now_ms % DAY_MS
        first = await books.hold(account.id, 60, token_id=token_id)
        with pytest.raises(TokenBudgetExceeded) as caught:
            await books.hold(account.id, 41, token_id=token_id)
        assert (caught.value.window, caught.value.available) == ("day", 40)
        await books.hold(account.id, 40, token_id=token_id)
        with pytest.raises(ConcurrencyExceeded):
            await books.hold(account.id, 1, token_id=token_id)
        await books.settle(first, 1, post=10, state="succeeded")
        books.clock.now_ms += DAY_MS
        with pytest.raises(TokenBudgetExceeded) as caught:
            await books.hold(account.id, 101, token_id=token_id)
        assert caught.value.window == "day"
        await books.hold(account.id, 100, token_id=token_id)

    with_books(tmp_path, deed, url=database_url)


def test_a_budget_set_later_counts_what_was_spent_before(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 1000)
        token_id = id_of(await books.tokens.create("a", by="t"))
        books.clock.now_ms += DAY_MS - books.clock.now_ms % DAY_MS
        done = await books.hold(account.id, 50, token_id=token_id)
        await books.settle(done, 1, post=30, state="succeeded")
        void = await books.hold(account.id, 50, token_id=token_id)
        await books.settle(void, 1, post=0, state="failed")
        running = await books.hold(account.id, 20, token_id=token_id)
        await books.hold(account.id, 500)  # of no token
        for _ in range(2):  # setting it again, or anew, counts nothing twice
            await books.tokens.update(token_id, TokenLimits(budget_total=100), by="t")
            await books.tokens.update(token_id, TokenLimits(budget_day=100), by="t")
            with pytest.raises(TokenBudgetExceeded) as caught:
                await books.hold(account.id, 51, token_id=token_id)
            assert caught.value.available == 50
            await books.tokens.update(token_id, TokenLimits(), by="t")
        await books.settle(running, 1, post=5, state="succeeded")
        await books.tokens.update(token_id, TokenLimits(budget_month=100), by="t")
        with pytest.raises(TokenBudgetExceeded) as caught:
            await books.hold(account.id, 66, token_id=token_id)
        assert caught.value.available == 65

    with_books(tmp_path, deed, url=database_url)


def test_a_revoked_token_holds_nothing(tmp_path: Path, database_url: str) -> None:
    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url) as books,
            open_books(tmp_path, url=database_url) as others,
        ):
            account = await books.accounts.create("a", 1000)
            token_id = id_of(await books.tokens.create("a", by="t"))
            await others.tokens.revoke(token_id, by="t")
            with pytest.raises(ExpiredToken):
                await books.hold(account.id, 1, token_id=token_id)

    asyncio.run(main())


def test_the_keys_are_rotated_once_though_the_transaction_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deed(books: Books) -> None:
        tries: list[bool] = []

        def stumble(_: object) -> None:
            tries.append(True)
            if len(tries) == 1:
                raise OperationalError("LOCK", None, Exception("deadlock"))

        monkeypatch.setattr(log_queries, "lock_audit", stumble)
        assert await books.tokens.rotate_keys(by="cli") == 2
        assert len(tries) > 1
        assert books.keys.token("0" * 32)[1] == 2
        assert [row.detail["version"] for row in await books.trail.rows(subject="keys")] == [2]

    with_books(tmp_path, deed)


def test_so_many_tokens_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "KEYS_MAX", 3)

    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        await books.accounts.create("b")
        first, *_ = [await books.tokens.create("a", by="t") for _ in range(3)]
        with pytest.raises(PermissionDenied, match="3 tokens"):
            await books.tokens.create("a", by="t")
        await books.tokens.create("b", by="t")
        account = await books.accounts.get("a")
        await books.db.write(
            lambda conn: books.tokens.open_session(conn, account, books.clock.now_ms + 9)
        )
        await books.tokens.revoke(first, by="t")
        await books.tokens.create("a", by="t")

    with_books(tmp_path, deed)


def test_rotation_is_in_the_trail(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        old = await books.tokens.create("a", by="t")
        assert await books.tokens.rotate_keys(by="cli") == 2
        with pytest.raises(InvalidField):
            await books.tokens.rotate_keys(9, by="cli")
        assert await books.tokens.rotate_keys(1, by="cli") == 3
        with pytest.raises(AuthError):
            await books.authenticator().authenticate(f"Bearer {old}")
        assert [books.tokens.state(row) for row in await books.tokens.list()] == ["void"]
        rows = await books.trail.rows(subject="keys")
        assert [row.detail for row in rows] == [
            {"version": 2, "revoked": None},
            {"version": 3, "revoked": 1},
        ]
        assert await books.trail.verify() == []

    with_books(tmp_path, deed)
