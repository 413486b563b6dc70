"""Redirects: followed only when asked, and nowhere a first request could not have gone."""

from __future__ import annotations

import asyncio

import pytest

from danqing.net.errors import OutboundFailed, OutboundRefused
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
)


def test_redirects_are_answers_unless_asked_for() -> None:
    async def test() -> None:
        async with serving(answer(302, headers=["Location: /b"])) as server:
            outbound = Outbound()
            reply = await get(outbound, server.url)
            assert (reply.status, reply.headers["location"]) == (302, "/b")
            with pytest.raises(OutboundFailed, match="More than 3 redirects"):
                await get(outbound, server.url, redirects_max=3)
            assert [r.line for r in server.requests] == [
                "GET / HTTP/1.1",
                "GET / HTTP/1.1",
                *["GET /b HTTP/1.1"] * 3,
            ]

    run(test)


def test_redirects_into_the_house_are_refused() -> None:
    """To loopback, by address or by name, to a host of the operator's, to a port, to another scheme."""

    async def test() -> None:
        async with serving(answer(body=b"secret")) as inside:
            for location in (
                f"http://127.0.0.1:{inside.port}/",
                "http://inside.example/",
                f"http://127.0.0.1.nip.example:{inside.port}/",
                f"http://backend.example:{inside.port}/",
                "http://a.example:6379/",
                "http://u:p@a.example/",
                "ftp://a.example/",
                "http://[::1/",
            ):
                async with serving(answer(302, headers=[f"Location: {location}"])) as outside:
                    names = Names(
                        a_example=[[A]],
                        inside_example=[["127.0.0.1"]],
                        backend_example=[["127.0.0.1"]],
                    )
                    wire = Wire({A: outside})
                    outbound = Outbound(resolve=names, dialer=wire)
                    with pytest.raises(OutboundRefused):
                        await get(
                            outbound,
                            "http://a.example/",
                            Policy.public(["backend.example"]),
                            redirects_max=5,
                        )
                    assert wire.dialed == [A]
            assert inside.connections == 0

    run(test)


def test_https_never_turns_into_http() -> None:
    async def test() -> None:
        said = answer(302, headers=["Location: http://hooks.example/"])
        async with serving(said, tls=True) as server, serving(answer()) as plain:
            names = Names(hooks_example=[[A], [B]])
            wire = Wire({A: server, B: plain})
            outbound = Outbound(resolve=names, dialer=wire, tls=client_tls())
            with pytest.raises(OutboundRefused, match="https to http"):
                await get(outbound, "https://hooks.example/", PUBLIC, redirects_max=5)
            assert plain.connections == 0

    run(test)


def test_credentials_stay_with_their_origin() -> None:
    async def test() -> None:
        secret = {"Authorization": "Bearer x", "X-Api-Key": "x", "Cookie": "x", "Accept": "image/*"}

        async def hop(request: Received, writer: asyncio.StreamWriter) -> None:
            path = request.line.split()[1]
            at_home = f"http://127.0.0.1:{first.port}/two"
            location = {"/one": at_home, "/two": f"{second.url}/three"}[path]
            await answer(307, headers=[f"Location: {location}"])(request, writer)

        async with serving(hop) as first, serving(answer(body=b"ok")) as second:
            reply = await get(
                Outbound(),
                f"{first.url}/one",
                method="PUT",
                headers=secret,
                content=b"body",
                redirects_max=2,
            )
        assert reply.content == b"ok"
        assert reply.url == f"{second.url}/three"
        for request in first.requests:
            assert all(request.headers[name.lower()] == secret[name] for name in secret)
        (away,) = second.requests
        assert away.headers["accept"] == "image/*"
        assert not {"authorization", "x-api-key", "cookie"} & set(away.headers)
        assert (away.line, away.body) == ("PUT /three HTTP/1.1", b"body")

    run(test)


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (302, "PUT", "PUT"),
        (303, "PUT", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
    ],
)
def test_the_method_after_a_redirect(status: int, method: str, then: str) -> None:
    async def test() -> None:
        async def hop(request: Received, writer: asyncio.StreamWriter) -> None:
            there = " /there " in request.line
            say = answer(204) if there else answer(status, headers=["Location: there"])
            await say(request, writer)

        async with serving(hop) as server:
            await get(Outbound(), server.url, method=method, content=b"body", redirects_max=1)
        last = server.requests[-1]
        assert last.line.split()[0] == then
        assert last.body == (b"" if then == "GET" else b"body")

    run(test)
