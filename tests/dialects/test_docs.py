"""The dialects' pages say what the codecs do: every parameter and every error code is on its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.dialects.cards import CARDS

from danqing.dialects import (
    ark,
    ark_shapes,
    chat,
    dashscope,
    dashscope_native,
    jimeng,
    openai,
    openai_shapes,
    zhipu,
)
from danqing.dialects.base import choose_v1_chat, choose_v1_images
from danqing.dialects.fields import Wire
from danqing.dialects.registry import DIALECTS

PAGES = Path(__file__).parents[2] / "docs" / "dialects"
BODIES: list[tuple[str, type[Wire]]] = [
    ("openai", openai.GenerationBody),
    ("draw", chat.DrawBody),
    ("chat", chat.ChatBody),
    ("zhipu", zhipu.ZhipuBody),
    ("qwen", dashscope.Parameters),
    ("ark", ark.ArkBody),
    ("jimeng", jimeng.JimengHabits),
    ("dashscope", dashscope_native.NativeParameters),
]
EXAMPLE = re.compile(r"<!-- tested -->\n```bash\n(curl .*?)\n```", re.DOTALL)


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "body"), BODIES)
def test_every_parameter_is_on_its_page(name: str, body: type[Wire]) -> None:
    text = page(name)
    prefix = "parameters." if name in ("qwen", "dashscope") else ""
    missing = [field for field in body.model_fields if f"`{prefix}{field}`" not in text]
    assert not missing


def test_every_ignored_parameter_is_on_the_chat_page() -> None:
    assert not [field for field in chat.MEANINGLESS if f"`{field}`" not in page("chat")]


def test_every_error_code_is_on_its_page() -> None:
    # The roots are never raised as such; their subclasses are.
    ours = {shape.code for shape in openai_shapes.SHAPES.values()} - {"invalid_request"}
    theirs = {shape.code for shape in zhipu.SHAPES.values()} - {"1000"}
    assert not [code for code in ours if f"`{code}`" not in page("openai")]
    assert not [code for code in theirs if f"`{code}`" not in page("zhipu")]
    arks = {shape.code for shape in ark_shapes.SHAPES.values()} | set(ark_shapes.REFUSALS.values())
    assert not [code for code in arks if f"`{code}`" not in page("ark")]
    native = {shape.code for shape in dashscope_native.SHAPES.values()}
    assert not [code for code in native if f"`{code}`" not in page("dashscope")]


@pytest.mark.parametrize(
    ("name", "dialect", "card"),
    [
        ("openai", "openai", "dall-e-3"),
        ("jimeng", "openai", "jimeng-4.0"),
        ("qwen", "dashscope", "qwen-image"),
        ("dashscope", "dashscope_native", "qwen-image"),
        ("zhipu", "zhipu", "cogview-4-250304"),
        ("draw", "draw", "draw"),
        ("chat", "chat", "dall-e-3"),
        ("ark", "ark", "doubao-seedream-4-0-250828"),
    ],
)
def test_the_example_is_understood(name: str, dialect: str, card: str) -> None:
    examples = [found for found in EXAMPLE.findall(page(name)) if " -d '" in found]
    assert examples
    for example in examples:
        body = json.loads(re.search(r"-d '(.*)'", example, re.DOTALL)[1])
        if "/chat/completions" in example:
            assert choose_v1_chat(body) == dialect
        elif "/v1/images/" in example:
            assert choose_v1_images(body) == dialect
        known = CARDS.get(body.get("model"), CARDS[card])
        task, _ = DIALECTS[dialect].decode_request(body, known)
        assert task.prompt
