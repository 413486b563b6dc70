"""Tokens on the command line: token create, update, revoke, list. Knows no SQL; prints plain lines."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from danqing.cli.books import BY, Config, DataDir, ExpiresDays, moment, run_on_books, show
from danqing.domain.errors import InvalidField
from danqing.settings import Settings

if TYPE_CHECKING:
    from danqing.app import Books
    from danqing.db.rows import TokenRow
    from danqing.service.tokens import TokenState

TokenId = Annotated[str, typer.Argument(metavar="ID", help="With or without sk-.")]
Scopes = Annotated[
    list[str] | None, typer.Option("--scope", help="draw, account or admin; may be repeated.")
]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Only this model; may be repeated.")
]
Networks = Annotated[
    list[str] | None,
    typer.Option("--network", help="Only from this address or network; may be repeated."),
]
BudgetDay = Annotated[int | None, typer.Option("--budget-day", help="Characters a day (UTC).")]
BudgetMonth = Annotated[int | None, typer.Option("--budget-month", help="Characters a month.")]
BudgetTotal = Annotated[int | None, typer.Option("--budget-total", help="Characters in all.")]
Concurrency = Annotated[int | None, typer.Option("--concurrency", help="Requests at once.")]
Rate = Annotated[int | None, typer.Option("--rate", help="Requests per minute.")]

_CLEARABLE = {
    "model": "models",
    "network": "networks",
    "budget-day": "budget_day",
    "budget-month": "budget_month",
    "budget-total": "budget_total",
    "concurrency": "concurrency_max",
    "rate": "rate_per_minute",
}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    token = typer.Typer(no_args_is_help=True, help="API tokens.")
    app.add_typer(token, name="token")
    _add_making(token)
    _add_changing(token)
    _add_keeping(token)


def _add_making(token: typer.Typer) -> None:
    @token.command("create")
    def create(
        account: Annotated[str, typer.Option("--account", help="The account's name.")],
        expires_days: ExpiresDays = None,
        name: Annotated[str | None, typer.Option("--name", help="To tell tokens apart.")] = None,
        scope: Scopes = None,
        model: Models = None,
        network: Networks = None,
        budget_day: BudgetDay = None,
        budget_month: BudgetMonth = None,
        budget_total: BudgetTotal = None,
        concurrency: Concurrency = None,
        rate: Rate = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Make a token and print it, alone, this once."""
        from danqing.service.tokens import TokenLimits

        limits = replace(
            TokenLimits(),
            **_given(
                scope, model, network, budget_day, budget_month, budget_total, concurrency, rate
            ),
        )

        def deed(books: Books, settings: Settings) -> Awaitable[str]:
            _require_models(settings, model)
            return books.tokens.create(
                account, name=name, expires_ms=in_days(expires_days), limits=limits, by=BY
            )

        typer.echo(run_on_books(data_dir, config, deed))


def _add_changing(token: typer.Typer) -> None:
    @token.command("update")
    def update(
        token_id: TokenId,
        scope: Scopes = None,
        model: Models = None,
        network: Networks = None,
        budget_day: BudgetDay = None,
        budget_month: BudgetMonth = None,
        budget_total: BudgetTotal = None,
        concurrency: Concurrency = None,
        rate: Rate = None,
        clear: Annotated[
            list[str] | None,
            typer.Option("--clear", help=f"Lift a limit: {', '.join(_CLEARABLE)}."),
        ] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """Change what a token may do; what is not named stays."""
        from danqing.api.desk import bare
        from danqing.service.tokens import TokenLimits

        given = _given(
            scope, model, network, budget_day, budget_month, budget_total, concurrency, rate
        )
        for word in clear or ():
            if word not in _CLEARABLE:
                raise typer.BadParameter(f"one of {', '.join(_CLEARABLE)}", param_hint="--clear")
            given[_CLEARABLE[word]] = None

        async def deed(books: Books, settings: Settings) -> None:
            _require_models(settings, model)
            row = await books.tokens.get(bare(token_id))
            await books.tokens.update(row.id, replace(TokenLimits.of(row), **given), by=BY)

        run_on_books(data_dir, config, deed)
        typer.echo("changed")


def _add_keeping(token: typer.Typer) -> None:
    @token.command("revoke")
    def revoke(token_id: TokenId, data_dir: DataDir = None, config: Config = None) -> None:
        """Revoke a token; servers refuse it within 5 seconds."""
        run_on_books(data_dir, config, lambda books, _: books.tokens.revoke(token_id, by=BY))
        typer.echo("revoked")

    @token.command("list")
    def list_tokens(
        account: Annotated[str | None, typer.Option("--account", help="Only of this one.")] = None,
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """List tokens: id, account, name, made, expires, state, kind, scopes, last used, limits, key version; tab-separated."""

        async def deed(books: Books, _: Settings) -> None:
            names = {row.id: row.name for row in await books.accounts.all()}
            for row in await books.tokens.list(account):
                name = names.get(row.account_id, "(deleted)")
                show(*_cells(row, name, books.tokens.state(row)))

        run_on_books(data_dir, config, deed)


def in_days(days: int | None) -> int | None:
    """Unix milliseconds so many days from now."""
    return None if days is None else int(time.time() * 1000) + days * 86_400_000


def _given(
    scopes: list[str] | None,
    models: list[str] | None,
    networks: list[str] | None,
    budget_day: int | None,
    budget_month: int | None,
    budget_total: int | None,
    concurrency: int | None,
    rate: int | None,
) -> dict[str, Any]:
    """The limits that were named, as TokenLimits has them."""
    values = {
        "scopes": scopes and tuple(scopes),
        "models": models and tuple(models),
        "networks": networks and tuple(networks),
        "budget_day": budget_day,
        "budget_month": budget_month,
        "budget_total": budget_total,
        "concurrency_max": concurrency,
        "rate_per_minute": rate,
    }
    return {name: value for name, value in values.items() if value is not None}


def _require_models(settings: Settings, names: list[str] | None) -> None:
    """Raises InvalidField, SettingsError."""
    from danqing import catalog

    if not names:
        return
    try:
        catalog.load(settings).require(names, "--model")
    except InvalidField as error:
        if settings.catalog_file is not None:
            raise
        raise InvalidField(
            f"{error.message} (The built-in catalog was asked: give the server's --config for more.)",
            "--model",
        ) from None


def _cells(row: TokenRow, account: str, state: TokenState) -> tuple[object, ...]:
    limits = [
        f"{word}={','.join(value) if isinstance(value, list) else value}"
        for word, field in _CLEARABLE.items()
        if (value := getattr(row, field)) is not None
    ]
    return (
        f"sk-{row.id}",
        account,
        row.name,
        moment(row.created_ms),
        moment(row.expires_ms) or "never",
        "void (key version revoked)" if state == "void" else state,
        row.kind,
        row.scopes,
        moment(row.last_used_ms),
        " ".join(limits) or None,
        row.key_version,
    )
