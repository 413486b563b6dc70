"""What tests share: live servers in processes of their own, with real HTTP, a real database and real pocket."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, TypeVar

import httpx2
import pytest
from hypothesis import HealthCheck, settings

from danqing.app import Books, open_books
from danqing.settings import load
from tests.forks import FORKER, Fork
from tests.postgres import PostgresServer, find_binaries
from tests.s3 import CREDENTIALS, S3Server

T = TypeVar("T")

# A busy machine is no failure. New examples are looked for where somebody reads what they found: a run of CI has the
# same ones each time, and so fails by the change alone.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("patient"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "patient")

# Nor is it for who asks a server: httpx2 gives up after 5 s unless it is told otherwise.
for asking in (
    *(httpx2.get, httpx2.head, httpx2.options, httpx2.request),
    *(httpx2.delete, httpx2.patch, httpx2.post, httpx2.put),
    *(httpx2.Client.__init__, httpx2.AsyncClient.__init__),
):
    assert asking.__kwdefaults__ is not None
    asking.__kwdefaults__["timeout"] = httpx2.Timeout(120)

ROOT = Path(__file__).parent.parent
START_S_MAX = 180
STOP_S_MAX = 120


@dataclass
class LiveServer:
    """A running `danqing serve`. `client` has the operator's token; `lines` is its log."""

    url: str
    data_dir: Path
    process: subprocess.Popen[str] | Fork
    token: str
    client: httpx2.Client
    lines: list[dict] = field(default_factory=list)
    database_url: str | None = None

    def cli(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        extra = {} if self.database_url is None else {"DANQING_DATABASE_URL": self.database_url}
        return cli(
            *args, "--data-dir", str(self.data_dir), check=check, env=clean_environment(**extra)
        )

    def account(self, name: str, characters: int | None = None) -> str:
        """A new account and its token; `characters` is its balance (15,000 if not given)."""

        async def make(books: Books) -> str:
            await books.accounts.create(name, characters or 15_000)
            return await books.tokens.create(name, by="test")

        return self.books(make)

    def balance(self, name: str) -> int:
        async def read(books: Books) -> int:
            assert await books.ledger.check() == []
            return (await books.accounts.get(name)).balance

        return self.books(read)

    def books(self, deed: Callable[[Books], Awaitable[T]]) -> T:
        """Work on the server's books from this process, beside it."""

        async def work() -> T:
            configured = load(data_dir=self.data_dir, database_url=self.database_url)
            async with open_books(configured) as books:
                return await deed(books)

        return asyncio.run(work())

    def logged(self, event: str, done: Callable[[list[dict]], bool] = bool) -> list[dict]:
        """The lines of an event so far, once they are `done`: the log comes by a pipe, a moment after an answer."""
        give_up_s = time.monotonic() + 60
        while not done(found := [line for line in self.lines if line["event"] == event]):
            assert time.monotonic() < give_up_s, found
            time.sleep(0.02)
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = self.client.get("/metrics").text
        rows = [line for line in text.splitlines() if line.startswith((name + " ", name + "{"))]
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


def cli(
    *args: str, check: bool = True, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = FORKER.start(
            ["danqing", *args],
            cwd=cwd,
            env=clean_environment() if env is None else env,
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
        )
        try:
            code = process.wait(240)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        done = subprocess.CompletedProcess(process.args, code, stdout.read(), stderr.read())
    assert not check or done.returncode == 0, done.stderr
    return done


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DANQING_")}
    return kept | extra


def start_server(
    data_dir: Path,
    *,
    module: str = "danqing",
    args: tuple[str, ...] = (),
    is_forked: bool = True,
    **environment: str,
) -> LiveServer:
    """Start a server on a free port and wait until it says it is ready."""
    words = [module, "serve", "--port", "0", "--data-dir", str(data_dir), *args]
    env = clean_environment(**environment)
    with open(os.devnull, "w") as nothing:
        if is_forked:
            process = FORKER.start(words, cwd=ROOT, env=env, stdout=nothing.fileno())
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                env=env,
                text=True,
                stdout=nothing,
                stderr=subprocess.PIPE,
            )
    lines: list[dict] = []
    ready = threading.Event()

    def follow() -> None:
        for line in process.stderr:
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"event": line.rstrip()})
            if lines[-1]["event"] == "ready":
                ready.set()
        ready.set()

    threading.Thread(target=follow, daemon=True).start()
    ready.wait(START_S_MAX)
    started = [line for line in lines if line["event"] == "ready"]
    if not started:
        process.kill()
        raise AssertionError(f"the server did not start: {lines}")
    token_file = data_dir / "first-token"
    token = token_file.read_text().strip() if token_file.exists() else ""
    url = started[0]["url"]
    client = httpx2.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=180)
    database_url = environment.get("DANQING_DATABASE_URL")
    return LiveServer(url, data_dir, process, token, client, lines, database_url)


def stop_server(server: LiveServer) -> int:
    server.client.close()
    server.process.terminate()
    try:
        return server.process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server with pocket for all tests that need a real image, started as users start it."""
    live = start_server(tmp_path_factory.mktemp("data") / "pocket", is_forked=False)
    yield live
    assert stop_server(live) == 0


def shared_server(scope: Literal["module", "session"] = "module", **environment: str) -> Any:
    """A fixture, called as what it is assigned to: a server that draws one-colour images, for all tests of a scope."""

    @pytest.fixture(scope=scope)
    def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
        folder = tmp_path_factory.mktemp("shared") / "data"
        live = start_server(folder, module="tests.null_server", **environment)
        yield live
        assert stop_server(live) == 0

    return serve


@pytest.fixture
def still_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that rate limits in memory go by stands still: at the turn of a minute one more passes."""
    now_s = time.time() // 60 * 60 + 1
    monkeypatch.setattr("limits.aio.storage.memory.time", SimpleNamespace(time=lambda: now_s))


@pytest.fixture
def null_server(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Makes servers that draw one-colour images: for concurrency, cancel and failures."""
    started: list[LiveServer] = []

    def make(**environment: str) -> LiveServer:
        live = start_server(
            tmp_path / f"null-{len(started)}", module="tests.null_server", **environment
        )
        started.append(live)
        return live

    yield make
    for live in started:
        stop_server(live)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of our own for the session. Whoever kills or stops it need not start it again."""
    binaries = find_binaries()
    if binaries is None:
        missing("PostgreSQL", "postgresql")
    with PostgresServer(binaries) as live:
        yield live


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    postgres.start()
    url = postgres.create_database()
    yield url
    postgres.start()
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that does not exist yet (SQLite) or is empty (PostgreSQL): the test runs with both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'danqing.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    live = S3Server()
    yield live
    live.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server, and credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return s3_server


def missing(program: str, package: str) -> NoReturn:
    """Skip a test whose program is not installed; in CI it is, so there the test fails."""
    reason = f"{program} is not installed: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
