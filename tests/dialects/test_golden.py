"""Golden files: each seed's request becomes the expected task, each result the expected body."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.dialects.cards import CARDS

from danqing.dialects.base import choose_v1_chat, choose_v1_images, parse_json
from danqing.dialects.registry import DIALECTS
from danqing.domain.errors import ServerFault
from danqing.domain.sizes import Size
from danqing.domain.task import (
    DeliveredImage,
    Delivery,
    ImageResult,
    ImageTask,
    SafetyLevel,
)

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_request(path: Path) -> None:
    golden = load(path)
    body = parse_json(json.dumps(golden["request"]).encode())
    dialect = DIALECTS[golden["dialect"]]
    expected = golden["task"]
    expected["size"] = Size(*expected["size"])
    if "history" in expected:
        expected["history"] = tuple(expected["history"])
    how = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in golden["delivery"].items()
    }
    assert dialect.requested_model(body) == golden["requested_model"]
    task, delivery = dialect.decode_request(body, CARDS[golden["card"]])
    assert task == ImageTask(**expected)
    assert delivery == Delivery(**how)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reply(path: Path) -> None:
    golden = load(path)
    dialect = DIALECTS[golden["dialect"]]
    task, delivery = dialect.decode_request(golden["request"], CARDS[golden["card"]])
    key = "url" if delivery.form == "url" else "b64"
    images = tuple(
        DeliveredImage(f"i{i}", task.size, i, delivery.format, **{key: value})
        for i, value in enumerate(golden["result"]["images"])
    )
    result = ImageResult(
        created=golden["result"]["created"],
        model=task.model,
        # A failed image leaves no item behind, in Ark's answer its error.
        images=(images[0], ServerFault(), *images[1:]),
        prompt=task.prompt,
        revised_prompt=golden["result"].get("revised_prompt"),
        safety=tuple(SafetyLevel(*level) for level in golden["result"].get("safety", ())),
        quality=task.quality,
    )
    reply = dialect.encode_result(result, delivery, "reply-1")
    assert reply.status == 200
    assert reply.body == golden["reply"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_route_finds_the_dialect(path: Path) -> None:
    golden = load(path)
    if golden["dialect"] in ("draw", "chat"):
        assert choose_v1_chat(golden["request"]) == golden["dialect"]
    elif golden["dialect"] in ("openai", "dashscope"):
        assert choose_v1_images(golden["request"]) == golden["dialect"]


def test_unreadable_body_gets_the_openai_shape() -> None:
    assert choose_v1_images(None) == choose_v1_chat(None) == "openai"


def test_null_input_and_null_messages_count_as_absent() -> None:
    assert choose_v1_images({"input": None, "prompt": "x"}) == "openai"
    assert choose_v1_chat({"messages": None, "prompt": "x"}) == "draw"
    assert choose_v1_chat({"prompt": None}) == "draw"
    assert choose_v1_chat({"messages": [], "prompt": "x"}) == "chat"


def test_chat_shows_base64_as_data_urls() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": "b64_json"}
    task, delivery = DIALECTS["chat"].decode_request(body, CARDS["jimeng-4.0"])
    assert task.n == 4
    image = DeliveredImage("i", task.size, 0, "jpeg", b64="QUJD")
    result = ImageResult(created=1, model="jimeng-4.0", images=(image,), prompt="x")
    reply = DIALECTS["chat"].encode_result(result, delivery, "1")
    content = reply.body["choices"][0]["message"]["content"]
    assert content == "![image](data:image/jpeg;base64,QUJD)"
