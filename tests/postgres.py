"""A PostgreSQL of the tests' own: a child process on loopback that may be killed and started again. Knows nothing of Danqing."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
import psycopg

START_S_MAX = 60.0
STOP_S_MAX = 60.0
CONNECTIONS_MAX = 200


def find_binaries() -> Path | None:
    """The folder of the newest installed `initdb` and `postgres`: Debian's, else the one on PATH."""
    debian = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if debian:
        return max(debian, key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """A cluster in a temporary folder, there while the `with` block runs.

    It is as durable as PostgreSQL's defaults (`fsync` can be switched off for speed: then it survives
    its own death, but not the machine's). Anyone on loopback is let in as `postgres`. Run by root, it
    drops to the system user `postgres`, because PostgreSQL refuses root.
    """

    def __init__(self, binaries: Path, *, fsync: bool = True) -> None:
        self.binaries = binaries
        self.fsync = fsync
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        if os.getuid() != 0:
            self._user = {}
        self._databases = 0

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="danqing-pg-"))
        try:
            if self._user:
                shutil.chown(self.folder, "postgres", "postgres")
            self._run(
                "initdb",
                "-D",
                "data",
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            )
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers, recovery included; nothing if it runs."""
        if self.running:
            return
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "unix_socket_permissions": "0700",
            "max_connections": CONNECTIONS_MAX,
            "fsync": "on" if self.fsync else "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._surroundings,
            )
        deadline_s = time.monotonic() + START_S_MAX
        while not self._ready():
            if not self.running or time.monotonic() > deadline_s:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log()[-4000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it in good order (PostgreSQL's "fast": open transactions are rolled back)."""
        if self.running:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(STOP_S_MAX)

    def kill(self) -> None:
        """SIGKILL to all of its processes at once; nothing if it does not run."""
        if not self.running:
            return
        postmaster = psutil.Process(self.process.pid)
        postmaster.suspend()  # so that none is born while the others die
        family = postmaster.children(recursive=True)
        for process in [postmaster, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(STOP_S_MAX)
        # A child that still holds the shared memory would keep the next one from starting.
        while any(_alive(process) for process in family):
            time.sleep(0.005)

    def restart(self) -> None:
        """Stop it, where it runs, and start it again on the same port with the same data."""
        self.stop()
        self.start()

    def create_database(self) -> str:
        """A fresh, empty database; returns its URL."""
        self._databases += 1
        name = f"test_{self._databases}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def drop_database(self, url: str) -> None:
        """Drop a database, throwing out whoever is still connected."""
        self._execute(f"DROP DATABASE {urlsplit(url).path[1:]} WITH (FORCE)")

    def log(self) -> str:
        """What the server wrote so far."""
        return self._log.read_text("utf-8", "replace")

    def _ready(self) -> bool:
        """As pg_ctl asks: by the lock file, where line 1 is the process and line 8 its state."""
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    @property
    def _surroundings(self) -> dict[str, Any]:
        """Of its processes: a folder its user may enter, and none of our PG* variables."""
        return {"cwd": self.folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}, **self._user}

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [self.binaries / program, *args], capture_output=True, text=True, **self._surroundings
        )
        assert done.returncode == 0, done.stderr

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            dbname="postgres",
            autocommit=True,
            connect_timeout=60,
        )

    def _execute(self, statement: str) -> None:
        with self._connect() as connection:
            connection.execute(statement)


def free_port() -> int:
    """A port below those that outgoing connections get, so that it is still free later, and after a kill."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
