"""Upkeep on the command line: block, audit, keys, ledger, database. Knows no SQL; prints plain lines."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from danqing.cli.books import BY, Config, DataDir, moment, printable, run_on_books, show
from danqing.domain.errors import DanqingError
from danqing.settings import Settings

if TYPE_CHECKING:
    from danqing.app import Books
    from danqing.db.rows import AuditRow

T = TypeVar("T")

AUDIT_ROWS = 1000

EndUser = Annotated[str, typer.Argument(metavar="END_USER", help="As clients send it in `user`.")]
OfAccount = Annotated[
    str | None, typer.Option("--account", help="Of this account only; everywhere if not given.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    _add_block(app)
    _add_audit(app)
    _add_keys_and_ledger(app)
    _add_database(app)


def _add_block(app: typer.Typer) -> None:
    block = typer.Typer(no_args_is_help=True, help="End users nobody draws for.")
    app.add_typer(block, name="block")

    async def id_of(books: Books, account: str | None) -> str | None:
        return None if account is None else (await books.accounts.get(account)).id

    @block.command("add")
    def add(
        end_user: EndUser,
        reason: Annotated[str, typer.Option("--reason", help="Kept with it.")],
        account: OfAccount = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Draw no more for an end user."""

        async def deed(books: Books, _: Settings) -> None:
            account_id = await id_of(books, account)
            await books.blocks.block(end_user, account_id=account_id, reason=reason, by=BY)

        run_on_books(data_dir, config, deed)
        typer.echo("blocked")

    @block.command("remove")
    def remove(
        end_user: EndUser,
        account: OfAccount = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Draw for an end user again."""

        async def deed(books: Books, _: Settings) -> None:
            await books.blocks.unblock(end_user, account_id=await id_of(books, account), by=BY)

        run_on_books(data_dir, config, deed)
        typer.echo("unblocked")

    @block.command("list")
    def list_blocks(
        account: OfAccount = None, data_dir: DataDir = None, config: Config = None
    ) -> None:
        """List blocked end users: end user, account, reason, since when, by whom; tab-separated."""

        async def deed(books: Books, _: Settings) -> None:
            names = {row.id: row.name for row in await books.accounts.all()}
            for row in await books.blocks.list(await id_of(books, account)):
                name = "(everywhere)" if row.account_id is None else names.get(row.account_id)
                show(row.end_user, name, row.reason, moment(row.created_ms), row.created_by)

        run_on_books(data_dir, config, deed)


def _add_audit(app: typer.Typer) -> None:
    @app.command("audit")
    def audit(
        account: Annotated[
            str | None, typer.Option("--account", help="Only what was done to this one.")
        ] = None,
        after: Annotated[int, typer.Option("--after", min=0, help="Behind this number.")] = 0,
        verify: Annotated[
            bool, typer.Option("--verify", help="Prove that nobody changed the trail instead.")
        ] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Print the audit trail, oldest first: number, time, who, deed, subject, detail; tab-separated."""
        from danqing.service.trail import of_account

        def print_row(row: AuditRow) -> None:
            detail = json.dumps(dict(row.detail), ensure_ascii=False)
            show(row.seq, moment(row.at_ms), row.actor, row.deed, row.subject, detail)

        async def deed(books: Books, _: Settings) -> list[str]:
            if verify:
                return await books.trail.verify()
            subject = None
            if account is not None:
                subject = of_account((await books.accounts.get(account)).id)
            last = after
            while rows := await books.trail.rows(last, AUDIT_ROWS, subject):
                for row in rows:
                    print_row(row)
                last = rows[-1].seq
            return []

        _report(run_on_books(data_dir, config, deed))
        if verify:
            typer.echo("the audit trail is whole")


def _add_keys_and_ledger(app: typer.Typer) -> None:
    keys = typer.Typer(no_args_is_help=True, help="The keys behind the tokens.")
    app.add_typer(keys, name="keys")
    ledger = typer.Typer(no_args_is_help=True, help="The books.")
    app.add_typer(ledger, name="ledger")

    @keys.command("rotate")
    def rotate(
        revoke_version: Annotated[
            int | None,
            typer.Option(
                "--revoke-version", help="Void this key's tokens; a new key is made, too."
            ),
        ] = None,
        yes: Annotated[
            bool, typer.Option("--yes", help="Do not ask on a terminal before tokens are voided.")
        ] = False,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Make a new key for new tokens; older tokens stay good unless their version is revoked."""

        async def deed(books: Books, _: Settings) -> int:
            if revoke_version is not None:
                await _warn_of_voiding(books, revoke_version, ask=not yes and sys.stdin.isatty())
            return await books.tokens.rotate_keys(revoke_version, by=BY)

        version = run_on_books(data_dir, config, deed)
        if revoke_version is not None:
            typer.echo(f"key version {revoke_version} is revoked, and a new key was made")
        typer.echo(f"current key version: {version}")

    @keys.command("list")
    def list_keys(data_dir: DataDir = None, config: Config = None) -> None:
        """List the keys: version, current or older, how many good tokens and sessions it has; tab-separated."""

        async def deed(books: Books, _: Settings) -> None:
            for version in sorted(books.keys.versions()):
                state = "current" if version == books.keys.current else "older"
                show(version, state, len(await books.tokens.of_key(version)))

        run_on_books(data_dir, config, deed)

    @ledger.command("check")
    def check(data_dir: DataDir = None, config: Config = None) -> None:
        """Look for broken invariants, and for a changed audit trail; exit code 1 when there is one."""

        async def deed(books: Books, _: Settings) -> list[str]:
            return [*await books.ledger.check(), *await books.trail.verify()]

        _report(run_on_books(data_dir, config, deed))
        typer.echo("the books balance")


async def _warn_of_voiding(books: Books, version: int, *, ask: bool) -> None:
    """Say on stderr whose tokens die with a key, the operators' by name; on a terminal, ask. Raises Abort."""
    rows = await books.tokens.of_key(version)
    if not rows:
        return
    admins = {row.id: row.name for row in await books.accounts.all() if row.is_admin}
    typer.echo(f"void with key version {version}: {len(rows)} tokens and sessions", err=True)
    for name in sorted({admins[row.account_id] for row in rows if row.account_id in admins}):
        typer.echo(
            f"among them the operator's, {printable(name)}: a new one is made by danqing token create"
            f" --account {shlex.quote(name)} --scope draw --scope account --scope admin",
            err=True,
        )
    if ask:
        typer.confirm("Revoke it?", abort=True, err=True)


def _add_database(app: typer.Typer) -> None:
    database = typer.Typer(no_args_is_help=True, help="The database's tables.")
    app.add_typer(database, name="database")

    @database.command("upgrade")
    def upgrade(data_dir: DataDir = None, config: Config = None) -> None:
        """Move an older version's tables up to this one's. Stop every server and back up first."""
        from danqing.db import schema

        found, now = _on_database(data_dir, config, schema.upgrade)
        typer.echo(f"the database has version {now}" if found == now else f"{found} → {now}")

    @database.command("version")
    def version(data_dir: DataDir = None, config: Config = None) -> None:
        """Show which version the tables have, and which this program needs."""
        from danqing.db import schema

        found = _on_database(data_dir, config, schema.found)
        typer.echo(f"database: {found or '-'}\nneeded: {schema.HEAD}")


def _on_database(data_dir: Path | None, config: Path | None, deed: Callable[[str], T]) -> T:
    """What `deed` makes of the database's URL; a failure is one line and exit code 1."""
    from danqing.cli.main import fail, read_settings

    settings = read_settings(config, data_dir)
    if not settings.key_file.exists():
        fail(f"there is no Danqing data in {settings.data_dir.absolute()}")
    try:
        return deed(settings.database_url_effective)
    except (DanqingError, OSError, ValueError) as error:
        fail(str(error))


def _report(faults: list[str]) -> None:
    """Each fault on stderr, then exit code 1; nothing where there is none."""
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(1)
