"""`danqing redeem`: make, use and list codes that are worth characters. Knows no SQL; prints plain lines."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from danqing.cli.books import BY, Config, DataDir, ExpiresDays, moment, run_on_books, show
from danqing.cli.tokens import in_days


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    redeem = typer.Typer(no_args_is_help=True, help="Codes worth characters, one use each.")
    app.add_typer(redeem, name="redeem")

    @redeem.command("create")
    def create(
        characters: Annotated[
            int, typer.Argument(metavar="CHARACTERS", help="What each is worth.")
        ],
        count: Annotated[
            int, typer.Option("--count", min=1, max=10_000, help="How many codes.")
        ] = 1,
        invite: Annotated[
            bool, typer.Option("--invite", help="Invites: each lets one account sign up.")
        ] = False,
        expires_days: ExpiresDays = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Make codes and print them, one on a line, this once."""
        for code in run_on_books(
            data_dir,
            config,
            lambda books, _: books.codes.create(
                characters,
                count,
                kind="invite" if invite else "credit",
                expires_ms=in_days(expires_days),
                by=BY,
            ),
        ):
            typer.echo(code)

    @redeem.command("use")
    def use(
        code: Annotated[str, typer.Argument(metavar="CODE", help="In any case and spacing.")],
        account: Annotated[str, typer.Option("--account", help="The account's name.")],
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Use a code up: grant its characters to an account; prints the new balance."""
        balance = run_on_books(
            data_dir, config, lambda books, _: books.codes.redeem(code, account, by=BY)
        )
        typer.echo(f"balance: {balance}")

    @redeem.command("list")
    def list_codes(data_dir: DataDir = None, config: Config = None) -> None:
        """List codes by digest: kind, characters, made, by whom, expires, state; tab-separated."""
        now_ms = time.time() * 1000
        for row in run_on_books(data_dir, config, lambda books, _: books.codes.list()):
            expired = row.expires_ms is not None and row.expires_ms <= now_ms
            state = "used" if row.used_ms is not None else "expired" if expired else "unused"
            show(
                row.digest[:16],
                row.kind,
                row.characters,
                moment(row.created_ms),
                row.created_by,
                moment(row.expires_ms) or "never",
                state,
            )
