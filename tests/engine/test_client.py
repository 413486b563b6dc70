"""The asyncio face: many draws at once, hang-ups, refusals, the engine's death; and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager

import pytest
import uvloop

from danqing.domain.errors import Busy, EngineFailed
from danqing.engine import client as client_module
from danqing.engine import core as core_module
from danqing.engine.client import InProcessClient
from danqing.engine.core import EngineCore
from danqing.engine.messages import (
    Job,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    JobQueued,
    JobStarted,
    JobStepped,
)
from tests.engine.null_family import WORDS_MAX, NullFamily, make_job

RUNNERS = [asyncio.run, uvloop.run]


@asynccontextmanager
async def engine(
    family: NullFamily | None = None, **options: int
) -> AsyncIterator[InProcessClient]:
    """A ready client; at the end it must have let go of everything."""
    family = family or NullFamily()
    core = EngineCore(lambda: family, warm_up=None, **options)
    client = InProcessClient(core)
    await client.ready()
    try:
        yield client
    finally:
        family.open()
        await client.close()
    assert client._mailboxes == {}
    assert core._works == {}
    assert len(core._scheduler) == 0
    assert not core.health().alive


async def collect(client: InProcessClient, *jobs: Job) -> list[JobEvent]:
    async with aclosing(client.draw(jobs)) as events:
        return [event async for event in events]


async def until_free(client: InProcessClient) -> None:
    """Let the loop turn until the engine holds no job; the test's timeout ends a loop without end."""
    while (health := client.health()).queue_depth or health.live:
        await asyncio.sleep(0.001)


async def entered(family: NullFamily) -> None:
    await asyncio.to_thread(family.wait_entered)


@pytest.mark.parametrize("run", RUNNERS)
def test_a_task_yields_every_image_in_order_of_events(
    run: Callable[[Coroutine[None, None, None]], None],
) -> None:
    async def scenario() -> None:
        async with engine() as client:
            jobs = [make_job(f"t.{i}", seed=i) for i in range(4)]
            events = await collect(client, *jobs)
        for job in jobs:
            mine = [event for event in events if event.job_id == job.id]
            assert isinstance(mine[0], JobQueued)
            assert mine[1] == JobStarted(job.id)
            steps = [event.step for event in mine if isinstance(event, JobStepped)]
            assert steps == sorted(set(steps))
            assert steps[-1] == 4
            drawn = mine[-1]
            assert isinstance(drawn, JobDrawn)
            assert int(drawn.pixels[0, 0, 0]) == job.seed
            assert sum(isinstance(event, JobDrawn) for event in mine) == 1

    run(scenario())


def test_hundreds_of_draws_at_once() -> None:
    async def scenario() -> None:
        async with engine(queue_max=600, batch_max=4) as client:
            tasks = [
                collect(
                    client, *(make_job(f"t{i}.{k}", account_id=f"{i % 7}", steps=2) for k in (0, 1))
                )
                for i in range(300)
            ]
            results = await asyncio.gather(*tasks)
        for events in results:
            assert sum(isinstance(event, JobDrawn) for event in events) == 2

    asyncio.run(scenario())


def test_300_draws_into_a_queue_of_256() -> None:
    async def scenario() -> None:
        family = NullFamily(gated=True)
        async with engine(family, queue_max=256) as client:

            async def draw(i: int) -> list[JobEvent] | Busy:
                try:
                    return await collect(client, make_job(f"j{i}", steps=1))
                except Busy as busy:
                    return busy

            draws = [asyncio.create_task(draw(i)) for i in range(300)]
            await asyncio.wait(draws, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            family.open()
            results = await asyncio.gather(*draws)
        refused = [result for result in results if isinstance(result, Busy)]
        assert len(refused) == 44
        assert all(busy.retry_after_s >= 1 for busy in refused)

    asyncio.run(scenario())


def test_busy_comes_before_any_event() -> None:
    async def scenario() -> None:
        async with engine(NullFamily(gated=True), queue_max=2) as client:
            with pytest.raises(Busy) as refusal:
                await anext(client.draw(tuple(make_job(f"t.{i}") for i in range(3))))
            assert refusal.value.retry_after_s >= 1
            assert client.health().queue_depth == 0

    asyncio.run(scenario())


def test_a_slow_reader_gets_the_latest_step_and_every_end() -> None:
    async def scenario() -> None:
        family = NullFamily()
        async with engine(family) as client:
            events = client.draw((make_job("slow", steps=500), make_job("bad", prompt="fail@3")))
            first = await anext(events)
            await until_free(client)  # all is over before the second event is read
            mailbox = client._mailboxes["slow"]
            assert len(mailbox._events) <= 2 * 4
            rest = [event async for event in events]
        assert isinstance(first, JobQueued)
        slow = [event for event in rest if event.job_id == "slow"]
        assert JobStepped("slow", 500, 500) in slow
        assert isinstance(slow[-1], JobDrawn)
        assert isinstance([event for event in rest if event.job_id == "bad"][-1], JobFailed)

    asyncio.run(scenario())


def test_closing_the_generator_frees_the_engine_within_a_step() -> None:
    async def scenario() -> None:
        family = NullFamily(gated=True)
        async with engine(family, batch_max=1) as client:
            events = client.draw((make_job("t.0", steps=50), make_job("t.1")))
            await anext(events)
            await entered(family)
            await events.aclose()
            assert client._mailboxes == {}
            family.open()
            await until_free(client)
            assert [event async for event in client.draw((make_job("next"),))][-1:] != []
        assert sum("t.0" in call for call in family.calls) == 1
        assert not any("t.1" in call for call in family.calls)

    asyncio.run(scenario())


def test_cancelling_the_task_mid_draw_frees_the_engine() -> None:
    async def scenario() -> None:
        family = NullFamily(gated=True)
        async with engine(family, batch_max=1) as client:
            task = asyncio.create_task(collect(client, make_job("x", steps=50), make_job("y")))
            await entered(family)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            family.open()
            await until_free(client)
        assert sum("x" in call for call in family.calls) == 1

    asyncio.run(scenario())


def test_a_draw_that_is_never_read_submits_nothing() -> None:
    async def scenario() -> None:
        async with engine() as client:
            await client.draw((make_job("x"),)).aclose()
            assert client.health().queue_depth == 0

    asyncio.run(scenario())


def test_one_id_cannot_be_drawn_twice_at_once() -> None:
    async def scenario() -> None:
        family = NullFamily(gated=True)
        async with engine(family) as client:
            first = client.draw((make_job("x"),))
            await anext(first)
            with pytest.raises(ValueError):
                await anext(client.draw((make_job("x"),)))
            with pytest.raises(ValueError):
                await anext(client.draw((make_job("y"), make_job("y"))))
            family.open()
            rest = [event async for event in first]
            assert isinstance(rest[-1], JobDrawn)

    asyncio.run(scenario())


def test_the_death_of_the_engine_ends_every_draw() -> None:
    async def scenario() -> None:
        family = NullFamily(gated=True)
        async with engine(family, batch_max=1) as client:
            draws = [
                asyncio.create_task(collect(client, make_job(f"x{i}", prompt="die@0")))
                for i in range(5)
            ]
            await entered(family)
            while client.health().queue_depth < 4:
                await asyncio.sleep(0)
            family.open()
            for events in await asyncio.gather(*draws):
                assert isinstance(events[-1], JobFailed)
            with pytest.raises(EngineFailed):
                await collect(client, make_job("late"))
            with pytest.raises(EngineFailed):
                await client.ready()

    asyncio.run(scenario())


def test_close_ends_open_draws() -> None:
    async def scenario() -> None:
        family = NullFamily(gated=True)
        async with engine(family) as client:
            draw = asyncio.create_task(collect(client, make_job("x")))
            await entered(family)
            await client.close(timeout_s=0.01)
            events = await draw
            assert isinstance(events[-1], JobFailed)

    asyncio.run(scenario())


def test_ready_waits_for_loading_and_tells_its_failure() -> None:
    async def scenario() -> None:
        def factory() -> NullFamily:
            raise OSError("no weights")

        client = InProcessClient(EngineCore(factory))
        with pytest.raises(EngineFailed, match="no weights"):
            await client.ready()
        await client.close()

    asyncio.run(scenario())


def test_a_waiter_that_gives_up_does_not_spoil_readiness() -> None:
    async def scenario() -> None:
        family = NullFamily(gated=True)
        client = InProcessClient(EngineCore(lambda: family, warm_up=make_job("w")))
        impatient = asyncio.create_task(client.ready())
        await entered(family)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert not client.health().alive
        family.open()
        await client.ready()
        assert client.health().alive
        await client.close()

    asyncio.run(scenario())


def test_a_loop_that_is_gone_does_not_hurt_the_engine() -> None:
    """A server's loop may close under a draw; the engine goes on for others."""
    family = NullFamily(gated=True)
    core = EngineCore(lambda: family, warm_up=None)

    async def abandon() -> tuple[InProcessClient, object]:
        client = InProcessClient(core)
        await client.ready()
        events = client.draw((make_job("x"),))
        assert isinstance(await anext(events), JobQueued)
        assert isinstance(await anext(events), JobStarted)
        return client, events

    loop = asyncio.new_event_loop()
    client, events = loop.run_until_complete(abandon())
    loop.close()
    family.open()

    async def other() -> None:
        drawn = await collect(client, make_job("y"))
        assert isinstance(drawn[-1], JobDrawn)
        await client.close()

    asyncio.run(other())
    del events


def test_images_that_nobody_takes_stay_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are large: beyond a cap the engine waits until finished ones are let go of."""
    monkeypatch.setattr(core_module, "PIXEL_BYTES_MAX", 1)

    async def scenario() -> None:
        async with engine() as client:
            jobs = tuple(make_job(f"t.{i}") for i in range(3))
            held: list[JobEvent] = []
            async with aclosing(client.draw(jobs)) as events:
                drawn = 0
                async for event in events:
                    if isinstance(event, JobDrawn):
                        drawn += 1
                        held.append(event)
                        del event
                        while client._core._images_total < drawn:
                            await asyncio.sleep(0.001)
                        await asyncio.sleep(0.1)
                        assert client._core._images_total == drawn
                        held.clear()
                assert drawn == 3

    asyncio.run(scenario())


def test_a_slow_reader_gets_every_look_and_the_latest_step_in_order() -> None:
    async def scenario() -> list[JobEvent]:
        family = NullFamily()
        async with (
            engine(family) as client,
            aclosing(client.draw((make_job("x", steps=9, previews=4),))) as events,
        ):
            first = await anext(events)
            assert isinstance(first, JobQueued)
            while not client.health().images_total:  # nobody reads meanwhile
                await asyncio.sleep(0.001)
            return [event async for event in events]

    events = asyncio.run(scenario())
    kinds = [JobStarted, *[JobPreview] * 4, JobStepped, JobDrawn]
    assert [type(event) for event in events] == kinds
    looks = [event for event in events if isinstance(event, JobPreview)]
    assert [look.number for look in looks] == [0, 1, 2, 3]
    assert (looks[-1].step, looks[-1].steps) == (7, 9)


def test_a_prompt_is_measured_and_a_silent_engine_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with engine() as client:
            assert await client.measure("a red apple") == (3, WORDS_MAX)
            monkeypatch.setattr(client._core, "measure", lambda text: Future())
            monkeypatch.setattr(client_module, "MEASURE_S", 0.01)
            assert await client.measure("a red apple") is None

    asyncio.run(scenario())
    before = EngineCore(NullFamily)  # not loaded: nobody knows yet
    assert before.measure("a red apple").result(0) is None
