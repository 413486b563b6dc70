"""Python programs started as forks of one process that has imported what they import: each its own process, with its
own environment and signals, as `python -m MODULE` starts it, but without a second or two of imports.

`python -m tests.forks FD` is that process, one for each that runs tests; FD is its end of a socket. Knows Danqing only
by the modules that it imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TextIO

PRELOADED = (
    "danqing.app",
    "danqing.cli.draw",
    "danqing.cli.images",
    "danqing.cli.main",
    "danqing.cli.serve",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)
REQUEST_BYTES_MAX = 200_000


class Fork:
    """What tests use of subprocess.Popen. `stderr` is open where it was asked for."""

    def __init__(self, args: list[str], pid: int, status: int, stderr: TextIO | None) -> None:
        self.args = args
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout_s)[0]:
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode


class Forker:
    """The process that forks, from outside: started when it is first needed, gone with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None

    def start(
        self,
        args: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        stdout: int,
        stderr: int = subprocess.PIPE,
    ) -> Fork:
        """`python -m ARGS`. `stdout` and `stderr` are open files' numbers; the caller keeps and closes its own."""
        ours, piped = os.pipe() if stderr == subprocess.PIPE else (None, stderr)
        status, told = os.pipe()
        request = json.dumps({"args": args, "cwd": str(cwd), "env": env}).encode()
        with self._lock:
            channel = self._started()
            socket.send_fds(channel, [request], [stdout, piped, told])
            pid = int(channel.recv(16))
        os.close(told)
        if ours is None:
            return Fork(args, pid, status, None)
        os.close(piped)
        return Fork(args, pid, status, open(ours, encoding="utf-8", errors="replace"))

    def _started(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    cwd=Path(__file__).parent.parent,
                )
        return self._channel


FORKER = Forker()


def serve(channel: socket.socket) -> list[str] | None:
    """Fork as asked. Returns in each fork, with its arguments; and None when nobody can ask any more."""
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the tests interrupts the forks
    told: dict[int, int] = {}
    while True:
        ready = select.select([channel, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            _tell(told)
        if channel not in ready:
            continue
        data, files, _, _ = socket.recv_fds(channel, REQUEST_BYTES_MAX, 3, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return _become(
                json.loads(data), files, [channel.detach(), woken, waking, *told.values()]
            )
        told[pid] = files[2]
        os.close(files[0])
        os.close(files[1])
        channel.send(str(pid).encode())


def _tell(told: dict[int, int]) -> None:
    """Write how each ended that has, as Popen.returncode says it."""
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        number = told.pop(pid)
        os.write(number, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(number)


def _become(request: dict, files: list[int], unneeded: list[int]) -> list[str]:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, place in ((nothing, 0), (files[0], 1), (files[1], 2)):
        os.dup2(number, place)
    for number in (nothing, *files, *unneeded):
        os.close(number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    return request["args"]


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    args = serve(socket.socket(fileno=int(sys.argv[1])))
    if args is not None:
        sys.argv = args
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
