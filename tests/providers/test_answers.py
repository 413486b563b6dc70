"""The memory of providers' answers: bounded over all relays, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import base64
import random
from typing import Any

import pytest

from danqing.domain.task import Failed
from danqing.providers.answers import LARGE_BYTES, Answers
from tests.net.servers import Received, answer, run
from tests.providers.provider_server import bench, picture, says, shades

BIG = 2 * LARGE_BYTES


class Watched(Answers):
    """Knows the most that was ever held."""

    most = 0

    async def take(self, *args: Any) -> None:
        await super().take(*args)
        self.most = max(self.most, self.taken)


def padded(size: int = BIG) -> bytes:
    """A picture, and after it what no decoder reads."""
    return picture() + bytes(size)


@pytest.mark.parametrize("linked", [False, True])
def test_large_answers_take_turns_in_memory(linked: bool) -> None:
    data = padded()

    async def test() -> None:
        answers = Watched(2 * BIG)
        async with bench(images=[answer(200, data)], answers=answers) as far:
            inside = says({"data": [{"b64_json": base64.b64encode(data).decode()}]})
            far.provider.drawings.append(far.provider.link() if linked else inside)
            drawn = await asyncio.gather(*(far.draw() for _ in range(12)))
            assert [shades(events) for events in drawn] == [{0: 90}] * 12
            assert answers.taken == 0
            assert BIG < answers.most <= 2 * BIG + 2 * len(data)

    run(test)


def test_one_answer_may_be_larger_than_all_there_is() -> None:
    async def test() -> None:
        answers = Watched(1000)
        data = [{"b64_json": base64.b64encode(padded()).decode()}] * 3
        async with bench(says({"data": data}), answers=answers) as far:
            drawn = await asyncio.gather(*(far.draw(n=3) for _ in range(3)))
            assert [len(shades(events)) for events in drawn] == [3, 3, 3]
            assert (answers.taken, answers._holders) == (0, {})

    run(test)


def test_who_stops_in_the_middle_gives_everything_back() -> None:
    async def half(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + bytes(BIG))
        await writer.drain()
        await asyncio.sleep(3600)

    async def test() -> None:
        answers = Watched(BIG)
        async with bench(half, answers=answers, timeout_s=1) as far:
            drawn = await asyncio.gather(*(far.draw() for _ in range(4)))
            assert all(isinstance(events[-1], Failed) for events in drawn)
            assert (answers.taken, answers._holders) == (0, {})
        async with bench(half, answers=answers) as far:
            left = asyncio.create_task(far.draw())
            while not answers.taken:
                await asyncio.sleep(0.01)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            assert (answers.taken, answers._holders) == (0, {})

    run(test)


@pytest.mark.parametrize("seed", range(5))
def test_nobody_waits_for_ever(seed: int) -> None:
    """Holders of random sizes that come in pieces, some of which leave early."""
    rng = random.Random(seed)

    async def hold(answers: Answers) -> None:
        with answers.hold() as held:
            for _ in range(rng.randrange(1, 5)):
                held.begin()
                for _ in range(rng.randrange(1, 8)):
                    await held.came(rng.randrange(1, LARGE_BYTES))
                    await asyncio.sleep(0)
                held.keep(rng.randrange(0, BIG))
                held.drop(rng.randrange(0, BIG))

    async def test() -> None:
        answers = Answers(BIG)
        holders = [asyncio.create_task(hold(answers)) for _ in range(60)]
        for holder in rng.sample(holders, 15):
            await asyncio.sleep(0)
            holder.cancel()
        async with asyncio.timeout(60):
            await asyncio.gather(*holders, return_exceptions=True)
        assert (answers.taken, answers._holders) == (0, {})

    run(test)
