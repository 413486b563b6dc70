"""How many pictures an edit may start from: the provider's number by a relay, the family's own by a local backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from danqing import catalog
from danqing.dialects.registry import DIALECTS
from danqing.domain.card import Card
from danqing.domain.errors import InvalidField, UnsupportedField
from danqing.domain.sizes import Size
from danqing.domain.task import ImageSource, ImageTask
from danqing.providers.local import LocalProvider
from danqing.settings import Settings

RELAYED = """
[backends.far]
dialect = "{dialect}"
base_url = "http://127.0.0.1:1/v1"

[models."{model}"]
backend = "far"
fallbacks = [{fallbacks}]
"""
PICTURE = "data:image/png;base64,AAAA"


def relayed(folder: Path, dialect: str, model: str, fallbacks: str = "") -> Card:
    path = folder / "catalog.toml"
    path.write_text(RELAYED.format(dialect=dialect, model=model, fallbacks=fallbacks), "utf-8")
    return catalog.load(Settings(catalog_file=path)).find(model, "openai")


@pytest.mark.parametrize(
    ("dialect", "model", "most"),
    [
        ("openai", "gpt-image-1", 16),
        ("openai", "gpt-image-2", 16),
        ("openai", "dall-e-2", 1),
        ("ark", "doubao-seedream-4-0-250828", 14),
        ("ark", "doubao-seedream-4-5-251128", 14),
        ("ark", "doubao-seedream-5-0-260128", 14),
        ("ark", "doubao-seedream-5-0-pro-260628", 10),
        ("ark", "doubao-seedream-5-0-flash-260915", 10),
        ("dashscope", "qwen-image-2.0", 3),
        ("dashscope", "qwen-image-3.0-pro", 3),
        ("dashscope", "wan2.7-image-pro", 9),
        ("dashscope", "z-image-turbo", 1),
    ],
)
def test_a_relay_takes_as_many_as_its_provider(
    tmp_path: Path, dialect: str, model: str, most: int
) -> None:
    assert relayed(tmp_path, dialect, model).references_max == most
    with_fallback = relayed(tmp_path, dialect, model, '"pocket"')
    assert with_fallback.references_max == most
    assert [one.references_max for one in with_fallback.fallbacks] == [1]


@pytest.mark.parametrize("model", ["gpt-image-1", "doubao-seedream-4-0-250828", "qwen-image-2.0"])
def test_the_stand_in_takes_one(model: str) -> None:
    assert catalog.load(Settings()).find(model, "openai").references_max == 1


@pytest.mark.parametrize(
    ("dialect", "model", "body"),
    [
        ("openai_edits", "gpt-image-1", lambda n: {"images": [{"image_url": PICTURE}] * n}),
        ("ark", "doubao-seedream-4-0-250828", lambda n: {"image": [PICTURE] * n}),
    ],
)
def test_one_too_many_names_the_field(tmp_path: Path, dialect: str, model: str, body: Any) -> None:
    own = "ark" if dialect == "ark" else "openai"
    card = relayed(tmp_path, own, model)
    request = {"prompt": "a hat"}
    task, _ = DIALECTS[dialect].decode_request(request | body(card.references_max), card)
    assert len(task.references) == card.references_max
    with pytest.raises(InvalidField, match=f"at most {card.references_max}") as caught:
        DIALECTS[dialect].decode_request(request | body(card.references_max + 1), card)
    assert caught.value.param in ("image", "images")


class _Nothing:
    pixels_max = None

    async def measure(self, _text: str) -> None:
        return None

    def draw(self, jobs: tuple[Any, ...]) -> AsyncGenerator[Any, None]:
        raise AssertionError


def test_a_local_fallback_says_that_it_takes_fewer() -> None:
    """So that the router passes it over."""
    card = catalog.load(Settings()).find("gpt-image-1", "openai")
    sources = tuple(ImageSource(f"image[{at}]", data=b"x") for at in range(2))
    task = ImageTask("gpt-image-1", "a hat", Size(1024, 1024), "low", references=sources)
    with pytest.raises(UnsupportedField) as caught:
        asyncio.run(LocalProvider(_Nothing()).check(task, card))
    assert caught.value.param == "image"
