"""Requests that reach no route: wrong methods, odd paths, strangers who send first and read afterwards."""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests.conftest import LiveServer


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/images/generations", "POST"),
        ("TRACE", "/v1/images/tasks/0", "DELETE, GET"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/api/paas/v4/images/generations", "POST"),
        ("PUT", "/admin/v1/accounts", "GET, POST"),
        ("TRACE", "/files/0.png", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_a_405_names_what_the_path_takes(
    server: LiveServer, method: str, path: str, allowed: str
) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v1/images/tasks/a%0Ab", {"message", "type", "param", "code"}),
        ("/admin/v1/accounts/%0A", {"message", "type", "param", "code"}),
        ("/api/paas/v4/async-result/%0A", {"code", "message"}),
    ],
)
def test_a_path_with_a_line_break_is_answered_in_its_mounts_shape(
    server: LiveServer, path: str, keys: set[str]
) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == keys


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/v1/accounts"),
        ("PATCH", "/admin/v1/accounts/somebody"),
        ("POST", "/v1/images/generations"),
        ("POST", "/account/v1/redeem"),
    ],
)
def test_a_stranger_who_sends_slowly_still_reads_the_answer(
    server: LiveServer, method: str, path: str
) -> None:
    """The connection ends after the answer; were bytes left unread in it, it would be cut instead."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"name": "x" * 1000}).encode()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
        )
        for start in range(0, len(body), 250):
            time.sleep(0.1)
            connection.sendall(body[start : start + 250])
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 401"), answer[:200]
