"""The habits of jimeng's relays: sizes by ratio and resolution, pictures in the body; and that no other model has them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.dialects.cards import CARDS

from danqing.dialects.jimeng import JimengHabits
from danqing.dialects.registry import DIALECTS
from danqing.domain import errors
from danqing.domain.task import ImageTask

DATA_URL = "data:image/png;base64,QUJD"


def decode(card: str = "jimeng-4.0", **body: Any) -> ImageTask:
    return DIALECTS["openai"].decode_request({"prompt": "猫"} | body, CARDS[card])[0]


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"size": "2:3"}, (832, 1248)),
        ({"size": "2K"}, (2048, 2048)),
        ({"ratio": "2:3"}, (1664, 2496)),
        ({"ratio": "2:3", "resolution": "1k"}, (832, 1248)),
        ({"ratio": "2:3", "resolution": "2K"}, (1664, 2496)),
        ({"resolution": "1k"}, (1024, 1024)),
        ({"ratio": "2:3", "size": None}, (1664, 2496)),
        ({"intelligent_ratio": True}, (2048, 2048)),
        ({"intelligent_ratio": True, "prompt": "竖屏的猫"}, (1440, 2560)),
        ({"intelligent_ratio": True, "prompt": "竖屏的猫", "ratio": "2:3"}, (1440, 2560)),
        ({"intelligent_ratio": True, "prompt": "16:9的猫", "ratio": "2:3"}, (1664, 2496)),
        ({"intelligent_ratio": False, "prompt": "竖屏的猫"}, (2048, 2048)),
        ({"width": 512, "height": 512}, (512, 512)),
        ({"width": 1024}, (1024, 1024)),
        ({"height": 1024, "ratio": None}, (1024, 1024)),
    ],
)
def test_sizes(body: dict[str, Any], size: tuple[int, int]) -> None:
    assert decode(**body).size == size


def test_pictures_and_strength() -> None:
    task = decode(size="1:1", image=DATA_URL, sample_strength=0.25)
    assert [(one.param, one.data) for one in task.references] == [("image", b"ABC")]
    assert task.strength == 0.25
    task = decode(size="1:1", images=[DATA_URL, "https://img.example/a.png"])
    assert [one.param for one in task.references] == ["images[0]", "images[1]"]
    assert task.strength is None
    assert decode(size="1:1", image=[DATA_URL]).references[0].param == "image[0]"
    assert decode(size="1:1", image=[], images=[], sample_strength=None).references == ()
    assert decode(size="1:1", image=DATA_URL, sample_strength=0).strength == 0


@pytest.mark.parametrize(
    ("body", "cls", "param"),
    [
        ({}, errors.MissingField, "size"),
        ({"size": "1:1", "ratio": "1:1"}, errors.ExclusiveFields, "ratio"),
        ({"size": "1:1", "resolution": "1k"}, errors.ExclusiveFields, "resolution"),
        ({"size": "1:1", "width": 512}, errors.ExclusiveFields, "width"),
        ({"ratio": "1:1", "height": 512}, errors.ExclusiveFields, "height"),
        ({"ratio": "5:4"}, errors.InvalidField, "ratio"),
        ({"ratio": "1:1", "resolution": "8k"}, errors.InvalidField, "resolution"),
        ({"ratio": 1}, errors.InvalidField, "ratio"),
        ({"width": 500, "height": 512}, errors.InvalidField, "width"),
        ({"height": 100_000}, errors.InvalidField, "height"),
        ({"height": 0}, errors.InvalidField, "height"),
        ({"width": -5}, errors.InvalidField, "width"),
        ({"width": "512"}, errors.InvalidField, "width"),
        ({"size": "1:1", "sample_strength": 0.5}, errors.UnsupportedField, "sample_strength"),
        ({"size": "1:1", "image": DATA_URL, "sample_strength": 1.5}, errors.InvalidField, "sample_strength"),
        ({"size": "1:1", "image": 7}, errors.InvalidField, "image"),
        ({"size": "1:1", "image": [7]}, errors.InvalidField, "image[0]"),
        ({"size": "1:1", "image": "cat.png"}, errors.InvalidImage, "image"),
        ({"size": "1:1", "images": [DATA_URL, ""]}, errors.InvalidImage, "images[1]"),
        ({"size": "1:1", "images": DATA_URL}, errors.InvalidField, "images"),
        ({"size": "1:1", "images": [DATA_URL], "image": DATA_URL}, errors.ExclusiveFields, "images"),
        ({"size": "1:1", "images": [DATA_URL] * 3}, errors.InvalidField, "images"),
    ],
)  # fmt: skip
def test_refused_by_name(body: dict[str, Any], cls: Any, param: str) -> None:
    with pytest.raises(errors.RequestError) as refused:
        decode(**body)
    assert (type(refused.value), refused.value.param) == (cls, param)


@pytest.mark.parametrize("field", JimengHabits.model_fields)
def test_other_models_do_not_know_them(field: str) -> None:
    with pytest.raises(errors.UnknownField) as refused:
        decode("dall-e-3", **{field: 1})
    assert refused.value.param == field
