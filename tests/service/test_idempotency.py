"""Client keys: one key is one task and one charge, whoever asks how often, and whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.service.house import House, house, image, run

from danqing.domain.errors import (
    Cancelled,
    ContentRefused,
    DuplicateRequestId,
    EngineFailed,
    IdempotencyConflict,
    RateLimited,
)
from danqing.domain.ports import DrawOrder
from danqing.domain.task import Event, Stepped
from danqing.service.calls import Accepted, ClientKey

KEY = ClientKey("k" * 64, "f" * 64)


async def slow(order: DrawOrder) -> AsyncGenerator[Event, None]:
    yield Stepped(0, 1, 8)
    await asyncio.sleep(0.3)
    yield image(order, 0)


def test_the_key_again_answers_the_same_images_and_costs_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            first = await h.draw(n=2, key=KEY, seed=7)
            again = await h.draw(n=2, key=KEY, seed=7)
            assert (first.replayed, again.replayed) == (False, True)
            assert again.task_id == first.task_id
            assert again.charged == first.charged == 10_000
            assert [i.image_id for i in again.result.images] == [
                i.image_id for i in first.result.images
            ]
            assert again.result.created == first.result.created
            assert len(h.provider.orders) == 1
            assert await h.balance() == 90_000

    run(check())


def test_the_key_again_is_a_request_to_the_rate_limit(tmp_path: Path, still_minute: None) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            h.principal = replace(h.principal, rate_per_minute=3)
            answers = [await h.draw(key=KEY) for _ in range(3)]
            assert [answer.replayed for answer in answers] == [False, True, True]
            assert [answer.rate and answer.rate.remaining for answer in answers] == [2, 1, 0]
            with pytest.raises(RateLimited):
                await h.draw(key=KEY)
            assert await h.balance() == 95_000

    run(check())


def test_many_at_once_make_one_task(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path, slow) as h:
            answers = await asyncio.gather(*(h.draw(key=KEY) for _ in range(20)))
            assert len({answer.task_id for answer in answers}) == 1
            assert sorted(answer.replayed for answer in answers) == [False] + [True] * 19
            assert len(h.provider.orders) == 1
            assert await h.balance() == 95_000

    run(check())


def test_another_body_under_the_key_is_a_conflict(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            await h.draw(key=KEY)
            with pytest.raises(IdempotencyConflict) as caught:
                await h.draw(key=ClientKey(KEY.digest, "0" * 64))
            assert caught.value.param == "Idempotency-Key"
            assert await h.balance() == 95_000

    run(check())


def test_a_request_id_may_not_come_twice(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            key = ClientKey(KEY.digest, KEY.fingerprint, replays=False)
            await h.draw("cogview-4", "zhipu", key=key, client_request_id="r-1")
            with pytest.raises(DuplicateRequestId, match="r-1"):
                await h.draw("cogview-4", "zhipu", key=key, client_request_id="r-1")

    run(check())


def test_our_own_failure_frees_the_key(tmp_path: Path) -> None:
    failures = [EngineFailed("NaN")]

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        if failures:
            raise failures.pop()
        yield image(order, 0)

    async def check() -> None:
        async with house(tmp_path, script) as h:
            with pytest.raises(EngineFailed):
                await h.draw(key=KEY)
            assert (await h.draw(key=KEY)).replayed is False
            assert (await h.draw(key=KEY)).replayed is True
            assert await h.balance() == 95_000

    run(check())


def test_a_refusal_after_the_hold_is_answered_again(tmp_path: Path) -> None:
    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        if False:
            yield
        raise ContentRefused("assistant", 1)

    async def check() -> None:
        async with house(tmp_path, script) as h:
            for _ in range(3):
                with pytest.raises(ContentRefused) as caught:
                    await h.draw("draw", "draw", key=KEY)
                assert (caught.value.role, caught.value.level) == ("assistant", 1)
            assert len(h.provider.orders) == 1
            assert await h.balance() == 95_000  # draw never refunds, but once is enough

    run(check())


async def hang_up(h: House, key: ClientKey | None) -> None:
    gone = asyncio.Event()
    work = asyncio.create_task(h.draw(key=key, hung_up=gone))
    while not h.provider.orders:
        await asyncio.sleep(0.01)
    gone.set()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


def test_a_client_with_a_key_may_hang_up_and_come_back(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path, slow) as h:
            await hang_up(h, KEY)
            back = await h.draw(key=KEY)
            assert back.replayed is True
            assert len(h.provider.orders) == 1
            assert await h.balance() == 95_000

    run(check())


def test_a_deleted_task_stays_cancelled_under_its_key(tmp_path: Path) -> None:
    stepped = asyncio.Event()

    async def script(order: DrawOrder) -> AsyncGenerator[Event, None]:
        yield Stepped(0, 1, 8)
        stepped.set()
        await asyncio.sleep(3600)

    async def check() -> None:
        async with house(tmp_path, script) as h:
            work = asyncio.create_task(h.draw(key=KEY))
            await stepped.wait()
            await h.pipeline.cancel(h.provider.orders[0].task_id)
            for deed in (work, h.draw(key=KEY)):
                with pytest.raises(Cancelled):
                    await deed
            assert await h.balance() == 100_000 - 625  # one step of eight

    run(check())


def test_a_key_waits_a_day(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path) as h:
            clock_ms, ahead_ms = h.ledger._clock_ms, [0]
            h.ledger._clock_ms = lambda: clock_ms() + ahead_ms[0]
            first = await h.draw(key=KEY)
            ahead_ms[0] = 24 * 3_600_000 - 60_000
            assert (await h.draw(key=KEY)).task_id == first.task_id
            ahead_ms[0] = 24 * 3_600_000 + 1
            assert (await h.draw(key=KEY)).task_id != first.task_id
            assert await h.balance() == 90_000

    run(check())


def test_in_the_background(tmp_path: Path) -> None:
    async def check() -> None:
        async with house(tmp_path, slow) as h:
            first = await h.draw(background=True, key=KEY)
            again = await h.draw(background=True, key=KEY)
            assert isinstance(first, Accepted)
            assert first == again
            waited = await h.draw(key=KEY)  # and somebody who does wait
            assert waited.task_id == first.task_id
            row = await h.ledger.task(first.task_id)
            assert (row.state, row.background) == ("succeeded", True)
            assert await h.balance() == 95_000

    run(check())
