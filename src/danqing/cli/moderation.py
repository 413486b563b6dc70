"""Moderation on the command line: moderation check, try, reload; refusals. Knows no SQL; prints plain lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from danqing.cli.books import Config, DataDir, moment, run_on_books, show
from danqing.settings import Settings, SettingsError

if TYPE_CHECKING:
    from danqing.app import Books
    from danqing.service.moderation import TextModerator

REFUSAL_ROWS = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    moderation = typer.Typer(no_args_is_help=True, help="Word lists and what they find.")
    app.add_typer(moderation, name="moderation")
    _add_lists(moderation)
    _add_refusals(app)


def _add_lists(moderation: typer.Typer) -> None:
    @moderation.command("check")
    def check(config: Config = None) -> None:
        """Read the word lists and allow-lists; each bad line is named, with exit code 1."""
        lists = _lists(config)
        typer.echo(
            f"terms: {lists.terms_count}\nrules: {lists.rules_count}\nallowed phrases: {lists.allowed_count}"
        )

    @moderation.command("try")
    def try_text(
        text: Annotated[str, typer.Argument(metavar="TEXT", help="As a client would write it.")],
        as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
        config: Config = None,
    ) -> None:
        """Show what the word lists find in a text: its level, the term and its category, whether it is refused."""
        lists = _lists(config)
        entry = lists.find(text)
        facts = {
            "level": 3 if entry is None else entry.level,
            "term": entry and entry.term,
            "category": entry and entry.category,
            "refused": entry is not None and entry.level <= lists.block_level,
        }
        if as_json:
            typer.echo(json.dumps(facts, ensure_ascii=False))
        else:
            for key, value in facts.items():
                typer.echo(f"{key}: {'-' if value is None else value}")

    @moderation.command("reload")
    def reload(data_dir: DataDir = None, config: Config = None) -> None:
        """Have every running server read its lists again. Those of these settings are read here first: a bad line is named, and then nobody is asked."""
        lists = _lists(config)

        async def deed(books: Books, _: Settings) -> None:
            from danqing.service.reloads import call_all

            await call_all(books.db)

        run_on_books(data_dir, config, deed)
        typer.echo(
            "servers are asked to read their lists again within a third of their task lease"
            f"; the lists of {config or 'the default settings'}, as read here, have {lists.terms_count} terms"
        )
        typer.echo(
            "A server whose own lists have a bad line keeps its old ones and says so in its log alone"
            " (word_lists_not_reloaded); give its --config here, or ask it by POST /admin/v1/moderation/reload.",
            err=True,
        )


def _add_refusals(app: typer.Typer) -> None:
    @app.command("refusals")
    def refusals(
        account: Annotated[
            str | None, typer.Option("--account", help="Of this account only.")
        ] = None,
        after: Annotated[str, typer.Option("--after", help="Behind the one with this id.")] = "",
        data_dir: DataDir = None,
        config: Config = None,
    ) -> None:
        """List what moderation refused, oldest first: id, time, account, end user, role, level, what, by whom, category, model, task; tab-separated."""

        async def deed(books: Books, _: Settings) -> None:
            names = {row.id: row.name for row in await books.accounts.all()}
            account_id = None if account is None else (await books.accounts.get(account)).id
            last = after
            while rows := await books.refusals.page(last, REFUSAL_ROWS, account_id):
                for row in rows:
                    name = names.get(row.account_id, row.account_id)
                    show(
                        *(row.id, moment(row.created_ms), name, row.end_user, row.role, row.level),
                        *(row.subject, row.source, row.category, row.model, row.task_id),
                    )
                last = rows[-1].id

        run_on_books(data_dir, config, deed)


def _lists(config: Config) -> TextModerator:
    from danqing.cli.main import fail, read_settings
    from danqing.guard import make_moderator

    try:
        return make_moderator(read_settings(config))
    except SettingsError as error:
        fail(str(error))
