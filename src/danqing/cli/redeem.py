"""`danqing redeem`: make and use codes that are worth characters. Knows no SQL; prints plain lines."""

from __future__ import annotations

from typing import Annotated

import typer

from danqing.cli.accounts import Config, DataDir, run_on_books


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
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Make codes and print them, one on a line, this once."""
        for code in run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.create_redeem_codes(characters, count),
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
            data_dir, config, lambda books, _: books.accounts.redeem(code, account)
        )
        typer.echo(f"balance: {balance}")
