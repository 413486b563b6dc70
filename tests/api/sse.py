"""Reading server-sent events as WHATWG HTML (9.2.6) says, and nothing more lenient than that."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.conftest import LiveServer


@dataclass
class Sent:
    """One event: its name ("message" where none is given) and its data, parsed where it is JSON."""

    name: str
    data: Any


def events(lines: Iterable[str]) -> Iterator[Sent]:
    """Dispatch at blank lines. Comments are passed over; a field that we never send fails."""
    name, data = "message", []
    for line in lines:
        if line == "":
            if data:
                text = "\n".join(data)
                yield Sent(name, text if text == "[DONE]" else json.loads(text))
            name, data = "message", []
        elif not line.startswith(":"):
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            else:
                assert field == "data", line
                data.append(value)
    assert not data, "the last event was not dispatched"


def all_events(answer: httpx2.Response) -> list[Sent]:
    """The events of an answer read to its end."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return list(events(answer.text.split("\n")[:-1]))


class Slow:
    """A client that reads only when it is told to."""

    def __init__(
        self,
        server: LiveServer,
        token: str,
        path: str,
        body: dict[str, Any],
        headers: str = "",
        *,
        buffer: int | None = None,
    ) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        raw = json.dumps(body).encode()
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(60)
        self.socket.connect((host, int(port)))
        self.socket.sendall(
            f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{headers}"
            f"content-length: {len(raw)}\r\ncontent-type: application/json\r\n\r\n".encode()
            + raw
        )
        self.read = b""

    def read_until(self, text: bytes) -> bytes:
        """Read until `text` has come, or the end; all that was read."""
        while text not in self.read:
            data = self.socket.recv(65536)
            if not data:
                break
            self.read += data
        return self.read

    def header(self, name: str) -> str:
        head = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")[0].decode()
        return dict(line.split(": ", 1) for line in head.split("\r\n")[1:])[name]

    def close(self) -> None:
        self.socket.close()
