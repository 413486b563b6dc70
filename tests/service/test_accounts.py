"""Accounts: their names, money, rights, waivers and end, through the service and through the command line."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import commands
from tests.ledger.books import Books, open_books, with_books
from tests.ledger.plain import new_image
from typer.testing import Result

from danqing.db import log_queries
from danqing.db.rows import CHARACTERS_MAX
from danqing.domain.card import PERMILLE_MAX
from danqing.domain.errors import (
    AccountSuspended,
    ExpiredToken,
    InvalidField,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
)
from danqing.service import changes
from danqing.service.ledger import TransferConflict
from danqing.service.webhooks import parse_secret


def test_a_new_account(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("小明")
        assert account == await books.accounts.get("小明") == await books.accounts.by_id(account.id)
        assert (account.balance, account.suspended, account.is_admin) == (15_000, False, False)
        assert await books.accounts.waivers("小明") == []
        empty = await books.accounts.create("empty", 0)
        assert empty.balance == 0
        assert await books.accounts.statement(empty.id) == []
        assert [row.name for row in await books.accounts.all()] == ["empty", "小明"]
        assert [row.name for row in await books.accounts.page("empty", 5)] == ["小明"]
        assert await books.ledger.check() == []

    with_books(tmp_path, deed, url=database_url)


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a\nb", "a\x00", " a", "a ", "\ud800", "a\x1b[31m", "a\u2028b", "Deleted-x", "\ufdfa" * 9, "a/statement", "a/Grants", "/password", "a/b/waivers", "a/adjustments", "a/revoke-links"],
)  # fmt: skip
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    async def deed(books: Books) -> None:
        with pytest.raises(InvalidField) as caught:
            await books.accounts.create(name)
        assert caught.value.param == "name"
        with pytest.raises(NotFound):
            await books.accounts.get(name)
        assert await books.accounts.all() == []

    with_books(tmp_path, deed)


@pytest.mark.parametrize(
    ("name", "again"),
    [("a", "a"), ("Alice", "ALICE"), ("straße", "STRASSE"), ("Ａlice", "alice"), ("ﬁ", "FI"), ("é", "e\u0301")],
)  # fmt: skip
def test_a_name_is_given_once_however_it_is_written(tmp_path: Path, name: str, again: str) -> None:
    async def deed(books: Books) -> None:
        results = await asyncio.gather(
            *(books.accounts.create(one) for one in [name, again] * 5), return_exceptions=True
        )
        assert sum(isinstance(result, InvalidField) for result in results) == 9
        (account,) = await books.accounts.all()
        assert account.balance == 15_000
        for one in (name, again):
            assert await books.accounts.get(one) == account

    with_books(tmp_path, deed)


def test_another_s_id_is_no_name(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 1)
        for name in (account.id, account.id.upper()):
            with pytest.raises(InvalidField, match="exists already") as caught:
                await books.accounts.create(name)
            assert caught.value.param == "name"
        free = account.id[:-4] + ("0000" if not account.id.endswith("0000") else "1111")
        await books.accounts.create(free)
        await books.accounts.create("statement")

    with_books(tmp_path, deed, url=database_url)


def test_an_account_of_old_keeps_its_name(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("bob", 1)
        await books.db.write(
            lambda conn: conn.exec_driver_sql("UPDATE accounts SET name = 'Bob'").rowcount
        )
        await books.accounts.create("bob", 2)
        assert (await books.accounts.get("Bob")).balance == 1
        assert (await books.accounts.get("bob")).balance == 2

    with_books(tmp_path, deed)


@pytest.mark.parametrize("characters", [0, -1, 1.5, 2.0, True, "5", CHARACTERS_MAX + 1, 10**40])
def test_amounts_that_are_refused(tmp_path: Path, database_url: str, characters) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 10)
        with pytest.raises(InvalidField) as caught:
            await books.accounts.grant("a", characters, "gift", by="test")
        assert caught.value.param == "characters"
        if characters != -1:
            with pytest.raises(InvalidField):
                await books.accounts.adjust("a", characters, "mistake", by="test")
            if characters:
                with pytest.raises(InvalidField):
                    await books.accounts.create("b", characters)
        assert await books.ledger.balance(account.id) == 10
        assert len(await books.trail.rows()) == 1
        assert len(await books.accounts.all()) == 1

    with_books(tmp_path, deed, url=database_url)


def test_grants_and_adjustments(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 10)
        assert await books.accounts.grant("a", 5, "gift", by="account:boss") == 15
        assert await books.accounts.adjust("a", -15, "mistake", by="account:boss") == 0
        for _ in range(3):
            balance = await books.accounts.grant("a", 7, "once", by="t", transfer_id="0" * 36)
            assert balance == 7
        with pytest.raises(TransferConflict):
            await books.accounts.grant("a", 8, "once", by="t", transfer_id="0" * 36)
        with pytest.raises(QuotaExceeded):
            await books.accounts.adjust("a", -8, "mistake", by="t")
        for reason in ("", "  ", "x" * 501, "a\0b", "\ud800"):
            with pytest.raises(InvalidField, match="reason"):
                await books.accounts.grant("a", 5, reason, by="t")
        with pytest.raises(NotFound):
            await books.accounts.grant("nobody", 5, "gift", by="t")
        rows = await books.accounts.statement(account.id)
        assert {(row.kind, row.amount, row.reason) for row in rows} == {
            ("grant", 10, "first characters"),
            ("grant", 5, "gift"),
            ("adjust", -15, "mistake"),
            ("grant", 7, "once"),
        }
        assert len(rows) == 4
        trail = await books.trail.rows(1)
        assert [(row.actor, row.deed, row.detail["characters"]) for row in trail] == [
            ("account:boss", "account.grant", 5),
            ("account:boss", "account.adjust", -15),
            ("t", "account.grant", 7),
        ]
        assert await books.ledger.check() == []

    with_books(tmp_path, deed, url=database_url)


def test_suspended_and_restored(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a")
        token = await books.tokens.create("a", by="t")
        await books.accounts.change("a", changes.suspended("spam"), by="t")
        assert (await books.accounts.get("a")).suspended_reason == "spam"
        with pytest.raises(AccountSuspended):
            await books.authenticator().authenticate(f"Bearer {token}")
        with pytest.raises(AccountSuspended):  # also for who was let in just before
            await books.hold(account.id, 5)
        await books.accounts.change("a", changes.restored(), by="t")
        assert (await books.accounts.get("a")).suspended_reason is None
        await books.authenticator().authenticate(f"Bearer {token}")
        await books.hold(account.id, 5)

    with_books(tmp_path, deed, url=database_url)


def test_price_and_rights(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        await books.accounts.change("a", changes.price(1500), by="t")
        await books.accounts.change("a", changes.admin(True), by="t")
        row = await books.accounts.get("a")
        assert (row.price_permille, row.is_admin) == (1500, True)
        for permille in (-1, 1.5, True, PERMILLE_MAX + 1):
            with pytest.raises(InvalidField, match="price_permille"):
                await books.accounts.change("a", changes.price(permille), by="t")
        for failing in (
            books.accounts.change("nobody", changes.price(5), by="t"),
            books.accounts.change("nobody", changes.admin(True), by="t"),
            books.accounts.change("nobody", changes.suspended("x"), by="t"),
            books.accounts.change("nobody", changes.webhook(None), by="t"),
            books.accounts.by_id("nobody"),
        ):
            with pytest.raises(NotFound):
                await failing

    with_books(tmp_path, deed, url=database_url)


def test_waivers_are_kept_with_text_and_time_also_when_revoked(
    tmp_path: Path, database_url: str
) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        token = await books.tokens.create("a", by="t")
        first = await books.accounts.waive("a")
        signed_ms = books.clock.now_ms
        assert (first.signer, first.signed_ms, first.revoked_ms) == ("a", signed_ms, None)
        assert (await books.authenticator().authenticate(f"Bearer {token}")).waiver_id is not None
        books.clock.now_ms += 5
        await books.accounts.revoke_waiver("a", by="t")
        assert (await books.authenticator().authenticate(f"Bearer {token}")).waiver_id is None
        with pytest.raises(NotFound, match="no waiver"):
            await books.accounts.revoke_waiver("a", by="t")
        await books.accounts.waive("a", signer="王五", version="7", text="I label them myself.")
        old, new = await books.accounts.waivers("a")
        assert (old.text, old.signed_ms, old.revoked_ms) == (first.text, signed_ms, signed_ms + 5)
        assert (new.signer, new.version, new.text) == ("王五", "7", "I label them myself.")
        with pytest.raises(NotFound):
            await books.accounts.waive("b")
        with pytest.raises(InvalidField, match="signer"):
            await books.accounts.waive("a", signer=" ")

    with_books(tmp_path, deed, url=database_url)


def test_webhook_and_low_balance(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 100)
        for url in ("http://127.0.0.1/x", "ftp://example.com/", "http://" + "a" * 3000 + ".com/"):
            with pytest.raises(InvalidField) as caught:
                await books.accounts.change(account.id, changes.webhook(url), by="t")
            assert caught.value.param == "webhook_url"
        await books.accounts.change(account.id, changes.webhook("https://example.com/hook"), by="t")
        for characters in (0, -5, 1.5, CHARACTERS_MAX + 1):
            with pytest.raises(InvalidField, match="low_balance"):
                await books.accounts.change(account.id, changes.low_balance(characters), by="t")
        await books.accounts.change(account.id, changes.low_balance(50), by="t")
        await books.hold(account.id, 60)
        row = await books.accounts.get("a")
        assert (row.webhook_url, row.low_balance) == ("https://example.com/hook", 50)
        assert row.low_balance_told is True
        await books.accounts.change(account.id, changes.low_balance(30), by="t")
        assert (await books.accounts.get("a")).low_balance_told is False
        secret = books.accounts.webhook_secret(account.id)
        assert len(parse_secret(secret)) == 32
        assert secret != books.accounts.webhook_secret("another")

    with_books(tmp_path, deed, url=database_url)


def test_deleted_with_its_images(tmp_path: Path, database_url: str) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("a", 100)
        other = await books.accounts.create("b", 100)
        token = await books.tokens.create("a", by="t")
        for owner in (account, other):
            task_id = await books.hold(owner.id, 30)
            images = [new_image(task_id, owner.id, idx) for idx in range(3)]
            await books.settle(task_id, 1, post=30, state="succeeded", images=images)
        busy = await books.hold(account.id, 10)
        with pytest.raises(PermissionDenied, match="open tasks"):
            await books.accounts.delete(account.id, by="t")
        await books.settle(busy, 1, post=0, state="failed")
        line = (changes.webhook("https://example.com/"), changes.low_balance(90))
        for owner in (account, other):
            await books.accounts.change(owner.id, *line, by="t")  # which is low, and told so
        blobs = await books.accounts.delete(account.id, by="t")
        assert len(blobs) == 3
        waiting = await books.db.write(
            lambda conn: log_queries.claim_outbox(conn, books.clock.now_ms, 10**15, 9, [])
        )
        assert [one.account_id for one in waiting] == [other.id]
        row = await books.accounts.by_id(account.id)
        assert (row.name, row.balance) == (f"deleted-{account.id}", 0)
        assert row.deleted_ms == books.clock.now_ms
        assert (await books.accounts.statement(account.id))[-1].reason == "account deleted"
        with pytest.raises(ExpiredToken):
            await books.authenticator().authenticate(f"Bearer {token}")
        with pytest.raises(AccountSuspended):
            await books.hold(account.id, 1)
        for failing in (
            books.accounts.delete(account.id, by="t"),
            books.accounts.grant(row.name, 5, "gift", by="t"),
            books.accounts.change(row.name, changes.restored(), by="t"),
            books.accounts.waive(row.name),
            books.tokens.create(row.name, by="t"),
            books.accounts.get("a"),
        ):
            with pytest.raises(NotFound):
                await failing
        assert (await books.accounts.create("a")).id != account.id
        assert [one.name for one in await books.accounts.all()] == ["a", "b"]
        now_ms = books.clock.now_ms
        assert set(await images_of(books, other.id)) == {2}
        assert set(await images_of(books, account.id)) == {now_ms}
        assert await books.ledger.check() == []
        assert await books.trail.verify() == []

    with_books(tmp_path, deed, url=database_url)


async def images_of(books: Books, account_id: str) -> list[int]:
    """When each one's life ends."""
    text = f"SELECT expires_ms FROM images WHERE account_id = '{account_id}'"
    return await books.db.read(lambda conn: [row[0] for row in conn.exec_driver_sql(text)])


def test_no_hold_is_left_behind_by_a_deletion_at_the_same_time(
    tmp_path: Path, database_url: str
) -> None:
    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url) as books,
            open_books(tmp_path, url=database_url) as others,
        ):
            for n in range(10):
                account = await books.accounts.create(f"a{n}", 1000)
                deeds = [others.hold(account.id, 10) for _ in range(5)]
                deeds.insert(2, books.accounts.delete(account.id, by="t"))
                results = await asyncio.gather(*deeds, return_exceptions=True)
                held = [result for result in results if isinstance(result, str)]
                if isinstance(results[2], list):
                    assert held == []
                else:
                    assert isinstance(results[2], PermissionDenied)
                    assert len(held) == 5
            assert await books.ledger.check() == []

    asyncio.run(main())


def test_the_operator_is_made_once(tmp_path: Path, database_url: str) -> None:
    async def main() -> None:
        async with (
            open_books(tmp_path, url=database_url) as books,
            open_books(tmp_path, url=database_url) as others,
        ):
            tokens = await asyncio.gather(
                *(each.accounts.ensure_operator(70) for each in [books, others] * 3)
            )
            (token,) = [token for token in tokens if token is not None]
            principal = await books.authenticator().authenticate(f"Bearer {token}")
            assert (principal.account_name, principal.is_admin) == ("operator", True)
            assert principal.scopes == {"draw", "account", "admin"}
            assert await books.ledger.balance(principal.account_id) == 70
            assert len(await books.tokens.list()) == 1
            with pytest.raises(PermissionDenied, match="operator"):
                await books.accounts.delete(principal.account_id, by="t")

    asyncio.run(main())


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., Result]:
    def run(*args: str, code: int = 0) -> Result:
        return commands.run(*args, "--data-dir", str(tmp_path), code=code)

    return run


def test_the_command_line(cli: Callable[..., Result], tmp_path: Path) -> None:
    cli("account", "create", "alice")
    assert "balance: 15000" in cli("account", "show", "alice").stdout.splitlines()
    cli("grant", "alice", "500", "--reason", "gift")
    facts = json.loads(cli("account", "show", "alice", "--json").stdout)
    assert (facts["balance"], facts["held"], facts["waiver"]) == (15_500, 0, None)
    cli("account", "waive", "alice")
    assert json.loads(cli("account", "show", "alice", "--json").stdout)["waiver"] == "1"
    assert cli("account", "list").stdout == "alice\t15500\tactive\n"

    token = cli("token", "create", "--account", "alice", "--expires-days", "2").stdout
    assert token.endswith("\n")
    assert token.count("\n") == 1
    token_id = token.split(".")[0]
    assert cli("token", "list").stdout.startswith(f"{token_id}\talice\t-\t")
    assert token.strip().split(".")[1] not in cli("token", "list").output

    async def authenticate(books: Books) -> None:
        await books.authenticator().authenticate(f"Bearer {token.strip()}")

    with_books(tmp_path, authenticate)
    cli("token", "revoke", token_id)
    assert cli("token", "list", "--account", "alice").stdout.split("\t")[5] == "revoked"
    assert "2" in cli("keys", "rotate").stdout
    assert "3" in cli("keys", "rotate", "--revoke-version", "1").stdout
    cli("ledger", "check")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("account", "show", "nobody"), 1),
        (("account", "create", "alice"), 1),
        (("account", "create", "x" * 65), 1),
        (("grant", "alice", "0"), 1),
        (("grant", "alice", str(10**15)), 1),
        (("grant", "alice", "9" * 40), 1),
        (("grant", "nobody", "5"), 1),
        (("token", "revoke", "sk-none"), 1),
        (("token", "create", "--account", "nobody"), 1),
        (("keys", "rotate", "--revoke-version", "9"), 1),
        (("grant", "alice", "1.5"), 2),
        (("grant", "alice", "many"), 2),
        (("grant", "alice", "-5"), 2),
        (("grant", "alice"), 2),
        (("token", "create"), 2),
        (("token", "create", "--account", "alice", "--expires-days", "0"), 2),
    ],
)
def test_a_failing_command_says_one_line(
    cli: Callable[..., Result], args: tuple[str, ...], code: int
) -> None:
    cli("account", "create", "alice")
    result = cli(*args, code=code)
    assert result.stdout == ""
    if code == 1:
        assert len(result.stderr.splitlines()) == 1
    assert "balance: 15000" in cli("account", "show", "alice").stdout


def test_ledger_check_fails_on_damage(cli: Callable[..., Result], tmp_path: Path) -> None:
    cli("account", "create", "alice")
    (path,) = tmp_path.glob("*.db")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE accounts SET balance = balance + 1")
    connection.close()
    assert "alice" in cli("ledger", "check", code=1).stderr


def test_a_key_file_that_others_can_read(cli: Callable[..., Result], tmp_path: Path) -> None:
    cli("account", "create", "alice")
    (tmp_path / "keys.json").chmod(0o644)
    assert "chmod 600" in cli("account", "list", code=1).stderr
