"""Reading requests: body caps, client address, link base, hang-up. Knows HTTP; nothing of any dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from ipaddress import ip_address
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from danqing.domain.errors import BodyTooLarge, Cancelled
from danqing.settings import Settings

T = TypeVar("T")

DRAIN_BYTES_MAX = 16_000_000
"""An over-long body is read and thrown away up to here, so that the client can read our answer."""
DRAIN_S_MAX = 5.0
BODY_S_MAX = 30.0
"""A body must have come in whole after this long."""


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The whole body. Raises BodyTooLarge beyond `bytes_max`, Cancelled when the client leaves or dawdles."""
    declared = request.headers.get("content-length", "")
    too_large = BodyTooLarge(f"The request body is too large: at most {bytes_max} bytes.")
    if declared.isdigit() and int(declared) > bytes_max:
        # A client that waits for "100 Continue" has sent nothing yet: answering at once saves it the trouble.
        if "100-continue" not in request.headers.get("expect", "").lower():
            await _drain(request.receive, int(declared))
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled("The client left before its request was complete.")
                body += message.get("body", b"")
                if len(body) > bytes_max:
                    await _drain(request.receive, DRAIN_BYTES_MAX)
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Cancelled("The request body did not arrive in time.") from None


async def _drain(receive: Receive, expected: int) -> None:
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


async def until_hang_up(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; cancel it when the client hangs up, and raise Cancelled once it has cleaned up.

    The body must have been read before: then the next message can only be the disconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if task.cancelled():
                raise Cancelled
        return task.result()
    finally:
        watch.cancel()
        if not task.done():  # we are being cancelled ourselves: shutdown
            task.cancel()
            await asyncio.wait({task})


def client_address(request: Request, settings: Settings) -> str:
    """The client's address; a forwarded header counts only behind a trusted proxy."""
    peer = request.client.host if request.client else ""
    hops = [
        hop.strip() for hop in request.headers.get("x-forwarded-for", "").split(",") if hop.strip()
    ]
    while hops and _within(peer, settings):
        peer = hops.pop()
    return peer


def is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _within(address: str, settings: Settings) -> bool:
    try:
        return any(ip_address(address) in network for network in settings.trusted_networks)
    except ValueError:
        return False


def link_base(request: Request, settings: Settings) -> str:
    """What links begin with: the public address, else the address this connection came in at.

    The Host header is echoed only when it names this very machine; anything else could be forged
    into a link that leads the reader elsewhere.
    """
    if settings.public_url is not None:
        return settings.public_url.rstrip("/")
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
    port = host.rsplit(":", 1)[1] if ":" in host and not host.endswith("]") else ""
    local = name == "localhost" or is_loopback(name)
    if local and (port == "" or (port.isdigit() and int(port) < 65536)):
        return f"http://{host}"
    address, port_number = request.scope.get("server") or ("127.0.0.1", settings.port)
    return (
        f"http://[{address}]:{port_number}" if ":" in address else f"http://{address}:{port_number}"
    )
