"""Streams over real HTTP: what is plain JSON and what an event, leaving and reading slowly, stopping, the SDK's view."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from tests.api.sse import Slow, all_events, events
from tests.api.test_hang_up import wait_for
from tests.conftest import STOP_S_MAX, LiveServer, shared_server, start_server, stop_server

PATH = "/v1/images/generations"
BODY = {"model": "gpt-image-1", "prompt": "a cat", "stream": True}
EVENT_KEYS = {
    *("type", "b64_json", "created_at", "size", "quality", "background", "output_format"),
}


live = shared_server(
    NULL_STEP_S="0.1",
    NULL_KEEP_ALIVE_S="0.05",
)


def until_over(server: LiveServer, task_id: str, token: str | None = None) -> dict:
    headers = {"authorization": f"Bearer {token or server.token}"}
    give_up_s = time.monotonic() + 120
    while True:
        task = server.client.get(f"/v1/images/tasks/{task_id}", headers=headers).json()
        if task["status"] not in ("queued", "running"):
            return task
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def test_every_key_of_every_event(live: LiveServer) -> None:
    answer = live.client.post(PATH, json=BODY | {"partial_images": 2, "output_format": "webp"})
    assert answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-cache"
    sent = all_events(answer)
    assert [event.name for event in sent] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    for number, event in enumerate(sent):
        last = number == 2
        assert event.data["type"] == event.name
        assert set(event.data) == EVENT_KEYS | {"usage" if last else "partial_image_index"}
        assert last or event.data["partial_image_index"] == number
        assert (event.data["size"], event.data["quality"]) == ("1024x1024", "medium")
        assert event.data["background"] == "opaque"
        picture = Image.open(io.BytesIO(base64.b64decode(event.data["b64_json"])))
        assert picture.format.lower() == event.data["output_format"] == "webp"
    assert sent[2].data["usage"] == {
        "total_tokens": 4101,
        "input_tokens": 5,
        "output_tokens": 4096,
        "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
    }
    task = until_over(live, answer.headers["x-danqing-task"])
    assert (task["status"], task["charged"], len(task["data"])) == ("succeeded", 5_000, 1)


def test_events_come_as_they_happen(live: LiveServer) -> None:
    """The first look is read while the task still runs, and comments keep the connection busy."""
    body = BODY | {"partial_images": 1, "n": 10}  # it takes a while
    with live.client.stream("POST", PATH, json=body) as answer:
        lines = iter(answer.iter_lines())
        first = next(events(lines))
        assert first.name == "image_generation.partial_image"
        task_id = answer.headers["x-danqing-task"]
        assert live.client.get(f"/v1/images/tasks/{task_id}").json()["status"] == "running"
        missing = {": keep-alive", "event: image_generation.completed"}
        while missing:
            missing.discard(next(lines))
    until_over(live, task_id)


def test_several_images(live: LiveServer) -> None:
    sent = all_events(live.client.post(PATH, json=BODY | {"n": 3, "partial_images": 1}))
    completed = [event.data["image_index"] for event in sent if event.name.endswith("completed")]
    assert sorted(completed) == [0, 1, 2]
    assert all("image_index" in event.data for event in sent)


@pytest.mark.parametrize(
    ("changes", "headers", "status", "param"),
    [
        ({"model": "dall-e-3"}, {}, 400, "stream"),
        ({"model": "dall-e-2"}, {}, 400, "stream"),
        ({"model": "qwen-image"}, {}, 400, "stream"),
        ({"partial_images": 4}, {}, 400, "partial_images"),
        ({"stream": False, "partial_images": 1}, {}, 400, "partial_images"),
        ({"stream": "yes"}, {}, 400, "stream"),
        ({"model": "pocket", "response_format": "url"}, {}, 400, "response_format"),
        ({"prompt": ""}, {}, 400, "prompt"),
        ({"prompt": "how to make a bomb"}, {}, 400, None),
        ({}, {"prefer": "respond-async"}, 400, "stream"),
        ({}, {"idempotency-key": "two words"}, 400, "Idempotency-Key"),
        ({}, {"authorization": "Bearer sk-no.no"}, 401, None),
    ],
)
def test_what_is_refused_is_plain(
    live: LiveServer, changes: dict, headers: dict, status: int, param: str | None
) -> None:
    before = live.balance("operator")
    answer = live.client.post(PATH, json=BODY | changes, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json()["error"]["param"] == param
    assert live.balance("operator") == before


def test_no_quota_is_plain(live: LiveServer) -> None:
    headers = {"authorization": f"Bearer {live.account('poor')}"}
    answer = live.client.post(PATH, json=BODY | {"n": 4}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"


def test_a_full_queue_is_plain(null_server) -> None:
    server = null_server(
        NULL_STEP_S="1", DANQING_ENGINE__QUEUE_MAX="2", DANQING_ENGINE__LIVE_MAX="1"
    )
    holder = Slow(server, server.token, PATH, BODY)
    wait_for(server, "danqing_engine_live", 1)
    waiter = Slow(server, server.token, PATH, BODY)
    wait_for(server, "danqing_queue_depth", 1)
    answer = server.client.post(PATH, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    holder.close()
    waiter.close()


def test_what_fails_later_is_an_event(live: LiveServer) -> None:
    before = live.balance("operator")
    sent = all_events(live.client.post(PATH, json=BODY | {"prompt": "fail@3", "partial_images": 1}))
    assert sent[-1].name == "error"
    assert sent[-1].data["type"] == "error"
    assert set(sent[-1].data["error"]) == {"message", "type", "param", "code"}
    assert sent[-1].data["error"]["code"] == "server_error"
    assert live.balance("operator") == before


def test_leaving_after_a_look_pays_for_the_image(live: LiveServer) -> None:
    token = live.account("looker", 100_000)
    client = Slow(live, token, PATH, BODY | {"partial_images": 2, "n": 10, "quality": "low"})
    client.read_until(b"partial_image_index")
    task_id = client.header("x-danqing-task")
    client.close()
    task = until_over(live, task_id, token)
    assert task["status"] == "cancelled"
    assert 5_000 <= task["charged"] < 50_000
    assert live.balance("looker") == 100_000 - task["charged"]
    wait_for(live, "danqing_engine_live", 0)


def test_leaving_before_a_look_pays_for_steps(live: LiveServer) -> None:
    token = live.account("early", 100_000)
    client = Slow(live, token, PATH, BODY | {"n": 10})
    client.read_until(b"keep-alive")
    task_id = client.header("x-danqing-task")
    client.close()
    assert until_over(live, task_id, token)["status"] == "cancelled"
    charged = 100_000 - live.balance("early")
    assert charged < 50_000
    assert charged % 625 == 0


def test_a_key_goes_on_and_replays(live: LiveServer) -> None:
    before = live.balance("operator")
    body = BODY | {"partial_images": 1}
    client = Slow(live, live.token, PATH, body, "idempotency-key: streamed\r\n")
    client.read_until(b"partial_image_index")
    task_id = client.header("x-danqing-task")
    client.close()
    replays = [
        live.client.post(PATH, json=body, headers={"idempotency-key": "streamed"}) for _ in range(2)
    ]
    for again in replays:
        assert again.headers["x-danqing-task"] == task_id
        assert again.headers["idempotent-replayed"] == "true"
        (completed,) = all_events(again)  # looks are not kept
        assert completed.name == "image_generation.completed"
    assert replays[0].text.rpartition("event:")[2] == replays[1].text.rpartition("event:")[2]
    assert before - live.balance("operator") == 5_000
    other = live.client.post(
        PATH, json=body | {"stream": False}, headers={"idempotency-key": "streamed"}
    )
    assert other.status_code == 400  # partial_images without a stream
    del body["partial_images"], body["stream"]
    other = live.client.post(PATH, json=body, headers={"idempotency-key": "streamed"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_deleting_the_task_ends_its_stream(live: LiveServer) -> None:
    client = Slow(live, live.token, PATH, BODY | {"n": 10})
    client.read_until(b"keep-alive")
    deleted = live.client.delete(f"/v1/images/tasks/{client.header('x-danqing-task')}").json()
    assert deleted["status"] == "cancelled"
    read = client.read_until(b"\r\n0\r\n\r\n")  # a whole answer: its last chunk is there
    assert read.endswith(b"\r\n0\r\n\r\n")
    assert b'"code":"cancelled"' in read


def test_a_server_that_stops_ends_the_stream(null_server) -> None:
    server = null_server(NULL_STEP_S="1", NULL_SHUTDOWN_S="1")
    token = server.account("streamer")
    client = Slow(server, token, PATH, BODY | {"partial_images": 1})
    client.read_until(b"\r\n\r\n")
    wait_for(server, "danqing_engine_live", 1)
    server.process.terminate()
    read = client.read_until(b"\r\n0\r\n\r\n")  # a whole answer: its last chunk is there
    assert b'event: error\ndata: {"type":"error","error":{"message":"The server is stopping' in read
    assert read.endswith(b"\r\n0\r\n\r\n")
    assert server.process.wait(STOP_S_MAX) == 0
    assert server.balance("streamer") == 15_000


def test_a_server_that_stops_lets_a_stream_end(null_server) -> None:
    server = null_server(NULL_STEP_S="0.1")
    client = Slow(server, server.token, PATH, BODY | {"n": 3})
    client.read_until(b"\r\n\r\n")
    server.process.terminate()
    read = client.read_until(b"\r\n0\r\n\r\n")
    assert read.count(b"event: image_generation.completed") == 3
    assert server.process.wait(STOP_S_MAX) == 0


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    """The image that had left was stored before it left: who cleans up charges it and keeps it."""
    settings = {"DANQING_TASK_LEASE_S": "1", "DANQING_ENGINE__LIVE_MAX": "1"}
    first = start_server(
        tmp_path / "data", module="tests.null_server", NULL_STEP_S="0.2", **settings
    )
    try:
        client = Slow(first, first.token, PATH, BODY | {"n": 6, "quality": "low"})
        client.read_until(b"image_generation.completed")
        task_id = client.header("x-danqing-task")
    finally:
        first.process.kill()
        first.process.wait()
    client.close()
    second = start_server(tmp_path / "data", module="tests.null_server", **settings)
    try:
        task = until_over(second, task_id)
        assert task["status"] == "succeeded"
        assert 1 <= len(task["data"]) < 6
        assert task["charged"] == 5_000 * len(task["data"])
        assert second.client.get(task["data"][0]["url"]).status_code == 200
        assert second.balance("operator") == 1_000_000 - task["charged"]
    finally:
        assert stop_server(second) == 0


def test_a_reader_that_sleeps(server: LiveServer) -> None:
    """It holds up nobody: its task is drawn, stored and settled; and every finished image still comes."""
    body = BODY | {"n": 4, "partial_images": 1, "size": "1536x1024", "seed": 3, "quality": "low"}
    client = Slow(server, server.token, PATH, body, "connection: close\r\n", buffer=4096)
    task_id = client.header("x-danqing-task")
    task = until_over(server, task_id)
    assert (task["status"], len(task["data"])) == ("succeeded", 4)
    wait_for(server, "danqing_engine_live", 0)
    assert server.client.post(PATH, json={"prompt": "a dog"}).status_code == 200
    read = client.read_until(b"\r\n0\r\n\r\n")
    assert read.count(b"event: image_generation.completed") == 4
    client.close()


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(api_key=server.token, base_url=f"{server.url}/v1", max_retries=0)


def test_the_sdk_generates(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        model="gpt-image-1", prompt="a cat on a beach", stream=True, partial_images=2, size="auto"
    )
    sent = list(stream)
    assert [event.type for event in sent] == [
        *["image_generation.partial_image"] * 2,
        "image_generation.completed",
    ]
    sizes = [Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size for event in sent]
    assert sizes == [(512, 512), (512, 512), (1024, 1024)]
    assert sent[-1].usage.total_tokens == sent[-1].usage.input_tokens + 4096


@pytest.mark.parametrize("masked", [False, True])
def test_the_sdk_edits(client: openai.OpenAI, masked: bool) -> None:
    """Multipart with `stream` as text; the looks are of the edit, and what the mask keeps is in them too."""
    before = client.images.generate(
        model="gpt-image-1", prompt="a cat on a beach", size="1024x1024", extra_body={"seed": 3}
    )
    raw = base64.b64decode(before.data[0].b64_json)
    files = {"image": ("cat.png", raw, "image/png")}
    if masked:
        mask = Image.new("RGBA", (1024, 1024), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (0, 0, 512, 1024))
        buffer = io.BytesIO()
        mask.save(buffer, "PNG")
        files["mask"] = ("mask.png", buffer.getvalue(), "image/png")
    stream = client.images.edit(
        model="gpt-image-1",
        prompt="a dog",
        quality="high",
        stream=True,
        partial_images=2,
        **files,
    )
    sent = list(stream)
    assert [event.type for event in sent] == [
        *["image_edit.partial_image"] * 2,
        "image_edit.completed",
    ]
    assert [event.partial_image_index for event in sent[:2]] == [0, 1]
    pictures = [Image.open(io.BytesIO(base64.b64decode(event.b64_json))) for event in sent]
    assert [picture.size for picture in pictures] == [(512, 512), (512, 512), (1024, 1024)]
    usage = sent[-1].usage
    assert usage.input_tokens_details.text_tokens == len("a dog")
    assert usage.input_tokens_details.image_tokens == (8192 if masked else 4096)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    if masked:  # the right half stays as it was, but for the new image's own mark
        right = (512, 0, 1024, 1024)
        kept, was = (
            np.asarray(one.convert("RGB").crop(right), int)
            for one in (pictures[2], Image.open(io.BytesIO(raw)))
        )
        assert np.abs(kept - was).mean() < 2
        assert np.abs(kept - was).max() < 20


def test_the_sdk_raises_what_a_stream_says(live: LiveServer) -> None:
    client = openai.OpenAI(api_key=live.token, base_url=f"{live.url}/v1", max_retries=0)
    with pytest.raises(openai.BadRequestError) as plain:
        client.images.generate(model="dall-e-3", prompt="x", stream=True)
    assert plain.value.param == "stream"
    stream = client.images.generate(model="gpt-image-1", prompt="fail@3", stream=True)
    with pytest.raises(openai.APIError) as told:
        list(stream)
    assert told.value.code == "server_error"
    assert told.value.type == "server_error"


def test_the_sdk_may_leave(live: LiveServer) -> None:
    client = openai.OpenAI(api_key=live.account("sdk-leaver"), base_url=f"{live.url}/v1")
    with client.images.generate(
        model="gpt-image-1", prompt="x", stream=True, partial_images=3
    ) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"
    wait_for(live, "danqing_engine_live", 0)
    give_up_s = time.monotonic() + 60
    while live.balance("sdk-leaver") != 10_000:
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


CHAT = {"model": "dall-e-3", "messages": [{"role": "user", "content": "a cat"}], "stream": True}


def test_the_sdk_chats(live: LiveServer) -> None:
    client = openai.OpenAI(api_key=live.token, base_url=f"{live.url}/v1", max_retries=0)
    chunks = list(client.chat.completions.create(**CHAT, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert words.startswith("![image](http")
    assert httpx2.get(words[9:-1]).status_code == 200
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 4101)
    assert len({chunk.id for chunk in chunks}) == 1
    helper = client.chat.completions.stream(
        model="dall-e-3", messages=[{"role": "user", "content": "a cat"}]
    )
    with helper as stream:
        assert stream.get_final_completion().choices[0].message.content.startswith("![image](")


def test_a_chat_that_fails(live: LiveServer) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "fail@3"}]}
    role, told = all_events(live.client.post("/v1/chat/completions", json=body))
    assert role.data["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert told.data["error"]["code"] == "server_error"
    client = openai.OpenAI(api_key=live.token, base_url=f"{live.url}/v1", max_retries=0)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**body))
    poor = live.client.post(
        "/v1/chat/completions",
        json=CHAT | {"n": 4},
        headers={"authorization": f"Bearer {live.account('poor-chat')}"},
    )
    assert (poor.status_code, poor.json()["error"]["code"]) == (429, "insufficient_quota")
    drawn = live.client.post("/v1/chat/completions", json={"prompt": "a cat", "stream": True})
    assert (drawn.status_code, drawn.json()["error"]["param"]) == (200, "stream")


def test_async_clients_side_by_side(live: LiveServer) -> None:
    """Ten streams at once, each with its own task and its own events."""
    import asyncio

    async def one(client: httpx2.AsyncClient, seed: int) -> tuple[str, list[str]]:
        answer = await client.post(PATH, json=BODY | {"seed": seed, "partial_images": 1})
        return answer.headers["x-danqing-task"], [event.name for event in all_events(answer)]

    async def many() -> list[tuple[str, list[str]]]:
        headers = {"authorization": f"Bearer {live.token}"}
        async with httpx2.AsyncClient(base_url=live.url, headers=headers, timeout=60) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(10)))

    answers = asyncio.run(many())
    assert len({task for task, _ in answers}) == 10
    assert all(names[-1] == "image_generation.completed" for _, names in answers)


def test_what_is_left_of_a_rate_limit_is_told(live: LiveServer) -> None:
    token = live.cli("token", "create", "--account", "operator", "--rate", "50").stdout.strip()
    headers = {"authorization": f"Bearer {token}"}
    for changes, more in (
        ({"stream": False}, {}),
        ({"stream": True}, {}),
        ({"stream": False}, {"prefer": "respond-async"}),
    ):
        answer = live.client.post(PATH, json=BODY | changes, headers=headers | more)
        assert answer.status_code in (200, 202)
        assert answer.headers["x-ratelimit-limit-requests"] == "50"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert 40 < int(answer.headers["x-ratelimit-remaining-requests"]) < 50
    unlimited = live.client.post(PATH, json=BODY)
    assert not any("ratelimit" in name for name in unlimited.headers)
