"""Edits and variations of OpenAI: forms and JSON become the same task; every fault names its field."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cards import card

from danqing.dialects.base import Upload
from danqing.dialects.forms import form_body
from danqing.dialects.registry import DIALECTS
from danqing.domain.card import Backend, Card, Preset
from danqing.domain.errors import (
    InvalidField,
    InvalidImage,
    MissingField,
    PromptTooLong,
    RequestError,
    TooManyImages,
    UnknownField,
    UnsupportedField,
)
from danqing.domain.sizes import Size, SizeRule
from danqing.domain.task import (
    DeliveredImage,
    Delivery,
    FinishedImage,
    ImageResult,
    ImageSource,
    ImageTask,
    StreamHead,
)

EDITS, VARIATIONS = DIALECTS["openai_edits"], DIALECTS["openai_variations"]
PRESET = Preset(8, 4.0)
GPT = card(
    "gpt-image-1",
    sizes=SizeRule(
        default=Size(1024, 1024),
        listed=(Size(1024, 1024), Size(1536, 1024)),
        named={"auto": Size(1024, 1024)},
    ),
    n_max=10,
    qualities={"low": PRESET, "medium": PRESET, "high": PRESET},
    quality_default="medium",
    references_max=16,
    features=frozenset({"output_format", "b64_default", "echo", "stream"}),
)
DALLE = card("dall-e-2", n_max=10, references_max=1, features=frozenset({"response_format"}))
JIMENG = card("jimeng", references_max=1, features=frozenset({"watermark"}), format="jpeg")


def file(data: bytes = b"picture") -> Upload:
    return Upload(data, "a.png", "image/png")


def link(data: bytes) -> dict[str, Any]:
    return {"image_url": "data:image/png;base64," + base64.b64encode(data).decode()}


FORM: list[tuple[str, Any]] = [("image", file()), ("prompt", "a hat")]
ALL_FORM: list[tuple[str, Any]] = [
    *[("image[]", file(b"one")), ("image[]", file(b"two")), ("mask", file(b"mask"))],
    *[("prompt", "a hat"), ("model", "gpt-image-1"), ("n", "2"), ("size", "1536x1024")],
    *[("quality", "high"), ("background", "opaque"), ("output_format", "webp")],
    *[("output_compression", "50"), ("input_fidelity", "low"), ("moderation", "auto")],
    *[("stream", "true"), ("partial_images", "2"), ("user", "someone"), ("seed", "7")],
    *[("negative_prompt", "shoes"), ("strength", "0.25")],
]
ALL_JSON: dict[str, Any] = {
    "images": [link(b"one"), link(b"two")],
    "mask": link(b"mask"),
    "prompt": "a hat",
    "model": "gpt-image-1",
    "n": 2,
    "size": "1536x1024",
    "quality": "high",
    "background": "opaque",
    "output_format": "webp",
    "output_compression": 50,
    "input_fidelity": "low",
    "moderation": "auto",
    "stream": True,
    "partial_images": 2,
    "user": "someone",
    "seed": 7,
    "negative_prompt": "shoes",
    "strength": 0.25,
}


def test_a_form_and_json_make_the_same_task() -> None:
    expected = ImageTask(
        model="gpt-image-1",
        prompt="a hat",
        size=Size(1536, 1024),
        quality="high",
        n=2,
        negative_prompt="shoes",
        seed=7,
        end_user="someone",
        references=(ImageSource("", data=b"one"), ImageSource("", data=b"two")),
        mask=ImageSource("", data=b"mask"),
        strength=0.25,
    )
    delivery = Delivery(
        form="b64_json",
        format="webp",
        compression=50,
        stream=True,
        partial_images=2,
        echo=True,
    )
    for body in (form_body(ALL_FORM), ALL_JSON):
        assert EDITS.requested_model(body) == "gpt-image-1"
        assert EDITS.decode_request(body, GPT) == (expected, delivery)


def test_each_picture_knows_its_place() -> None:
    def places(body: Mapping[str, object]) -> list[str]:
        task, _ = EDITS.decode_request(body, GPT)
        return [
            source.param for source in (*task.references, *[task.mask] * bool(task.mask)) if source
        ]

    assert places(form_body(FORM)) == ["image"]
    assert places(form_body(ALL_FORM)) == ["image[0]", "image[1]", "mask"]
    assert places(ALL_JSON) == [
        *("images[0].image_url", "images[1].image_url", "mask.image_url"),
    ]
    both = [("image[]", file(b"two")), *FORM]
    task, _ = EDITS.decode_request(form_body(both), GPT)
    assert [source.data for source in task.references] == [b"picture", b"two"]


def test_little_is_needed() -> None:
    task, delivery = EDITS.decode_request(form_body(FORM), GPT)
    assert task == ImageTask(
        model="gpt-image-1",
        prompt="a hat",
        size=Size(1024, 1024),
        quality="medium",
        references=(ImageSource("image", data=b"picture"),),
        fit_reference=True,
    )
    assert delivery == Delivery(form="b64_json", echo=True)


@pytest.mark.parametrize(
    ("size", "of", "expected", "fits"),
    [
        (None, GPT, "1024x1024", True),
        ("auto", GPT, "1024x1024", True),
        ("1536x1024", GPT, "1536x1024", False),
        (None, DALLE, "1024x1024", True),
        ("auto", DALLE, "1024x1024", True),
        ("256x256", DALLE, "256x256", False),
    ],
)
def test_the_size_follows_the_picture_where_none_is_said(
    size: str | None, of: Card, expected: str, fits: bool
) -> None:
    form = [*FORM, *([] if size is None else [("size", size)])]
    task, _ = EDITS.decode_request(form_body(form), of)
    assert (str(task.size), task.fit_reference) == (expected, fits)


def test_what_dall_e_honours() -> None:
    form = [*FORM, ("response_format", "b64_json"), ("n", "3")]
    _, delivery = EDITS.decode_request(form_body(form), DALLE)
    assert delivery == Delivery(form="b64_json")
    task, delivery = EDITS.decode_request(form_body([*FORM, ("watermark", "false")]), JIMENG)
    assert not task.ai_label
    assert delivery.format == "jpeg"


def test_a_picture_may_be_its_own_mask_where_the_model_says_so() -> None:
    holes = replace(DALLE, features=DALLE.features | {"alpha_mask"})
    for form, of, expected in (
        (FORM, holes, True),
        ([*FORM, ("mask", file())], holes, False),
        (FORM, DALLE, False),
    ):
        task, _ = EDITS.decode_request(form_body(form), of)
        assert task.mask_from_alpha is expected


FORM_FAULTS: list[tuple[list[tuple[str, Any]], Card, type[RequestError], str]] = [
    ([("image", None)], GPT, MissingField, "image"),
    ([("prompt", None)], GPT, MissingField, "prompt"),
    ([("prompt", " ")], GPT, InvalidField, "prompt"),
    ([("prompt", "x" * 1001)], GPT, PromptTooLong, "prompt"),
    ([("prompt", file())], GPT, InvalidField, "prompt"),
    ([("image", "text")], GPT, InvalidField, "image"),
    ([("mask", "text")], GPT, InvalidField, "mask"),
    ([("mask", [file(), file()])], GPT, InvalidField, "mask"),
    ([("image[]", [file()] * 16)], GPT, InvalidField, "image"),
    ([("image[]", file())], DALLE, InvalidField, "image"),
    ([], replace(GPT, references_max=0), UnsupportedField, "image"),
    ([("markup", file())], GPT, UnsupportedField, "markup"),
    ([("images", "x")], GPT, UnsupportedField, "images"),
    ([("style", "vivid")], GPT, UnknownField, "style"),
    ([("foo", file())], GPT, UnknownField, "foo"),
    ([("n", "two")], GPT, InvalidField, "n"),
    ([("n", "0")], GPT, InvalidField, "n"),
    ([("n", "11")], GPT, TooManyImages, "n"),
    ([("size", "2x2")], GPT, InvalidField, "size"),
    ([("quality", "hd")], GPT, InvalidField, "quality"),
    ([("response_format", "url")], GPT, UnknownField, "response_format"),
    ([("response_format", "gif")], DALLE, InvalidField, "response_format"),
    ([("background", "transparent")], GPT, UnsupportedField, "background"),
    ([("input_fidelity", "best")], GPT, InvalidField, "input_fidelity"),
    ([("moderation", "low")], GPT, UnsupportedField, "moderation"),
    ([("output_format", "gif")], GPT, InvalidField, "output_format"),
    ([("output_format", "webp")], DALLE, UnsupportedField, "output_format"),
    ([("output_compression", "50")], GPT, UnsupportedField, "output_compression"),
    ([("output_compression", "101")], GPT, InvalidField, "output_compression"),
    ([("stream", "yes")], GPT, InvalidField, "stream"),
    ([("stream", "true")], DALLE, UnsupportedField, "stream"),
    ([("partial_images", "1")], GPT, UnsupportedField, "partial_images"),
    ([("partial_images", "4")], GPT, InvalidField, "partial_images"),
    ([("watermark", "false")], GPT, UnknownField, "watermark"),
    ([("model", file())], GPT, InvalidField, "model"),
    ([("seed", "-1")], GPT, InvalidField, "seed"),
    ([("strength", "1.5")], GPT, InvalidField, "strength"),
    ([("strength", "much")], GPT, InvalidField, "strength"),
]


@pytest.mark.parametrize(("changes", "of", "error", "param"), FORM_FAULTS)
def test_faults_of_forms_name_their_field(
    changes: list[tuple[str, Any]], of: Card, error: type[RequestError], param: str
) -> None:
    body = form_body(FORM)
    body |= changes
    body = type(body)({name: value for name, value in body.items() if value is not None})
    with pytest.raises(error) as caught:
        EDITS.decode_request(body, of)
    assert caught.value.param == param


URL = {"image_url": "https://a.example/cat.png"}
JSON_FAULTS: list[tuple[dict[str, Any], type[RequestError], str]] = [
    ({"images": None}, MissingField, "images"),
    ({"images": []}, MissingField, "images"),
    ({"images": "x"}, InvalidField, "images"),
    ({"images": ["x"]}, InvalidField, "images[0]"),
    ({"images": [URL] * 17}, InvalidField, "images"),
    ({"images": [{}]}, MissingField, "images[0].image_url"),
    ({"images": [URL, {"file_id": "f"}]}, UnsupportedField, "images[1].file_id"),
    ({"images": [URL | {"file_id": "f"}]}, UnsupportedField, "images[0].file_id"),
    ({"images": [URL | {"x": 1}]}, UnknownField, "images[0].x"),
    ({"images": [{"image_url": "cat.png"}]}, InvalidImage, "images[0].image_url"),
    ({"images": [{"image_url": "A" * 20_971_521}]}, InvalidImage, "images[0].image_url"),
    ({"mask": {"file_id": "f"}}, UnsupportedField, "mask.file_id"),
    ({"mask": "x"}, InvalidField, "mask"),
    ({"image": "x"}, UnknownField, "image"),
    ({"n": "2"}, InvalidField, "n"),
    ({"stream": "true"}, InvalidField, "stream"),
    ({"prompt": None}, MissingField, "prompt"),
]


@pytest.mark.parametrize(("changes", "error", "param"), JSON_FAULTS)
def test_faults_of_json_name_their_field(
    changes: dict[str, Any], error: type[RequestError], param: str
) -> None:
    body = {"images": [URL], "prompt": "a hat"} | changes
    with pytest.raises(error) as caught:
        EDITS.decode_request(body, GPT)
    assert caught.value.param == param


def test_a_variation_has_no_prompt() -> None:
    form = [
        *[("image", file()), ("model", "dall-e-2"), ("n", "3"), ("size", "512x512")],
        *[("response_format", "b64_json"), ("user", "someone"), ("seed", "7")],
    ]
    task, delivery = VARIATIONS.decode_request(form_body(form), DALLE)
    assert task == ImageTask(
        model="dall-e-2",
        prompt="",
        size=Size(512, 512),
        quality="standard",
        n=3,
        seed=7,
        end_user="someone",
        references=(ImageSource("image", data=b"picture"),),
    )
    assert delivery == Delivery(form="b64_json")


@pytest.mark.parametrize(
    ("changes", "error", "param"),
    [
        ([("image", None)], MissingField, "image"),
        ([("image", "x")], InvalidField, "image"),
        ([("image", [file(), file()])], InvalidField, "image"),
        ([("image[]", file())], UnknownField, "image[]"),
        ([("prompt", "a hat")], UnknownField, "prompt"),
        ([("mask", file())], UnknownField, "mask"),
        ([("size", "1x1")], InvalidField, "size"),
        ([("n", "11")], TooManyImages, "n"),
        ([("quality", "hd")], UnknownField, "quality"),
    ],
)
def test_faults_of_variations_name_their_field(
    changes: list[tuple[str, Any]], error: type[RequestError], param: str
) -> None:
    body = form_body([("image", file())])
    body |= changes
    body = type(body)({name: value for name, value in body.items() if value is not None})
    with pytest.raises(error) as caught:
        VARIATIONS.decode_request(body, DALLE)
    assert caught.value.param == param


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
names = st.sampled_from(
    ["image", "image[]", "mask", "prompt", "n", "size", "stream", "seed", "model", "x", "images"]
)
parts = st.lists(st.tuples(names, texts | st.builds(Upload, st.binary(), texts, texts)))


@given(parts)
def test_nothing_but_request_errors_escapes(form: list[tuple[str, Any]]) -> None:
    for dialect in (EDITS, VARIATIONS):
        try:
            dialect.decode_request(form_body(form), GPT)
        except RequestError:
            continue


def test_usage_counts_the_pictures_that_came_in() -> None:
    image = DeliveredImage("0", Size(1024, 1024), 7, "png", b64="x")
    result = ImageResult(1, "gpt-image-1", (image,), "a hat", input_pixels=512 * 512 + 256)
    usage = {
        "total_tokens": 5 + 1025 + 4096,
        "input_tokens": 5 + 1025,
        "output_tokens": 4096,
        "input_tokens_details": {"text_tokens": 5, "image_tokens": 1025},
    }
    body = EDITS.encode_result(result, Delivery(form="b64_json", echo=True), "1").body
    assert body["usage"] == usage
    head = StreamHead("1", 1, "gpt-image-1", "a hat", "low", image.size, 1, True, 512 * 512 + 256)
    [event] = EDITS.encode_event(FinishedImage(0, image), head, Delivery(stream=True))
    assert event.name == "image_edit.completed"
    assert isinstance(event.data, dict)
    assert event.data["usage"] == usage


def test_high_fidelity_is_told_as_ignored() -> None:
    _, delivery = EDITS.decode_request(form_body([*FORM, ("input_fidelity", "high")]), GPT)
    assert delivery.ignored == ("input_fidelity",)
    _, delivery = EDITS.decode_request(form_body([*FORM, ("input_fidelity", "low")]), GPT)
    assert delivery.ignored == ()


def test_fidelity_and_moderation_go_on_where_a_provider_knows_them() -> None:
    """Of the backend or of one that may step in; elsewhere the one is told, the other refused by name."""
    knows = Backend("far", "", dialect="openai", extras=frozenset({"input_fidelity", "moderation"}))
    for relayed in (replace(GPT, backend=knows), replace(GPT, fallbacks=(knows,))):
        for said in ("high", "low"):
            form = form_body([*FORM, ("input_fidelity", said), ("moderation", "low")])
            task, delivery = EDITS.decode_request(form, relayed)
            assert (task.input_fidelity, task.moderation, delivery.ignored) == (said, "low", ())
        task, _ = EDITS.decode_request(form_body([*FORM, ("moderation", "auto")]), relayed)
        assert (task.input_fidelity, task.moderation) == (None, None)
    with pytest.raises(UnsupportedField) as refused:
        EDITS.decode_request(form_body([*FORM, ("moderation", "low")]), GPT)
    assert refused.value.param == "moderation"
