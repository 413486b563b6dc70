"""The engine in a process of its own, behind a real server: it is killed, and the client gets the image all the same."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import LiveServer, start_server, stop_server
from tests.engine.null_family import WORDS_MAX

WAIT_S = 60


def engine_pid(server: LiveServer, order: int = 0, of: int = 1) -> int:
    """The server's child that was started as the `order`th `of` all."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    assert len(children) == of
    return sorted(children)[order]


def engine(server: LiveServer) -> dict:
    return server.client.get("/healthz").json()["engine"]


def until(condition) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_does_not_notice_that_the_engine_was_killed(null_server) -> None:
    server = null_server(DANQING_ENGINE__PROCESS="child", NULL_STEP_S="0.3")
    before = server.balance("operator")
    assert engine(server)["restarts"] == 0
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            server.client.post,
            "/v1/images/generations",
            json={"prompt": "x", "model": "dall-e-3", "seed": 77, "size": "256x256"},
        )
        until(lambda: engine(server)["live"])
        os.kill(engine_pid(server), signal.SIGKILL)
        reply = asked.result(WAIT_S)
    assert reply.status_code == 200
    assert server.client.get(reply.json()["data"][0]["url"]).status_code == 200
    until(lambda: server.client.get("/healthz").status_code == 200)
    assert engine(server)["restarts"] == 1
    assert before - server.balance("operator") == 5000


def test_a_step_that_hangs_shows(null_server) -> None:
    server = null_server(NULL_STEP_S="1.5", DANQING_ENGINE__STEP_TIMEOUT_S="0.5")
    assert server.client.get("/healthz").status_code == 200
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            server.client.post, "/v1/images/generations", json={"prompt": "x", "size": "256x256"}
        )
        until(lambda: server.client.get("/healthz").status_code == 503)
        until(lambda: server.client.get("/readyz").status_code == 503)
        assert asked.result(WAIT_S).status_code == 200
    until(lambda: server.client.get("/healthz").status_code == 200)


def test_a_prompt_over_the_encoders_limit_costs_nothing(null_server) -> None:
    """Also one that is drawn later: it is refused before the 202, and before anything is held."""
    server = null_server(DANQING_ENGINE__PROCESS="child")
    before = server.balance("operator")
    prompt = "x " * (WORDS_MAX + 1)
    for headers in ({}, {"prefer": "respond-async"}):
        reply = server.client.post(
            "/v1/images/generations", json={"prompt": prompt, "size": "256x256"}, headers=headers
        )
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert (error["param"], error["code"]) == ("prompt", "string_above_max_length")
        assert error["message"] == "'prompt' is too long: 301 tokens, at most 300 are allowed."
        assert "x-danqing-task" not in reply.headers
    assert server.balance("operator") == before
    assert server.metric("danqing_engine_steps_total") == 0


def test_step_times_outlive_a_restart(tmp_path: Path) -> None:
    """A new server says at once when to come back; the file is the same for both sorts of engine."""
    body = {"prompt": "x", "model": "dall-e-3", "size": "256x256"}
    file = tmp_path / "data" / "step_times" / "pocket.json"
    first = start_server(tmp_path / "data", module="tests.null_server")
    try:
        assert first.client.post("/v1/images/generations", json=body).status_code == 200
    finally:
        assert stop_server(first) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    kept = json.loads(file.read_text())
    (row,) = [row for row in kept["keys"] if row["key"] == [256, 256]]
    row["step_s"]["1"] = 1000.0
    file.write_text(json.dumps(kept | {"keys": [row]}))
    second = start_server(
        tmp_path / "data",
        module="tests.null_server",
        DANQING_ENGINE__PROCESS="child",
        DANQING_ENGINE__QUEUE_MAX="1",
    )
    try:
        path, background = "/v1/images/generations", {"prefer": "respond-async"}
        taken = second.client.post(path, json=body | {"prompt": "hang@1 x"}, headers=background)
        assert taken.status_code == 202
        until(lambda: engine(second)["live"])
        refused = second.client.post(path, json=body)
        assert refused.status_code == 429, refused.text
        assert int(refused.headers["retry-after"]) > 1000
    finally:
        second.process.kill()
        second.process.wait()
