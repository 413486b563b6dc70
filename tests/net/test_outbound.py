"""Outgoing HTTP against real servers: who is called, with what, and what of the answer is taken."""

from __future__ import annotations

import asyncio
import gzip
import time

import pytest

from danqing.net.errors import OutboundError, OutboundFailed, OutboundRefused, OutboundTooLarge
from danqing.net.outbound import Outbound
from danqing.net.policy import Policy
from tests.net.servers import (
    PUBLIC,
    A,
    B,
    Names,
    Received,
    Wire,
    answer,
    client_tls,
    get,
    run,
    serving,
    until,
)


def test_request_and_reply() -> None:
    async def test() -> None:
        outbound = Outbound()
        said = answer(201, "答".encode(), ["X-One: a", "X-One: b"])
        async with serving(said) as server:
            url = f"{server.url}/路/?q=a%20b#part"
            reply = await get(
                outbound, url, method="POST", content=b"body", headers={"X-Key": "k", "Host": "no"}
            )
            assert (reply.status, reply.content.decode()) == (201, "答")
            assert reply.headers["x-one"] == "a, b"
            empty = await get(outbound, server.url, method="POST")
            plain = await get(outbound, server.url)
            assert empty.status == plain.status == 201
        sent, sent_empty, sent_plain = server.requests
        assert sent.line == "POST /%E8%B7%AF/?q=a%20b HTTP/1.1"
        assert sent.body == b"body"
        assert sent.headers["host"] == f"127.0.0.1:{server.port}"
        assert sent.headers["x-key"] == "k"
        assert sent.headers["user-agent"].startswith("danqing/")
        assert sent_empty.headers["content-length"] == "0"
        assert "content-length" not in sent_plain.headers
        assert server.connections == 1, "a connection is kept"
        await outbound.aclose()

    run(test)


def test_a_public_policy_never_reaches_loopback() -> None:
    async def test() -> None:
        outbound = Outbound()  # the system's own resolver
        async with serving(answer()) as server:
            for host in ("127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]"):
                with pytest.raises(OutboundRefused):
                    await get(outbound, f"http://{host}/", PUBLIC)
            # The port is refused too: show that an allowed port does not help on its own.
            wire = Wire({})
            inside = Outbound(resolve=Names(inside_example=[["127.0.0.1"]]), dialer=wire)
            with pytest.raises(OutboundRefused):
                await get(inside, "http://inside.example/", PUBLIC)
            assert wire.dialed == []
            assert server.connections == 0

    run(test)


def test_every_address_of_a_name_must_be_public() -> None:
    async def test() -> None:
        async with serving(answer()) as server:
            wire = Wire({A: server, B: server})
            names = Names(good_example=[[A, B]], mixed_example=[[A, "10.0.0.1"]], none_example=[[]])
            outbound = Outbound(resolve=names, dialer=wire)
            assert (await get(outbound, "http://good.example/", PUBLIC)).status == 200
            with pytest.raises(OutboundRefused):
                await get(outbound, "http://mixed.example/", PUBLIC)
            with pytest.raises(OutboundFailed):
                await get(outbound, "http://none.example/", PUBLIC)
            assert wire.dialed == [A]

    run(test)


def test_rebinding_a_name_changes_nothing() -> None:
    """The name server answers with a public address first, and with loopback from then on."""

    async def test() -> None:
        async with serving(answer(body=b"outside")) as outside:
            wire = Wire({A: outside})
            names = Names(evil_example=[[A], ["127.0.0.1"]])
            outbound = Outbound(resolve=names, dialer=wire)
            for _ in range(2):  # the second on the kept connection
                assert (await get(outbound, "http://evil.example/", PUBLIC)).content == b"outside"
            assert names.asked == ["evil.example"]
            assert wire.dialed == [A]
            assert outside.requests[0].headers["host"] == "evil.example"
            await outbound.aclose()
            with pytest.raises(OutboundRefused):  # a new connection: resolved and checked again
                await get(outbound, "http://evil.example/", PUBLIC)
            assert wire.dialed == [A]

    run(test)


def test_the_next_address_is_tried() -> None:
    async def test() -> None:
        async with serving(answer()) as server:
            wire = Wire({A: server})
            outbound = Outbound(resolve=Names(two_example=[[B, A]]), dialer=wire)
            assert (await get(outbound, "http://two.example/", PUBLIC)).status == 200
            assert wire.dialed == [B, A]

    run(test)


def test_an_operators_connection_is_not_lent_to_users() -> None:
    async def test() -> None:
        async with serving(answer()) as server:
            wire = Wire({"10.0.0.1": server})
            outbound = Outbound(resolve=Names(both_example=[["10.0.0.1"]]), dialer=wire)
            url = "http://both.example/"
            assert (await get(outbound, url, Policy.operator(["both.example"]))).status == 200
            with pytest.raises(OutboundRefused):
                await get(outbound, url, PUBLIC)
            assert len(server.requests) == 1

    run(test)


def test_tls_checks_the_name_though_the_address_is_dialled() -> None:
    async def test() -> None:
        async with serving(answer(body=b"safe"), tls=True) as server:
            names = Names(hooks_example=[[A]], other_example=[[A]])
            outbound = Outbound(resolve=names, dialer=Wire({A: server}), tls=client_tls())
            reply = await get(outbound, "https://hooks.example/", PUBLIC)
            assert reply.content == b"safe"
            # The same address and an open connection, but not what the certificate says.
            with pytest.raises(OutboundFailed):
                await get(outbound, "https://other.example/", PUBLIC)
            with pytest.raises(OutboundFailed):
                await get(outbound, f"https://{A}/", PUBLIC)
            assert len(server.requests) == 1
            strict = Outbound(resolve=names, dialer=Wire({A: server}))
            with pytest.raises(OutboundFailed):  # a certificate the system does not know
                await get(strict, "https://hooks.example/", PUBLIC)
            await outbound.aclose()

    run(test)


async def never(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip_body(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    await _drip(writer)


async def drip_headers(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-A: ")
    await _drip(writer)


async def _drip(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.02)


async def only_early_hints(_: Received, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("handle", [never, drip_body, drip_headers, only_early_hints])
def test_time_is_capped_as_a_whole(handle) -> None:
    async def test() -> None:
        async with serving(handle) as server:
            outbound = Outbound()
            started = time.monotonic()
            with pytest.raises(OutboundFailed, match="in time"):
                await get(outbound, server.url, timeout_s=0.4)
            assert time.monotonic() - started < 30
            await outbound.aclose()

    run(test)


def test_time_is_capped_while_resolving_and_connecting() -> None:
    async def test() -> None:
        async def slow(host: str, port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

        class Deaf(Wire):
            async def __call__(self, *_, **__):
                await asyncio.sleep(60)

        for outbound in (Outbound(resolve=slow), Outbound(dialer=Deaf({}))):
            with pytest.raises(OutboundFailed, match="in time"):
                await get(outbound, "http://127.0.0.1/", timeout_s=0.2)

    run(test)


async def endless_body(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b"a" * 0x400 + b"\r\n")
        await writer.drain()


async def body_until_closed(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 1001)
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("handle", [endless_body, body_until_closed, answer(body=b"a" * 1001)])
def test_bytes_are_capped(handle) -> None:
    async def test() -> None:
        async with serving(handle) as server:
            with pytest.raises(OutboundTooLarge):
                await get(Outbound(), server.url)

    run(test)


def test_a_body_of_just_the_size_is_taken() -> None:
    async def test() -> None:
        async with serving(answer(body=b"a" * 1000)) as server:
            assert len((await get(Outbound(), server.url)).content) == 1000

    run(test)


@pytest.mark.parametrize("handle", [endless_body, drip_body])
def test_a_body_may_be_left_unread(handle) -> None:
    async def test() -> None:
        async with serving(handle) as server:
            outbound = Outbound()
            for _ in range(2):
                reply = await get(outbound, server.url, bytes_max=0)
                assert (reply.status, reply.content) == (200, b"")
            assert server.connections == 2, "a connection with a body in it is not used again"

    run(test)


def test_a_gzip_bomb_is_not_unpacked() -> None:
    async def test() -> None:
        bomb = gzip.compress(bytes(10_000_000))
        said = answer(body=bomb, headers=["Content-Encoding: gzip"])
        async with serving(said) as server:
            with pytest.raises(OutboundFailed, match="compressed"):
                await get(Outbound(), server.url, bytes_max=20_000_000)
            assert server.requests[0].headers["accept-encoding"] == "identity"

    run(test)


async def huge_header(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 1_000_000 + b"\r\n\r\n")
    await writer.drain()


async def endless_headers(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: a\r\n" * 100)
        await writer.drain()


async def no_http(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await writer.drain()


async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def half_a_body(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"a" * 100)
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("handle", [huge_header, endless_headers, no_http, hang_up, half_a_body])
def test_what_is_no_sound_answer_fails(handle) -> None:
    async def test() -> None:
        async with serving(handle) as server:
            with pytest.raises(OutboundFailed, match="failed"):
                await get(Outbound(), server.url)

    run(test)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", f"http://{'a' * 70}.example/"])
def test_nobody_there(url: str) -> None:
    async def test() -> None:
        policy = Policy.operator(["127.0.0.1", f"{'a' * 70}.example"])
        outbound = Outbound()
        with pytest.raises(OutboundFailed) as caught:
            await get(outbound, url, policy)
        assert caught.value.retryable
        await outbound.aclose()

    run(test)


def test_a_server_that_closed_a_kept_connection_is_called_anew() -> None:
    async def test() -> None:
        async def once(request: Received, writer: asyncio.StreamWriter) -> None:
            await answer()(request, writer)
            writer.close()

        async with serving(once) as server:
            outbound = Outbound()
            for _ in range(3):
                assert (await get(outbound, server.url)).status == 200
                await asyncio.sleep(0.05)
            assert server.connections == 3

    run(test)


def test_requests_at_a_time_are_capped() -> None:
    async def test() -> None:
        async with serving(never) as server:
            outbound = Outbound(requests_max=3)
            calls = [
                asyncio.create_task(get(outbound, server.url, timeout_s=600)) for _ in range(3)
            ]
            await until(lambda: len(server.requests) == 3)
            with pytest.raises(OutboundFailed, match="Too many"):
                await get(outbound, server.url)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        async with serving(answer()) as server:
            assert (await get(outbound, server.url)).status == 200

    run(test)


def test_a_slow_host_leaves_the_others_be() -> None:
    async def test() -> None:
        async with serving(never) as slow, serving(answer()) as quick:
            outbound = Outbound()
            waiting = [
                asyncio.create_task(get(outbound, slow.url, timeout_s=600)) for _ in range(20)
            ]
            await until(lambda: slow.requests)
            assert (await get(outbound, quick.url)).status == 200
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await outbound.aclose()

    run(test)


def test_messages_tell_no_address_and_no_secret() -> None:
    async def test() -> None:
        names = Names(inside_example=[["10.1.2.3"]])
        outbound = Outbound(resolve=names, dialer=Wire({}))
        for policy in (PUBLIC, Policy.operator(["inside.example"])):
            with pytest.raises(OutboundError) as caught:
                await get(outbound, "http://inside.example/hook?key=k3y", policy)
            assert "inside.example" in caught.value.message
            assert not any(text in caught.value.message for text in ("10.1.2.3", "k3y", "hook"))

    run(test)
