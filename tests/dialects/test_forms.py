"""Forms as body mappings: text becomes what JSON would have had, and nothing else does."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from danqing.dialects.base import Upload
from danqing.dialects.fields import Wire
from danqing.dialects.forms import FormBody, form_body, typed
from danqing.domain.errors import InvalidBody

FILE = Upload(b"x", "x.png", "image/png")


class Body(Wire):
    text: str | None = None
    whole: int | None = None
    bounded: Annotated[int, Field(ge=0)] | None = None
    part: Annotated[float, Field(le=1)] | None = None
    yes: bool | None = None
    kind: Literal["a", "b"] | None = None


@given(st.integers(-(10**12) + 1, 10**12 - 1))
def test_whole_numbers(value: int) -> None:
    body = typed(form_body([("whole", str(value)), ("text", str(value))]), Body)
    assert body == {"whole": value, "text": str(value)}


@given(st.floats(-1e9, 1e9))
def test_numbers(value: float) -> None:
    assert typed(form_body([("part", str(value))]), Body) == {"part": value}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("bounded", "7", 7),
        ("yes", "true", True),
        ("yes", "false", False),
        ("yes", "True", "True"),
        ("yes", "1", "1"),
        ("whole", "", ""),
        ("whole", "1.0", "1.0"),
        ("whole", "１", "１"),
        ("whole", "9" * 5000, "9" * 5000),
        ("whole", "true", "true"),
        ("text", "true", "true"),
        ("part", "1", 1.0),
        ("part", "nan", "nan"),
        ("part", "inf", "inf"),
        ("kind", "1", "1"),
        ("other", "1", "1"),
    ],
)
def test_text_becomes_what_the_model_wants(name: str, text: str, value: object) -> None:
    assert typed(form_body([(name, text)]), Body) == {name: value}


def test_json_stays_as_it_is() -> None:
    assert typed({"whole": "7"}, Body) == {"whole": "7"}


def test_files_may_come_again_and_texts_may_not() -> None:
    body = form_body([("image[]", FILE), ("n", "1"), ("image[]", FILE), ("image[]", FILE)])
    assert body == FormBody({"image[]": [FILE, FILE, FILE], "n": "1"})
    for parts in ([("n", "1"), ("n", "1")], [("n", "1"), ("n", FILE)], [("n", FILE), ("n", "1")]):
        with pytest.raises(InvalidBody, match="'n' more than once"):
            form_body(parts)
    with pytest.raises(InvalidBody, match="NUL"):
        form_body([("prompt", "a\0b")])
