"""`danqing serve`: run the server and hand over the first token. Knows uvicorn and app.py."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from danqing.api.protocol import CONNECTIONS_MAX, GuardedProtocol
from danqing.app import Books, open_server
from danqing.observability.logging import configure, get_logger
from danqing.service.screening import Screen
from danqing.settings import Settings, SettingsError

log = get_logger("danqing.serve")

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""An idle connection is kept longer than clients and proxies keep theirs (5 to 60 s): who closes last sends no
request into a connection that is just being closed."""
YOUNG_OBJECTS_MAX = 5000
"""Objects made since the collector last looked, and not let go of; Python's own is 700."""
SHUTDOWN_S = 30
"""Requests in progress get this long to end when the server is asked to stop."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one: bench/gateway.py measures what a request costs."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Server(uvicorn.Server):
    """Uvicorn raises the signal again once it has stopped, which would end us before our own cleanup."""

    def hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(settings: Settings) -> None:
    """Serve until a signal says stop. Raises OSError when the port is taken."""
    configure(settings)
    _allow_files(CONNECTIONS_MAX + 512)
    listener = _listen(settings)
    try:
        host, port = listener.getsockname()[:2]
        settings = settings.model_copy(update={"port": port})
        async with open_server(settings) as (asgi, books, screen):
            with suppress(AttributeError):  # Windows has none
                asyncio.get_running_loop().add_signal_handler(
                    signal.SIGHUP, lambda: _keep(_reload(screen))
                )
            await _first_token(settings, books)
            server = _Server(
                uvicorn.Config(
                    asgi,
                    http=GuardedProtocol,
                    lifespan="off",
                    access_log=False,
                    log_config=None,
                    proxy_headers=False,
                    server_header=False,
                    timeout_keep_alive=KEEP_ALIVE_S,
                    timeout_graceful_shutdown=SHUTDOWN_S,
                )
            )
            server.hear_signals()  # before anybody hears that we are ready, and may stop us again
            log.info(
                "ready", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            )
            # What is there now stays: the collector need not look through it for every few requests. What a
            # request makes is gone by itself, but for the odd cycle.
            gc.collect()
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS_MAX)
            await server.serve(sockets=[listener])
    finally:
        listener.close()


_running: set[asyncio.Task[None]] = set()


def _keep(work: Coroutine[None, None, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)


async def _reload(screen: Screen) -> None:
    """SIGHUP: the word lists, anew. Bad ones are in the log by line, and the old ones stay."""
    with suppress(SettingsError):
        await screen.reload()


def _listen(settings: Settings) -> socket.socket:
    """Take the port before anything is opened or made: a second server fails here, at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from None
    return listener


def _allow_files(wanted: int) -> None:
    """Raise the limit on open files: each connection is one, and accept() fails for all once it is hit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("few_open_files_allowed", allowed=most, wanted=wanted)


async def _first_token(settings: Settings, books: Books) -> None:
    """On the first start: show the operator's token on a terminal, else leave it in a private file."""
    token = await books.accounts.ensure_operator(settings.operator_characters)
    if token is None:
        return
    if sys.stderr.isatty():
        print(f"\n  Your token (shown once): {token}\n", file=sys.stderr)  # noqa: T201
        return
    path = settings.data_dir / "first-token"
    try:
        _write_private(path, token + "\n")
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror}; mend that, then make a token with "
            "`danqing token create --account operator`"
        ) from None
    print(f"Your token is in {path.absolute()}", file=sys.stderr)  # noqa: T201


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
