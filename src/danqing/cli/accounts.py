"""The books on the command line: account, grant, token, keys, ledger. Knows no SQL; prints plain lines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from danqing.db.tables import AccountRow, TokenRow
from danqing.domain.errors import DanqingError
from danqing.settings import Settings

if TYPE_CHECKING:
    from danqing.app import Books

T = TypeVar("T")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the database and the keys are.")
]
Config = Annotated[Path | None, typer.Option("--config", help="The settings file (TOML).")]
AccountName = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")]


Deed = Callable[["Books", Settings], Awaitable[T]]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    _add_account(app)
    _add_token(app)
    _add_upkeep(app)


def run_on_books(
    data_dir: Path | None, config: Path | None, deed: Deed[T], *, create: bool = False
) -> T:
    """What `deed` returns, done on the open books; a failure is one line and exit code 1."""
    from danqing.app import open_books  # loads the whole house: not for `--help`
    from danqing.cli.main import fail, read_settings

    settings = read_settings(config, data_dir)

    async def inside() -> T:
        async with open_books(settings, create=create) as books:
            return await deed(books, settings)

    try:
        return asyncio.run(inside())
    except (DanqingError, OSError, ValueError) as error:
        fail(str(error))


def _add_account(app: typer.Typer) -> None:
    account = typer.Typer(no_args_is_help=True, help="Accounts and their balance.")
    app.add_typer(account, name="account")

    @account.command("create")
    def create(name: AccountName, data_dir: DataDir = None, config: Config = None) -> None:
        """Make an account, with its first characters (15,000 by default)."""
        row = run_on_books(
            data_dir,
            config,
            lambda books, settings: books.accounts.create(name, settings.account_characters),
            create=True,
        )
        typer.echo(f"account {row.name} made, balance {row.balance}")

    @account.command("show")
    def show(
        name: AccountName,
        as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Show an account: its balance, what is held, its waiver."""

        async def deed(books: Books, _: Settings) -> dict[str, object]:
            row = await books.accounts.get(name)
            holds = await books.ledger.open_holds(row.id)
            return _account_facts(row, holds.characters)

        facts = run_on_books(data_dir, config, deed)
        if as_json:
            typer.echo(json.dumps(facts, ensure_ascii=False))
        else:
            for key, value in facts.items():
                typer.echo(f"{key}: {'-' if value is None else value}")

    @account.command("waive")
    def waive(name: AccountName, data_dir: DataDir = None, config: Config = None) -> None:
        """Record that the account signed the waiver of the visible AI label."""
        row = run_on_books(data_dir, config, lambda books, _: books.accounts.waive(name))
        typer.echo(f"waiver version {row.waiver_version} of account {row.name} recorded:")
        typer.echo(row.waiver_text)

    @account.command("list")
    def list_accounts(data_dir: DataDir = None, config: Config = None) -> None:
        """List accounts: name, balance, state; tab-separated."""
        for row in run_on_books(data_dir, config, lambda books, _: books.accounts.all()):
            typer.echo(f"{row.name}\t{row.balance}\t{'suspended' if row.suspended else 'active'}")

    @app.command("grant")
    def grant(
        name: AccountName,
        characters: Annotated[int, typer.Argument(help="How many to add.")],
        reason: Annotated[str, typer.Option("--reason", help="Kept with the grant.")] = "grant",
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Add characters to an account."""

        async def deed(books: Books, _: Settings) -> int:
            row = await books.accounts.get(name)
            return await books.ledger.grant(row.id, characters, reason)

        typer.echo(f"balance: {run_on_books(data_dir, config, deed)}")


def _add_token(app: typer.Typer) -> None:
    token = typer.Typer(no_args_is_help=True, help="API tokens.")
    app.add_typer(token, name="token")

    @token.command("create")
    def create(
        account: Annotated[str, typer.Option("--account", help="The account's name.")],
        expires_days: Annotated[
            int | None, typer.Option("--expires-days", min=1, max=36_500, help="Days it is good.")
        ] = None,
        name: Annotated[str | None, typer.Option("--name", help="To tell tokens apart.")] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Make a token and print it, alone, this once."""
        days_ms = None if expires_days is None else expires_days * 86_400_000
        expires_ms = None if days_ms is None else int(time.time() * 1000) + days_ms
        typer.echo(
            run_on_books(
                data_dir,
                config,
                lambda books, _: books.accounts.create_token(
                    account, expires_ms=expires_ms, name=name
                ),
            )
        )

    @token.command("revoke")
    def revoke(
        token_id: Annotated[str, typer.Argument(metavar="ID", help="With or without sk-.")],
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Revoke a token; servers refuse it within 5 seconds."""
        run_on_books(data_dir, config, lambda books, _: books.accounts.revoke_token(token_id))
        typer.echo("revoked")

    @token.command("list")
    def list_tokens(
        account: Annotated[str | None, typer.Option("--account", help="Only of this one.")] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """List tokens: id, account, name, made, expires, state; tab-separated."""

        async def deed(books: Books, _: Settings) -> list[str]:
            names = {row.id: row.name for row in await books.accounts.all()}
            rows = await books.accounts.list_tokens(account)
            return [_token_line(row, names[row.account_id]) for row in rows]

        for line in run_on_books(data_dir, config, deed):
            typer.echo(line)


def _add_upkeep(app: typer.Typer) -> None:
    keys = typer.Typer(no_args_is_help=True, help="The keys behind the tokens.")
    app.add_typer(keys, name="keys")
    ledger = typer.Typer(no_args_is_help=True, help="The books.")
    app.add_typer(ledger, name="ledger")

    @keys.command("rotate")
    def rotate(
        revoke_version: Annotated[
            int | None, typer.Option("--revoke-version", help="Void this key's tokens.")
        ] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Make a new key for new tokens; older tokens stay good unless their version is revoked."""

        async def deed(books: Books, _: Settings) -> int:
            return books.keys.rotate(revoke_version)

        typer.echo(f"current key version: {run_on_books(data_dir, config, deed)}")

    @ledger.command("check")
    def check(data_dir: DataDir = None, config: Config = None) -> None:
        """Look for broken invariants; exit code 1 when there is one."""
        faults = run_on_books(data_dir, config, lambda books, _: books.ledger.check())
        for fault in faults:
            typer.echo(fault, err=True)
        if faults:
            raise typer.Exit(1)
        typer.echo("the books balance")


def _account_facts(row: AccountRow, held: int) -> dict[str, object]:
    return {
        "name": row.name,
        "id": row.id,
        "balance": row.balance,
        "held": held,
        "suspended": row.suspended,
        "waiver": row.waiver_version,
        "waived": _moment(row.waiver_ms),
        "created": _moment(row.created_ms),
    }


def _token_line(row: TokenRow, account: str) -> str:
    now_ms = time.time() * 1000
    expired = row.expires_ms is not None and row.expires_ms <= now_ms
    state = "revoked" if row.revoked_ms is not None else "expired" if expired else "active"
    moments = (_moment(row.created_ms) or "-", _moment(row.expires_ms) or "never")
    return "\t".join((f"sk-{row.id}", account, row.name or "-", *moments, state))


def _moment(ms: int | None) -> str | None:
    if ms is None:
        return None
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat().replace("+00:00", "Z")
