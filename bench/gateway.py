"""What a relay adds: latency one at a time, requests per second at 32; beside litellm's proxy where it is asked for.

    python -m bench.gateway [--litellm] [--write]
    python -m bench.gateway --litellm --rounds 5 --seconds 6 --write

Everybody asks the same upstream on loopback, which answers an OpenAI image response with a link at once. Danqing
holds and posts every request durably (SQLite, synchronous=FULL) and passes the link on (`rehost = false`), as
litellm does, which books nothing here. One worker each; they take turns within each round, so that whatever
else the machine does meets all of them. Then the same with re-hosting: a 1024x1024 PNG fetched, decoded,
labelled, encoded and stored. `--litellm` makes a virtual environment in a temporary folder (or uses `--venv DIR`) and
needs a package index. `--write` puts the tables into bench/results/gateway.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import uvloop

from danqing.app import Books, open_books
from danqing.settings import load
from danqing.storage import codecs

RESULTS = Path(__file__).parent / "results" / "gateway.md"
BODY = {"prompt": "一只戴着草帽的橘猫坐在窗台上看雨" * 4, "n": 1, "size": "1024x1024"}
START_S_MAX = 240
SIDE = 1024

CATALOG = """
[backends.passing]
dialect = "openai"
base_url = "{upstream}/v1"
rehost = false
labels = "provider"
concurrency_max = 64

[backends.rehosting]
dialect = "openai"
base_url = "{upstream}/v1"
concurrency_max = 64

[models.passing]
like = "dall-e-3"
backend = "passing"
features = ["response_format"]

[models.rehosting]
like = "passing"
backend = "rehosting"
"""

LITELLM = """
model_list:
  - model_name: passing
    litellm_params:
      model: openai/passing
      api_base: {upstream}/v1
      api_key: none
"""


class Upstream(asyncio.Protocol):
    """HTTP/1.1 in as few words as will do: a POST gets a link to this server, a GET the picture."""

    link = b""
    picture = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            size = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    size = int(line[15:])
            if len(rest) < size:
                return
            self.buffer = rest[size:]
            is_get = head.startswith(b"GET")
            body, kind = (
                (self.picture, b"image/png") if is_get else (self.link, b"application/json")
            )
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (kind, len(body), body)
            )


def picture() -> bytes:
    """A 1024x1024 PNG as heavy as a drawn one: smooth shapes with a little grain."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    base = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(5 * x * y)], axis=2)
    grain = np.random.default_rng(1).normal(0, 2, (SIDE, SIDE, 3))
    return codecs.encode(np.clip(base * 90 + 128 + grain, 0, 255).astype(np.uint8), "png")


async def serve_upstream() -> None:
    """The upstream's process: says its port, then answers until it is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    body = {"created": 1, "data": [{"url": f"http://127.0.0.1:{port}/image.png"}]}
    Upstream.link = json.dumps(body).encode()
    Upstream.picture = picture()
    print(port, flush=True)
    await server.serve_forever()


@dataclass
class Target:
    """Something that answers POST /v1/images/generations."""

    name: str
    port: int
    token: str
    model: str
    path: str = "/v1/images/generations"
    pid: int = 0
    fewer: int = 1
    """Divides the requests one at a time: re-hosting takes long."""
    added_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """CPU of all its threads for a request, at 32."""
    per_s: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """CPU seconds that its process has used."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def request(self) -> bytes:
        body = json.dumps(BODY | {"model": self.model}, ensure_ascii=False).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> bytes:
    """One request over a kept connection; its body. Raises RuntimeError for anything but 200."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    size, chunked = 0, False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = int(line[15:])
        chunked = chunked or line.startswith(b"transfer-encoding: chunked")
    assert not chunked, "all of them say the length"
    body = await reader.readexactly(size)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{head.splitlines()[0]!r}: {body[:300]!r}")
    return body


async def one_at_a_time(target: Target, count: int) -> list[float]:
    """Milliseconds of each of `count` requests over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    request, took = target.request(), []
    for _ in range(count):
        started = time.perf_counter()
        body = await exchange(reader, writer, request)
        took.append((time.perf_counter() - started) * 1000)
        assert b"http://" in body
    writer.close()
    return took


async def together(target: Target, clients: int, seconds: float) -> tuple[float, float]:
    """Requests per second of `clients` that ask without a pause, and CPU ms for each."""
    done = 0
    cpu_s = target.cpu_s()
    request = target.request()
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        while time.perf_counter() < end:
            await exchange(reader, writer, request)
            done += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.perf_counter() - started), (target.cpu_s() - cpu_s) * 1000 / done


@contextmanager
def process(
    args: list[str], ready: Callable[[str], str | None], log: Path, **env: str
) -> Iterator[tuple[str, int]]:
    """A process until the block ends: what its output said when it was ready, and its id."""
    with log.open("w") as out:
        running = subprocess.Popen(args, stdout=out, stderr=subprocess.STDOUT, env=os.environ | env)
        try:
            end = time.monotonic() + START_S_MAX
            while (said := ready(log.read_text(errors="replace"))) is None:
                if running.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{args[0]} did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield said, running.pid
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def first_line(text: str) -> str | None:
    return text.splitlines()[0] if "\n" in text else None


@contextmanager
def danqing(folder: Path, upstream: str) -> Iterator[tuple[int, str, int]]:
    """`danqing serve` on books of its own: its port, a token that can pay, its process."""
    catalog = folder / "catalog.toml"
    catalog.write_text(CATALOG.format(upstream=upstream))
    data = folder / "data"

    def ready(text: str) -> str | None:
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return next((line["url"] for line in lines if line["event"] == "ready"), None)

    async def token(books: Books) -> str:
        await books.accounts.create("bench", 10**12)
        return await books.tokens.create("bench", by="bench")

    async def made() -> str:
        async with open_books(load(data_dir=data)) as books:
            return await token(books)

    secret = asyncio.run(made())
    args = [sys.executable, "-m", "danqing", "serve", "--port", "0", "--data-dir", str(data)]
    with process(
        args,
        ready,
        folder / "danqing.log",
        DANQING_CATALOG_FILE=str(catalog),
        DANQING_LOG_FORMAT="json",
    ) as (url, pid):
        yield int(url.rsplit(":", 1)[1]), secret, pid


@contextmanager
def litellm(folder: Path, upstream: str, venv: Path | None) -> Iterator[tuple[int, str, int]]:
    """litellm's proxy with one worker: its port, version and process."""
    if venv is None:
        venv = folder / "litellm"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "-q", "litellm[proxy]"], check=True)
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    version = subprocess.run(
        [venv / "bin/python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    config = folder / "litellm.yaml"
    config.write_text(LITELLM.format(upstream=upstream))
    port = free_port()
    args = [str(venv / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]

    def ready(text: str) -> str | None:
        return (
            "ready" if "Uvicorn running" in text or "Application startup complete" in text else None
        )

    with (
        process(
            [*args, "--port", str(port), "--num_workers", "1"],
            ready,
            folder / "litellm.log",
            LITELLM_TELEMETRY="False",
            LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true",  # on loopback, and it saves it work
            LITELLM_LOCAL_MODEL_COST_MAP="True",
        ) as (_, pid)
    ):
        yield port, version, pid


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def measure(
    direct: Target, targets: list[Target], rounds: int, count: int, clients: int, seconds: float
) -> None:
    """Everybody in turn, round by round."""
    for target in (direct, *targets):  # warm
        uvloop.run(one_at_a_time(target, 50))
        uvloop.run(together(target, clients, 1.0))
    for number in range(rounds):
        base = statistics.median(uvloop.run(one_at_a_time(direct, count)))
        direct.added_ms.append(base)
        for target in targets:
            took = statistics.median(uvloop.run(one_at_a_time(target, count // target.fewer)))
            target.added_ms.append(took - base)
        for target in (direct, *targets):
            per_s, cpu_ms = uvloop.run(together(target, clients, seconds))
            target.per_s.append(per_s)
            target.cpu_ms.append(cpu_ms)
        print(
            f"round {number + 1}: "
            + "; ".join(
                f"{t.name} {t.added_ms[-1]:.2f} ms {t.per_s[-1]:.0f}/s" for t in (direct, *targets)
            ),
            flush=True,
        )


def row(target: Target, peer: Target | None) -> str:
    """A line of the table; the ratios are of figures of the same round."""
    cells = [target.name]
    for values, digits in ((target.added_ms, 2), (target.per_s, 0), (target.cpu_ms, 2)):
        low, middle, high = (f(values) for f in (min, statistics.median, max))
        cells.append(f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})")
    if peer is None or peer is target:
        return f"| {' | '.join(cells)} | – | – | – |"
    for mine, theirs in (
        (target.added_ms, peer.added_ms),
        (target.per_s, peer.per_s),
        (target.cpu_ms, peer.cpu_ms),
    ):
        ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        cells.append(f"{ratio:.2f}")
    return f"| {' | '.join(cells)} |"


def report(
    direct: Target, targets: list[Target], peer: Target | None, version: str, loads: list[float]
) -> str:
    told = re.sub(r" ?--venv[ =]\S+", "", " ".join(sys.argv[1:]))
    litellm_said = f"litellm {version}, " if version else ""
    return "\n".join(
        [
            "# The gateway",
            "",
            f"`python -m bench.gateway {told}`, {datetime.now(UTC):%Y-%m-%d}, "
            f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {litellm_said}"
            f"commit {commit()}. The machine is shared: load average {loads[0]:.1f} before and {loads[1]:.1f} "
            "after, so the ratios within a round say more than the figures.",
            "",
            "Added: the median of one request at a time, less the same straight to the upstream (for the upstream itself: "
            f"all of it). Per second: {32} clients without a pause. Medians of {len(direct.per_s)} rounds, with the lowest "
            "and the highest. Danqing holds and posts each request durably; litellm books nothing. Danqing's worker shares "
            "the cores with the upstream and the clients, as litellm's does. CPU is of all threads of the one process, at 32; "
            f"a sync of this disk took {sync_ms():.1f} ms (median) afterwards, and Danqing waits for two a request.",
            "",
            "| | added ms (range) | per second at 32 (range) | CPU ms a request | added / litellm's | per second / litellm's | CPU / litellm's |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *(row(target, None if target is direct else peer) for target in (direct, *targets)),
            "",
        ]
    )


def sync_ms() -> float:
    """Milliseconds that the disk takes to make a page durable."""
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--litellm", action="store_true", help="measure litellm's proxy beside")
    parser.add_argument("--venv", type=Path, help="an environment that has litellm[proxy]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200, help="requests one at a time, a round")
    parser.add_argument("--seconds", type=float, default=4.0, help="of 32 clients, a round")
    parser.add_argument("--write", action="store_true", help="write bench/results/gateway.md")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        uvloop.run(serve_upstream())
        return
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="danqing-gateway-")))
        args = [sys.executable, "-m", "bench.gateway", "--upstream"]
        said, pid = stack.enter_context(process(args, first_line, folder / "upstream.log"))
        port = int(said)
        upstream = f"http://127.0.0.1:{port}"
        direct = Target("the upstream alone", port, "none", "passing", pid=pid)
        ours, token, pid = stack.enter_context(danqing(folder, upstream))
        targets = [
            Target("Danqing, link passed on", ours, token, "passing", pid=pid),
            Target("Danqing, re-hosting 1024x1024", ours, token, "rehosting", pid=pid, fewer=5),
        ]
        peer, version = None, ""
        if options.litellm:
            theirs, version, pid = stack.enter_context(litellm(folder, upstream, options.venv))
            peer = Target("litellm's proxy", theirs, "none", "passing", pid=pid)
            targets.insert(1, peer)
        measure(direct, targets, options.rounds, options.count, 32, options.seconds)
        text = report(direct, targets, peer, version, [before, os.getloadavg()[0]])
    print("\n" + text)
    if options.write:
        RESULTS.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
