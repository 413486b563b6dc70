"""What an unknown field is answered: the error of its dialect, naming it and the field that was probably meant."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cards import CARDS

from danqing.dialects.base import Upload, choose_v1_chat, choose_v1_images
from danqing.dialects.fields import Wire
from danqing.dialects.forms import FormBody
from danqing.dialects.hints import meant
from danqing.dialects.registry import DIALECTS
from danqing.domain.errors import ExclusiveFields, MissingField, RequestError, UnknownField

CATS = {"messages": [{"role": "user", "content": [{"text": "猫"}]}]}
TURNS = [{"role": "user", "content": "猫"}]
PIXEL = {"image_url": "data:image/png;base64,AAAA"}

# dialect, card, body, the field that is wrong, the one that was meant
MISSPELT: list[tuple[str, str, dict[str, Any], str, str]] = [
    *[(name, "dall-e-3", {"promt": "猫"}, "promt", "prompt") for name in ("openai", "chat")],
    ("draw", "draw", {"promt": "猫", "model": "draw"}, "promt", "prompt"),
    ("zhipu", "cogview-4-250304", {"promt": "猫"}, "promt", "prompt"),
    ("ark", "doubao-seedream-4-0-250828", {"promt": "猫"}, "promt", "prompt"),
    ("dashscope_native", "qwen-image", {"inputs": CATS}, "inputs", "input"),
    ("dashscope_native", "qwen-image", {"input": {"mesages": []}}, "input.mesages", "input.messages"),
    ("dashscope_synthesis", "qwen-image", {"input": {"promt": "猫"}}, "input.promt", "input.prompt"),
    ("openai", "qwen-image", {"inputs": CATS}, "inputs", "input"),
    ("openai_edits", "dall-e-3", {"prompt": "猫", "image": [PIXEL]}, "image", "images"),
    # Nothing is missing: what is unknown is refused all the same.
    ("openai", "dall-e-3", {"prompt": "猫", "respose_format": "url"}, "respose_format", "response_format"),
    ("openai", "dall-e-3", {"prompt": "猫", "responseFormat": "url"}, "responseFormat", "response_format"),
    ("openai", "dall-e-3", {"Prompt": "猫"}, "Prompt", "prompt"),
    ("openai", "dall-e-3", {"prompt": "猫", "num_images": 2}, "num_images", "n"),
    ("openai", "dall-e-3", {"prompt": "猫", "aspect_ratio": "1:1"}, "aspect_ratio", "size"),
    ("openai", "dall-e-3", {"prompt": "猫", "width": 512}, "width", "size"),
    ("openai", "jimeng-4.0", {"prompt": "猫", "size": "2:3", "resolutoin": "1k"}, "resolutoin", "resolution"),
    ("chat", "dall-e-3", {"mesages": TURNS}, "mesages", "messages"),
    ("chat", "dall-e-3", {"messages": [{"role": "user", "contnt": "猫"}]}, "messages[0].contnt", "messages[0].content"),
    ("zhipu", "cogview-4-250304", {"prompt": "猫", "sise": "1024x1024"}, "sise", "size"),
    ("zhipu", "cogview-4-250304", {"prompt": "猫", "watermark": False}, "watermark", "watermark_enabled"),
    ("ark", "doubao-seedream-4-0-250828", {"prompt": "猫", "watermark_enabled": False}, "watermark_enabled", "watermark"),
    (
        "ark",
        "doubao-seedream-4-0-250828",
        {"prompt": "猫", "sequential_image_generation_options": {"max_image": 2}},
        "sequential_image_generation_options.max_image",
        "sequential_image_generation_options.max_images",
    ),
    # In the wrong place.
    ("dashscope", "qwen-image", {"input": CATS, "size": "1328*1328"}, "size", "parameters.size"),
    ("dashscope", "qwen-image", {"input": CATS, "parameters": {"sise": "1328*1328"}}, "parameters.sise", "parameters.size"),
    (
        "dashscope_native",
        "qwen-image",
        {"input": {"messages": [{"role": "user", "content": [{"txt": "猫"}]}]}},
        "input.messages[0].content[0].txt",
        "input.messages[0].content[0].text",
    ),
    ("ark", "doubao-seedream-4-0-250828", {"prompt": "猫", "max_images": 2}, "max_images", "sequential_image_generation_options.max_images"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "card", "body", "param", "hint"), MISSPELT)
def test_the_nearest_known_field_is_named(
    dialect: str, card: str, body: dict[str, Any], param: str, hint: str
) -> None:
    with pytest.raises(UnknownField) as caught:
        DIALECTS[dialect].decode_request(body, CARDS[card])
    assert caught.value.param == param
    assert caught.value.message == f"Unknown parameter: '{param}'. Did you mean '{hint}'?"
    told = DIALECTS[dialect].encode_error(caught.value, "r").body
    assert f"Did you mean '{hint}'?" in json.dumps(told)


@pytest.mark.parametrize(
    ("dialect", "status", "body"),
    [
        (
            "openai",
            400,
            {
                "error": {
                    "message": "Unknown parameter: 'promt'. Did you mean 'prompt'?",
                    "type": "invalid_request_error",
                    "param": "promt",
                    "code": "unknown_parameter",
                }
            },
        ),
        (
            "zhipu",
            400,
            {
                "error": {
                    "code": "1210",
                    "message": "Unknown parameter: 'promt'. Did you mean 'prompt'?",
                }
            },
        ),
        (
            "dashscope_native",
            400,
            {
                "code": "InvalidParameter",
                "message": "Unknown parameter: 'promt'. Did you mean 'prompt'?",
                "request_id": "r",
            },
        ),
        (
            "ark",
            400,
            {
                "error": {
                    "code": "InvalidParameter",
                    "message": "Unknown parameter: 'promt'. Did you mean 'prompt'? Request id: r",
                    "param": "promt",
                    "type": "BadRequest",
                }
            },
        ),
        (
            "draw",
            200,
            {
                "error": {
                    "message": "Unknown parameter: 'promt'. Did you mean 'prompt'?",
                    "type": "invalid_request_error",
                    "param": "promt",
                    "code": "unknown_parameter",
                }
            },
        ),
    ],
)
def test_each_dialects_shape(dialect: str, status: int, body: dict[str, Any]) -> None:
    reply = DIALECTS[dialect].encode_error(UnknownField("promt", "prompt"), "r")
    assert (reply.status, reply.body) == (status, body)


def test_a_file_under_another_name() -> None:
    body = FormBody({"prompt": "猫", "img": Upload(b"x", "a.png", "image/png")})
    with pytest.raises(UnknownField, match="Did you mean 'image'"):
        DIALECTS["openai_edits"].decode_request(body, CARDS["dall-e-3"])


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        ("openai", {"xyzzy": 1}, "prompt"),
        ("openai", {}, "prompt"),
        ("zhipu", {"n": 1}, "prompt"),
        ("dashscope_native", {"parameters": {}}, "input"),
    ],
)
def test_what_nothing_is_like_is_only_missing(
    dialect: str, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(MissingField) as caught:
        DIALECTS[dialect].decode_request(body, CARDS["qwen-image"])
    assert caught.value.param == param


def test_a_word_like_no_field_gets_no_hint() -> None:
    with pytest.raises(UnknownField) as caught:
        DIALECTS["ark"].decode_request(
            {"prompt": "a cat", "xyzzy": 1}, CARDS["doubao-seedream-4-0-250828"]
        )
    assert caught.value.message == "Unknown parameter: 'xyzzy'."


def test_qwens_body_without_its_input_is_still_qwens() -> None:
    body = {"model": "qwen-image", "parameters": {"size": "1328*1328"}}
    assert choose_v1_images(body) == "dashscope"
    with pytest.raises(MissingField, match="'input'"):
        DIALECTS["dashscope"].decode_request(body, CARDS["qwen-image"])
    assert choose_v1_images(body | {"prompt": "猫"}) == "openai"
    assert choose_v1_chat({"promt": "猫"}) == "chat"


FIELDS = sorted({field for model in Wire.__subclasses__() for field in model.model_fields})


@given(st.sampled_from(FIELDS), st.sampled_from(FIELDS))
def test_a_known_name_means_itself(name: str, other: str) -> None:
    assert meant(name, {name, other}) == name


@given(st.text(max_size=60), st.sets(st.sampled_from(FIELDS)))
def test_a_hint_is_always_a_known_field(name: str, known: set[str]) -> None:
    assert meant(name, known) in {None, *known}


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), st.none() | st.integers()))
def test_whatever_is_unknown_is_refused_by_name(body: dict[str, Any]) -> None:
    """The law of parameters: a field is honoured or refused by name, never dropped."""
    known = DIALECTS["zhipu"].body.model_fields
    unknown = {name for name in body if name not in known and body[name] is not None}
    if not unknown:
        return
    with pytest.raises(RequestError) as caught:
        DIALECTS["zhipu"].decode_request({"prompt": "猫"} | body, CARDS["cogview-4-250304"])
    assert caught.value.param is not None


def test_what_is_known_but_not_there_is_not_called_unknown() -> None:
    body = {"model": "dall-e-3", "prompt": "x", "messages": TURNS}
    with pytest.raises(ExclusiveFields, match="'prompt' and 'messages' exclude each other"):
        DIALECTS["chat"].decode_request(body, CARDS["dall-e-3"])
