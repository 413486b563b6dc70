"""Real HTTP servers on loopback, and a dialer that leads public-looking addresses to them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trustme
import uvloop

from danqing.net.http1 import Connection, dial
from danqing.net.outbound import Outbound, OutboundReply
from danqing.net.policy import Policy

LOCAL = Policy.operator(["127.0.0.1"])
PUBLIC = Policy.public()
A, B = "93.184.216.34", "2606:4700::1111"  # look public; Wire leads them to loopback

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("hooks.example")


@dataclass
class Received:
    """A request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    port: int = 0
    connections: int = 0
    requests: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int = 200, body: bytes = b"", headers: Iterable[str] = ()) -> Answer:
    """The same answer to each request, with its length."""

    async def write(_: Received, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return write


@asynccontextmanager
async def serving(handle: Answer, *, tls: bool = False) -> AsyncIterator[Server]:
    """A server on a free port until the block ends."""
    server = Server()
    tasks: set[asyncio.Task] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        server.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode("latin-1").strip().split("\r\n")
                headers = {k.lower(): v for k, _, v in (text.partition(": ") for text in rest)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                server.requests.append(Received(line, headers, body))
                await handle(server.requests[-1], writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went, or the test is over
        finally:
            writer.close()

    listener = await asyncio.start_server(
        talk, "127.0.0.1", 0, ssl=_server_tls() if tls else None, limit=1 << 20
    )
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(context)
    return context


def client_tls() -> ssl.SSLContext:
    """Trusts the test's certificate alone."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


class Wire:
    """Dials for real, but an address in `routes` leads to a port of loopback instead.

    `dialed` has all addresses asked for: what is neither a route nor loopback cannot be reached.
    """

    def __init__(self, routes: dict[str, Server]) -> None:
        self.routes = routes
        self.dialed: list[str] = []

    async def __call__(self, address: str, port: int, *rest) -> Connection:
        self.dialed.append(address)
        if address in self.routes:
            return await dial("127.0.0.1", self.routes[address].port, *rest)
        if address == "127.0.0.1":
            return await dial(address, port, *rest)
        raise ConnectionError("no route")


class Names:
    """A resolver: for each name a list of answers, the last of them for good. Counts the questions."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        name = host.replace(".", "_")
        if name not in self.answers:
            return [host]
        left = self.answers[name]
        return left.pop(0) if len(left) > 1 else left[0]


async def until(happened: Callable[[], object]) -> None:
    """Wait for it, however busy the machine is."""
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.005)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """On the event loop that the server has: transports differ in what they do and when."""
    uvloop.run(test())


async def get(outbound: Outbound, url: str, policy: Policy = LOCAL, **options) -> OutboundReply:
    options = {"timeout_s": 60.0, "bytes_max": 1000} | options
    return await outbound.request(options.pop("method", "GET"), url, policy=policy, **options)
