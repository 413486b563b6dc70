"""Webhooks end to end: a real server's outbox, a real receiver, the signature checked with the account's own secret."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from danqing.service.webhooks import parse_secret, verify
from tests.conftest import LiveServer

Received = tuple[dict[str, str], bytes]


@pytest.fixture
def receiver() -> Iterator[tuple[str, queue.Queue[Received]]]:
    """Answers 500 to the first delivery, 204 to the others."""
    got: queue.Queue[Received] = queue.Queue()
    failures = [500]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.put((dict(self.headers.items()), body))
            self.send_response(failures.pop() if failures else 204)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def opened(server: LiveServer, secret: bytes, received: Received) -> tuple[str, dict]:
    """The message's id and content, its signature checked."""
    headers, body = received
    return verify(secret, headers, body, int(time.time())), json.loads(body)


@pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
def test_a_low_balance_and_a_background_task(null_server, receiver, database_url: str) -> None:
    host, got = receiver
    server = null_server(
        DANQING_WEBHOOK_ALLOW_HOSTS=json.dumps([host]),
        DANQING_DATABASE_URL=database_url,
        NULL_STEP_S="0.1",
    )
    url = f"http://{host}/hook"
    changed = server.client.patch(
        "/account/v1/webhook", json={"webhook_url": url, "low_balance": 997_000}
    )
    assert changed.status_code == 200, changed.text
    secret = parse_secret(server.client.get("/account/v1/webhook").json()["secret"])
    task = begun(server, "a cat")
    # Two events, one of which the receiver failed at first: three deliveries, two ids.
    messages = [opened(server, secret, got.get(timeout=120)) for _ in range(3)]
    assert len({message_id for message_id, _ in messages}) == 2
    by_type = {content["type"]: content["data"] for _, content in messages}
    assert by_type["image.task.succeeded"] == {"id": task, "status": "succeeded", "charged": 5000}
    assert by_type["account.balance_low"]["balance"] == 995_000
    assert by_type["account.balance_low"]["threshold"] == 997_000
    # How else a task may end. The low balance is told once.
    failed = begun(server, "fail@1 a cat")
    for _ in range(10):  # unless it was faster than we
        cancelled = begun(server, "a cat")
        ended = server.client.delete(f"/v1/images/tasks/{cancelled}").json()
        if ended["status"] == "cancelled":
            break
    told: dict[str, tuple[str, dict]] = {}
    while not told.keys() >= {failed, cancelled}:
        _, content = opened(server, secret, got.get(timeout=120))
        assert content["type"].startswith("image.task.")
        told[content["data"]["id"]] = (content["type"], content["data"])
    assert told[failed] == (
        "image.task.failed",
        {"id": failed, "status": "failed", "charged": 0},
    )
    kind, data = told[cancelled]
    assert (kind, data["status"], data["charged"]) == (
        "image.task.cancelled",
        "cancelled",
        ended["charged"],
    )
    assert got.empty()


def begun(server: LiveServer, prompt: str) -> str:
    """The id of a task in the background."""
    answer = server.client.post(
        "/v1/images/generations",
        json={"prompt": prompt, "size": "256x256"},
        headers={"prefer": "respond-async"},
    )
    return answer.json()["id"]
