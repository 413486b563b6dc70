"""SQLite's own ways around a trigger: REPLACE deletes without asking the one on DELETE."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from danqing.app import open_books
from danqing.settings import load


def test_no_row_is_replaced(tmp_path: Path) -> None:
    async def fill() -> None:
        async with open_books(load(data_dir=tmp_path)) as books:
            await books.accounts.create("a", 100)
            await books.accounts.grant("a", 5, "gift", by="test")

    asyncio.run(fill())
    with sqlite3.connect(tmp_path / "danqing.db") as other:
        for table in ("transfers", "audit_log"):
            before = other.execute(f"SELECT * FROM {table}").fetchall()
            assert before
            with pytest.raises(sqlite3.IntegrityError, match="immutable"):
                other.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
            assert other.execute(f"SELECT * FROM {table}").fetchall() == before


def test_a_lost_database_is_not_replaced_in_silence(tmp_path: Path) -> None:
    async def use(create: bool) -> None:
        async with open_books(load(data_dir=tmp_path), create=create):
            pass

    asyncio.run(use(True))
    (tmp_path / "images").mkdir()
    for file in tmp_path.glob("danqing.db*"):
        file.unlink()
    for create in (True, False):
        with pytest.raises(FileNotFoundError, match=r"danqing\.db is missing"):
            asyncio.run(use(create))
    assert not (tmp_path / "danqing.db").exists()
