"""Whether a request may have reached the other side: what failed before that may be sent again for nothing."""

from __future__ import annotations

import asyncio

import pytest

from danqing.net.errors import OutboundFailed, OutboundUnsent
from danqing.net.outbound import Outbound
from tests.net.servers import LOCAL, PUBLIC, Names, Received, Wire, answer, get, run, serving, until


async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def never(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def test_a_connection_that_was_not_made_sent_nothing() -> None:
    async def test() -> None:
        outbound, told = Outbound(), []
        async with serving(answer()) as server:
            gone = server.url
        with pytest.raises(OutboundUnsent):
            await get(outbound, gone, LOCAL, method="POST", on_sent=lambda: told.append(1))
        nowhere = Outbound(resolve=Names(no_example=[[]]), dialer=Wire({}))
        with pytest.raises(OutboundUnsent):
            await get(nowhere, "http://no.example/", PUBLIC, on_sent=lambda: told.append(1))
        assert told == []
        await outbound.aclose()

    run(test)


@pytest.mark.parametrize("handle", [hang_up, never])
def test_what_fails_after_the_first_byte_may_have_arrived(handle) -> None:
    async def test() -> None:
        outbound, told = Outbound(), []
        async with serving(handle) as server:
            with pytest.raises(OutboundFailed) as failed:
                await get(
                    *(outbound, server.url, LOCAL),
                    method="POST",
                    content=b"x",
                    timeout_s=1.0,
                    on_sent=lambda: told.append(1),
                )
            assert not isinstance(failed.value, OutboundUnsent)
        assert told == [1]
        await outbound.aclose()

    run(test)


def test_the_sender_is_told_once_and_before_the_answer() -> None:
    async def test() -> None:
        outbound, told = Outbound(), []

        async def look(_: Received, writer: asyncio.StreamWriter) -> None:
            assert told == [1]
            await answer()(_, writer)

        async with serving(look) as server:
            for _ in range(2):  # the second over the kept connection
                told.clear()
                await get(outbound, server.url, LOCAL, on_sent=lambda: told.append(1))
                assert told == [1]
            assert server.connections == 1
        await outbound.aclose()

    run(test)


def test_as_many_connections_are_kept_as_are_wished_for() -> None:
    async def test() -> None:
        outbound = Outbound(connections_max=4, idle_max=4)
        waiting = asyncio.Event()

        async def slow(got: Received, writer: asyncio.StreamWriter) -> None:
            await waiting.wait()
            await answer()(got, writer)

        async with serving(slow) as server:
            for count in range(2):
                waiting.clear()
                calls = [asyncio.create_task(get(outbound, server.url, LOCAL)) for _ in range(8)]
                await until(lambda: len(server.requests) == 8 * count + 4)  # noqa: B023 - at once
                waiting.set()
                await asyncio.gather(*calls)
            assert server.connections == 4
        await outbound.aclose()

    run(test)
