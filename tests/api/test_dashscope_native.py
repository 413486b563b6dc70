"""DashScope's own routes over real HTTP: synchronous, with tasks, their list, and cancelling one."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx2
import pytest
from PIL import Image
from sqlalchemy import text

from tests.conftest import LiveServer, start_server, stop_server

SYNC = "/api/v1/services/aigc/multimodal-generation/generation"
MESSAGES = "/api/v1/services/aigc/image-generation/generation"
PROMPT = "/api/v1/services/aigc/text2image/image-synthesis"
ASYNC = {"x-dashscope-async": "enable"}
BEIJING = timezone(timedelta(hours=8))


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
)
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    environment = {"NULL_STEP_S": "0.02"}
    if request.param == "postgresql":
        environment["DANQING_DATABASE_URL"] = request.getfixturevalue("postgres").create_database()
    folder = tmp_path_factory.mktemp("dashscope") / "data"
    server = start_server(folder, module="tests.null_server", **environment)
    yield server
    assert stop_server(server) == 0


def said(prompt: str = "一只猫", **parameters: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [{"text": prompt}]}
    return {"model": "qwen-image-2.0", "input": {"messages": [message]}, "parameters": parameters}


def asked(prompt: str = "一只猫", **parameters: Any) -> dict[str, Any]:
    return {"model": "qwen-image-2.0", "input": {"prompt": prompt}, "parameters": parameters}


def begin(live: LiveServer, body: dict[str, Any], path: str = PROMPT) -> str:
    answer = live.client.post(path, json=body, headers=ASYNC)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"output", "request_id"}
    task_id = answer.json()["output"]["task_id"]
    assert answer.json()["output"] == {"task_id": task_id, "task_status": "PENDING"}
    assert answer.headers["x-danqing-task"] == task_id
    return task_id


def standing(live: LiveServer, task_id: str) -> dict[str, Any]:
    answer = live.client.get(f"/api/v1/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["output"]["task_id"] == task_id
    return answer.json()


def end_of(live: LiveServer, task_id: str) -> dict[str, Any]:
    """The answer once the task is over."""
    deadline_s = time.monotonic() + 60
    while (body := standing(live, task_id))["output"]["task_status"] in ("PENDING", "RUNNING"):
        assert "end_time" not in body["output"]
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    return body


def test_synchronous(live: LiveServer) -> None:
    answer = live.client.post(SYNC, json=said(size="1024*1280", n=2, seed=7, prompt_extend=False))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"output", "usage", "request_id"}
    (choice,) = body["output"]["choices"]
    assert (choice["finish_reason"], choice["message"]["role"]) == ("stop", "assistant")
    assert body["output"]["task_metric"] == {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}
    assert body["usage"] == {"image_count": 2, "width": 1024, "height": 1280}
    for part in choice["message"]["content"]:
        assert httpx2.get(part["image"]).status_code == 200
    assert answer.headers["x-danqing-seed"] == "7,8"
    assert answer.headers["x-danqing-charged"] == "10000"


def test_an_extended_prompt_is_told(live: LiveServer) -> None:
    body = live.client.post(SYNC, json=said()).json()
    assert body["output"]["actual_prompt"].startswith("一只猫")


def test_what_was_cut_is_told(live: LiveServer) -> None:
    body = said("猫" * 1301, negative_prompt="狗" * 501)
    answer = live.client.post(SYNC, json=body)
    assert answer.status_code == 200
    assert answer.headers["x-danqing-truncated"] == (
        "input.messages[0].content[0].text,parameters.negative_prompt"
    )
    begun = live.client.post(PROMPT, json=asked("猫" * 1301), headers=ASYNC)
    assert begun.headers["x-danqing-truncated"] == "input.prompt"


def test_a_task_by_prompt(live: LiveServer) -> None:
    before = datetime.now(BEIJING)
    task_id = begin(live, asked(n=2, size="1024*1024"))
    body = end_of(live, task_id)
    output = body["output"]
    assert output["task_status"] == "SUCCEEDED"
    assert output["task_metrics"] == {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}
    assert body["usage"] == {"image_count": 2}
    assert len(output["results"]) == 2
    for result in output["results"]:
        assert result["orig_prompt"] == "一只猫"
        assert result["actual_prompt"].startswith("一只猫")
        assert httpx2.get(result["url"]).status_code == 200
    times = [output[f"{name}_time"] for name in ("submit", "scheduled", "end")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", time) for time in times)
    assert times == sorted(times)
    submitted = datetime.strptime(times[0], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=BEIJING)
    assert abs((submitted - before).total_seconds()) < 30


def test_a_task_by_message(live: LiveServer) -> None:
    body = end_of(live, begin(live, said(is_async=True, prompt_extend=False), MESSAGES))
    output = body["output"]
    assert (output["task_status"], output["finished"]) == ("SUCCEEDED", True)
    assert "actual_prompt" not in output
    (part,) = output["choices"][0]["message"]["content"]
    assert httpx2.get(part["image"]).status_code == 200


def test_the_default_model(live: LiveServer) -> None:
    answer = live.client.post(SYNC, json={"input": said()["input"]})
    assert answer.json()["usage"] == {"image_count": 1, "width": 1664, "height": 928}


def test_a_failed_task_is_answered_with_200(live: LiveServer) -> None:
    before = live.balance("operator")
    body = end_of(live, begin(live, asked("a cat fail@1", prompt_extend=False)))
    assert body["output"]["task_status"] == "FAILED"
    assert body["output"]["code"] == "InternalError.Algo"
    assert body["output"]["message"]
    assert "results" not in body["output"]
    assert live.balance("operator") == before


@pytest.mark.parametrize(
    ("path", "headers", "words"),
    [
        (PROMPT, {}, "current user api does not support synchronous calls"),
        (MESSAGES, {}, "current user api does not support synchronous calls"),
        (SYNC, ASYNC, "current user api does not support asynchronous calls"),
    ],
)
def test_the_header_must_fit_the_route(
    live: LiveServer, path: str, headers: dict[str, str], words: str
) -> None:
    body = asked() if path == PROMPT else said()
    answer = live.client.post(path, json=body, headers=headers)
    assert answer.status_code == 403
    assert (answer.json()["code"], answer.json()["message"]) == ("AccessDenied", words)


@pytest.mark.parametrize("path", [SYNC, PROMPT, MESSAGES])
def test_no_server_sent_events(live: LiveServer, path: str) -> None:
    headers = {"x-dashscope-sse": "enable", **ASYNC}
    answer = live.client.post(path, json=said(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert "X-DashScope-SSE" in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "change", "status", "code", "words"),
    [
        (SYNC, {"model": "no-such-model"}, 404, "ModelNotFound", "no-such-model"),
        (SYNC, {"input": None}, 400, "BadRequest.EmptyInput", "input"),
        (SYNC, {"parameters": {"n": 7}}, 400, "InvalidParameter", "parameters.n"),
        (
            SYNC,
            {"model": "qwen-image", "parameters": {"n": 2}},
            400,
            "InvalidParameter",
            "num_images_per_prompt must be 1",
        ),
        (SYNC, {"parameters": {"watermark": 1}}, 400, "InvalidParameter", "parameters.watermark"),
        (SYNC, {"parameters": {"size": "64*64"}}, 400, "InvalidParameter", "parameters.size"),
        (SYNC, {"stream": True}, 400, "InvalidParameter", "stream"),
        (PROMPT, {"input": {"messages": []}}, 400, "InvalidParameter", "input.messages"),
    ],
)
def test_bad_input(
    live: LiveServer, path: str, change: dict[str, Any], status: int, code: str, words: str
) -> None:
    before = live.balance("operator")
    headers = ASYNC if path == PROMPT else {}
    answer = live.client.post(path, json=said() | change, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.json()["message"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert live.balance("operator") == before


def test_the_brand_mark(live: LiveServer) -> None:
    def tones_left_below(watermark: bool | None) -> int:
        answer = live.client.post(SYNC, json=said(watermark=watermark, size="512*512"))
        (choice,) = answer.json()["output"]["choices"]
        link = choice["message"]["content"][0]["image"]
        with Image.open(io.BytesIO(httpx2.get(link).content)) as image:
            return len(image.convert("RGB").crop((0, 460, 200, 512)).getcolors(20_000))

    assert tones_left_below(True) > 20
    assert tones_left_below(False) == tones_left_below(None) == 1


def test_strangers_and_wrong_addresses(live: LiveServer) -> None:
    for headers, words in (
        ({}, "No API-key provided."),
        ({"authorization": "Bearer sk-no.no"}, "Invalid API-key provided."),
    ):
        for method, path in (("POST", SYNC), ("GET", "/api/v1/tasks/x"), ("GET", "/api/v1/tasks")):
            answer = httpx2.request(method, live.url + path, headers=headers)
            assert answer.status_code == 401
            assert (answer.json()["code"], answer.json()["message"]) == ("InvalidApiKey", words)
    answer = live.client.post("/api/v1/services/aigc/nothing", json={})
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert answer.json()["message"] == "url error, please check url!"


def test_a_poor_account(live: LiveServer) -> None:
    headers = {"authorization": f"Bearer {live.account('poor', 1)}"}
    answer = live.client.post(SYNC, json=said(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "Arrearage")
    assert answer.headers["x-should-retry"] == "false"


def test_a_task_that_is_not_there(live: LiveServer) -> None:
    """Never was, is somebody else's, or ended more than a day ago: all the same."""
    task_id = begin(live, asked())
    end_of(live, task_id)
    headers = {"authorization": f"Bearer {live.account('stranger')}"}
    for one in (task_id, "no-such-task"):
        answer = live.client.get(f"/api/v1/tasks/{one}", headers=headers)
        assert answer.status_code == 200
        assert answer.json()["output"] == {"task_id": one, "task_status": "UNKNOWN"}
        cancel = live.client.post(f"/api/v1/tasks/{one}/cancel", headers=headers)
        assert (cancel.status_code, cancel.json()["code"]) == (400, "UnsupportedOperation")

    async def age(books: Any) -> None:
        statement = text("UPDATE tasks SET finished_ms = finished_ms - 86400001 WHERE id = :id")
        await books.db.write(lambda conn: conn.execute(statement, {"id": task_id}))

    live.books(age)
    assert standing(live, task_id)["output"] == {"task_id": task_id, "task_status": "UNKNOWN"}


def test_cancelling(live: LiveServer) -> None:
    """What waits is cancelled for nothing; what is being drawn, or is over, is not."""
    before = live.balance("operator")
    waiting, count = "", 0
    for _ in range(
        10
    ):  # the engine draws a few of them at once: the last one waits, unless we are slow
        task_ids = [begin(live, asked(f"cat {k}", n=6, size="1024*1024")) for k in range(6)]
        waiting, count = task_ids[-1], count + 6
        answer = live.client.post(f"/api/v1/tasks/{waiting}/cancel")
        if answer.status_code == 200:
            break
        assert answer.json()["code"] == "UnsupportedOperation"
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"request_id"}
    output = standing(live, waiting)["output"]
    assert output["task_status"] == "CANCELED"
    assert "code" not in output
    for task_id in task_ids[:-1]:
        assert end_of(live, task_id)["output"]["task_status"] == "SUCCEEDED"
    assert before - live.balance("operator") == (count - 1) * 6 * 5000
    for task_id in (task_ids[0], waiting):
        late = live.client.post(f"/api/v1/tasks/{task_id}/cancel")
        assert (late.status_code, late.json()["code"]) == (400, "UnsupportedOperation")
        assert "PENDING" in late.json()["message"]


def listed(live: LiveServer, token: str, **query: object) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {token}"}
    answer = live.client.get("/api/v1/tasks", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_list(live: LiveServer) -> None:
    token = live.account("lister", 1_000_000)
    headers = {"authorization": f"Bearer {token}"}
    task_ids: list[str] = []
    for prompt, model in [("a", "qwen-image"), ("b fail@1", "z-image-turbo"), ("c", "wan2.6-t2i")]:
        body = asked(prompt) | {"model": model}
        begun = live.client.post(PROMPT, json=body, headers=headers | ASYNC)
        task_ids.append(begun.json()["output"]["task_id"])
    live.client.post(SYNC, json=said(), headers=headers)  # no task of its own
    deadline_s = time.monotonic() + 60
    while {one["status"] for one in listed(live, token)["data"]} != {"SUCCEEDED", "FAILED"}:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    page = listed(live, token)
    assert [one["task_id"] for one in page["data"]] == task_ids[::-1]
    assert (page["page_no"], page["page_size"], page["total"], page["total_page"]) == (1, 10, 3, 1)
    for one in page["data"]:
        assert one["gmt_create"] <= one["end_time"] <= time.time() * 1000
    second = listed(live, token, page_no=2, page_size=2)
    assert [one["task_id"] for one in second["data"]] == [task_ids[0]]
    assert (second["total"], second["total_page"]) == (3, 2)
    for query, found in [
        ({"status": "FAILED"}, task_ids[1:2]),
        ({"status": "SUCCEEDED", "model_name": "qwen-image"}, task_ids[:1]),
        ({"status": "SUCCEEDED", "model_name": "z-image-turbo"}, []),
        ({"status": "UNKNOWN"}, []),
        ({"model_name": "no-such-model"}, []),
        ({"model_name": "WAN2.6-T2I"}, task_ids[2:]),
        ({"start_time": "20200101000000"}, task_ids[::-1]),
        ({"end_time": "20200101000000"}, []),
        ({"api_key_id": "nobody"}, []),
        ({"api_key_id": page["data"][0]["api_key_id"]}, task_ids[::-1]),
        ({"page_no": 99}, []),
    ]:
        assert [one["task_id"] for one in listed(live, token, **query)["data"]] == found, query
    other = live.account("another")
    assert listed(live, other)["data"] == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"page_no": "0"}, "page_no"),
        ({"page_size": "101"}, "page_size"),
        ({"page_size": "ten"}, "page_size"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"end_time": "20261399000000"}, "end_time"),
        ({"status": "DONE"}, "status"),
        ({"region": "cn-beijing"}, "region"),
        ({"foo": "1"}, "foo"),
    ],
)
def test_a_list_that_cannot_be(live: LiveServer, query: dict[str, str], named: str) -> None:
    answer = live.client.get("/api/v1/tasks", params=query)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert f"'{named}'" in answer.json()["message"]


@pytest.mark.parametrize(
    ("model", "default", "n"),
    [
        ("qwen-image", (1664, 928), 1),
        ("qwen-image-2.0-pro", (2048, 2048), 1),
        ("wan2.6-t2i", (1280, 1280), 1),
        ("wan2.2-t2i-plus", (1024, 1024), 1),
        ("z-image-turbo", (1024, 1024), 1),
    ],
)
def test_each_models_own_defaults(
    live: LiveServer, model: str, default: tuple[int, int], n: int
) -> None:
    body = live.client.post(SYNC, json=said() | {"model": model, "parameters": {}}).json()
    assert body["usage"] == {"image_count": n, "width": default[0], "height": default[1]}
    assert ("actual_prompt" in body["output"]) == (model != "z-image-turbo")


def test_wan_draws_four_unless_asked_otherwise(live: LiveServer) -> None:
    body = said(size="1K") | {"model": "wan2.7-image"}
    answer = live.client.post(SYNC, json=body)
    assert answer.json()["usage"] == {"image_count": 4, "width": 1024, "height": 1024}
