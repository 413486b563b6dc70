"""Idempotency-Key, background tasks and DELETE over real HTTP, in each API's own words, on both databases."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx2
import openai
import pytest

from tests.conftest import LiveServer, shared_server, start_server, stop_server

ROUTES = {
    "openai": ("/v1/images/generations", {"prompt": "a cat", "model": "dall-e-3"}),
    "b64": ("/v1/images/generations", {"prompt": "a cat", "response_format": "b64_json"}),
    "jimeng": ("/v1/images/generations", {"prompt": "a cat", "model": "jimeng-4.0", "size": "1:1"}),
    "qwen": (
        "/v1/images/generations",
        {
            "model": "qwen-image",
            "input": {"messages": [{"role": "user", "content": [{"text": "猫"}]}]},
        },
    ),
    "draw": ("/v1/chat/completions", {"prompt": "a cat", "model": "draw"}),
    "chat": (
        "/v1/chat/completions",
        {"model": "dall-e-3", "messages": [{"role": "user", "content": "a cat"}]},
    ),
    "dashscope": (
        "/api/v1/services/aigc/multimodal-generation/generation",
        {"input": {"messages": [{"role": "user", "content": [{"text": "猫"}]}]}},
    ),
    "zhipu": ("/paas/v4/images/generations", {"prompt": "a cat", "model": "cogview-4"}),
}


live = shared_server(NULL_STEP_S="0.02")


def without_links(body: object) -> object:
    """A signature changes with nothing here, but a link is fresh: compare all but it."""
    if isinstance(body, dict):
        return {
            key: without_links(value) for key, value in body.items() if key not in ("url", "id")
        }
    if isinstance(body, list):
        return [without_links(one) for one in body]
    return body.partition("/files/")[0] if isinstance(body, str) else body


@pytest.mark.parametrize("name", ROUTES)
def test_the_key_again_in_every_dialect(live: LiveServer, name: str) -> None:
    path, body = ROUTES[name]
    before = live.balance("operator")
    headers = {"idempotency-key": f"key-{name}"}
    first = live.client.post(path, json=body, headers=headers)
    again = live.client.post(path, json=body, headers=headers)
    assert first.status_code == again.status_code == 200, first.text
    assert without_links(first.json()) == without_links(again.json())
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    for header in ("x-danqing-task", "x-danqing-charged", "x-danqing-seed", "x-danqing-size"):
        assert first.headers[header] == again.headers[header]
    assert before - live.balance("operator") == int(first.headers["x-danqing-charged"]) > 0


@pytest.mark.parametrize("name", ["openai", "draw", "zhipu"])
def test_another_body_under_the_key(live: LiveServer, name: str) -> None:
    path, body = ROUTES[name]
    headers = {"idempotency-key": f"other-{name}"}
    assert live.client.post(path, json=body, headers=headers).status_code == 200
    other = live.client.post(path, json=body | {"prompt": "a dog"}, headers=headers)
    expected = {
        "openai": (409, "idempotency_conflict"),
        "draw": (200, None),
        "zhipu": (400, "1210"),
    }
    status, code = expected[name]
    assert other.status_code == status
    assert code is None or other.json()["error"]["code"] == code
    assert "Idempotency-Key" in other.json()["error"]["message"]


def test_the_order_of_a_bodys_fields_does_not_matter(live: LiveServer) -> None:
    headers = {"idempotency-key": "order", "content-type": "application/json"}
    texts = ('{"prompt": "a cat", "n": 1}', '{"n":1,  "prompt":"a cat"}')
    answers = [
        live.client.post("/v1/images/generations", content=text, headers=headers) for text in texts
    ]
    assert len({answer.headers["x-danqing-task"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "schlüssel".encode("latin-1")])
def test_what_is_no_key(live: LiveServer, key: str | bytes) -> None:
    answer = live.client.post(
        "/v1/images/generations", json={"prompt": "a cat"}, headers={"idempotency-key": key}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"


def test_zhipus_request_id(live: LiveServer) -> None:
    body = {"prompt": "a cat", "model": "cogview-4", "request_id": "order-1"}
    assert live.client.post("/paas/v4/images/generations", json=body).status_code == 200
    again = live.client.post("/api/paas/v4/images/generations", json=body)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "1231")


def test_keys_of_other_accounts_and_routes_are_other_keys(live: LiveServer) -> None:
    token = live.account("neighbour")
    headers = {"idempotency-key": "shared"}
    _, body = ROUTES["openai"]
    tasks = [
        live.client.post("/v1/images/generations", json=body, headers=headers),
        live.client.post("/paas/v4/images/generations", json=ROUTES["zhipu"][1], headers=headers),
        live.client.post(
            "/v1/images/generations",
            json=body,
            headers=headers | {"authorization": f"Bearer {token}"},
        ),
    ]
    assert len({task.headers["x-danqing-task"] for task in tasks}) == 3


def test_concurrent_duplicates_on_both_databases(null_server, database_url: str) -> None:
    server = null_server(DANQING_DATABASE_URL=database_url, NULL_STEP_S="0.05")
    token = server.account("twins")

    async def many() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(
            base_url=server.url,
            headers={"authorization": f"Bearer {token}", "idempotency-key": "one"},
            timeout=60,
        ) as client:
            body = {"prompt": "a cat", "size": "256x256"}
            return await asyncio.gather(
                *(client.post("/v1/images/generations", json=body) for _ in range(30))
            )

    answers = asyncio.run(many())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-danqing-task"] for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 29
    assert server.balance("twins") == 10_000


def test_the_sdk_with_a_key(live: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.token, max_retries=0)
    key = {"Idempotency-Key": "sdk"}
    first = client.images.generate(prompt="a cat", extra_headers=key)
    again = client.images.generate(prompt="a cat", extra_headers=key)
    assert first.created == again.created


def in_background(server: LiveServer, **body) -> tuple[str, httpx2.Response]:
    answer = server.client.post(
        "/v1/images/generations",
        json={"prompt": "a cat"} | body,
        headers={"prefer": "respond-async"},
    )
    assert answer.status_code == 202, answer.text
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["location"] == f"/v1/images/tasks/{answer.json()['id']}"
    return answer.headers["location"], answer


def until_over(server: LiveServer, location: str) -> dict:
    give_up_s = time.monotonic() + 60
    while True:
        task = server.client.get(location).json()
        if task["status"] not in ("queued", "running"):
            return task
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def test_in_the_background(live: LiveServer) -> None:
    location, _ = in_background(live, n=2)
    task = until_over(live, location)
    assert (task["status"], task["charged"], len(task["data"])) == ("succeeded", 10_000, 2)
    assert all(live.client.get(one["url"]).status_code == 200 for one in task["data"])


def test_delete_a_running_task(null_server) -> None:
    server = null_server(NULL_STEP_S="0.3")
    location, _ = in_background(server, n=10)  # it takes a while
    while server.client.get(location).json()["status"] == "queued":
        time.sleep(0.05)
    deleted = server.client.delete(location).json()
    assert deleted["status"] == "cancelled"
    assert 0 < deleted["charged"] < 50_000
    assert deleted["charged"] % 625 == 0
    assert server.balance("operator") == 1_000_000 - deleted["charged"]
    again = server.client.delete(location)  # it is over: it stays as it is
    assert again.json() == deleted


def test_another_servers_task_is_cancelled_by_its_owner(tmp_path: Path, postgres_url: str) -> None:
    """Two gateways on one database: the one that is asked is not the one that draws."""
    environment = {
        "DANQING_DATABASE_URL": postgres_url,
        "DANQING_TASK_LEASE_S": "1",
        "NULL_STEP_S": "0.5",
    }
    one = start_server(tmp_path / "data", module="tests.null_server", **environment)
    two = start_server(tmp_path / "data", module="tests.null_server", **environment)
    try:
        location, _ = in_background(one, n=10)  # it takes a while
        assert two.client.get(location).json()["status"] in ("queued", "running")
        deleted = two.client.delete(location).json()
        assert deleted["status"] == "cancelled"
        assert deleted["charged"] < 50_000
    finally:
        stop_server(one)
        stop_server(two)


def test_nobody_else_may_look_or_cancel(live: LiveServer) -> None:
    location, _ = in_background(live)
    token = live.account("stranger")
    headers = {"authorization": f"Bearer {token}"}
    for method in ("GET", "DELETE"):
        assert live.client.request(method, location, headers=headers).status_code == 404
    assert until_over(live, location)["status"] == "succeeded"
