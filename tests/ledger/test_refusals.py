"""What moderation refused and what reloads the lists, on both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path

from danqing.app import open_books
from danqing.db import queries, task_queries
from danqing.db.rows import NewTask
from danqing.domain.errors import ContentRefused
from danqing.domain.ids import uuid7
from danqing.observability.metrics import Metrics
from danqing.service.moderation import TextModerator
from danqing.service.refusals import KEPT_DAYS, Refusals
from danqing.service.reloads import FACT, Reloads, call_all
from danqing.service.screening import Screen
from danqing.service.wordlists import Entry
from danqing.settings import SettingsError, load

DAY_MS = 86_400_000


def test_refusals_by_account_and_their_end(database_url: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with open_books(load(data_dir=tmp_path, database_url=database_url)) as books:
            ids = [(await books.accounts.create(name)).id for name in ("one", "two")]
            for at, account_id in enumerate((*ids, ids[0])):
                await books.refusals.note(
                    ContentRefused("user", at, subject="image", source="api", category="hate"),
                    account_id=account_id,
                    dialect="zhipu",
                    model="cogview-4",
                    end_user="a\0b" if at == 0 else f"user-{at}",
                    task_id=None,
                )
            rows = await books.refusals.page("", 10)
            assert [(row.level, row.end_user) for row in rows] == [
                (0, None),  # no database keeps a NUL
                (1, "user-1"),
                (2, "user-2"),
            ]
            assert {(row.subject, row.source, row.category) for row in rows} == {
                ("image", "api", "hate")
            }
            mine = await books.refusals.page("", 10, ids[0])
            assert [row.level for row in mine] == [0, 2]
            assert await books.refusals.page(mine[0].id, 10, ids[0]) == mine[1:]
            assert await books.refusals.prune() == 0
            later_ms = rows[-1].created_ms + (KEPT_DAYS + 1) * DAY_MS
            assert await Refusals(books.db, lambda: later_ms).prune() == 3

    asyncio.run(check())


def test_every_server_hears_of_a_reload_once(database_url: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with open_books(load(data_dir=tmp_path, database_url=database_url)) as books:
            reads: list[str] = []

            def screen(name: str) -> Screen:
                def read() -> TextModerator:
                    reads.append(name)
                    if broken:
                        raise SettingsError("line 3")
                    return TextModerator(entries=[Entry("x", 1, "y")])

                return Screen(read, Metrics())

            broken = False
            await call_all(books.db)  # long before either server began
            here, there = (Reloads(books.db, screen(name)) for name in ("here", "there"))
            for server in (here, there, here, there):
                await server.look()
            assert reads == ["here", "there"]
            await here.everywhere()
            for server in (here, there, here, there):
                await server.look()
            assert reads == ["here", "there", "here", "there"]
            broken = True
            known = await books.db.read(lambda conn: queries.fact(conn, FACT))
            try:
                await here.everywhere()
                raise AssertionError("it read them")
            except SettingsError:
                pass
            assert await books.db.read(lambda conn: queries.fact(conn, FACT)) == known
            await call_all(books.db)
            await there.look()  # what it cannot read it does without
            await there.look()
            assert reads[4:] == ["here", "there"]

    asyncio.run(check())


def test_words_are_put_into_old_rows(database_url: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with open_books(load(data_dir=tmp_path, database_url=database_url)) as books:
            assert await books.db.read(lambda conn: task_queries.told(conn, "", "f", 10)) == []
            account = await books.accounts.create("one")
            task = await plain_task(books, account.id)

            def blank(conn) -> None:
                task_queries.retell(conn, task, {"task": {"prompt": ""}}, None)

            await books.db.write(blank)
            (row,) = await books.db.read(lambda conn: task_queries.told(conn, "", "f", 10))
            assert (row.id, row.request, row.result) == (task, {"task": {"prompt": ""}}, None)
            assert not row.is_over

    asyncio.run(check())


async def plain_task(books, account_id: str) -> str:

    task = NewTask(
        id=uuid7(),
        account_id=account_id,
        token_id=None,
        dialect="openai",
        model="dall-e-3",
        request={"task": {"prompt": "a cat"}},
    )
    await books.ledger.open_task(task, uuid7(), characters=5, lease_s=60)
    return task.id
