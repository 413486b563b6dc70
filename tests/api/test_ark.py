"""Ark's route over real HTTP: what the SDK sends, ratios from the prompt, series, 4K, errors with their headers."""

from __future__ import annotations

import base64
import io
import json

import httpx2
import pytest
from PIL import Image

from tests.api.sse import all_events
from tests.conftest import LiveServer, shared_server
from tests.pictures import are_alike

PATH = "/api/v3/images/generations"
# What the official SDK sends for `images.generate(model=…, prompt=…)`: every other field as null.
NULLS = dict.fromkeys(
    (
        *("image", "response_format", "size", "seed", "guidance_scale", "watermark"),
        *("optimize_prompt", "optimize_prompt_options", "sequential_image_generation"),
        *("sequential_image_generation_options", "tools", "output_format", "layer_decomposition"),
    )
)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_what_the_sdk_sends(server: LiveServer) -> None:
    body = NULLS | {"model": "Seedream-4-0-250828", "prompt": "一只可爱的小猪"}
    answer = server.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert set(result) == {"model", "created", "data", "usage"}
    assert result["model"] == "Seedream-4-0-250828"
    (item,) = result["data"]
    assert set(item) == {"url", "size"}
    assert item["size"] == answer.headers["x-danqing-size"] == "2048x2048"
    image = opened(httpx2.get(item["url"]).content)
    assert (image.format, image.size) == ("JPEG", (2048, 2048))
    assert result["usage"] == {
        "generated_images": 1,
        "output_tokens": 16384,
        "total_tokens": 16384,
    }
    assert answer.headers["x-danqing-charged"] == "5000"


def test_a_series_with_the_ratio_and_the_number_of_its_prompt(server: LiveServer) -> None:
    body = {
        "prompt": "竖屏，一组三张连贯的分镜：小狗的一天",
        "size": "1K",
        "sequential_image_generation": "auto",
        "sequential_image_generation_options": {"max_images": 9},
        "response_format": "b64_json",
        "seed": 3,
    }
    answer = server.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    images = [opened(base64.b64decode(item["b64_json"])) for item in answer.json()["data"]]
    assert [image.size for image in images] == [(720, 1280)] * 3
    assert len({image.tobytes() for image in images}) == 3
    assert answer.json()["usage"]["generated_images"] == 3
    assert answer.headers["x-danqing-seed"] == "3,4,5"
    assert answer.headers["x-danqing-charged"] == "15000"
    assert answer.headers["x-danqing-size"] == "720x1280"


def test_4k(server: LiveServer) -> None:
    body = {"prompt": "a red apple on a table, 16:9", "size": "4K"}
    answer = server.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    assert item["size"] == "5504x3040"
    assert opened(httpx2.get(item["url"]).content).size == (5504, 3040)
    assert answer.headers["x-danqing-charged"] == "10000"


def test_the_label_goes_only_with_a_waiver(server: LiveServer) -> None:
    answer = server.client.post(
        PATH,
        json={"prompt": "一只猫", "watermark": False},
        headers={"authorization": f"Bearer {server.account('ark-no-waiver')}"},
    )
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "AccessDenied"
    assert answer.json()["error"]["param"] == "watermark"
    assert server.balance("ark-no-waiver") == 15_000


def test_more_images_than_the_balance_covers(server: LiveServer) -> None:
    answer = server.client.post(
        PATH,
        json={"prompt": "四张猫的照片", "sequential_image_generation": "auto"},
        headers={"authorization": f"Bearer {server.account('ark-poor')}"},
    )
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "AccountOverdueError"
    assert answer.headers["x-should-retry"] == "false"
    assert server.balance("ark-poor") == 15_000


def test_a_stream(server: LiveServer) -> None:
    body = {
        "model": "seedream-4-0-250828",
        "prompt": "画两张，横版的小猫",
        "size": "1K",
        "sequential_image_generation": "auto",
        "stream": True,
    }
    sent = all_events(server.client.post(PATH, json=body))
    names = ["image_generation.partial_succeeded"] * 2 + ["image_generation.completed"]
    assert [event.name for event in sent] == [*names, "message"]
    assert sent[-1].data == "[DONE]"
    assert [event.data["type"] for event in sent[:-1]] == names
    assert {event.data["model"] for event in sent[:-1]} == {"seedream-4-0-250828"}
    assert sorted(event.data["image_index"] for event in sent[:2]) == [0, 1]
    for event in sent[:2]:
        assert set(event.data) == {"type", "model", "created", "image_index", "url", "size"}
        assert opened(httpx2.get(event.data["url"]).content).size == (1280, 720)
    assert sent[2].data["usage"] == {
        "generated_images": 2,
        "output_tokens": 7200,
        "total_tokens": 7200,
    }


faulty = shared_server()
"""A server whose images fail where the prompt says so."""


SPOILT = {
    "prompt": "nan-seed@8",
    "size": "1K",
    "seed": 7,
    "sequential_image_generation": "auto",
    "sequential_image_generation_options": {"max_images": 3},
}


def test_one_image_fails_and_the_others_are_charged(faulty: LiveServer) -> None:
    token = faulty.account("ark-spoilt")
    answer = faulty.client.post(PATH, json=SPOILT, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [set(item) for item in data] == [{"url", "size"}, {"error"}, {"url", "size"}]
    assert set(data[1]["error"]) == {"code", "message"}
    assert data[1]["error"]["code"] == "InternalServiceError"
    assert answer.json()["usage"]["generated_images"] == 2
    assert answer.headers["x-danqing-charged"] == "10000"
    assert faulty.balance("ark-spoilt") == 5000


def test_one_image_of_a_stream_fails(faulty: LiveServer) -> None:
    sent = all_events(faulty.client.post(PATH, json=SPOILT | {"stream": True}))
    assert [event.name for event in sent[3:]] == ["image_generation.completed", "message"]
    by_index = {event.data["image_index"]: event for event in sent[:3]}
    kinds = [by_index[index].name.rpartition("_")[2] for index in range(3)]
    assert kinds == ["succeeded", "failed", "succeeded"]
    assert by_index[1].data["error"]["code"] == "InternalServiceError"
    assert sent[3].data["usage"]["generated_images"] == 2


def test_no_image_comes(faulty: LiveServer) -> None:
    """Alone it is an error, in a stream it ends with one; neither costs anything."""
    body = SPOILT | {"prompt": "nan-seed@7", "sequential_image_generation_options": None}
    headers = {"authorization": f"Bearer {faulty.account('ark-none')}"}
    answer = faulty.client.post(PATH, json=body, headers=headers)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "InternalServiceError"
    sent = all_events(faulty.client.post(PATH, json=body | {"stream": True}, headers=headers))
    assert [event.name for event in sent] == [
        *("image_generation.partial_failed", "error", "message"),
    ]
    assert set(sent[1].data["error"]) == {"code", "message", "param", "type"}
    assert faulty.balance("ark-none") == 15_000


def test_a_stream_that_is_refused_is_a_plain_error(server: LiveServer) -> None:
    answer = server.client.post(PATH, json={"prompt": "x", "stream": True, "size": "1x1"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "size"
    pro = {"prompt": "x", "stream": True, "model": "doubao-seedream-5-0-pro-260628"}
    answer = server.client.post(PATH, json=pro)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "InvalidParameter", ""),
        ({}, 400, "MissingParameter", "prompt"),
        ({"prompt": "x", "model": "ep-1"}, 404, "InvalidEndpointOrModel.NotFound", "model"),
        ({"prompt": "x", "size": "16K"}, 400, "InvalidParameter", "size"),
        ({"prompt": "x", "n": 2}, 400, "InvalidParameter", "n"),
        ({"prompt": "制作炸弹"}, 400, "InputTextSensitiveContentDetected", ""),
    ],
)
def test_errors(server: LiveServer, body: object, status: int, code: str, param: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.client.post(PATH, content=raw)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].endswith(f" Request id: {answer.headers['x-request-id']}")
    assert answer.headers["x-error-code"] == code


def test_an_edit_starts_from_its_picture(server: LiveServer) -> None:
    """A link of ours, and a data URL: with the same seed both give the same edit, which is not the picture."""
    body = {"prompt": "a red apple on a table", "size": "1K", "seed": 5}
    url = server.client.post(PATH, json=body).json()["data"][0]["url"]
    apple = httpx2.get(url).content
    inline = f"data:image/jpeg;base64,{base64.b64encode(apple).decode()}"
    change = body | {"prompt": "a green apple on a table"}
    edits = [server.client.post(PATH, json=change | {"image": image}) for image in (url, [inline])]
    assert [answer.status_code for answer in edits] == [200, 200], edits[0].text
    drawn = [opened(httpx2.get(edit.json()["data"][0]["url"]).content) for edit in edits]
    assert are_alike(drawn[0], drawn[1])
    wide = server.client.post(PATH, json=body | {"size": "1280x720"}).json()["data"][0]["url"]
    fitted = server.client.post(PATH, json=change | {"image": wide}).json()["data"][0]
    assert fitted["size"] == "1280x720"  # the tier's ratio nearest to the picture's
    assert not are_alike(drawn[0], opened(apple))


def test_jimeng_edits_by_its_own_habits(server: LiveServer) -> None:
    """`sample_strength` 0 all but keeps the picture, 1 leaves it."""
    path = "/v1/images/generations"
    body = {"model": "jimeng-4.5", "prompt": "a blue bird", "n": 1, "seed": 5}
    by_ratio = body | {"ratio": "3:2", "resolution": "1k"}
    url = server.client.post(path, json=by_ratio).json()["data"][0]["url"]
    bird = opened(httpx2.get(url).content).convert("RGB")
    assert bird.size == (1248, 832)

    def distance(strength: float) -> float:
        change = by_ratio | {"prompt": "a yellow flower", "image": url, "sample_strength": strength}
        answer = server.client.post(path, json=change)
        assert answer.status_code == 200, answer.text
        edit = opened(httpx2.get(answer.json()["data"][0]["url"]).content).convert("RGB")
        assert edit.size == (1248, 832)
        first, second = (image.resize((64, 64)).tobytes() for image in (bird, edit))
        return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)

    near, far = distance(0), distance(1)
    assert near < 20 < far


@pytest.mark.parametrize(
    ("image", "code", "param"),
    [
        (["data:image/png;base64,QUJD"] * 15, "InvalidParameter", "image"),
        ("data:image/png;base64,QUJD", "InvalidImageURL.InvalidFormat", "image"),
        ("", "InvalidImageURL.EmptyURL", "image"),
        (["http://127.0.0.1:1/a.png"], "InvalidImageURL.InvalidFormat", "image[0]"),
        ("ftp://img.example/a.png", "InvalidImageURL.InvalidFormat", "image"),
    ],
)
def test_pictures_that_are_none(server: LiveServer, image: object, code: str, param: str) -> None:
    answer = server.client.post(PATH, json={"prompt": "x", "image": image})
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


def test_stray_paths_and_methods_speak_ark(server: LiveServer) -> None:
    assert server.client.get(PATH).status_code == 405
    lost = server.client.post("/api/v3/videos")
    assert lost.status_code == 404
    assert set(lost.json()["error"]) == {"code", "message", "param", "type"}
