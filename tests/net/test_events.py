"""Server-sent events: the same however they are cut into pieces, and bounded."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.net.errors import OutboundFailed, OutboundTooLarge
from danqing.net.events import EventReader, ReceivedEvent
from danqing.net.outbound import Outbound
from tests.net.servers import Received, answer, get, run, serving

STREAM = (
    b"\xef\xbb\xbfevent: a\ndata: {\ndata:  1}\n\n"
    b": a comment\r\n\r\ndata\r\n\r\n"
    b"id: 7\rretry: 1\rdata:x\r\revent: lost\n\ndata: y\n\ndata: not whole\n"
)
EVENTS = [ReceivedEvent("a", b"{\n 1}"), ReceivedEvent("", b"x"), ReceivedEvent("", b"y")]


def reader(**bounds: int) -> EventReader:
    return EventReader(**{"event_bytes_max": 10_000, "events_max": 100, "lines_max": 1000} | bounds)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    read, found, start = reader(), [], 0
    for end in (*sorted(cuts), len(STREAM)):
        found += read.feed(STREAM[start:end])
        start = end
    assert found == EVENTS


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 11_000,
        b"data:\n" * 200,
        b"x" * 11_000,
        b"data: 1\n\n" * 101,
        b":\n" * 1001,
    ],
)
def test_what_has_no_end_is_refused(stream: bytes) -> None:
    with pytest.raises(OutboundTooLarge):
        reader().feed(stream)


# The same over a connection


class Taking:
    """Takes every body, and keeps its pieces."""

    def __init__(self, idle_s: float = 60.0, pause_s: float = 0.0) -> None:
        self.idle_s, self.pause_s = idle_s, pause_s
        self.pieces: list[bytes] = []
        self.busy = 0

    def begins(self, status: int, headers: dict[str, str]) -> bool:
        return status == 200

    async def take(self, piece: bytes) -> None:
        assert not self.busy, "one after the other"
        self.busy += 1
        await asyncio.sleep(self.pause_s)
        self.busy -= 1
        self.pieces.append(piece)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def saying(*pieces: bytes, pause_s: float = 0.0, ends: bool = True):
    async def write(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(pause_s)
        if ends:
            writer.write(b"0\r\n\r\n")
        else:
            await asyncio.sleep(60)

    return write


def test_a_listener_gets_the_body_and_the_connection_serves_again() -> None:
    async def test() -> None:
        pieces = [bytes([at]) * 70_000 for at in range(20)]
        async with serving(saying(*pieces)) as server:
            outbound = Outbound()
            for _ in range(2):
                listener = Taking(pause_s=0.001)
                reply = await get(outbound, server.url, listener=listener, bytes_max=2_000_000)
                assert reply.content == b""
                assert b"".join(listener.pieces) == b"".join(pieces)
                assert len(listener.pieces) > 1
            assert server.connections == 1
            await outbound.aclose()

    run(test)


def test_what_a_listener_does_not_want_comes_whole() -> None:
    async def test() -> None:
        async with serving(answer(404, b"abc")) as server:
            outbound, listener = Outbound(), Taking()
            assert (await get(outbound, server.url, listener=listener)).content == b"abc"
            assert listener.pieces == []
            await outbound.aclose()

    run(test)


@pytest.mark.parametrize("pieces", [(), (b"a",)])
def test_a_body_that_stands_still_is_given_up(pieces: tuple[bytes, ...]) -> None:
    async def test() -> None:
        async with serving(saying(*pieces, ends=False)) as server:
            outbound = Outbound()
            with pytest.raises(OutboundFailed, match="in time"):
                await get(outbound, server.url, listener=Taking(idle_s=0.2), timeout_s=50.0)
            # Dripping on it may, and being slow ourselves is nobody's fault: the whole time counts then.
            slow = saying(*[b"x"] * 4, pause_s=0.1)
            async with serving(slow) as dripping:
                listener = Taking(idle_s=30.0, pause_s=0.1)
                await get(outbound, dripping.url, listener=listener, timeout_s=50.0)
                assert b"".join(listener.pieces) == b"xxxx"
            await outbound.aclose()

    run(test)


def test_a_streamed_body_has_its_bounds_and_its_errors() -> None:
    class Raising(Taking):
        async def take(self, piece: bytes) -> None:
            raise OutboundTooLarge("enough")

    async def test() -> None:
        async with serving(saying(*[bytes(1000)] * 100)) as server:
            outbound = Outbound()
            with pytest.raises(OutboundTooLarge, match="bytes"):
                await get(outbound, server.url, listener=Taking(), bytes_max=50_000)
            with pytest.raises(OutboundTooLarge, match="enough"):
                await get(outbound, server.url, listener=Raising(), bytes_max=200_000)
            assert (await get(outbound, server.url, bytes_max=200_000)).content == bytes(100_000)
            await outbound.aclose()

    run(test)
