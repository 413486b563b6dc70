"""Whose address a request has: the peer's, or what trusted proxies say. In memory, then over HTTP with a token's networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from danqing.api.requests import client_address
from danqing.app import Books
from danqing.service.tokens import TokenLimits
from danqing.settings import Settings
from tests.conftest import LiveServer

PROXIES = Settings(trusted_proxies=("10.0.0.0/8", "fd00::/8", "127.0.0.1"))
NO_PROXIES = Settings()


def request(peer: str | None, *forwarded: str, name: str = "x-forwarded-for") -> Request:
    headers = [(name.encode(), line.encode("latin-1")) for line in forwarded]
    client = None if peer is None else (peer, 4711)
    return Request(
        {"type": "http", "method": "GET", "path": "/", "headers": headers, "client": client}
    )


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),  # an untrusted peer's claim
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # the client forged the left one
        ("10.1.2.3", ["6.6.6.6", "198.51.100.1 , 10.9.9.9"], "198.51.100.1"),  # two lines, two proxies
        ("10.1.2.3", ["127.0.0.1, 198.51.100.1"], "198.51.100.1"),  # a forged inner address
        ("10.1.2.3", ["10.4.4.4, 10.5.5.5"], "10.4.4.4"),  # a client within the trusted networks
        ("::ffff:10.1.2.3", ["::ffff:198.51.100.1"], "198.51.100.1"),  # dual-stack listeners
        ("fd00::1", ["2001:DB8:0:0::1"], "2001:db8::1"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("10.1.2.3", [""], "10.1.2.3"),
        ("10.1.2.3", ["unknown"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1, _hidden"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1:443"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1, "], "10.1.2.3"),
        ("10.1.2.3", ["junk, 198.51.100.1"], "198.51.100.1"),  # left of the answer nothing is read
        ("10.1.2.3", ["198.51.100.1\x00"], "10.1.2.3"),
        ("a.socket", [], ""),
        (None, ["198.51.100.1"], ""),
    ],
)  # fmt: skip
def test_client_address(peer: str | None, forwarded: list[str], found: str) -> None:
    assert client_address(request(peer, *forwarded), PROXIES) == found


@pytest.mark.parametrize("name", ["forwarded", "x-real-ip", "cf-connecting-ip"])
def test_other_headers_are_not_read(name: str) -> None:
    asked = request("10.1.2.3", "for=198.51.100.1", "198.51.100.1", name=name)
    assert client_address(asked, PROXIES) == "10.1.2.3"


addresses = st.ip_addresses(v=4).map(str)


@given(
    claims=st.lists(addresses | st.text(st.characters(codec="latin-1"), max_size=30)),
    peer=addresses,
)
def test_without_trusted_proxies_nobody_moves_the_address(claims: list[str], peer: str) -> None:
    assert client_address(request(peer, ", ".join(claims)), NO_PROXIES) == peer


@given(claims=st.lists(st.text(st.characters(codec="latin-1"), max_size=30)))
def test_what_the_proxy_appended_wins_over_any_claim(claims: list[str]) -> None:
    asked = request("10.1.2.3", ", ".join([*claims, "198.51.100.1"]))
    assert client_address(asked, PROXIES) == "198.51.100.1"


@pytest.mark.parametrize("trusted", [False, True])
def test_a_token_with_networks(null_server: Callable[..., LiveServer], trusted: bool) -> None:
    server = null_server(DANQING_TRUSTED_PROXIES='["127.0.0.1"]' if trusted else "[]")

    async def make(books: Books) -> str:
        await books.accounts.create("boxed", by="test")
        limits = TokenLimits(scopes=("draw", "account"), networks=("198.51.100.0/24",))
        return await books.tokens.create("boxed", limits=limits, by="test")

    token = server.books(make)

    def status(forwarded: str) -> int:
        headers = {"authorization": f"Bearer {token}", "x-forwarded-for": forwarded}
        return server.client.get("/account/v1/me", headers=headers).status_code

    def models(forwarded: str) -> int:
        headers = {"authorization": f"Bearer {token}", "x-forwarded-for": forwarded}
        return server.client.get("/v1/models", headers=headers).status_code

    assert models("198.51.100.77") == (200 if trusted else 403)
    assert status("203.0.113.5") == 403
    assert status("198.51.100.77") == (200 if trusted else 403)
    # The client's own claim stands left of what the proxy saw.
    assert status("198.51.100.77, 203.0.113.5") == 403
    assert status("nonsense") == 403
