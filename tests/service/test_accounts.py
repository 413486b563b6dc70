"""Accounts and tokens, through the service and through the command line."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.ledger.books import Books, open_books
from typer.testing import CliRunner, Result

from danqing.domain.errors import InvalidField, NotFound


def with_books(folder: Path, deed: Callable[[Books], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_books(folder) as books:
            await deed(books)

    asyncio.run(main())


def test_a_new_account(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        account = await books.accounts.create("小明")
        assert account == await books.accounts.get("小明")
        assert (account.balance, account.suspended, account.waiver_ms) == (15_000, False, None)
        empty = await books.accounts.create("empty", 0)
        assert empty.balance == 0
        assert await books.ledger.statement(empty.id) == []
        assert [row.name for row in await books.accounts.all()] == ["empty", "小明"]
        assert await books.ledger.check() == []

    with_books(tmp_path, deed)


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "a\nb", "a\x00", " a", "a ", "\ud800", "a\x1b[31m", "a\u2028b"]
)
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    async def deed(books: Books) -> None:
        with pytest.raises(InvalidField):
            await books.accounts.create(name)
        assert await books.accounts.all() == []

    with_books(tmp_path, deed)


def test_a_name_is_given_once(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        results = await asyncio.gather(
            *(books.accounts.create("a") for _ in range(10)), return_exceptions=True
        )
        assert sum(isinstance(result, InvalidField) for result in results) == 9
        assert (await books.accounts.get("a")).balance == 15_000
        with pytest.raises(InvalidField):
            await books.accounts.create("b", -1)
        assert len(await books.accounts.all()) == 1

    with_books(tmp_path, deed)


def test_a_waiver_is_kept_with_text_and_time(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        row = await books.accounts.waive("a", "7", "I label them myself.")
        assert (row.waiver_version, row.waiver_text) == ("7", "I label them myself.")
        assert row.waiver_ms == books.clock.now_ms
        assert await books.accounts.get("a") == row
        with pytest.raises(NotFound):
            await books.accounts.waive("b")

    with_books(tmp_path, deed)


def test_tokens(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        await books.accounts.create("a")
        await books.accounts.create("b")
        first = await books.accounts.create_token("a", name="laptop")
        second = await books.accounts.create_token("b", expires_ms=books.clock.now_ms + 1000)
        assert first != second
        rows = await books.accounts.list_tokens()
        assert {f"sk-{row.id}" for row in rows} == {first.split(".")[0], second.split(".")[0]}
        (row,) = await books.accounts.list_tokens("a")
        assert (row.name, row.expires_ms, row.revoked_ms) == ("laptop", None, None)
        await books.accounts.revoke_token(row.id)
        revoked_ms = books.clock.now_ms
        books.clock.now_ms += 5
        await books.accounts.revoke_token(f"sk-{row.id}")
        assert (await books.accounts.list_tokens("a"))[0].revoked_ms == revoked_ms
        for failing in (
            books.accounts.revoke_token("sk-none"),
            books.accounts.create_token("nobody"),
            books.accounts.list_tokens("nobody"),
            books.accounts.get("nobody"),
        ):
            with pytest.raises(NotFound):
                await failing
        with pytest.raises(InvalidField):
            await books.accounts.create_token("a", expires_ms=books.clock.now_ms)

    with_books(tmp_path, deed)


def test_the_operator_is_made_once(tmp_path: Path) -> None:
    async def deed(books: Books) -> None:
        tokens = await asyncio.gather(*(books.accounts.ensure_operator(70) for _ in range(5)))
        (token,) = [token for token in tokens if token is not None]
        principal = await books.authenticator().authenticate(f"Bearer {token}")
        assert principal.account_name == "operator"
        assert await books.ledger.balance(principal.account_id) == 70
        assert len(await books.accounts.list_tokens()) == 1

    with_books(tmp_path, deed)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    main = pytest.importorskip("danqing.cli.main")

    def run(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main.app, [*args, "--data-dir", str(tmp_path)])
        assert result.exit_code == code, (result.output, result.exception)
        return result

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
    assert cli("token", "list", "--account", "alice").stdout.endswith("\trevoked\n")
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
    assert "Traceback" not in result.stderr
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
