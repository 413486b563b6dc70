"""Signing up, in and out: who may, how often, what is kept of it, and what a stranger can learn."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from pathlib import Path

import pytest
from argon2 import PasswordHasher, extract_parameters
from tests.ledger.books import Books, open_books, with_books

from danqing.db import queries
from danqing.domain.errors import (
    AccountSuspended,
    AuthError,
    Busy,
    DanqingError,
    ExpiredToken,
    InvalidField,
    InvalidToken,
    MissingField,
    NotFound,
    PermissionDenied,
    RateLimited,
)
from danqing.service import changes, passwords
from danqing.service.passwords import Passwords
from danqing.service.redeem import new_code
from danqing.service.signup import TRIES_PER_ADDRESS, TRIES_PER_NAME

HOUR_MS = 3_600_000
PASSWORD = "correct horse battery"
ADDRESS = "192.0.2.1"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that take no time; a test that wants real ones undoes it."""
    hasher = partial(PasswordHasher, time_cost=1, memory_cost=1024, parallelism=1)
    monkeypatch.setattr(passwords, "PasswordHasher", hasher)


async def join(books: Books, name: str = "ming", address: str = ADDRESS, **more):
    return await books.signup.sign_up(name, PASSWORD, address=address, **more)


async def enter(books: Books, name: str = "ming", password: str = PASSWORD, address=ADDRESS):
    return await books.signup.sign_in(name, password, address=address)


def hash_of(books: Books, name: str):
    return books.db.read(lambda conn: queries.accounts_named(conn, name, name)[0].password_hash)


def test_open_to_anybody(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await join(books, "Míng")
        assert account == await books.accounts.get("míng")
        assert account.balance == 123
        (row,) = await books.trail.rows()
        assert (row.deed, row.actor) == ("account.sign_up", f"account:{account.id} míng")
        assert row.subject == f"account:{account.id}"
        with pytest.raises(InvalidField, match="exists already"):
            await join(books, "MÍNG")
        assert await books.ledger.check() == []
        assert await books.trail.verify() == []

    with_books(tmp_path, deed, url=database_url, sign_up="open", account_characters=123)


def test_closed(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        (invite,) = await books.codes.create(5, kind="invite", by="t")
        with pytest.raises(PermissionDenied, match="closed"):
            await join(books, invite=invite)

    with_books(tmp_path, deed, sign_up="closed")


def test_by_invite(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        (invite,) = await books.codes.create(700, kind="invite", by="t")
        (credit,) = await books.codes.create(700, by="t")
        await books.accounts.create("taken")
        # A stranger does not learn which names there are: the invite is looked at first.
        for name in ("ming", "taken"):
            for code, error in (
                (None, MissingField),
                ("", MissingField),
                ("no code", InvalidField),
                (new_code(), NotFound),
                (credit, InvalidField),
            ):
                with pytest.raises(error) as caught:
                    await join(books, name, f"192.0.2.{len(str(code))}", invite=code)
                assert caught.value.param == "invite"
        with pytest.raises(InvalidField, match="exists already"):  # which leaves the invite good
            await join(books, "taken", invite=invite)
        account = await join(books, invite=invite.lower())
        assert account.balance == 700
        with pytest.raises(InvalidField, match="used already"):
            await join(books, "other", invite=invite)
        assert await books.ledger.check() == []

    with_books(tmp_path, deed, url=database_url)


def test_an_invite_used_by_many_at_once_lets_one_in(tmp_path: Path, database_url: str) -> None:
    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url) as books,
            open_books(tmp_path, url=database_url) as others,
        ):
            for n, invite in enumerate(await books.codes.create(7, 3, kind="invite", by="t")):
                results = await asyncio.gather(
                    *(
                        join(each, f"name-{n}-{m}", f"192.0.{n}.{m}", invite=invite)
                        for m, each in enumerate([books, others] * 2)
                    ),
                    return_exceptions=True,
                )
                losers = [result for result in results if isinstance(result, InvalidField)]
                assert len(losers) == 3
            assert len(await books.accounts.all()) == 3
            assert await books.ledger.check() == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "password", "param"),
    [
        ("ming", "short", "password"),
        ("ming", "x" * 9, "password"),
        ("ming", "x" * 1025, "password"),
        ("ming", "\ud800" * 10, "password"),
        ("", PASSWORD, "name"),
        ("m\0ing", PASSWORD, "name"),
        ("deleted-me", PASSWORD, "name"),
    ],
)
def test_bad_names_and_passwords(tmp_path: Path, name: str, password: str, param: str) -> None:
    async def deed(books: Books) -> None:
        with pytest.raises(InvalidField) as caught:
            await books.signup.sign_up(name, password, address=ADDRESS)
        assert caught.value.param == param
        assert password not in caught.value.message
        assert await books.accounts.all() == []

    with_books(tmp_path, deed, sign_up="open")


@pytest.mark.parametrize(
    "addresses",
    [
        ["192.0.2.1"] * 3,
        ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"],
        ["2001:db8::1", "2001:db8::ffff:0:1", "2001:db8:0:0:5::1"],
        ["fe80::1%eth0", "fe80::2", "fe80::3"],
        ["unknown"] * 3,
    ],
)
def test_so_many_from_one_address_a_day(tmp_path: Path, addresses: list[str]) -> None:
    async def deed(books: Books) -> None:
        first = await join(books, "a", addresses[0])
        # Deleting it does not buy another.
        await books.accounts.delete(first.id, by="t")
        await join(books, "b", addresses[1])
        with pytest.raises(RateLimited) as caught:
            await join(books, "c", addresses[2])
        assert caught.value.limit == 2
        for elsewhere in ("192.0.2.2", "2001:db8:0:1::1", "elsewhere"):
            await join(books, f"at {elsewhere}", elsewhere)
        books.clock.now_ms += 24 * HOUR_MS
        await join(books, "c", addresses[2])

    with_books(tmp_path, deed, sign_up="open", sign_ups_per_address_max=2)


def test_the_cap_holds_for_many_at_once(tmp_path: Path, database_url: str) -> None:
    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url, sign_up="open") as books,
            open_books(tmp_path, url=database_url, sign_up="open") as others,
        ):
            results = await asyncio.gather(
                *(join(each, f"name-{n}") for n, each in enumerate([books, others] * 4)),
                return_exceptions=True,
            )
            assert sum(isinstance(result, RateLimited) for result in results) == 5
            assert len(await books.accounts.all()) == 3

    asyncio.run(main())


def test_neither_password_nor_address_is_kept(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await join(books, address="203.0.113.77")
        await enter(books, address="203.0.113.77")
        kept = await hash_of(books, "ming")
        assert kept.startswith("$argon2id$")

    with_books(tmp_path, deed, sign_up="open")
    content = b"".join(path.read_bytes() for path in tmp_path.glob("danqing.db*"))
    assert b"ming" in content
    assert PASSWORD.encode() not in content
    assert b"203.0.113.77" not in content


def test_a_session(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        await join(books)
        account, token = await enter(books, "MING")
        assert account.name == "ming"
        principal = await books.authenticator().authenticate(f"Bearer {token}")
        assert (principal.session, principal.scopes) == (True, {"draw", "account"})
        _, other = await enter(books)
        assert [row.kind for row in await books.tokens.list("ming")] == ["session", "session"]
        await books.signup.sign_out(principal.token_id)
        with pytest.raises(ExpiredToken, match="revoked"):
            await books.authenticator().authenticate(f"Bearer {token}")
        assert len(await books.tokens.list("ming")) == 1
        books.clock.now_ms += 12 * HOUR_MS - 1
        await books.authenticator().authenticate(f"Bearer {other}")
        books.clock.now_ms += 1
        with pytest.raises(ExpiredToken, match="expired"):
            await books.authenticator().authenticate(f"Bearer {other}")
        assert await books.tokens.list("ming") == []
        await books.accounts.change("ming", changes.admin(True), by="t")
        _, token = await enter(books)
        principal = await books.authenticator().authenticate(f"Bearer {token}")
        assert principal.scopes == {"draw", "account", "admin"}

    with_books(tmp_path, deed, url=database_url, sign_up="open")


def test_a_stranger_learns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    real = PasswordHasher.verify
    monkeypatch.setattr(
        PasswordHasher,
        "verify",
        lambda self, kept, password: compared.append(kept) or real(self, kept, password),
    )

    async def deed(books: Books) -> None:
        await join(books)
        await books.accounts.create("without")  # no password at all
        gone = await join(books, "gone")
        await books.accounts.delete(gone.id, by="t")
        await join(books, "bad")
        await books.accounts.change("bad", changes.suspended("spam"), by="t")
        messages = set()
        names = ["ming", "without", "nobody", "gone", f"deleted-{gone.id}", "bad", "x" * 5000, "a\0", "\ud800"]  # fmt: skip
        for name in names:
            with pytest.raises(InvalidToken) as caught:
                await enter(books, name, "wrong password")
            messages.add(caught.value.message)
        assert len(messages) == 1
        # Each has cost one comparison with the same parameters.
        assert len(compared) == len(names)
        first, *rest = map(extract_parameters, compared)
        assert all(parameters == first for parameters in rest)
        with pytest.raises(AccountSuspended):  # but who has the password is told
            await enter(books, "bad")

    with_books(tmp_path, deed, sign_up="open")


def test_passwords_cannot_be_tried_fast(tmp_path: Path, still_minute: None) -> None:
    async def deed(books: Books) -> None:
        await join(books)
        results = await asyncio.gather(
            *(enter(books, "ming", "wrong password", f"192.0.2.{n}") for n in range(8)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, RateLimited) for result in results) == 8 - TRIES_PER_NAME
        with pytest.raises(RateLimited):
            await enter(books, "Ming")
        results = await asyncio.gather(
            *(enter(books, f"n{n}", "wrong password", "198.51.100.1") for n in range(22)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, RateLimited) for result in results) == 22 - TRIES_PER_ADDRESS

    with_books(tmp_path, deed, sign_up="open")


def test_an_address_that_may_try_no_more_locks_nobody_out(
    tmp_path: Path, still_minute: None
) -> None:
    async def deed(books: Books) -> None:
        await join(books)
        for n in range(TRIES_PER_ADDRESS):
            with pytest.raises(AuthError):
                await enter(books, f"n{n}", "wrong password", "198.51.100.1")
        for _ in range(2 * TRIES_PER_NAME):
            with pytest.raises(RateLimited):
                await enter(books, "ming", "wrong password", "198.51.100.1")
        await enter(books, "ming", address="192.0.2.7")

    with_books(tmp_path, deed, sign_up="open")


def test_a_hash_of_old_is_renewed(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await join(books)
        weak = PasswordHasher(time_cost=1, memory_cost=512, parallelism=1).hash(PASSWORD)
        await books.db.write(
            lambda conn: queries.update_account(conn, account.id, password_hash=weak)
        )
        await enter(books)
        kept = await hash_of(books, "ming")
        assert kept != weak
        assert not Passwords(10).is_outdated(kept)
        await enter(books)
        assert await hash_of(books, "ming") == kept

    with_books(tmp_path, deed, url=database_url, sign_up="open")


def test_changing_the_password(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await join(books)
        key = await books.tokens.create("ming", by="t")
        (_, mine), (_, other) = [await enter(books) for _ in range(2)]
        mine_id = mine.removeprefix("sk-").partition(".")[0]
        for old, new, param in (
            ("wrong password", "another password", "old"),
            (PASSWORD, "short", "new"),
        ):
            with pytest.raises(InvalidField) as caught:
                await books.signup.change_password(account.id, old, new)
            assert caught.value.param == param
        await books.signup.change_password(account.id, PASSWORD, "another password", keep=mine_id)
        for good in (key, mine):
            await books.authenticator().authenticate(f"Bearer {good}")
        with pytest.raises(ExpiredToken):
            await books.authenticator().authenticate(f"Bearer {other}")
        with pytest.raises(AuthError):
            await enter(books)
        await enter(books, password="another password")
        await books.signup.set_password("ming", "set by the boss", by="account:boss")
        with pytest.raises(ExpiredToken):
            await books.authenticator().authenticate(f"Bearer {mine}")
        await enter(books, password="set by the boss")
        rows = [row.actor for row in await books.trail.rows() if row.deed == "account.password"]
        assert rows == [f"account:{account.id} ming", "account:boss"]
        assert "password" not in str([row.detail for row in await books.trail.rows()])

    with_books(tmp_path, deed, url=database_url, sign_up="open")


def test_a_password_changed_while_signing_in_lets_nobody_in(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await join(books)
        entering = asyncio.create_task(enter(books))
        await books.signup.set_password("ming", "another password", by="t")
        try:
            await entering
        except InvalidToken:
            pass  # it came second
        else:
            assert await books.tokens.list("ming") == []  # it came first, and was ended

    with_books(tmp_path, deed, sign_up="open")


def test_an_accent_is_one_however_it_is_typed(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        await books.signup.set_password("a", "caf\u00e9 au lait", by="t")
        await enter(books, "a", "cafe\u0301 au lait")
        with pytest.raises(InvalidToken):
            await enter(books, "a", "CAF\u00c9 au lait")

    with_books(tmp_path, deed)


def test_so_many_comparisons_wait_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(passwords, "WAITING_MAX", 3)

    async def main() -> None:
        keeper = Passwords(10)
        kept = await keeper.hash(PASSWORD)
        assert re.match(r"\$argon2id\$v=19\$m=65536,t=3,p=4\$", kept)
        results: list[object] = await asyncio.gather(
            *(keeper.matches(kept, PASSWORD) for _ in range(5)), return_exceptions=True
        )
        assert results[:3] == [True] * 3
        assert all(isinstance(result, Busy) for result in results[3:])
        assert await keeper.matches(kept, PASSWORD)
        assert not await keeper.matches("no hash", PASSWORD)
        assert not await keeper.matches(None, PASSWORD)

    asyncio.run(main())


def test_errors_are_ours(tmp_path: Path) -> None:
    """A database that is gone is told as such."""

    async def deed(books: Books) -> None:
        await books.db.close()
        for failing in (join(books), enter(books)):
            with pytest.raises(DanqingError, match="closed"):
                await failing

    with_books(tmp_path, deed, sign_up="open")
