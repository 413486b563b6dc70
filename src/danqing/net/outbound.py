"""Outgoing HTTP, and the only HTTP client there is. Knows no webhook, provider or account.

A name is resolved when a connection is opened, once; the addresses are checked, and one of them is
dialled as a literal, while Host, SNI and the certificate's check keep the name: an answer of DNS that
changes afterwards changes nothing. The pool knows no proxy, cookie, .netrc or environment variable.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field

import httpcore2
import httpx2

from danqing import __version__
from danqing.net.errors import (
    OutboundFailed,
    OutboundRefused,
    OutboundTooLarge,
    OutboundUnsent,
)
from danqing.net.policy import Policy, is_public, parse_url, public_only

_ADDRESSES_MAX = 4
_CONNECT_S_MAX = 5.0  # per address, so that a dead one does not use up the request's time
_CONNECTIONS_MAX = 100
_IDLE_CONNECTIONS_MAX = 20
_IDLE_S_MAX = 30.0
# A slow name server holds a thread until the system's resolver gives up: they are threads of our own.
_RESOLVER_THREADS = 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# All that goes along to another origin; the rest may be a credential under any name.
_HARMLESS_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
_NETWORK_ERRORS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    OSError,
)

OnBody = Callable[[int], Awaitable[None] | None]
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → the texts of its IP addresses. Raises OSError."""


@dataclass(frozen=True, slots=True)
class OutboundReply:
    """`headers` has lower-case names, repeated ones joined by ", "; `url` is where it came from."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Hop:
    method: str
    url: httpx2.URL
    headers: Mapping[str, str]
    content: bytes


class _Sending:
    """Whether any byte of a request may have reached the other side, as the HTTP library's trace tells."""

    def __init__(self, on_sent: Callable[[], None] | None, on_body: OnBody | None = None) -> None:
        self.begun = False
        self.on_body = on_body
        self._on_sent = on_sent

    async def trace(self, event: str, _: object) -> None:
        if event == "http11.send_request_headers.started" and not self.begun:
            self.begun = True
            if self._on_sent is not None:
                self._on_sent()


class Outbound:
    """Makes requests over kept connections (HTTP/1.1). Belongs to one event loop."""

    def __init__(
        self,
        *,
        resolve: Resolver | None = None,
        dialer: httpcore2.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
        requests_max: int = 256,
        connections_max: int = _CONNECTIONS_MAX,
        idle_max: int = _IDLE_CONNECTIONS_MAX,
    ) -> None:
        """`resolve`, `dialer` (gets literal addresses only) and `tls` are the system's unless given.

        A request beyond `requests_max` at a time is turned away with OutboundUnsent. Of
        `connections_max` connections to public addresses, and as many to others, `idle_max` are
        kept between requests.
        """
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="danqing-resolver")
        self._requests_max = requests_max
        self._requests = 0
        resolve = resolve or self._resolve
        dialer = dialer or httpcore2.AnyIOBackend()
        tls = tls or httpx2.create_ssl_context()
        # Apart: a connection to a private address is never reused for a URL from a user.
        limits = (connections_max, idle_max)
        self._public_pool = _pool(_CheckedDialer(resolve, dialer, public=True), tls, *limits)
        self._operator_pool = _pool(_CheckedDialer(resolve, dialer, public=False), tls, *limits)

    async def request(
        self,
        method: str,
        url: str,
        *,
        policy: Policy,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        timeout_s: float,
        bytes_max: int,
        redirects_max: int = 0,
        on_sent: Callable[[], None] | None = None,
        on_body: OnBody | None = None,
    ) -> OutboundReply:
        """The answer to one request, whatever its status, within `timeout_s` all told.

        Of the body at most `bytes_max` bytes are taken (0: it is left unread), and uncompressed only,
        as asked for. With `redirects_max` 0 a redirect is an answer like any other; else each hop is
        checked as the first was, what leaves the origin loses all but harmless headers, https never
        turns into http, and a public host never redirects to one of `policy.hosts`. `headers` are
        ASCII. `on_sent` is called when the first byte is about to leave, `on_body` with the bytes of
        each piece of a body that came; what it raises ends the request, and for what it gives back to
        await no more is read. Raises OutboundRefused,
        OutboundUnsent (nothing has left), OutboundFailed, OutboundTooLarge.
        """
        hop = _Hop(method, parse_url(url), headers or {}, content)
        if self._requests >= self._requests_max:
            raise OutboundUnsent("Too many outgoing requests at a time.")
        sending = _Sending(on_sent, on_body)
        self._requests += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(hop, policy, bytes_max, redirects_max, sending)
        except TimeoutError as error:
            text = f"No complete answer from '{_host(hop.url)}' in time."
            raise _failed(sending, text) from error
        except _NETWORK_ERRORS as error:
            raise _failed(sending, f"The exchange with '{_host(hop.url)}' failed.") from error
        finally:
            self._requests -= 1

    async def aclose(self) -> None:
        """Close all connections."""
        await self._public_pool.aclose()
        await self._operator_pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _follow(
        self, hop: _Hop, policy: Policy, bytes_max: int, redirects_max: int, sending: _Sending
    ) -> OutboundReply:
        for _ in range(redirects_max + 1):
            public = public_only(hop.url, policy)
            pool = self._public_pool if public else self._operator_pool
            reply = await _exchange(pool, hop, bytes_max, sending)
            location = reply.headers.get("location")
            if not redirects_max or reply.status not in _REDIRECTS or location is None:
                return reply
            hop = _next_hop(hop, reply.status, location)
            if public:
                policy = Policy.public()
        raise OutboundFailed(f"More than {redirects_max} redirects.")

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
        )
        return [str(sockaddr[0]) for *_, sockaddr in found]


class _CheckedDialer(httpcore2.AsyncNetworkBackend):
    """Resolves a host, checks all its addresses and connects to the first that answers."""

    def __init__(
        self, resolve: Resolver, dialer: httpcore2.AsyncNetworkBackend, *, public: bool
    ) -> None:
        self._resolve = resolve
        self._dialer = dialer
        self._public = public

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except UnicodeError as error:  # a label of the name is over 63 characters
            raise httpcore2.ConnectError("no such host") from error
        if self._public and not all(map(is_public, addresses)):
            raise OutboundRefused(f"'{host}' is not a public host.")
        failure: Exception = httpcore2.ConnectError("no address")
        for address in addresses[:_ADDRESSES_MAX]:
            try:
                return await self._dialer.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


def _pool(
    dialer: _CheckedDialer, tls: ssl.SSLContext, connections_max: int, idle_max: int
) -> httpcore2.AsyncConnectionPool:
    return httpcore2.AsyncConnectionPool(
        ssl_context=tls,
        max_connections=connections_max,
        max_keepalive_connections=idle_max,
        keepalive_expiry=_IDLE_S_MAX,
        network_backend=dialer,
    )


def _next_hop(hop: _Hop, status: int, location: str) -> _Hop:
    """Where a redirect leads. Raises OutboundRefused."""
    url = parse_url(location, base=hop.url)
    if hop.url.scheme == "https" and url.scheme != "https":
        raise OutboundRefused(f"'{_host(hop.url)}' redirects from https to http.")
    headers = hop.headers
    if url.origin != hop.url.origin:
        headers = {k: v for k, v in headers.items() if k.lower() in _HARMLESS_HEADERS}
    # As browsers do (Fetch standard, "HTTP-redirect fetch").
    if status == 303 or (status in (301, 302) and hop.method == "POST"):
        return _Hop("HEAD" if hop.method == "HEAD" else "GET", url, headers, b"")
    return _Hop(hop.method, url, headers, hop.content)


def _failed(sending: _Sending, text: str) -> OutboundFailed:
    return OutboundFailed(text) if sending.begun else OutboundUnsent(text)


def _host(url: httpx2.URL) -> str:
    # Not url.host, which raises for some made-up xn-- names.
    return url.raw_host.decode()


async def _exchange(
    pool: httpcore2.AsyncConnectionPool, hop: _Hop, bytes_max: int, sending: _Sending
) -> OutboundReply:
    url = hop.url
    sent = {
        "user-agent": f"danqing/{__version__}",
        **{name.lower(): value for name, value in hop.headers.items()},
        "host": url.netloc.decode(),
        "accept-encoding": "identity",
    }
    async with pool.stream(
        hop.method,
        httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=list(sent.items()),
        content=hop.content if hop.content or hop.method in ("POST", "PUT", "PATCH") else None,
        extensions={"timeout": {"connect": _CONNECT_S_MAX}, "trace": sending.trace},
    ) as reply:
        got: dict[str, str] = {}
        for raw_name, raw_value in reply.headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            got[name] = f"{got[name]}, {value}" if name in got else value
        body = b""
        if bytes_max:
            body = await _body(reply, got, bytes_max, _host(url), sending.on_body)
        return OutboundReply(reply.status, got, body, str(url))


async def _body(
    reply: httpcore2.Response,
    headers: Mapping[str, str],
    bytes_max: int,
    host: str,
    on_body: OnBody | None,
) -> bytes:
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise OutboundFailed(f"'{host}' sent a compressed answer unasked.")
    body = bytearray()
    async with aclosing(reply.aiter_stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > bytes_max:
                raise OutboundTooLarge(f"The answer of '{host}' has more than {bytes_max} bytes.")
            if on_body is not None and (room := on_body(len(chunk))) is not None:
                await room
    return bytes(body)
