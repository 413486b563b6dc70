"""Reading requests: body caps, Idempotency-Key, client address, link base, hang-up. Knows HTTP; nothing of any dialect."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from danqing.domain.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Cancelled,
    DanqingError,
    InvalidField,
)
from danqing.settings import Settings

T = TypeVar("T")

DRAIN_BYTES_MAX = 16_000_000
"""An over-long body is read and thrown away up to here, so that the client can read our answer."""
DRAIN_S_MAX = 5.0
PEEK_BYTES_MAX = 64_000
"""How much of an unauthenticated body is read, only to answer in the right dialect."""
_READ = "danqing.body_read"
"""In the scope of a request whose body was read whole: waiting for more would wait for the client to leave."""
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_HOST = re.compile(r"([A-Za-z0-9.-]{1,100}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
BODY_S_MAX = 30.0
"""A body must have come in whole after this long,"""
UPLOAD_S_MAX = 300.0
"""one that may hold pictures after this,"""
SILENCE_S_MAX = 30.0
"""and its next bytes after this."""
UPLOAD_WINDOW_S = 10.0
UPLOAD_WINDOW_BYTES = 160_000
"""A body that may hold pictures brings so many bytes at least in each such while that is waited for it."""

Counted = Callable[[int], None]
"""Told the bytes of a body that have come in so far. May raise Busy."""


async def read_body(
    request: Request, bytes_max: int, *, drained: bool = True, counted: Counted | None = None
) -> bytes:
    """The whole body. Raises BodyTooLarge beyond `bytes_max`, BodyTooSlow, Cancelled when the client leaves.

    `counted` raises Busy for a large body there is no memory for. `drained` reads a refused body's
    rest (within limits), so that a client that sends first and reads afterwards gets its answer.
    """
    declared = request.headers.get("content-length", "")
    too_large = BodyTooLarge(f"The request body is too large: at most {bytes_max} bytes.")
    if declared.isdigit() and int(declared) > bytes_max:
        # A client that waits for "100 Continue" has sent nothing yet: answering at once saves it the trouble.
        if drained and not expects_continue(request):
            await drain(request.receive, int(declared))
        raise too_large
    body = bytearray()
    arrival = Arrival(_now(), BODY_S_MAX) if counted is None else upload_arrival()
    while True:
        chunk, is_last = await arrival.next_chunk(request)
        body += chunk
        try:
            if len(body) > bytes_max:
                raise too_large
            if counted is not None:
                counted(len(body))
        except DanqingError:
            if drained and not is_last:
                await drain(request.receive, DRAIN_BYTES_MAX)
            raise
        if is_last:
            return bytes(body)


class Arrival:
    """How a body comes in: whole after `seconds_max`, and not slower than `window_bytes` in each `window_s`.

    A window is as much time as was waited for the client: what we do with its bytes is not its fault.
    """

    def __init__(
        self, now_s: float, seconds_max: float, window_s: float = math.inf, window_bytes: int = 0
    ) -> None:
        self._until_s = now_s + seconds_max
        self._window_s = self._left_s = window_s
        self._window_bytes = self._short_bytes = window_bytes

    async def next_chunk(self, request: Request) -> tuple[bytes, bool]:
        """The body's next bytes, and whether they are its last. Raises BodyTooSlow, Cancelled when the client leaves."""
        began_s = _now()
        try:
            async with asyncio.timeout(self.patience_s(began_s)):
                message = await request.receive()
        except TimeoutError:
            raise BodyTooSlow from None
        if message["type"] == "http.disconnect":
            raise Cancelled("The client left before its request was complete.")
        is_last = not message.get("more_body", False)
        if is_last:
            request.scope[_READ] = True
        chunk = message.get("body", b"")
        self.came(len(chunk), _now() - began_s)
        return chunk, is_last

    def patience_s(self, now_s: float) -> float:
        """How long the next bytes may take."""
        window_s = self._left_s if self._short_bytes > 0 else math.inf
        return min(SILENCE_S_MAX, self._until_s - now_s, window_s)

    def came(self, count: int, waited_s: float) -> None:
        """So many bytes have come after so long."""
        self._left_s -= waited_s
        self._short_bytes -= count
        if self._left_s <= 0:
            self._left_s, self._short_bytes = self._window_s, self._window_bytes


def upload_arrival() -> Arrival:
    """Of a body that may hold pictures."""
    return Arrival(_now(), UPLOAD_S_MAX, UPLOAD_WINDOW_S, UPLOAD_WINDOW_BYTES)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def drop_body(request: Request) -> None:
    """Read what a stranger still sends, up to PEEK_BYTES_MAX and for DRAIN_S_MAX.

    To close a connection with unread bytes in it cuts it, and the client may never see our answer.
    """
    if _READ not in request.scope:
        with suppress(DanqingError, TimeoutError):
            async with asyncio.timeout(DRAIN_S_MAX):
                await read_body(request, PEEK_BYTES_MAX, drained=False)


def expects_continue(request: Request) -> bool:
    return "100-continue" in request.headers.get("expect", "").lower()


async def drain(receive: Receive, expected: int) -> None:
    """Read and throw away a body that is refused, within limits, so that its client can read the answer."""
    if expected > DRAIN_BYTES_MAX:
        return
    left = DRAIN_BYTES_MAX
    try:
        async with asyncio.timeout(DRAIN_S_MAX):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header. Raises InvalidField for what is no key."""
    key = request.headers.get("idempotency-key")
    if key is not None and _KEY.fullmatch(key) is None:
        raise InvalidField(
            "'Idempotency-Key' must be 1 to 255 printable ASCII characters.", "Idempotency-Key"
        )
    return key


async def until_hang_up(
    request: Request, work: Coroutine[Any, Any, T], hung_up: asyncio.Event
) -> T:
    """Await `work`. When the client hangs up: set `hung_up`, cancel, and raise Cancelled after its clean-up.

    The body must have been read before: then the next message can only be the disconnect.
    """
    mine = asyncio.current_task()
    assert mine is not None
    watch = asyncio.ensure_future(request.receive())
    over = False

    def leave(_: object) -> None:
        if not over:
            hung_up.set()
            mine.cancel()

    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Ours, and nobody else's: else the server stops.
        if hung_up.is_set() and not mine.uncancel():
            raise Cancelled from None
        raise
    finally:
        over = True
        watch.cancel()


def client_address(request: Request, settings: Settings) -> str:
    """The address the request comes from, in its shortest form; "" where the server cannot know.

    The peer's, unless it is one of `trusted_proxies`: then the right-most address of X-Forwarded-For
    that is not, since each proxy appends the peer it saw and what stands further left is the
    client's own claim. One that is malformed leaves the peer. Forwarded (RFC 7239) is not read: a
    proxy that writes only one of the two passes the other on as the client sent it.
    """
    peer = _address(request.client.host if request.client else "")
    trusted = settings.trusted_networks
    lines = request.headers.getlist("x-forwarded-for")
    hops = [hop.strip() for line in lines for hop in line.split(",")]
    found = peer
    while hops and found is not None and any(found in network for network in trusted):
        found = _address(hops.pop())
    address = found or peer
    return "" if address is None else str(address)


@lru_cache(4096)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An IPv6 address that stands for an IPv4 one is read as that, as dual-stack listeners see peers."""
    try:
        address = ip_address(text.partition("%")[0])  # no scope ids
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@lru_cache(256)
def is_loopback(address: str) -> bool:
    try:
        return "%" not in address and ip_address(address).is_loopback  # no scope ids
    except ValueError:
        return False


def link_base(request: Request, settings: Settings) -> str:
    """What links begin with: the public address, else the address this connection came in at.

    The Host header is echoed only when it names this very machine; anything else could be forged
    into a link that leads the reader elsewhere.
    """
    if settings.public_url is not None:
        return settings.public_url.rstrip("/")
    match = _HOST.fullmatch(request.headers.get("host", ""))
    if match is not None:
        name, port = match[1].strip("[]"), match[2] or "80"
        if (name == "localhost" or is_loopback(name)) and int(port) < 65536:
            return _base(name, int(port))
    address, port_number = request.scope.get("server") or ("127.0.0.1", settings.port)
    return _base(address, port_number)


def _base(name: str, port: int) -> str:
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
