"""Zhipu's asynchronous route over real HTTP: taken at once, asked for later, by its own account only."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from danqing.app import Books
from tests.conftest import LiveServer, shared_server

CREATE = "/paas/v4/async/images/generations"
CAT: dict[str, Any] = {"model": "glm-image", "prompt": "一只猫", "size": "1728x960"}


live = shared_server(NULL_STEP_S="0.05")


def result_of(live: LiveServer, task_id: str, prefix: str = "") -> dict[str, Any]:
    """The last answer: when the task is no longer in progress."""
    deadline_s = time.monotonic() + 60
    while True:
        answer = live.client.get(f"{prefix}/paas/v4/async-result/{task_id}")
        assert answer.status_code == 200, answer.text
        if answer.json()["task_status"] != "PROCESSING":
            return answer.json()
        assert set(answer.json()) == {"model", "request_id", "task_status"}
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_taken_at_once_and_found_later(live: LiveServer, prefix: str) -> None:
    body = CAT | {"request_id": f"found-{prefix}", "user_id": "user-0001"}
    taken = live.client.post(prefix + CREATE, json=body)
    assert taken.status_code == 200, taken.text
    task_id = taken.json()["id"]
    assert taken.json() == {
        "id": task_id,
        "model": "glm-image",
        "request_id": f"found-{prefix}",
        "task_status": "PROCESSING",
    }
    assert taken.headers["x-danqing-task"] == task_id
    result = result_of(live, task_id, prefix)
    (image,) = result.pop("image_result")
    assert result == {
        "model": "glm-image",
        "request_id": f"found-{prefix}",
        "task_status": "SUCCESS",
        "content_filter": [{"role": "user", "level": 3}],
    }
    assert httpx2.get(image["url"]).status_code == 200


def test_any_model_and_a_request_id_of_ours(live: LiveServer) -> None:
    before = live.balance("operator")
    taken = live.client.post(CREATE, json={"model": "cogview-4", "prompt": "猫"}).json()
    assert taken["request_id"] == taken["id"]
    result = result_of(live, taken["id"])
    assert (result["task_status"], result["request_id"]) == ("SUCCESS", taken["id"])
    assert before - live.balance("operator") == 5000


def test_base64_is_answered_later_as_well(live: LiveServer) -> None:
    body = {"model": "cogview-4", "prompt": "猫", "response_format": "b64_json"}
    result = result_of(live, live.client.post(CREATE, json=body).json()["id"])
    assert set(result["image_result"][0]) == {"b64_json"}


def test_the_same_request_id_again(live: LiveServer) -> None:
    """Each of the two routes takes an id once: they are two requests with two different answers."""
    body = CAT | {"request_id": "twice"}
    assert live.client.post(CREATE, json=body).status_code == 200
    again = live.client.post("/api" + CREATE, json=body)
    assert again.status_code == 400
    assert again.json() == {
        "error": {"code": "1231", "message": "You already have a request: twice"}
    }
    assert live.client.post("/paas/v4/images/generations", json=body).status_code == 200


def test_the_same_key_again_is_the_same_task(live: LiveServer) -> None:
    headers = {"idempotency-key": "async-key"}
    first, again = (live.client.post(CREATE, json=CAT, headers=headers) for _ in range(2))
    assert first.json() == again.json()


def test_a_failed_task_says_why(live: LiveServer) -> None:
    before = live.balance("operator")
    taken = live.client.post(CREATE, json=CAT | {"prompt": "a cat fail@1", "request_id": "fails"})
    result = result_of(live, taken.json()["id"])
    error = result.pop("error")
    assert result == {"model": "glm-image", "request_id": "fails", "task_status": "FAIL"}
    assert error["code"] == "500"
    assert error["message"]
    assert live.balance("operator") == before


def test_a_cancelled_task_has_failed(live: LiveServer) -> None:
    for _ in range(10):  # unless it was faster than we
        task_id = live.client.post(CREATE, json=CAT).json()["id"]
        ended = live.client.delete(f"/v1/images/tasks/{task_id}").json()
        if ended["status"] == "cancelled":
            break
    result = result_of(live, task_id)
    assert (result["task_status"], result["error"]["code"]) == ("FAIL", "1230")


@pytest.mark.parametrize(
    ("change", "status", "code", "named"),
    [
        ({"size": "1000x1000"}, 400, "1214", "size"),
        ({"prompt": None}, 400, "1213", "prompt"),
        ({"prompt": "猫" * 1001}, 400, "1214", "prompt"),
        ({"model": "nothing"}, 400, "1211", "model"),
        ({"n": 2}, 400, "1214", "n"),
        ({"mask": "x"}, 400, "1210", "mask"),
        ({"watermark_enabled": False}, 434, "1220", "watermark_enabled"),
    ],
    ids=str,
)
def test_what_can_be_refused_is_refused_at_once(
    live: LiveServer, change: dict[str, Any], status: int, code: str, named: str
) -> None:
    before = live.balance("operator")
    answer = live.client.post(CREATE, json=CAT | change)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert named in answer.json()["error"]["message"]
    assert live.balance("operator") == before


def test_another_accounts_task_is_an_unknown_one(live: LiveServer) -> None:
    task_id = live.client.post(CREATE, json=CAT).json()["id"]
    headers = {"authorization": f"Bearer {live.account('stranger')}"}
    theirs = live.client.get(f"/paas/v4/async-result/{task_id}", headers=headers)
    nothing = live.client.get("/paas/v4/async-result/no-such-task", headers=headers)
    assert theirs.status_code == nothing.status_code == 404
    assert theirs.json() == nothing.json()
    assert theirs.json()["error"]["code"] == "1214"
    assert live.client.get("/paas/v4/async-result").json()["error"]["code"] == "1222"


def test_a_task_whose_image_is_gone(live: LiveServer) -> None:
    task_id = live.client.post(CREATE, json=CAT).json()["id"]
    result_of(live, task_id)

    async def expire(books: Books) -> None:
        statement = text("UPDATE images SET expires_ms = 1 WHERE task_id = :id")
        await books.db.write(lambda conn: conn.execute(statement, {"id": task_id}))

    live.books(expire)
    answer = live.client.get(f"/paas/v4/async-result/{task_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "1214")


def test_no_token_no_task(live: LiveServer) -> None:
    for method, path in [("POST", CREATE), ("GET", "/paas/v4/async-result/x")]:
        answer = httpx2.request(method, live.url + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "1001")
