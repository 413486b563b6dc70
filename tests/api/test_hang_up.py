"""Clients that leave: the engine is free within a step, and characters come back by the card's rule."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danqing import app
from danqing.app import Books
from danqing.cli import serve
from danqing.settings import load
from tests.conftest import STOP_S_MAX, LiveServer
from tests.engine.null_family import NullFamily

STEP_S = 0.5


def send(server: LiveServer, token: str, path: str, body: dict) -> socket.socket:
    """A request whose connection we hold, to cut it as a killed client would."""
    host, port = server.url.removeprefix("http://").split(":")
    raw = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
        f"content-length: {len(raw)}\r\ncontent-type: application/json\r\n\r\n".encode()
        + raw
    )
    return connection


def wait_for(server: LiveServer, metric: str, value: float, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while server.metric(metric) != value:
        assert time.monotonic() < deadline, (metric, server.metric(metric))
        time.sleep(0.02)


def settled(server: LiveServer, name: str) -> int:
    """The balance once the task that was cut holds nothing any more."""

    async def held(books: Books) -> int:
        return (await books.ledger.open_holds((await books.accounts.get(name)).id)).count

    deadline = time.monotonic() + 60
    while server.books(held):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return server.balance(name)


def test_killed_mid_generation(null_server) -> None:
    server = null_server(NULL_STEP_S=str(STEP_S))
    token = server.account("leaver")
    connection = send(server, token, "/v1/images/generations", {"prompt": "a cat", "n": 3})
    while server.metric("danqing_engine_steps_total") < 3:  # two of which have been told
        time.sleep(0.02)
    connection.close()
    wait_for(server, "danqing_engine_live", 0)
    charged = 15_000 - settled(server, "leaver")
    assert 1_250 <= charged < 15_000
    assert charged % 625 == 0  # 5,000 characters over 8 steps


def test_killed_while_queued_costs_nothing(null_server) -> None:
    server = null_server(NULL_STEP_S="1", DANQING_ENGINE__LIVE_MAX="1")
    token = server.account("impatient")
    first = send(server, server.token, "/v1/images/generations", {"prompt": "a cat"})
    wait_for(server, "danqing_engine_live", 1)
    connection = send(server, token, "/v1/images/generations", {"prompt": "a dog"})
    wait_for(server, "danqing_queue_depth", 1)
    connection.close()
    wait_for(server, "danqing_queue_depth", 0)
    assert settled(server, "impatient") == 15_000
    first.close()


def test_draw_never_refunds_a_hang_up(null_server) -> None:
    """The draw seed: whatever happens after the hold is charged, but for our own failures."""
    server = null_server(NULL_STEP_S=str(STEP_S))
    token = server.account("drawer")
    connection = send(server, token, "/v1/chat/completions", {"prompt": "画", "model": "draw"})
    wait_for(server, "danqing_engine_live", 1)
    connection.close()
    wait_for(server, "danqing_engine_live", 0)
    assert settled(server, "drawer") == 10_000


def test_full_queue_answers_busy_and_charges_nothing(null_server) -> None:
    server = null_server(
        NULL_STEP_S="1", DANQING_ENGINE__QUEUE_MAX="2", DANQING_ENGINE__LIVE_MAX="1"
    )
    token = server.account("late", 100_000)
    headers = {"authorization": f"Bearer {token}"}
    bodies = {
        "/v1/images/generations": {"prompt": "x"},
        "/v1/chat/completions": {"prompt": "x", "model": "draw"},
        "/api/paas/v4/images/generations": {"prompt": "x", "model": "cogview-4"},
    }
    holders = [
        send(server, server.token, "/v1/images/generations", {"prompt": "x"}) for _ in range(2)
    ]
    wait_for(server, "danqing_engine_live", 1)
    wait_for(server, "danqing_queue_depth", 1)
    answers = {
        path: server.client.post(path, json=body, headers=headers) for path, body in bodies.items()
    }
    openai = answers["/v1/images/generations"]
    assert (openai.status_code, openai.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(openai.headers["retry-after"]) >= 1
    draw = answers["/v1/chat/completions"]
    assert draw.status_code == 200
    assert draw.json()["error"]["code"] == "rate_limit_exceeded"
    zhipu = answers["/api/paas/v4/images/generations"]
    assert (zhipu.status_code, zhipu.json()["error"]["code"]) in {(429, "1302"), (429, "1305")}
    assert server.balance("late") == 100_000
    for holder in holders:
        holder.close()


def test_stopping_lets_work_end(null_server) -> None:
    server = null_server(NULL_STEP_S="0.1")
    with ThreadPoolExecutor() as pool:
        body = {"prompt": "x", "n": 3}
        answer = pool.submit(server.client.post, "/v1/images/generations", json=body)
        while not server.metric("danqing_engine_live") and not answer.done():
            time.sleep(0.02)
        server.process.terminate()
        assert answer.result().status_code == 200
    assert server.process.wait(STOP_S_MAX) == 0
    assert server.balance("operator") == 985_000


def test_who_hears_that_a_server_is_ready_may_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that comes before it is listened for would end the process there and then."""
    told: list[str] = []

    class Log:
        def info(self, event: str, **_: str) -> None:
            told.append(event)
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(serve, "log", Log())
    monkeypatch.setattr(serve, "configure", lambda settings: None)
    monkeypatch.setattr(serve.gc, "freeze", lambda: None)
    monkeypatch.setattr(app, "load_family", lambda row, settings: NullFamily())
    with asyncio.Runner(loop_factory=serve.new_event_loop) as runner:
        runner.run(serve.run(load(data_dir=tmp_path / "data", port=0)))
    assert told == ["ready"]
