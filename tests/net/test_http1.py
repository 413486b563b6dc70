"""Answers as servers really word them: what is read of each, and whether its connection serves again."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from danqing.net.errors import OutboundFailed, OutboundTooLarge, OutboundUnsent
from danqing.net.http1 import Unsound, dial
from danqing.net.outbound import Outbound
from tests.net.servers import Received, answer, get, run, serving

OK = b"HTTP/1.1 200 OK\r\n"


def saying(*pieces: bytes, closes: bool = False):
    """Answers each request with these pieces, one by one."""

    async def write(_: Received, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if closes:
            writer.close()

    return write


@pytest.mark.parametrize(
    ("handle", "content", "connections"),
    [
        (saying(OK + b"Content-Length: 3\r\n\r\nabc"), b"abc", 1),
        (saying(OK + b"Content-Le", b"ngth: 3\r", b"\n\r\nab", b"c"), b"abc", 1),
        (saying(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n1;x=y\r\nc", b"\r\n0\r\n\r\n"), b"abc", 1),
        (saying(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Late: 1\r\n\r\n"), b"a", 1),
        (saying(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK + b"Content-Length: 1\r\n\r\na"), b"a", 1),
        (saying(OK + b"Content-Length: 0\r\n\r\n"), b"", 1),
        (saying(OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na"), b"a", 2),
        (saying(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na"), b"a", 2),
        (saying(OK + b"\r\nabc", closes=True), b"abc", 2),
        # An answer to nothing: it must not become the next request's.
        (saying(OK + b"Content-Length: 1\r\n\r\na" + OK + b"Content-Length: 1\r\n\r\nb"), b"a", 2),
        (saying(OK + b"Content-Length: 1\r\n\r\na", OK + b"Content-Length: 1\r\n\r\nb"), b"a", 2),
    ],
)  # fmt: skip
def test_two_requests(handle, content: bytes, connections: int) -> None:
    async def test() -> None:
        async with serving(handle) as server:
            outbound = Outbound()
            for _ in range(2):
                reply = await get(outbound, server.url)
                assert (reply.status, reply.content) == (200, content)
                assert "x-late" not in reply.headers
                await asyncio.sleep(0.05)
            assert server.connections == connections
            await outbound.aclose()

    run(test)


def test_no_content_and_the_answer_to_head() -> None:
    async def test() -> None:
        outbound = Outbound()
        async with serving(saying(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
            for _ in range(2):
                assert (await get(outbound, server.url)).status == 204
            assert server.connections == 1
        async with serving(saying(OK + b"Content-Length: 500\r\n\r\n")) as server:
            assert (await get(outbound, server.url, method="HEAD")).content == b""
        await outbound.aclose()

    run(test)


@pytest.mark.parametrize(
    "said",
    [
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_two_readers_could_read_differently_fails(said: bytes) -> None:
    async def test() -> None:
        async with serving(saying(said)) as server:
            with pytest.raises(OutboundFailed, match="failed"):
                await get(Outbound(), server.url)

    run(test)


def test_what_lies_around_a_body_is_bounded() -> None:
    async def trailers(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A: ")
        while True:
            writer.write(b"a" * 10_000)
            await writer.drain()

    async def test() -> None:
        async with serving(trailers) as server:
            with pytest.raises(OutboundFailed, match="failed"):
                await get(Outbound(), server.url, timeout_s=60)

    run(test)


def test_a_length_above_the_limit_is_refused_unread() -> None:
    async def test() -> None:
        async with serving(saying(OK + b"Content-Length: 1001\r\n\r\n")) as server:
            with pytest.raises(OutboundTooLarge):
                await get(Outbound(), server.url)

    run(test)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b", "ä"])
def test_a_header_that_holds_another_is_never_sent(value: str) -> None:
    async def test() -> None:
        async with serving(answer()) as server:
            outbound = Outbound()
            for headers in ({"X-A": value}, {f"X-{value}": "1"}):
                with pytest.raises(OutboundUnsent):
                    await get(outbound, server.url, headers=headers)
            assert server.requests == []

    run(test)


def test_a_large_body_arrives_whole() -> None:
    async def test() -> None:
        async with serving(answer()) as server:
            content = bytes(range(256)) * 40_000
            assert (await get(Outbound(), server.url, method="POST", content=content)).status == 200
            assert server.requests[0].body == content

    run(test)


def test_what_a_listener_raises_ends_the_request() -> None:
    async def test() -> None:
        def refuse(_: int) -> None:
            raise MemoryError("full")

        async with serving(answer(body=b"abc")) as server:
            outbound = Outbound()
            with pytest.raises(MemoryError, match="full"):
                await get(outbound, server.url, on_body=refuse)
            assert (await get(outbound, server.url)).content == b"abc"
            assert server.connections == 2

    run(test)


def test_idle_connections_make_room_for_other_hosts() -> None:
    async def test() -> None:
        async with serving(answer()) as one, serving(answer()) as other:
            outbound = Outbound(connections_max=1, idle_max=1)
            for server in (one, other, one, one):
                assert (await get(outbound, server.url)).status == 200
            assert (one.connections, other.connections) == (2, 1)
            await outbound.aclose()

    run(test)


def test_who_leaves_while_an_answer_waits_for_room_spoils_no_connection() -> None:
    async def test() -> None:
        asked = asyncio.Event()

        async def no_room(_: int) -> None:
            asked.set()
            await asyncio.Event().wait()

        async with serving(answer(body=b"abc")) as server:
            outbound = Outbound()
            waiting = asyncio.create_task(get(outbound, server.url, on_body=no_room))
            await asked.wait()
            waiting.cancel()
            await asyncio.wait({waiting})
            assert (await get(outbound, server.url)).content == b"abc"
            await outbound.aclose()

    run(test)


def test_an_answer_before_its_request_has_left_whole_ends_the_connection() -> None:
    """The rest of the body is still to be sent: the next request would stand behind it."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async def test() -> None:
        listener = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        outbound = Outbound()
        content = bytes(20_000_000)  # more than two sockets take
        for count in (1, 2):
            reply = await get(outbound, url, method="POST", content=content, timeout_s=60)
            assert (reply.status, connections) == (413, count)
        await outbound.aclose()
        listener.close()

    run(test)


@pytest.mark.parametrize("late", [OK + b"Content-Length: 1\r\n\r\nb", b"H", b"\r\n", b""])
def test_what_lies_unread_at_check_out_is_no_answer(late: bytes) -> None:
    """A second answer, or the end, that came while the loop was busy: nobody has been told of it yet."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    answered, said = threading.Event(), threading.Event()

    def talk() -> None:
        with listener.accept()[0] as first:
            first.recv(65_536)
            first.sendall(OK + b"Content-Length: 1\r\n\r\na")
            assert answered.wait(60)
            if late:
                first.sendall(late)
            else:
                first.shutdown(socket.SHUT_WR)
            said.set()
            with listener.accept()[0] as second:
                second.recv(65_536)
                second.sendall(OK + b"Content-Length: 1\r\n\r\nc")

    async def test() -> None:
        outbound = Outbound()
        assert (await get(outbound, url)).content == b"a"
        answered.set()
        assert said.wait(60)  # the loop stands still
        assert (await get(outbound, url)).content == b"c"
        await outbound.aclose()

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    run(test)
    thread.join(60)
    listener.close()


def test_a_connection_that_was_lost_before_it_is_asked_fails_at_once() -> None:
    async def test() -> None:
        async with serving(answer()) as server:
            connection = await dial("127.0.0.1", server.port, None, "")
            connection.abort()
            await asyncio.sleep(0.05)
            async with asyncio.timeout(60):
                with pytest.raises(Unsound):
                    await connection.exchange("GET", b"", b"", bytes_max=1, on_body=None)

    run(test)
