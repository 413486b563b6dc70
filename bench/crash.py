"""The crash loop: a server under load is killed again and again, and the books must balance to the character.

    python -m bench.crash [--crashes 200] [--database sqlite|postgresql] [--servers 2] [--seed 1] [--write]

Clients draw all the time at servers that share their data (plain, as streams, edits, and by a relay), most of them with an Idempotency-Key, and
try again, at whichever server, until they have an answer. A server kills itself at a named point of the pipeline (tests/crash_server.py), or is
killed at a random moment; then it is started again on the same data. PostgreSQL is killed now and
then too. In the end the load stops, the leases run out, and what must hold is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from tests.crash_server import POINTS
from tests.net.servers import Received, answer, serving
from tests.postgres import PostgresServer, find_binaries, free_port

from danqing import settings
from danqing.app import Books, make_service, open_books, open_outbound
from danqing.catalog import load as load_catalog
from danqing.db import book_queries, image_queries
from danqing.domain.card import Price
from danqing.observability.metrics import Metrics
from danqing.service.recovery import DRAWS_MAX
from danqing.storage.blobs import Blobs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "crash.md"
LEASE_S = 1.0
CLIENTS = 12
START_S_MAX = 180.0
ANSWER_S_MAX = 240.0
REST_S_MAX = 120.0
CHARACTERS = 10**12

DRAW_RETRIES = ("server_is_overloaded", "rate_limit_exceeded")
PICTURE = (  # 8 x 8, red
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEM"
    "KQkAzUEBD7t4NqoAAAAASUVORK5CYII="
)
BODIES = (
    ("/v1/chat/completions", {"model": "draw"}),  # never refunds
    ("/v1/images/generations", {"model": "dall-e-3", "n": 2, "size": "256x256"}),
    (
        "/v1/images/generations",
        {"model": "dall-e-3", "size": "256x256", "response_format": "b64_json"},
    ),
    ("/paas/v4/images/generations", {"model": "cogview-4", "size": "512x512"}),
    (
        "/v1/images/edits",
        {"model": "dall-e-2", "size": "256x256", "images": [{"image_url": PICTURE}]},
    ),
    ("/v1/images/generations", {"model": "gpt-image-1", "stream": True, "partial_images": 2}),
    ("/v1/images/generations", {"model": "far", "n": 2, "size": "256x256"}),
    ("/v1/images/generations", {"model": "far-stream", "stream": True}),
)
CATALOG = """
[backends.far]
dialect = "openai"
base_url = "{url}/v1"

[models.far]
like = "dall-e-2"
backend = "far"

[models.far-stream]
like = "gpt-image-1"
backend = "far"
"""
RELAYED = ("far", "far-stream")


@dataclass
class Tally:
    """What the clients saw. `answers` maps a key to the tasks that answered it."""

    answers: dict[str, set[str]] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    unanswered: list[str] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class CrashLoop:
    """One run. `environment` goes to each server; `folder` holds the data."""

    def __init__(self, folder: Path, database_url: str | None, servers: int, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.tally = Tally()
        self.ports = [free_port() for _ in range(servers)]
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith("DANQING_")
        } | {
            "DANQING_TASK_LEASE_S": str(LEASE_S),
            "DANQING_OPERATOR_CHARACTERS": str(CHARACTERS),
            "DANQING_LOG_LEVEL": "error",
            "NULL_STEP_S": "0.005",
        }
        if database_url is not None:
            self.environment["DANQING_DATABASE_URL"] = database_url
        self.database_url = database_url
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.token = ""
        self.asked: Counter[str] = Counter()
        """Prompt → how often the provider was asked for it."""
        self.stopping = asyncio.Event()

    # The server

    async def start(self, port: int, **trap: str) -> subprocess.Popen[bytes]:
        """Start a server and wait until it is ready, or has died of its trap."""
        command = [sys.executable, "-m", "tests.crash_server", "serve", "--port", str(port)]
        with (self.folder.parent / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--data-dir", str(self.folder)],
                cwd=ROOT,
                env=self.environment | trap,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.processes[port] = process
        give_up_s = time.monotonic() + START_S_MAX
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
            while process.poll() is None:
                with contextlib.suppress(httpx2.HTTPError):
                    if (await client.get("/readyz")).status_code == 200:
                        break
                if time.monotonic() > give_up_s:
                    raise RuntimeError("the server did not become ready")
                await asyncio.sleep(0.05)
        if not self.token:
            self.token = (self.folder / "first-token").read_text().strip()
        return process

    async def stop(self, port: int) -> None:
        process = self.processes.pop(port, None)
        if process is not None and process.poll() is None:
            process.kill()
            while process.poll() is None:
                await asyncio.sleep(0.02)

    async def crash(self, postgres: PostgresServer | None) -> None:
        """Start one of the servers anew with a trap, or kill it (or the database) at a random moment."""
        kinds = [*POINTS, "random"] + (["database"] if postgres is not None else [])
        kind = self.random.choice(kinds)
        port = self.random.choice(self.ports)
        trap = {}
        if kind in POINTS:
            trap = {"CRASH_AT": kind, "CRASH_NTH": str(self.random.randint(1, 20))}
        await self.stop(port)
        process = await self.start(port, **trap)
        until_s = time.monotonic() + (10 if trap else self.random.uniform(0.2, 2.0))
        while process.poll() is None and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
        if kind == "database" and postgres is not None:
            postgres.kill()
            await asyncio.sleep(self.random.uniform(0, 0.5))
            postgres.start()
            await asyncio.sleep(self.random.uniform(0, 1.0))
        elif process.poll() is None:
            kind = "random"
        await self.stop(port)
        self.tally.crashes[kind] += 1
        if len(self.ports) > 1:  # comes back plain; one alone comes back with its next trap
            await self.start(port)

    # The provider

    async def provider(self, got: Received, writer: asyncio.StreamWriter) -> None:
        """Draws what a relay asks for, now and then slowly."""
        body = json.loads(got.body)
        self.asked[body["prompt"]] += 1
        await asyncio.sleep(self.random.choice((0, 0.01, 0.3)))
        data = [{"b64_json": PICTURE.partition(",")[2]}] * body.get("n", 1)
        await answer(200, json.dumps({"data": data}).encode())(got, writer)

    # The load

    async def client(self) -> None:
        """Draws until the load stops; a request with a key is tried until it is answered."""
        rng = random.Random(self.random.random())
        headers = {"authorization": f"Bearer {self.token}"}
        async with httpx2.AsyncClient(timeout=30, headers=headers) as http:
            while not self.stopping.is_set():
                key = f"key-{uuid.uuid4()}" if rng.random() < 0.8 else None
                path, body = rng.choice(BODIES)
                body = body | {"prompt": key or f"free-{uuid.uuid4()}"}
                if key is None:
                    await self._once(http, path, body, {})
                    continue
                extra = {"idempotency-key": key}
                if rng.random() < 0.2 and "stream" not in body:
                    await self._once(http, path, body, extra | {"prefer": "respond-async"})
                await self._until_answered(http, path, body, extra, key)

    async def _until_answered(self, http, path, body, headers, key: str) -> None:
        give_up_s = time.monotonic() + ANSWER_S_MAX
        while time.monotonic() < give_up_s:
            reply = await self._once(http, path, body, headers)
            if reply is not None:
                self.tally.answers.setdefault(key, set()).add(reply)
                if self.random.random() < 0.5:
                    return
            await asyncio.sleep(0.05)
        if key not in self.tally.answers:
            self.tally.unanswered.append(key)

    async def _once(self, http, path, body, headers) -> str | None:
        """The task that answered with an image, or None."""
        try:
            url = f"http://127.0.0.1:{self.random.choice(self.ports)}{path}"
            reply = await http.post(url, json=body, headers=headers)
        except httpx2.HTTPError as error:
            self.tally.tries[type(error).__name__] += 1
            return None
        self.tally.tries[str(reply.status_code)] += 1
        streamed = reply.headers["content-type"].startswith("text/event-stream")
        content = _told(reply.text) if streamed else reply.json()
        match reply.status_code:
            case 200 if content.get("data"):
                return reply.headers["x-danqing-task"]
            case 202:
                self.tally.accepted.add(content["id"])
            case 429 | 503:
                pass
            case 200 if content.get("error", {}).get("code") in DRAW_RETRIES:
                pass  # the draw API says it all with 200, a stream that it broke
            case 502 | 500 if body["model"] in RELAYED and _is_over(content):
                pass  # the provider had the request when its server died: it is not asked again
            case _:  # anything else says that we did not see it coming
                self.tally.wrong.append(f"{reply.status_code}: {reply.text[:200]}")
        return None

    # The run

    async def run(self, crashes: int, postgres: PostgresServer | None) -> list[str]:
        """Crash so often under load, come to rest, and say what is broken."""
        async with serving(self.provider) as far:
            catalog = self.folder.parent / "catalog.toml"
            catalog.write_text(CATALOG.format(url=far.url))
            self.environment["DANQING_CATALOG_FILE"] = str(catalog)
            return await self._run(crashes, postgres)

    async def _run(self, crashes: int, postgres: PostgresServer | None) -> list[str]:
        for port in self.ports:
            await self.start(port)
        clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
        for done in range(crashes):
            await self.crash(postgres)
            print(f"\r{done + 1}/{crashes} crashes", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for port in self.ports:
            if port not in self.processes:
                await self.start(port)
        self.stopping.set()
        await asyncio.gather(*clients)
        configured = settings.load(
            data_dir=self.folder,
            database_url=self.database_url,
            task_lease_s=LEASE_S,
            catalog_file=self.folder.parent / "catalog.toml",
        )
        async with open_books(configured) as books:
            await asyncio.sleep(6 * LEASE_S)  # a lease, as long a silence, and a sweep; twice
            give_up_s = time.monotonic() + REST_S_MAX
            while (await books.ledger.open_holds()).count and time.monotonic() < give_up_s:
                await asyncio.sleep(LEASE_S)
            for process in self.processes.values():
                process.terminate()
                process.wait(60)
            faults = await _broken(books, configured, self.tally.accepted)
            return self._answers() + faults + await self._asked_twice(books)

    async def _asked_twice(self, books: Books) -> list[str]:
        """No task is asked for at the provider twice."""
        rows = await books.db.read(lambda conn: list(book_queries.every_task(conn)))
        tasks = Counter(row.request["task"]["prompt"] for row in rows)
        return [
            f"{prompt} was asked for {n} times by {tasks[prompt]} tasks"
            for prompt, n in self.asked.items()
            if n > tasks[prompt]
        ]

    def _answers(self) -> list[str]:
        several = [
            f"key {key} was answered by {len(ids)} tasks"
            for key, ids in self.tally.answers.items()
            if len(ids) > 1
        ]
        return (
            several
            + [f"key {key} had no answer" for key in self.tally.unanswered]
            + self.tally.wrong
        )


async def _broken(books: Books, configured: settings.Settings, accepted: set[str]) -> list[str]:
    """Everything of the books and the blob store that must not be so."""
    faults = await books.ledger.check()
    if (held := await books.ledger.open_holds()).count:
        faults.append(f"{held.count} holds are open")
    models, blobs = load_catalog(configured), Blobs(configured.blob_root)
    async with open_outbound() as outbound:
        service = make_service(configured, models, Metrics(), books, blobs, _NoProvider(), outbound)
        await service.retention.delete_orphans(older_than_s=0)
    known: set[str] = set()
    charged: Counter[str] = Counter()
    for row in await books.db.read(lambda conn: book_queries.every_task(conn)):
        images = await books.db.read(
            lambda conn, row=row: image_queries.images_of_task(conn, row.id)
        )
        known |= {image.blob_key for image in images}
        accepted.discard(row.id)
        again = row.model not in RELAYED and row.draws < DRAWS_MAX
        if row.background and row.state != "succeeded" and again:
            faults.append(f"background task {row.id} is {row.state} after {row.draws} drawings")
        if row.charged:
            charged[row.request["task"]["prompt"]] += 1
            expected = Price.charge(row.request["held"], len(images), row.request["task"]["n"])
            if not images or row.charged != expected:
                faults.append(f"task {row.id} was charged {row.charged} for {len(images)} images")
        for image in images:
            data = await blobs.get(image.blob_key)
            if hashlib.sha256(data).hexdigest() != image.sha256:
                faults.append(f"image {image.id} is not what was stored")
    faults += [f"{prompt} was charged {n} times" for prompt, n in charged.items() if n > 1]
    faults += [f"accepted task {task_id} is nowhere" for task_id in accepted]
    stored = {key for folder in await blobs.folders() for key in await blobs.list(folder)}
    return faults + [f"blob {key} is nobody's" for key in stored - known]


def _told(text: str) -> dict:
    """What a stream came to: its images under `data`, its end's `error`, or neither where it was cut off."""
    found: dict = {"data": []}
    for line in text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            found |= {"error": event["error"]} if "error" in event else {}
            if event.get("type", "").endswith(".completed"):
                found["data"].append(event["b64_json"])
    return found


def _is_over(content: dict) -> bool:
    return content["error"]["code"] in ("server_error", "provider_failed")


class _NoProvider:
    def draw(self, order):
        raise NotImplementedError


def run(crashes: int, database: str, servers: int, seed: int) -> tuple[list[str], Tally]:
    """One crash loop in a temporary folder: what is broken in the end, and what was seen."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        postgres, url = None, None
        if database == "postgresql":
            binaries = find_binaries()
            if binaries is None:
                raise SystemExit("PostgreSQL is not installed")
            postgres = stack.enter_context(PostgresServer(binaries))
            url = postgres.create_database()
        loop = CrashLoop(Path(folder) / "data", url, servers, seed)
        return asyncio.run(loop.run(crashes, postgres)), loop.tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crashes", type=int, default=200)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    started_s = time.time()
    faults, tally = run(options.crashes, options.database, options.servers, options.seed)
    facts = {
        "database": options.database,
        "servers": options.servers,
        "crashes": dict(sorted(tally.crashes.items())),
        "keys": len(tally.answers),
        "requests": dict(sorted(tally.tries.items())),
        "minutes": round((time.time() - started_s) / 60, 1),
        "broken": faults,
    }
    print(json.dumps(facts, indent=2, ensure_ascii=False))
    if options.write:
        _write(options, facts)
    raise SystemExit(1 if faults else 0)


def _write(options: argparse.Namespace, facts: dict) -> None:
    command = f"python -m bench.crash --crashes {options.crashes} --database {options.database} --servers {options.servers}"
    lines = [
        f"`{command} --seed {options.seed} --write`, {time.strftime('%Y-%m-%d')}, "
        f"{len(os.sched_getaffinity(0))} cores",
        "",
        *(f"- {name}: {json.dumps(value)}" for name, value in facts.items()),
        "",
    ]
    old = RESULTS.read_text() if RESULTS.exists() else "# The crash loop\n"
    RESULTS.write_text(old.rstrip() + "\n\n## " + options.database + "\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
