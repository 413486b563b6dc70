"""Pictures that stand as text on the wire: URLs and data URLs, read strictly; and how many a model takes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cards import card

from danqing.dialects.fields import IMAGE_CHARS_MAX, read_references, read_source
from danqing.domain.errors import InvalidField, InvalidImage, RequestError, UnsupportedField
from danqing.domain.task import ImageSource


@given(st.binary(min_size=1), st.sampled_from(["png", "PNG", "jpeg", "svg+xml", "x-icon"]))
def test_a_data_url_gives_its_bytes_back(data: bytes, kind: str) -> None:
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    assert read_source(url, "images[0].image_url") == ImageSource("images[0].image_url", data=data)


@pytest.mark.parametrize(
    "url", ["https://a.example/猫.png?x=1", "HTTP://a.example", "http://[::1]/"]
)
def test_a_url_stays_as_it_is(url: str) -> None:
    assert read_source(url, "image").url == url


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "cat.png",
            "ftp://a.example/cat.png",
            "file:///etc/passwd",
            "https://",
            "//a.example",
        ),
        *("https://a b", "https://a\n.example", " https://a.example", "https://" + "a" * 8192),
        *("data:", "data:image/png,abc", "data:image/png;base64", "data:text/plain;base64,aaaa"),
        *("data:image/png;base64,", "data:image/png;base64,a", "data:image/png;base64,aaa"),
        *(
            "data:image/png;base64,aa==aaaa",
            "data:image/png;base64,aa\naa",
            "data:image/png;base64,aa-_",
        ),
        *("data:image/png;base64,猫猫猫猫", "data:image/png;" + "x;" * 200 + "base64,aaaa"),
        "aaaa",
    ],
)
def test_anything_else_is_an_error_that_names_the_field(text: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        read_source(text, "image")
    assert caught.value.param == "image"
    assert "'image'" in caught.value.message


def test_the_longest_data_url() -> None:
    head = "data:image/png;base64,"
    fits = head + "A" * ((IMAGE_CHARS_MAX - len(head)) // 4 * 4)
    assert read_source(fits, "image").data
    with pytest.raises(InvalidImage, match="at most 20971520"):
        read_source(fits + "AAAA", "image")
    with pytest.raises(InvalidImage, match="at most 30"):
        read_source(head + "AAAAAAAAAAAA", "image", chars_max=30)


@given(st.text())
def test_nothing_but_an_invalid_image_escapes(text: str) -> None:
    for one in (text, "data:" + text, "data:image/png;base64," + text, "http://" + text):
        try:
            source = read_source(one, "image")
        except InvalidImage:
            continue
        assert (source.data is None) != (source.url is None)


@pytest.mark.parametrize(
    ("count", "card_max", "wire_max", "error"),
    [
        (0, 0, None, None),
        (1, 0, None, UnsupportedField),
        (2, 2, None, None),
        (3, 2, None, InvalidField),
        (2, 4, 1, InvalidField),
        (1, 4, 1, None),
        (3, 2, 16, InvalidField),
    ],
)
def test_how_many_a_model_takes(
    count: int, card_max: int, wire_max: int | None, error: type[RequestError] | None
) -> None:
    sources = [ImageSource("image", data=b"x")] * count
    edits = card("dall-e-3", references_max=card_max)
    if error is None:
        assert len(read_references(sources, "image", edits, references_max=wire_max)) == count
        return
    with pytest.raises(error) as caught:
        read_references(sources, "image", edits, references_max=wire_max)
    assert caught.value.param == "image"
