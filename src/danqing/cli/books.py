"""What the commands on the books share: opening them, options, lines. Knows app.py; no SQL and no command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from danqing.domain.errors import DanqingError
from danqing.settings import Settings, SettingsError

if TYPE_CHECKING:
    from danqing.app import Books

T = TypeVar("T")

BY = "cli"
"""Who did it, in the audit trail, when it was done here."""

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the database and the keys are.")
]
Config = Annotated[Path | None, typer.Option("--config", help="The settings file (TOML).")]
AccountName = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")]
ExpiresDays = Annotated[
    int | None, typer.Option("--expires-days", min=1, max=36_500, help="Days it is good.")
]

Deed = Callable[["Books", Settings], Awaitable[T]]


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
    except (DanqingError, SettingsError, OSError, ValueError) as error:
        fail(str(error))


def show(*cells: object) -> None:
    """One line on stdout, tab-separated; nothing is a dash, and nobody's text moves the cursor."""
    typer.echo("\t".join("-" if cell is None else printable(str(cell)) for cell in cells))


def printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def moment(ms: int | None) -> str | None:
    """Unix milliseconds as ISO 8601 in UTC, to the second."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat().replace("+00:00", "Z")
