"""What the ledger's tests share: books on a temporary file, with a clock that tests can move."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from danqing.db.session import Database
from danqing.db.tables import ImageRow, NewTask
from danqing.domain.ids import uuid7
from danqing.service.accounts import Accounts
from danqing.service.auth import Authenticator, KeyFile
from danqing.service.ledger import Ledger


@dataclass
class Clock:
    now_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    def __call__(self) -> int:
        return self.now_ms


@dataclass(frozen=True)
class Books:
    db: Database
    path: Path
    clock: Clock
    keys: KeyFile
    ledger: Ledger
    accounts: Accounts

    def authenticator(self) -> Authenticator:
        """A new one: nothing cached."""
        return Authenticator(self.db, self.keys, self.clock)

    async def hold(self, account_id: str, characters: int, lease_s: float = 30) -> str:
        """Open a task and return its id."""
        task = new_task(account_id)
        await self.ledger.open_task(task, uuid7(), characters, lease_s)
        return task.id


@asynccontextmanager
async def open_books(
    folder: Path, synchronous: Literal["FULL", "NORMAL"] = "NORMAL"
) -> AsyncIterator[Books]:
    """NORMAL by default: most tests are about the rules, and would wait for the disk all day."""
    path = folder / "danqing.db"
    db = Database.open(f"sqlite:///{path}", synchronous=synchronous)
    try:
        clock = Clock()
        keys = KeyFile.load_or_create(folder / "keys.json")
        ledger = Ledger(db, clock)
        yield Books(db, path, clock, keys, ledger, Accounts(db, ledger, keys, clock))
    finally:
        await db.close()


def new_task(account_id: str) -> NewTask:
    return NewTask(uuid7(), account_id, None, "openai", "pocket", {"prompt": "一只猫"})


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
