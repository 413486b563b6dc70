"""What the ledger's tests share: books on a temporary file, with a clock that tests can move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from danqing import settings
from danqing.db.rows import ImageRow, NewTask
from danqing.db.session import Database
from danqing.domain.ids import uuid7
from danqing.service import books
from danqing.service.auth import Authenticator
from danqing.service.keys import KeyFile


@dataclass
class Clock:
    now_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    def __call__(self) -> int:
        return self.now_ms


@dataclass(frozen=True)
class Books(books.Books):
    path: Path
    clock: Clock

    def authenticator(self) -> Authenticator:
        """A new one: nothing cached."""
        return Authenticator(self.db, self.keys, self.clock)

    async def hold(
        self, account_id: str, characters: int, lease_s: float = 30, token_id: str | None = None
    ) -> str:
        """Open a task and return its id."""
        task = new_task(account_id, token_id)
        await self.ledger.open_task(task, uuid7(), characters, lease_s)
        return task.id

    async def settle(self, task_id: str, epoch: int, **how: Any) -> None:
        """`Ledger.settle`, of whichever account the task is."""
        task = await self.ledger.task(task_id)
        account_id = task.account_id if task else "nobody"
        await self.ledger.settle(task_id, epoch, account_id=account_id, **how)

    async def expire_overdue(self) -> list[str]:
        """What a sweep does of tasks that nothing was stored of."""
        expired = []
        while overdue := await self.ledger.overdue():
            for row in overdue:
                claimed = await self.ledger.claim(row, 30)
                assert claimed is not None
                await self.ledger.expire(claimed)
                expired.append(row.id)
        return expired


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


def new_task(account_id: str, token_id: str | None = None) -> NewTask:
    return NewTask(uuid7(), account_id, token_id, "openai", "pocket", {"prompt": "一只猫"})


def new_image(task_id: str, account_id: str, idx: int = 0) -> ImageRow:
    return ImageRow(
        id=uuid7(),
        task_id=task_id,
        account_id=account_id,
        idx=idx,
        format="png",
        width=64,
        height=64,
        bytes=100,
        sha256="0" * 64,
        seed=7,
        blob_key=f"a/{task_id}/{idx}.png",
        label_visible=True,
        label_metadata=True,
        created_ms=1,
        expires_ms=2,
    )
