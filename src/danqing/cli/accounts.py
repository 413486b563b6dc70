"""Accounts on the command line: account, grant, adjust. Knows no SQL; prints plain lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from danqing.cli.books import (
    BY,
    AccountName,
    Config,
    DataDir,
    moment,
    printable,
    run_on_books,
    show,
)
from danqing.cli.images import delete_blobs
from danqing.settings import Settings

if TYPE_CHECKING:
    from danqing.app import Books
    from danqing.db.rows import AccountRow, TransferRow, WaiverRow

Reason = Annotated[str, typer.Option("--reason", help="Kept with it.")]
STATEMENT_ROWS = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    account = typer.Typer(no_args_is_help=True, help="Accounts and their balance.")
    app.add_typer(account, name="account")
    _add_showing(account)
    _add_making(account)
    _add_changing(account)
    _add_rights(account)
    _add_keeping(account)
    _add_money(app)


def _add_showing(account: typer.Typer) -> None:
    @account.command("show")
    def show_account(
        name: AccountName,
        as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Show an account: its balance, what is held, its price, its waiver."""

        async def deed(books: Books, _: Settings) -> dict[str, object]:
            row = await books.accounts.get(name)
            holds = await books.ledger.open_holds(row.id)
            return _facts(row, holds.characters, await books.accounts.waivers(name))

        facts = run_on_books(data_dir, config, deed)
        if as_json:
            typer.echo(json.dumps(facts, ensure_ascii=False))
        else:
            for key, value in facts.items():
                typer.echo(f"{key}: {'-' if value is None else printable(str(value))}")

    @account.command("list")
    def list_accounts(data_dir: DataDir = None, config: Config = None) -> None:
        """List accounts: name, balance, state; tab-separated."""
        for row in run_on_books(data_dir, config, lambda books, _: books.accounts.all()):
            show(row.name, row.balance, "suspended" if row.suspended else "active")

    @account.command("statement")
    def statement(
        name: AccountName,
        as_csv: Annotated[bool, typer.Option("--csv", help="As CSV with a header.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Print every transfer, oldest first: id, time, kind, characters, hold, task, reason."""
        from danqing.api.statements import CSV_COLUMNS, csv_cells, csv_lines

        def print_page(rows: list[TransferRow]) -> None:
            for row in map(csv_cells, rows):
                if as_csv:
                    typer.echo(csv_lines([row]), nl=False)
                else:
                    show(*(cell or None for cell in row))

        async def deed(books: Books, _: Settings) -> None:
            account_id = (await books.accounts.get(name)).id
            if as_csv:
                typer.echo(csv_lines([CSV_COLUMNS]), nl=False)
            after = ""
            while rows := await books.accounts.statement(account_id, after, STATEMENT_ROWS):
                print_page(rows)
                after = rows[-1].id

        run_on_books(data_dir, config, deed)


def _add_making(account: typer.Typer) -> None:
    @account.command("create")
    def create(name: AccountName, data_dir: DataDir = None, config: Config = None) -> None:
        """Make an account, with its first characters (15,000 by default)."""
        row = run_on_books(
            data_dir,
            config,
            lambda books, settings: books.accounts.create(name, settings.account_characters, by=BY),
            create=True,
        )
        typer.echo(f"account {row.name} made, balance {row.balance}")

    @account.command("delete")
    def delete(
        name: AccountName,
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Delete an account with its images; its name is free again, its books stay."""

        async def deed(books: Books, settings: Settings) -> int:
            from danqing.storage.blobs import Blobs

            row = await books.accounts.get(name)
            blob_keys = await books.accounts.delete(row.id, by=BY)
            await delete_blobs(books, Blobs(settings.blob_root), blob_keys)
            return len(blob_keys)

        if not yes:
            typer.confirm(f"Delete {printable(name)} and all its images?", abort=True, err=True)
        images = run_on_books(data_dir, config, deed)
        typer.echo(f"account {name} deleted, with {images} images")

    @account.command("password")
    def password(name: AccountName, data_dir: DataDir = None, config: Config = None) -> None:
        """Set the password to sign in with. It is asked for; the account's sessions end."""
        secret = typer.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
        run_on_books(
            data_dir, config, lambda books, _: books.signup.set_password(name, secret, by=BY)
        )
        typer.echo("password set")


def _add_changing(account: typer.Typer) -> None:
    @account.command("waive")
    def waive(
        name: AccountName,
        signer: Annotated[str | None, typer.Option("--signer", help="Who signed.")] = None,
        revoke: Annotated[bool, typer.Option("--revoke", help="Revoke it instead.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Record that the account signed the waiver of the visible AI label."""
        if revoke:
            run_on_books(
                data_dir, config, lambda books, _: books.accounts.revoke_waiver(name, by=BY)
            )
            typer.echo(f"waiver of account {name} revoked")
            return
        row = run_on_books(
            data_dir, config, lambda books, _: books.accounts.waive(name, signer=signer, by=BY)
        )
        typer.echo(f"waiver version {row.version} of account {name} recorded:")
        typer.echo(row.text)

    @account.command("suspend")
    def suspend(
        name: AccountName, reason: Reason, data_dir: DataDir = None, config: Config = None
    ) -> None:
        """Refuse everything an account asks for; servers obey within 5 seconds."""
        from danqing.service import changes

        run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.change(name, changes.suspended(reason), by=BY),
        )
        typer.echo(f"account {name} suspended")

    @account.command("restore")
    def restore(name: AccountName, data_dir: DataDir = None, config: Config = None) -> None:
        """Lift a suspension."""
        from danqing.service import changes

        run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.change(name, changes.restored(), by=BY),
        )
        typer.echo(f"account {name} restored")


def _add_rights(account: typer.Typer) -> None:
    @account.command("price")
    def price(
        name: AccountName,
        permille: Annotated[int, typer.Argument(metavar="PERMILLE", help="1000 = full price.")],
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Set what an account pays of the catalog's prices, in thousandths."""
        from danqing.service import changes

        run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.change(name, changes.price(permille), by=BY),
        )
        typer.echo(f"account {name} pays {permille} thousandths")

    @account.command("admin")
    def admin(
        name: AccountName,
        revoke: Annotated[bool, typer.Option("--revoke", help="Take it away instead.")] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Let an account have tokens of the scope admin."""
        from danqing.service import changes

        run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.change(name, changes.admin(not revoke), by=BY),
        )
        typer.echo(f"account {name} is {'no ' if revoke else ''}admin")

    @account.command("block-level", context_settings={"ignore_unknown_options": True})
    def block_level(
        name: AccountName,
        level: Annotated[
            str, typer.Argument(metavar="LEVEL", help="-1 (refuse nothing) to 3, or 'default'.")
        ],
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Refuse an account's content at this moderation level or worse; `default`: as the settings say."""
        from danqing.cli.main import fail
        from danqing.service import changes

        try:
            number = None if level == "default" else int(level)
        except ValueError:
            fail("LEVEL is a whole number from -1 to 3, or 'default'")
        run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.change(name, changes.block_level(number), by=BY),
        )
        typer.echo(f"block level of account {name}: {level}")


def _add_keeping(account: typer.Typer) -> None:
    @account.command("keep")
    def keep(
        name: AccountName,
        days: Annotated[
            int | None, typer.Argument(metavar="[DAYS]", help="As their models say if not given.")
        ] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Set how many days an account's images are kept, those that are drawn from now on."""
        from danqing.service import changes

        run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.change(name, changes.image_days(days), by=BY),
        )
        kept = "as their models say" if days is None else f"for {days} days"
        typer.echo(f"images of account {name} are kept {kept}")


def _add_money(app: typer.Typer) -> None:
    @app.command("grant", context_settings={"ignore_unknown_options": True})
    def grant(
        name: AccountName,
        characters: Annotated[int, typer.Argument(help="How many to add.")],
        reason: Reason = "grant",
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Add characters to an account."""
        if characters < 0:
            raise typer.BadParameter(
                f"grant only adds. To take some away: danqing adjust {name} {characters} --reason WHY",
                param_hint="CHARACTERS",
            )
        balance = run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.grant(name, characters, reason, by=BY),
        )
        typer.echo(f"balance: {balance}")

    @app.command("adjust", context_settings={"ignore_unknown_options": True})
    def adjust(
        name: AccountName,
        characters: Annotated[int, typer.Argument(help="How many to add, or with - to take.")],
        reason: Reason,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Correct an account's balance; never below zero."""
        balance = run_on_books(
            data_dir,
            config,
            lambda books, _: books.accounts.adjust(name, characters, reason, by=BY),
        )
        typer.echo(f"balance: {balance}")


def _facts(row: AccountRow, held: int, waivers: list[WaiverRow]) -> dict[str, object]:
    waiver = next((waiver for waiver in reversed(waivers) if waiver.revoked_ms is None), None)
    return {
        "name": row.name,
        "id": row.id,
        "balance": row.balance,
        "held": held,
        "price_permille": row.price_permille,
        "suspended": row.suspended,
        "suspended_reason": row.suspended_reason,
        "admin": row.is_admin,
        "password": row.password_hash is not None,
        "low_balance": row.low_balance,
        "block_level": row.block_level,
        "image_days": row.image_days,
        "webhook": row.webhook_url,
        "waiver": waiver and waiver.version,
        "waived": waiver and moment(waiver.signed_ms),
        "created": moment(row.created_ms),
    }
