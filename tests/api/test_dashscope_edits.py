"""Edits in DashScope's words, on its own routes and on OpenAI's, drawn by pocket: the picture goes in as a data URL or a link."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import httpx2
import pytest
from PIL import Image, ImageChops, ImageStat

from tests.conftest import LiveServer

NATIVE = "/api/v1/services/aigc/multimodal-generation/generation"
RELAY = "/v1/images/generations"
UNDER_WAY = ("PENDING", "RUNNING")


def red_picture(width: int, height: int) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def edit(*pictures: str, text: str = "a cat", **parameters: Any) -> dict[str, Any]:
    content = [*({"image": picture} for picture in pictures), {"text": text}]
    return {
        "model": "qwen-image-plus",
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": {"seed": 7, "prompt_extend": False, **parameters},
    }


def drawn(server: LiveServer, path: str, body: dict[str, Any]) -> Image.Image:
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if path == NATIVE:
        url = answer.json()["output"]["choices"][0]["message"]["content"][0]["image"]
    else:
        url = answer.json()["data"][0]["url"]
    return Image.open(io.BytesIO(httpx2.get(url).content)).convert("RGB")


def redness(image: Image.Image) -> float:
    red, green, blue = ImageStat.Stat(image).mean
    return red - (green + blue) / 2


@pytest.mark.parametrize("path", [NATIVE, RELAY])
def test_an_edit_starts_from_its_picture_and_has_its_shape(server: LiveServer, path: str) -> None:
    edited = drawn(server, path, edit(red_picture(300, 500)))
    assert edited.size == (928, 1664)  # the model's nearest
    plain = drawn(server, path, edit(size="928*1664"))
    assert plain.size == edited.size
    assert ImageChops.difference(plain, edited).getbbox() is not None
    assert redness(edited) > redness(plain) + 20


def test_a_link_of_our_own_is_a_picture(server: LiveServer) -> None:
    first = server.client.post(NATIVE, json=edit(size="1328*1328")).json()
    url = first["output"]["choices"][0]["message"]["content"][0]["image"]
    again = drawn(server, NATIVE, edit(url, text="a dog"))
    assert again.size == (1328, 1328)


@pytest.mark.parametrize("kind", ["text2image", "image2image"])
def test_a_task_edits(server: LiveServer, kind: str) -> None:
    body = {
        "model": "qwen-image-plus",
        "input": {"prompt": "a cat", "images": [red_picture(500, 300)]},
        "parameters": {"seed": 7},
    }
    path = f"/api/v1/services/aigc/{kind}/image-synthesis"
    begun = server.client.post(path, json=body, headers={"x-dashscope-async": "enable"})
    assert begun.status_code == 200, begun.text
    where = f"/api/v1/tasks/{begun.json()['output']['task_id']}"
    while (output := server.client.get(where).json()["output"])["task_status"] in UNDER_WAY:
        time.sleep(0.1)
    image = Image.open(io.BytesIO(httpx2.get(output["results"][0]["url"]).content))
    assert image.size == (1664, 928)


@pytest.mark.parametrize(
    ("pictures", "status", "code"),
    [
        (["data:image/png;base64,cG5n"], 415, "BadRequest.UnsupportedFileFormat"),
        (["http://127.0.0.1:1/a.png"], 415, "BadRequest.InputDownloadFailed"),
        (["oss://bucket/a.png"], 400, "InvalidURL"),
        ([red_picture(64, 64)] * 2, 400, "InvalidParameter"),
    ],
    ids=["no picture", "a private address", "oss", "two"],
)
@pytest.mark.parametrize("path", [NATIVE, RELAY])
def test_what_is_no_picture_costs_nothing(
    server: LiveServer, path: str, pictures: list[str], status: int, code: str
) -> None:
    named = "input.messages[0].content[0].image"
    before = server.balance("operator")
    answer = server.client.post(path, json=edit(*pictures))
    assert answer.status_code == (status if path == NATIVE else 400), answer.text
    if path == NATIVE:
        assert answer.json()["code"] == code
        assert named in answer.json()["message"]
    else:
        assert answer.json()["error"]["param"] == named
    assert server.balance("operator") == before
