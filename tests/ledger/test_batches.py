"""The ledger when many ask at once: what is decided together, what one bad one does to the others, several processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from danqing.db import queries, tables
from danqing.domain.errors import (
    AccountSuspended,
    ConcurrencyExceeded,
    NotFound,
    QuotaExceeded,
    TokenBudgetExceeded,
)
from danqing.domain.ids import uuid7
from danqing.service.ledger import KeyInUse, StaleTask, TransferConflict
from tests.ledger.plain import (
    PlainBooks,
    is_sqlite,
    new_image,
    new_task,
    one_batch,
    open_plain,
    processes,
    raw,
)


def with_books(url: str, test: Callable[[PlainBooks], Any]) -> None:
    async def main() -> None:
        async with open_plain(url) as books:
            await test(books)
            assert await books.ledger.check() == []

    asyncio.run(main())


def kinds(results: list[Any]) -> list[Any]:
    return [type(one) if isinstance(one, Exception) else None for one in results]


def test_bad_ones_beside_good_ones(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id, suspended = await books.account(100), await books.account(100)
        await books.db.write(lambda conn: queries.update_account(conn, suspended, suspended=True))
        tasks = [
            new_task(account_id),
            new_task("nobody"),
            new_task(account_id, "no token"),
            new_task(suspended),
            new_task(account_id),
            new_task(account_id),
        ]
        results = await one_batch(
            books.db,
            lambda: [books.ledger.open_task(task, uuid7(), 40, 30) for task in tasks],
        )
        assert kinds(results) == [
            None,
            NotFound,
            IntegrityError,
            AccountSuspended,
            None,
            QuotaExceeded,
        ]
        assert (results[5].needed, results[5].available) == (40, 20)
        assert await books.ledger.balance(account_id) == 20
        assert (await books.ledger.open_holds()).count == 2

    with_books(database_url, test)


def test_the_same_ids_in_one_batch(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id = await books.account(100)
        task, hold_id = new_task(account_id, client_key="key"), uuid7()
        before, hold_before = new_task(account_id, client_key="other key"), uuid7()
        await books.ledger.open_task(before, hold_before, 10, 30)
        results = await one_batch(
            books.db,
            lambda: [
                books.ledger.open_task(before, hold_before, 10, 30),
                books.ledger.open_task(task, hold_id, 90, 30),
                books.ledger.open_task(task, hold_id, 90, 30),
                books.ledger.open_task(task, hold_id, 89, 30),
                books.ledger.open_task(new_task(account_id), hold_id, 90, 30),
                books.ledger.open_task(new_task(account_id, client_key="key"), uuid7(), 0, 30),
            ],
        )
        assert [one.id for one in results[:3]] == [before.id, task.id, task.id]
        assert kinds(results[3:]) == [TransferConflict, TransferConflict, KeyInUse]
        assert results[5].task.id == task.id
        assert await books.ledger.balance(account_id) == 0

    with_books(database_url, test)


def test_the_same_end_in_one_batch(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id = await books.account(100)
        paid, free = await books.hold(account_id, 60), await books.hold(account_id, 0)
        transfer_id = uuid7()

        def end(task_id: str, post: int, transfer_id: str | None, state: Any = "succeeded"):
            return books.ledger.settle(
                task_id,
                1,
                account_id=account_id,
                post=post,
                state=state,
                images=[new_image(task_id, account_id)],
                transfer_id=transfer_id,
            )

        def ends() -> list[Any]:
            return [
                end(paid, 60, transfer_id),
                end(paid, 60, transfer_id),
                end(paid, 59, transfer_id),
                end(paid, 60, uuid7()),
                end(paid, 60, None),
                end(free, 0, "a free task's"),
                end(free, 0, "a free task's"),
                end(free, 0, "another end", "cancelled"),
            ]

        expected = [None, None, TransferConflict, StaleTask, StaleTask, None, None, StaleTask]
        assert kinds(await one_batch(books.db, ends)) == expected
        for deed, kind in zip(ends(), expected, strict=True):  # and each by itself
            assert kinds(await asyncio.gather(deed, return_exceptions=True)) == [kind]
        assert len(await books.ledger.images(paid)) == 1
        assert await books.ledger.balance(account_id) == 40

    with_books(database_url, test)


def test_what_a_token_may_spend_is_counted_within_a_batch(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id = await books.account(1000)
        capped = await books.token(account_id, concurrency_max=2)
        poor = await books.token(account_id, budget_day=50)
        tasks = [new_task(account_id, token) for token in [capped, poor] * 4]
        results = await one_batch(
            books.db, lambda: [books.ledger.open_task(task, uuid7(), 20, 30) for task in tasks]
        )
        assert kinds(results) == [None] * 4 + [ConcurrencyExceeded, TokenBudgetExceeded] * 2
        assert (results[5].window, results[5].available) == ("day", 10)
        assert await books.ledger.balance(account_id) == 920

    with_books(database_url, test)


def test_a_bad_image_takes_down_only_its_own_end(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id = await books.account(100)
        tasks = [await books.hold(account_id, 10) for _ in range(4)]
        images = [new_image(task, account_id) for task in tasks]
        images[2] = replace(images[2], task_id="no task")
        results = await one_batch(
            books.db,
            lambda: [
                books.ledger.settle(
                    task, 1, account_id=account_id, post=10, state="succeeded", images=[image]
                )
                for task, image in zip(tasks, images, strict=True)
            ],
        )
        assert kinds(results) == [None, None, IntegrityError, None]
        bad = await books.ledger.task(tasks[2])
        assert bad is not None
        assert (bad.state, bad.charged) == ("queued", 0)
        assert (await books.ledger.open_holds()).count == 1

    with_books(database_url, test)


def test_webhooks_are_in_the_books_with_what_they_tell(database_url: str) -> None:
    async def test(books: PlainBooks) -> None:
        account_id = await books.account(100, low_balance=50, webhook_url="https://a.example/")
        tasks = [new_task(account_id, background=index == 2) for index in range(4)]
        await one_batch(
            books.db, lambda: [books.ledger.open_task(task, uuid7(), 20, 30) for task in tasks]
        )
        await one_batch(
            books.db,
            lambda: [books.settle(task.id, 1, post=5, state="succeeded") for task in tasks],
        )
        waiting = select(tables.outbox.c.event, tables.outbox.c.payload).order_by("id")
        told = await books.db.read(lambda conn: [tuple(row) for row in conn.execute(waiting)])
        assert told == [
            ("account.balance_low", {"account": account_id, "balance": 20, "threshold": 50}),
            ("image.task.succeeded", {"id": tasks[2].id, "status": "succeeded", "charged": 5}),
        ]

    with_books(database_url, test)


def test_what_is_stored_is_what_was_given(database_url: str) -> None:
    """On PostgreSQL rows travel as JSON, and JSON in them as text."""

    async def test(books: PlainBooks) -> None:
        account_id = await books.account(10)
        request = {"词": "a\"b\\u0000\\'\n", "n": 2**53, "f": 0.1, "list": [None, True, {}, []]}
        task = replace(new_task(account_id), request=request, end_user="用户 'x' \\ \"y\"")
        await books.ledger.open_task(task, uuid7(), 1, 30)
        result = {"prompt": "😀 \\u0000 \u2028", "empty": {}}
        images = [replace(new_image(task.id, account_id, one), seed=2**63 - 1) for one in range(3)]
        await books.settle(task.id, 1, post=1, state="succeeded", result=result, images=images)
        row = await books.ledger.task(task.id)
        assert row is not None
        assert (row.request, row.result, row.error) == (request, result, None)
        assert (row.end_user, row.background, row.draws) == (task.end_user, False, 1)
        assert await books.ledger.images(task.id) == images
        with raw(books.url) as connection:
            nulls = "SELECT count(*) FROM tasks WHERE error IS NULL AND result IS NOT NULL"
            assert connection.execute(nulls).fetchone() == (1,)

    with_books(database_url, test)


WRITERS = 32


def _hold_by_turns(url: str, account_ids: list[str], rounds: int, start, results) -> None:
    """As many writers as one process has, each over the accounts in this order."""

    async def main() -> list[str]:
        async with open_plain(url) as books:
            await asyncio.to_thread(start.wait)

            async def work() -> list[str]:
                done = []
                for _ in range(rounds):
                    for account_id in account_ids:
                        try:
                            done.append(await books.hold(account_id, 1))
                        except QuotaExceeded:
                            done.append("")
                return done

            return [
                one
                for done in await asyncio.gather(*(work() for _ in range(WRITERS)))
                for one in done
            ]

    results.put(asyncio.run(main()))


def in_processes(url: str, orders: list[list[str]], rounds: int) -> list[str]:
    """The ids of what was held, "" for what was refused, of one process for each order."""
    context = processes()
    start, results = context.Barrier(len(orders)), context.Queue()
    workers = [
        context.Process(target=_hold_by_turns, args=(url, order, rounds, start, results))
        for order in orders
    ]
    for worker in workers:
        worker.start()
    done = [one for _ in workers for one in results.get(timeout=120)]
    for worker in workers:
        worker.join(30)
    return done


def test_four_processes_and_a_balance_for_half(database_url: str) -> None:
    async def account() -> str:
        async with open_plain(database_url) as books:
            return await books.account(4 * WRITERS * 5 // 2)

    account_id = asyncio.run(account())
    done = in_processes(database_url, [[account_id]] * 4, rounds=5)
    held = {one for one in done if one}
    assert len(done) == 4 * WRITERS * 5
    assert len(held) == done.count("") == len(done) // 2

    async def test(books: PlainBooks) -> None:
        assert await books.ledger.balance(account_id) == 0
        assert (await books.ledger.open_holds()).count == len(held)
        statement = await books.ledger.statement(account_id)
        assert {row.task_id for row in statement if row.kind == "hold"} == held

    with_books(database_url, test)


def test_two_processes_over_many_accounts_in_opposite_orders(database_url: str) -> None:
    async def prepare() -> list[str]:
        async with open_plain(database_url) as books:
            return [await books.account(10**6) for _ in range(12)]

    account_ids = asyncio.run(prepare())
    done = in_processes(database_url, [account_ids, account_ids[::-1]], rounds=2)
    assert len(set(done)) == 2 * WRITERS * 2 * len(account_ids)
    assert "" not in done

    async def test(books: PlainBooks) -> None:
        for account_id in account_ids:
            assert await books.ledger.balance(account_id) == 10**6 - 2 * WRITERS * 2

    with_books(database_url, test)
    if not is_sqlite(database_url):
        with raw(database_url) as connection:
            ended = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            assert connection.execute(ended).fetchone() == (0,)


@pytest.mark.parametrize("characters", [0, 7])
def test_a_retry_after_a_lost_answer(database_url: str, characters: int) -> None:
    """What the caller does that cannot know whether its commit was done."""

    async def test(books: PlainBooks) -> None:
        account_id = await books.account(7)
        task, hold_id, transfer_id = new_task(account_id, client_key="k"), uuid7(), uuid7()
        for _ in range(2):
            row = await books.ledger.open_task(task, hold_id, characters, 30)
            assert (row.id, row.epoch, row.created_ms) == (task.id, 1, books.clock.now_ms)
        for _ in range(2):
            await books.settle(
                task.id, 1, post=characters, state="succeeded", transfer_id=transfer_id
            )
        assert (await books.ledger.open_task(task, hold_id, characters, 30)).state == "succeeded"
        assert await books.ledger.balance(account_id) == 7 - characters

    with_books(database_url, test)
