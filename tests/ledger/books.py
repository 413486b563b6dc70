"""What the ledger's tests share: books on a temporary file, with a clock that tests can move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from danqing import settings
from danqing.db.session import Database
from danqing.service import books
from danqing.service.auth import Authenticator
from danqing.service.keys import KeyFile
from tests.ledger.plain import Clock, Deeds


@dataclass(frozen=True)
class Books(books.Books, Deeds):
    path: Path
    clock: Clock

    def authenticator(self) -> Authenticator:
        """A new one: nothing cached."""
        return Authenticator(self.db, self.keys, self.clock)


@asynccontextmanager
async def open_books(
    folder: Path,
    synchronous: Literal["FULL", "NORMAL"] = "NORMAL",
    url: str | None = None,
    **options: Any,
) -> AsyncIterator[Books]:
    """NORMAL by default: most tests are about the rules, and would wait for the disk all day.

    `options` are settings.
    """
    path = folder / "danqing.db"
    db = Database.open(url or f"sqlite:///{path}", synchronous=synchronous)
    try:
        clock = Clock()
        keys = KeyFile.load_or_create(folder / "keys.json")
        configured = settings.load(data_dir=folder, **options)
        plain = books.Books.on(db, keys, configured, clock)
        parts = {part.name: getattr(plain, part.name) for part in fields(plain)}
        yield Books(**parts, path=path, clock=clock)
    finally:
        await db.close()


def with_books(folder: Path, deed: Callable[[Books], Awaitable[None]], **how: Any) -> None:
    """Run `deed` on books that are opened for it, as `open_books` does."""

    async def main() -> None:
        async with open_books(folder, **how) as opened:
            await deed(opened)

    asyncio.run(main())
