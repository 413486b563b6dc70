"""Outgoing HTTP, and the only HTTP client there is. Knows no webhook, provider or account.

A name is resolved when a connection is opened, once; the addresses are checked, and one of them is
dialled as a literal, while Host, SNI and the certificate's check keep the name: an answer of DNS that
changes afterwards changes nothing. The pool knows no proxy, cookie, .netrc or environment variable.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import httpx2

from danqing import __version__
from danqing.net.errors import (
    OutboundFailed,
    OutboundRefused,
    OutboundTooLarge,
    OutboundUnsent,
)
from danqing.net.http1 import (
    Compressed,
    Connection,
    OnBody,
    Origin,
    Pool,
    TooLarge,
    Unsound,
    dial,
)
from danqing.net.policy import PORTS, Policy, is_public, parse_url, public_only

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
_UNSENDABLE = re.compile(r"[\x00\r\n]|[^\x00-\x7f]")
"""What would end a header, or is no text of one."""

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → the texts of its IP addresses. Raises OSError."""
Dialer = Callable[[str, int, ssl.SSLContext | None, str], Awaitable[Connection]]
"""As `http1.dial`: a literal address, a port, how to encrypt, and the name that the certificate is of."""


@dataclass(frozen=True, slots=True)
class OutboundReply:
    """`headers` has lower-case names, repeated ones joined by ", "; `url` is where it came from."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    url: str = field(repr=False)


class Listener(Protocol):
    """Takes the body of an answer that comes bit by bit, as it comes."""

    @property
    def idle_s(self) -> float:
        """How long the next piece may take to come."""
        ...

    def begins(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether it takes this answer's body; else it comes whole, as any."""
        ...

    async def take(self, piece: bytes) -> None:
        """One piece. Nothing more is read meanwhile; what it raises ends the request."""
        ...


@dataclass(frozen=True, slots=True)
class _Hop:
    method: str
    url: httpx2.URL
    headers: Mapping[str, str]
    content: bytes


@dataclass(slots=True)
class _Sending:
    """Whether any byte of a request may have reached the other side, and who hears of what happens."""

    on_sent: Callable[[], None] | None
    on_body: OnBody | None
    taker: _Paced | None = None
    begun: bool = False

    def begin(self) -> None:
        """The first byte is about to leave."""
        if not self.begun:
            self.begun = True
            if self.on_sent is not None:
                self.on_sent()


class _Paced:
    """A listener as the connection has it, and the clock that runs while its body stands still."""

    def __init__(self, listener: Listener, limit: asyncio.Timeout) -> None:
        self._listener = listener
        self._limit = limit
        self._end = limit.when()

    def begins(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        if not self._listener.begins(status, _joined(headers)):
            return False
        self._wait(self._listener.idle_s)
        return True

    async def take(self, piece: bytes) -> None:
        self._wait(None)  # it may take a while: that is ours
        await self._listener.take(piece)
        self._wait(self._listener.idle_s)

    def _wait(self, idle_s: float | None) -> None:
        assert self._end is not None
        if not self._limit.expired():
            idle_at = self._end if idle_s is None else asyncio.get_running_loop().time() + idle_s
            self._limit.reschedule(min(self._end, idle_at))


class Outbound:
    """Makes requests over kept connections (HTTP/1.1). Belongs to one event loop."""

    def __init__(
        self,
        *,
        resolve: Resolver | None = None,
        dialer: Dialer = dial,
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
        self._resolve = resolve or self._ask_system
        self._dialer = dialer
        self._tls = tls or httpx2.create_ssl_context()
        self._tls.set_alpn_protocols(["http/1.1"])
        # Apart: a connection to a private address is never reused for a URL from a user.
        self._public_pool, self._operator_pool = (
            Pool(
                partial(self._connect, public=public),
                connections_max=connections_max,
                idle_max=idle_max,
                idle_s_max=_IDLE_S_MAX,
            )
            for public in (True, False)
        )

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
        listener: Listener | None = None,
    ) -> OutboundReply:
        """The answer to one request, whatever its status, within `timeout_s` all told.

        Of the body at most `bytes_max` bytes are taken (0: it is left unread), and uncompressed only,
        as asked for. With `redirects_max` 0 a redirect is an answer like any other; else each hop is
        checked as the first was, what leaves the origin loses all but harmless headers, https never
        turns into http, and a public host never redirects to one of `policy.hosts`. `headers` are
        ASCII. `on_sent` is called when the first byte is about to leave, `on_body` with the bytes of
        each piece of a body that came; what it raises ends the request, and for what it gives back to
        await no more is read. A body that `listener` takes is not in the reply; standing still for its `idle_s` it
        is no answer in time. Raises OutboundRefused,
        OutboundUnsent (nothing has left), OutboundFailed, OutboundTooLarge.
        """
        hop = _Hop(method, parse_url(url), headers or {}, content)
        if self._requests >= self._requests_max:
            raise OutboundUnsent("Too many outgoing requests at a time.")
        sending = _Sending(on_sent, on_body)
        self._requests += 1
        try:
            async with asyncio.timeout(timeout_s) as limit:
                if listener is not None:
                    sending.taker = _Paced(listener, limit)
                return await self._follow(hop, policy, bytes_max, redirects_max, sending)
        except TimeoutError as error:
            text = f"No complete answer from '{_host(hop.url)}' in time."
            raise _failed(sending, text) from error
        except (OSError, Unsound) as error:
            raise _failed(sending, f"The exchange with '{_host(hop.url)}' failed.") from error
        finally:
            self._requests -= 1

    async def aclose(self) -> None:
        """Close all connections."""
        self._public_pool.close()
        self._operator_pool.close()
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

    async def _connect(self, origin: Origin, *, public: bool) -> Connection:
        """Resolve a host, check all its addresses and connect to the first that answers."""
        try:
            addresses = await self._resolve(origin.host, origin.port)
        except UnicodeError as error:  # a label of the name is over 63 characters
            raise Unsound("no such host") from error
        if public and not all(map(is_public, addresses)):
            raise OutboundRefused(f"'{origin.host}' is not a public host.")
        tls = self._tls if origin.scheme == "https" else None
        failure: Exception = Unsound("no address")
        for address in addresses[:_ADDRESSES_MAX]:
            try:
                async with asyncio.timeout(_CONNECT_S_MAX):
                    return await self._dialer(address, origin.port, tls, origin.host)
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = Unsound(f"no connection: {error}")
        raise failure

    async def _ask_system(self, host: str, port: int) -> Sequence[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
        )
        return [str(sockaddr[0]) for *_, sockaddr in found]


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


async def _exchange(pool: Pool, hop: _Hop, bytes_max: int, sending: _Sending) -> OutboundReply:
    url, host = hop.url, _host(hop.url)
    head = _head(hop)
    origin = Origin(url.scheme, host, url.port or PORTS[url.scheme])
    connection = await pool.take(origin)
    try:
        sending.begin()
        reply = await connection.exchange(
            *(hop.method, head, hop.content),
            bytes_max=bytes_max,
            on_body=sending.on_body,
            taker=sending.taker,
        )
    except TooLarge as error:
        text = f"The answer of '{host}' has more than {bytes_max} bytes."
        raise OutboundTooLarge(text) from error
    except Compressed as error:
        raise OutboundFailed(f"'{host}' sent a compressed answer unasked.") from error
    finally:
        pool.give(origin, connection)
    return OutboundReply(reply.status, _joined(reply.headers), reply.content, str(url))


def _head(hop: _Hop) -> bytes:
    """The request up to its body. Raises Unsound for a header that cannot be sent."""
    url = hop.url
    sent = {
        "user-agent": f"danqing/{__version__}",
        **{name.lower(): value for name, value in hop.headers.items()},
        "host": url.netloc.decode(),
        "accept-encoding": "identity",
    }
    if hop.content or hop.method in ("POST", "PUT", "PATCH"):
        sent["content-length"] = str(len(hop.content))
    lines = [f"{name}: {value}" for name, value in sent.items()]
    if any(map(_UNSENDABLE.search, lines)):
        raise Unsound("a header that cannot be sent")
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (
        hop.method.encode(),
        url.raw_path,
        "\r\n".join(lines).encode(),
    )


def _joined(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """An answer's headers as text, repeated ones joined."""
    got: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        got[name] = f"{got[name]}, {value}" if name in got else value
    return got
