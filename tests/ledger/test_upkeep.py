"""What a long-lived database needs: facts claimed once, old rows forgotten, no scan of what only grows."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, select

from danqing.db import book_queries, image_queries, log_queries, queries, tables
from danqing.db.rows import OutboxRow
from danqing.db.session import Database
from danqing.domain.ids import uuid7
from tests.ledger.plain import PlainBooks, new_image, new_task, open_plain, scalar


def with_books(url: str, test: Any) -> None:
    async def main() -> None:
        async with open_plain(url) as books:
            await test(books)

    asyncio.run(main())


def test_two_that_claim_a_fact_at_once_agree(database_url: str) -> None:
    async def main() -> None:
        first, second = Database.open(database_url), Database.open(database_url)
        claimed, go = threading.Event(), threading.Event()

        def slowly(conn: Connection) -> str:
            value = queries.claim_fact(conn, "keys", "mine")
            claimed.set()
            go.wait(120)
            return value

        slow = asyncio.create_task(first.write(slowly))
        await asyncio.to_thread(claimed.wait, 60)
        other = asyncio.create_task(
            second.write(lambda conn: queries.claim_fact(conn, "keys", "other"))
        )
        await asyncio.sleep(0.2)
        go.set()
        assert await asyncio.gather(slow, other) == ["mine", "mine"]
        await first.close()
        await second.close()

    asyncio.run(main())


def test_blobs_are_known_by_their_images(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id = await books.account(10)
        task = new_task(account_id)
        await books.ledger.open_task(task, uuid7(), 1, 30)
        new, old, gone = [new_image(task.id, account_id, idx) for idx in range(3)]
        new = replace(new, blob_key=f"20261121/{task.id}/0-{new.id}.png")
        old = replace(old, blob_key=f"ab/{old.id}.webp")  # of version 0.1.0
        gone = replace(gone, blob_key=f"20261121/{task.id}/2-{gone.id}.png")
        await books.settle(task.id, 1, post=1, state="succeeded", images=[new, old, gone])
        await books.db.write(lambda conn: image_queries.mark_images_deleted(conn, [gone.id], 5))
        keys = [
            new.blob_key,
            old.blob_key,
            gone.blob_key,
            f"20261121/{task.id}/1-{new.id}.png",  # somebody else's of the same id
            f"20261121/{task.id}/0-{uuid7()}.png",
            "nonsense",
            "",
        ]
        for some in (keys, [f"20261121/{task.id}/0-{new.id}-w256.webp", f"ab/{old.id}-w512.webp"]):
            named = await books.db.read(
                lambda conn, some=some: image_queries.blobs_named_by(conn, some)
            )
            assert named == {new.blob_key, old.blob_key}

    with_books(database_url, test)


def test_webhooks_that_are_done_are_forgotten_and_a_deleted_accounts_given_up(
    database_url: str,
) -> None:
    async def test(books: PlainBooks) -> None:
        gone, there = await books.account(), await books.account()
        rows = [
            OutboxRow(f"{index}", account_id, "https://a.example/", "e", {}, 0, 1)
            for index, account_id in enumerate([gone, gone, gone, there, there])
        ]

        def fill(conn: Connection) -> None:
            log_queries.insert_outbox(conn, rows)
            log_queries.outbox_delivered(conn, "0", 10)
            log_queries.outbox_failed(conn, "1", 20, None, "410")
            log_queries.give_up_outbox_of(conn, gone, 30, "deleted")

        await books.db.write(fill)
        claim = await books.db.write(lambda conn: log_queries.claim_outbox(conn, 99, 100, 9, []))
        assert {row.id for row in claim} == {"3", "4"}
        for before_ms, gone_by_then in ((10, 0), (11, 1), (21, 1), (31, 1), (10**12, 0)):
            prune = partial(log_queries.prune_outbox, before_ms=before_ms)
            assert await books.db.write(prune) == gone_by_then
        assert await books.db.read(scalar("SELECT count(*) FROM outbox")) == 2

    with_books(database_url, test)


def test_sessions_that_are_over_are_forgotten_but_not_who_drew(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id = await books.account(10)
        tokens = {
            "expired": await books.token(account_id, kind="session", expires_ms=5),
            "ended": await books.token(account_id, kind="session", expires_ms=99, revoked_ms=5),
            "drew": await books.token(account_id, kind="session", expires_ms=5),
            "good": await books.token(account_id, kind="session", expires_ms=99),
            "key": await books.token(account_id, expires_ms=5, revoked_ms=5),
        }
        await books.ledger.open_task(new_task(account_id, tokens["drew"]), uuid7(), 1, 30)
        assert await books.db.write(lambda conn: queries.prune_sessions(conn, 5)) == 0
        assert await books.db.write(lambda conn: queries.prune_sessions(conn, 6)) == 2
        ids = await books.db.read(
            lambda conn: set(conn.execute(select(tables.tokens.c.id)).scalars())
        )
        assert ids == {tokens[name] for name in ("drew", "good", "key")}

    with_books(database_url, test)


def test_a_budget_reads_the_windows_in_use(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        token_id = await books.token(await books.account(), budget_day=5)
        spent = {(token_id, f"2026-11-{day:02}"): day for day in range(1, 29)}
        await books.db.write(lambda conn: book_queries.add_spending(conn, spent))
        found = await books.db.read(
            lambda conn: book_queries.spending(conn, [token_id], {"total", "2026-11", "2026-11-21"})
        )
        assert found == {(token_id, "2026-11-21"): 21}

    with_books(database_url, test)


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (book_queries._SPENT_BY_TASKS, "tasks_token"),
        (book_queries._OPEN_OF, "tasks_open_account"),
        (book_queries._OPEN_HOLDS_OF, "tasks_open_account"),
        (queries._PRUNE_SESSIONS, "tasks_token"),
    ],
)
def test_no_scan_of_the_tasks(tmp_path: Any, statement: Any, index: str) -> None:
    def plan(conn: Connection) -> str:
        compiled = statement.compile(conn)
        sql = f"EXPLAIN QUERY PLAN {compiled}"
        rows = conn.exec_driver_sql(sql, ("x",) * str(compiled).count("?")).all()
        return "\n".join(row[-1] for row in rows)

    async def test(books: PlainBooks) -> None:
        found = await books.db.read(plan)
        assert index in found
        assert "SCAN tasks" not in found

    with_books(f"sqlite:///{tmp_path / 'plan.db'}", test)
