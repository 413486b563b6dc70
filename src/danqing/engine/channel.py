"""Messages between two processes over a socket, their arrays in shared memory. Knows messages.py, no engine.

No pickle: a message is JSON of its class's name and fields, so the worst a mad engine can say is nonsense. An array
is written once into anonymous shared memory whose descriptor travels with the message (SCM_RIGHTS); it has no
name, so nothing is left behind however either side dies.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import select
import socket
import struct
import tempfile
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from danqing.engine import messages

Array = npt.NDArray[Any]

_HEAD = struct.Struct("!IB")  # bytes of JSON, number of arrays
BODY_BYTES_MAX = 64_000_000
ARRAYS_MAX = 250  # Linux passes at most 253 descriptors with one message
_KINDS: dict[str, Any] = {
    name: kind for name, kind in vars(messages).items() if dataclasses.is_dataclass(kind)
}
_DTYPES = {"uint8": np.uint8, "bool": np.bool_}


class ChannelClosed(Exception):
    """The other side is gone, or made no sense."""


class Channel:
    """One end of a connected stream socket. Sending never blocks: a thread of the channel's own writes."""

    def __init__(self, sock: socket.socket, *, timeout_s: float) -> None:
        """`timeout_s`: a message that stops half way for so long means that the other side is gone."""
        self._sock = sock
        self._sock.settimeout(timeout_s)
        self._outbox: SimpleQueue[object] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="channel", daemon=True)
        self._writer.start()

    def send(self, message: object) -> None:
        """Any thread. What is sent after the channel closed goes nowhere."""
        self._outbox.put(message)

    def send_surely(self, message: object) -> None:
        """Send and wait until it is out: it arrives though this process dies right after."""
        written = threading.Event()
        self._outbox.put(message)
        self._outbox.put(written)
        while not written.wait(1.0) and self._writer.is_alive():
            pass

    def receive(self, timeout_s: float | None = None) -> object | None:
        """The next message; None when none has come within `timeout_s`. One reader. Raises ChannelClosed."""
        try:
            if timeout_s is not None and not select.select([self._sock], [], [], timeout_s)[0]:
                return None
            if timeout_s is None:
                select.select([self._sock], [], [])
            return self._read()
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ChannelClosed(str(error)) from error

    def finish(self, timeout_s: float = 5.0) -> None:
        """Write what was sent so far, then close."""
        self._outbox.put(None)
        self._writer.join(timeout_s)
        self.close()

    def close(self) -> None:
        """Now; messages not yet written are lost."""
        self._outbox.put(None)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._writer.join(1.0)  # its descriptor's number is not to be given away under it
        self._sock.close()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            if isinstance(message, threading.Event):
                message.set()
                continue
            try:
                self._write_one(message)
            except OSError:  # the reader of this side sees it too, and says so
                return
            del message  # its arrays are not to be held until the next one

    def _write_one(self, message: object) -> None:
        arrays: list[Array] = []
        body = json.dumps(_plain(message, arrays)).encode()
        files: list[int] = []
        try:
            for array in arrays:
                files.append(_shared(array))
            head = _HEAD.pack(len(body), len(files))
            sent = socket.send_fds(self._sock, [head], files)
            self._send_all(head[sent:] + body)
        finally:
            for file in files:
                os.close(file)

    def _send_all(self, data: bytes) -> None:
        """sendall, but the time-out counts from the last byte that went out."""
        view = memoryview(data)
        while view:
            view = view[self._sock.send(view) :]

    def _read(self) -> object:
        head, files = b"", list[int]()
        while len(head) < _HEAD.size:
            part, more, _, _ = socket.recv_fds(self._sock, _HEAD.size - len(head), ARRAYS_MAX)
            files += more
            if not part:
                raise ChannelClosed("closed")
            head += part
        try:
            size, count = _HEAD.unpack(head)
            if size > BODY_BYTES_MAX or count != len(files):
                raise ChannelClosed("not a message")
            body = bytearray()
            while len(body) < size:
                part = self._sock.recv(min(size - len(body), 1 << 20))
                if not part:
                    raise ChannelClosed("closed within a message")
                body += part
            return _lively(json.loads(body), files)
        finally:
            for file in files:
                os.close(file)


def _shared(array: Array) -> int:
    """The descriptor of anonymous shared memory that holds the array's bytes."""
    data = np.ascontiguousarray(array)
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("danqing-array", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    view = memoryview(data).cast("B") if data.nbytes else memoryview(b"")
    while view:
        view = view[os.write(file, view) :]
    return file


def _mapped(file: int, shape: tuple[int, ...], dtype: str) -> Array:
    """The array behind a descriptor, read-only; the memory goes when the last array over it does."""
    kind = np.dtype(_DTYPES[dtype])
    if 0 in shape:
        return np.zeros(shape, kind)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(mmap.mmap(file, size, access=mmap.ACCESS_READ), kind).reshape(shape)


def _plain(value: Any, arrays: list[Array]) -> Any:
    """JSON's own types. An array used twice is sent once."""
    if isinstance(value, np.ndarray):
        array = cast("Array", value)
        index = next((i for i, known in enumerate(arrays) if known is array), len(arrays))
        if index == len(arrays):
            arrays.append(array)
        return {"array": index, "shape": array.shape, "dtype": str(array.dtype)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _plain(getattr(value, field.name), arrays)
            for field in dataclasses.fields(value)
        }
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, dict):
        return {"map": value}
    if isinstance(value, tuple):
        return [_plain(part, arrays) for part in cast("tuple[Any, ...]", value)]
    return value


def _lively(value: Any, files: list[int], known: dict[int, Array] | None = None) -> Any:
    """The inverse of `_plain`. Raises ValueError, LookupError and TypeError for what is no message."""
    known = {} if known is None else known
    if isinstance(value, list):
        return tuple(_lively(part, files, known) for part in cast("list[Any]", value))
    if not isinstance(value, dict):
        return value
    node = cast("dict[str, Any]", value)
    if "array" in node:
        index = int(node["array"])
        if index not in known:
            known[index] = _mapped(files[index], tuple(node["shape"]), node["dtype"])
        return known[index]
    if "map" in node:
        return node["map"]
    kind = _KINDS[node["class"]]
    fields = {name: _lively(part, files, known) for name, part in node["fields"].items()}
    return kind(**fields)
