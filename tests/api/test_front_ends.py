"""What Open WebUI, LobeChat and NextChat send to the image routes, field for field as their sources have it."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.conftest import LiveServer

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


def picture(size: tuple[int, int] = (384, 256)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "#e8e2d0").save(out, "PNG")
    return out.getvalue()


def drawn(answer: httpx2.Response) -> Image.Image:
    """The picture of an answer, which all three want in base64."""
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    image = Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))
    image.load()
    return image


@pytest.mark.parametrize(("quality", "style"), [("standard", "vivid"), ("hd", "natural")])
def test_nextchat_draws_with_dall_e_3(server: LiveServer, quality: str, style: str) -> None:
    """`app/client/platforms/openai.ts`: this model goes to the image route, whatever the conversation is."""
    body = {
        "model": "dall-e-3",
        "prompt": "A red apple on a table",
        "response_format": "b64_json",
        "n": 1,
        "size": "1024x1024",
        "quality": quality,
        "style": style,
    }
    headers = {"accept": "application/json", "x-requested-with": "XMLHttpRequest"}
    answer = server.client.post(GENERATIONS, json=body, headers=headers)
    assert drawn(answer).size == (1024, 1024)
    assert "x-danqing-ignored" not in answer.headers


# `backend/open_webui/routers/images.py`: no `response_format` for what its settings call GPT image models.
OPEN_WEBUI_HEADERS = {
    "x-openwebui-user-name": "anne",
    "x-openwebui-user-id": "1",
    "x-openwebui-user-email": "anne@example.org",
    "x-openwebui-user-role": "user",
}


@pytest.mark.parametrize(
    "body",
    [
        {"model": "dall-e-2", "n": 1, "size": "512x512", "response_format": "b64_json"},
        {"model": "gpt-image-1", "n": 1, "size": "auto"},
        {"model": "gpt-image-1", "n": 1},
        # Its *Additional Parameters*, set by an administrator.
        {"model": "gpt-image-1.5", "n": 1, "size": "1536x1024", "quality": "low", "output_format": "webp"},
    ],
)  # fmt: skip
def test_open_webui_draws(server: LiveServer, body: dict[str, Any]) -> None:
    asked = {"prompt": "A red apple on a table"} | body
    drawn(server.client.post(GENERATIONS, json=asked, headers=OPEN_WEBUI_HEADERS))


def test_open_webui_names_an_azure_version_in_the_query(server: LiveServer) -> None:
    body = {"model": "gpt-image-1", "prompt": "A red apple", "n": 1}
    drawn(server.client.post(f"{GENERATIONS}?api-version=2025-04-01-preview", json=body))


@pytest.mark.parametrize(
    ("part", "fields", "size"),
    [
        ("image", {"model": "gpt-image-1"}, (1536, 1024)),
        ("image[]", {"model": "gpt-image-1", "n": "1"}, (1536, 1024)),
        ("image", {"model": "dall-e-2", "response_format": "b64_json", "size": "512x512"}, (512, 512)),
        ("image", {"model": "gpt-image-1", "background": "auto"}, (1536, 1024)),
    ],
)  # fmt: skip
def test_open_webui_edits(
    server: LiveServer, part: str, fields: dict[str, str], size: tuple[int, int]
) -> None:
    """One picture is the part `image`, a list of them `image[]`; without a size of its settings it names none."""
    files = {part: ("3f0c.png", picture(), "image/png")}
    data = {"prompt": "a red apple"} | fields
    answer = server.client.post(EDITS, data=data, files=files, headers=OPEN_WEBUI_HEADERS)
    assert drawn(answer).size == size


def test_open_webui_is_told_of_too_many_pictures(server: LiveServer) -> None:
    files = [("image[]", (f"{n}.png", picture(), "image/png")) for n in range(2)]
    data = {"model": "gpt-image-1", "prompt": "a red apple"}
    answer = server.client.post(EDITS, data=data, files=files)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "image"


# LobeChat's `createImage.ts` uses the official client (of Node, whose requests are the same).


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "gpt-image-1", "n": 1},  # its size `auto` is left out
        {"model": "gpt-image-1", "n": 1, "size": "1024x1536"},
        {"model": "dall-e-3", "n": 1, "response_format": "b64_json", "size": "1024x1024", "quality": "hd"},
        {"model": "dall-e-2", "n": 1, "response_format": "b64_json", "size": "256x256"},
    ],
)  # fmt: skip
def test_lobechat_draws(client: openai.OpenAI, options: dict[str, Any]) -> None:
    answer = client.images.generate(prompt="A red apple on a table", **options)
    assert answer.data
    assert answer.data[0].b64_json
    if options["model"].startswith("gpt"):
        assert answer.usage is not None
        assert answer.usage.total_tokens > 0


def test_lobechat_edits_always_at_high_fidelity(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.edit(
        model="gpt-image-1",
        n=1,
        input_fidelity="high",
        prompt="a red apple",
        image=("image.png", picture(), "image/png"),
    )
    assert raw.headers["x-danqing-ignored"] == "input_fidelity"
    answer = raw.parse()
    assert answer.data
    shown = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    assert shown.size == (1536, 1024)
