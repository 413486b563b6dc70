"""Bad requests, dialect by dialect: the error's class and the field it names; and that nothing else escapes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.cards import CARDS

from danqing.dialects.fields import Wire
from danqing.dialects.registry import DIALECTS
from danqing.domain.errors import (
    ExclusiveFields,
    InvalidField,
    InvalidImage,
    MissingField,
    PromptTooLong,
    RequestError,
    TooManyImages,
    UnknownField,
    UnsupportedField,
)

MESSAGES: list[Any] = [{"role": "user", "content": "猫"}]
INPUT: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": "猫"}]}]}
GOOD: dict[str, dict[str, Any]] = {
    "openai": {"prompt": "猫"},
    "draw": {"prompt": "猫"},
    "zhipu": {"prompt": "猫"},
    "chat": {"messages": MESSAGES},
    "dashscope": {"input": INPUT},
    "dashscope_native": {"input": INPUT},
    "dashscope_synthesis": {"input": {"prompt": "猫"}},
    "ark": {"prompt": "猫"},
}
CARD_OF = {
    "openai": "dall-e-3",
    "draw": "draw",
    "zhipu": "cogview-4-250304",
    "chat": "dall-e-3",
    "dashscope": "qwen-image",
    "dashscope_native": "qwen-image",
    "dashscope_synthesis": "qwen-image",
    "ark": "doubao-seedream-4-0-250828",
}
LONG = "猫" * 100_000

type_errors = [("n", "two"), ("n", True), ("n", 1.0), ("n", []), ("size", 1024), ("seed", "1")]

# dialect, changes to the good body, class, param
CASES: list[tuple[str, dict[str, Any], type[RequestError], str]] = [
    *[
        (name, {"prompt": prompt}, cls, "prompt")
        for name in ("openai", "draw", "zhipu")
        for prompt, cls in [
            (None, MissingField),
            ("", InvalidField),
            (" \n\t\u3000", InvalidField),
            (7, InvalidField),
            (["猫"], InvalidField),
            (LONG, PromptTooLong),
        ]
    ],
    *[
        (name, {field: value}, InvalidField, field)
        for name in ("openai", "draw", "zhipu", "chat")
        for field, value in type_errors
    ],
    *[
        (name, {"n": n}, InvalidField, "n")
        for name in ("openai", "draw", "zhipu", "chat")
        for n in (0, -1)
    ],
    *[
        (name, {"n": n}, TooManyImages, "n")
        for name in ("openai", "draw", "zhipu", "chat")
        for n in (11, 10**30)
    ],
    ("draw", {"n": 2}, TooManyImages, "n"),
    ("zhipu", {"n": 2}, TooManyImages, "n"),
    *[
        (name, {"size": size}, InvalidField, "size")
        for name in ("openai", "draw", "zhipu", "chat")
        for size in ("", "big", "10000x10000", "1000x1000", "0x0", "1024", "x" * 10_000)
    ],
    *[
        (name, {"seed": seed}, InvalidField, "seed")
        for name in ("openai", "draw", "zhipu", "chat")
        for seed in (-1, 2**31, 10**400, 1.5, False)
    ],
    *[
        (name, {"negative_prompt": LONG}, PromptTooLong, "negative_prompt")
        for name in ("openai", "draw", "zhipu", "chat")
    ],
    *[
        (name, {"quality": quality}, InvalidField, "quality")
        for name in ("openai", "zhipu", "chat")
        for quality in ("ultra", "", 1, True)
    ],
    *[(name, {"foo": 1}, UnknownField, "foo") for name in GOOD],
    *[(name, {"x" * 10_000: 1}, UnknownField, "x" * 100) for name in GOOD],
    *[(name, {"stream": True}, UnsupportedField, "stream") for name in ("openai", "draw")],
    ("openai", {"stream": "true"}, InvalidField, "stream"),
    ("openai", {"partial_images": 1}, UnsupportedField, "partial_images"),
    ("openai", {"partial_images": 4}, InvalidField, "partial_images"),
    ("openai", {"background": "transparent"}, UnsupportedField, "background"),
    ("openai", {"background": "red"}, InvalidField, "background"),
    ("openai", {"moderation": "low"}, UnsupportedField, "moderation"),
    ("openai", {"style": "loud"}, InvalidField, "style"),
    ("openai", {"response_format": "png"}, InvalidField, "response_format"),
    ("openai", {"output_format": "png"}, UnsupportedField, "output_format"),
    ("openai", {"output_format": "gif"}, InvalidField, "output_format"),
    ("openai", {"output_compression": 5}, UnsupportedField, "output_compression"),
    ("openai", {"output_compression": 101}, InvalidField, "output_compression"),
    ("openai", {"user": "u" * 513}, InvalidField, "user"),
    ("draw", {"quality": "hd"}, UnknownField, "quality"),
    ("zhipu", {"style": "vivid"}, UnsupportedField, "style"),
    ("zhipu", {"user_id": "12345"}, InvalidField, "user_id"),
    ("zhipu", {"user_id": "1" * 129}, InvalidField, "user_id"),
    ("zhipu", {"user_id": "somebody", "user": "another"}, ExclusiveFields, "user_id"),
    ("zhipu", {"stream": True}, UnsupportedField, "stream"),
    ("zhipu", {"request_id": "1" * 65}, InvalidField, "request_id"),
    ("zhipu", {"watermark_enabled": "false"}, InvalidField, "watermark_enabled"),
    (
        "zhipu",
        {"sensitive_word_check": {"type": "ALL", "status": "DISABLE"}},
        UnsupportedField,
        "sensitive_word_check.status",
    ),
    ("zhipu", {"sensitive_word_check": {"a": 1}}, UnknownField, "sensitive_word_check.a"),
    ("chat", {"messages": None}, MissingField, "messages"),
    ("chat", {"messages": "猫"}, InvalidField, "messages"),
    ("chat", {"messages": []}, InvalidField, "messages"),
    ("chat", {"messages": [None]}, InvalidField, "messages[0]"),
    ("chat", {"messages": [{"role": "system", "content": "x"}]}, InvalidField, "messages"),
    ("chat", {"messages": [{"role": "tool", "content": "x"}]}, InvalidField, "messages[0].role"),
    ("chat", {"messages": [{"role": "user"}]}, MissingField, "messages[0].content"),
    (
        "chat",
        {"messages": [*MESSAGES, {"role": "user", "content": ""}]},
        InvalidField,
        "messages[1].content",
    ),
    (
        "chat",
        {"messages": [{"role": "user", "content": LONG}]},
        PromptTooLong,
        "messages[0].content",
    ),
    ("chat", {"messages": [{"role": "user", "content": 7}]}, InvalidField, "messages[0].content"),
    ("chat", {"messages": [{"role": "user", "content": []}]}, InvalidField, "messages[0].content"),
    (
        "chat",
        {"messages": [{"role": "user", "content": ["猫"]}]},
        InvalidField,
        "messages[0].content[0]",
    ),
    (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        MissingField,
        "messages[0].content[0].text",
    ),
    (
        "chat",
        {
            "messages": [
                *MESSAGES,
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "image_url", "image_url": {"url": "https://img.example/a.png"}},
                    ],
                },
            ]
        },
        UnsupportedField,
        "messages[1].content",
    ),
    (
        "chat",
        {"messages": [{"role": "user", "content": "x", "bar": 1}]},
        UnknownField,
        "messages[0].bar",
    ),
    ("chat", {"modalities": ["audio"]}, InvalidField, "modalities[0]"),
    ("chat", {"tools": [{"type": "function"}]}, UnsupportedField, "tools"),
    ("chat", {"response_format": {"type": "json_object"}}, UnsupportedField, "response_format"),
    ("dashscope", {"input": {}}, MissingField, "input.messages"),
    ("dashscope", {"input": "猫"}, InvalidField, "input"),
    ("dashscope", {"input": {"messages": []}}, InvalidField, "input.messages"),
    ("dashscope", {"input": {"messages": INPUT["messages"] * 2}}, InvalidField, "input.messages"),
    ("dashscope", {"input": {"messages": ["猫"]}}, InvalidField, "input.messages[0]"),
    ("dashscope", {"input": {**INPUT, "prompt": "猫"}}, ExclusiveFields, "input.prompt"),
    ("dashscope", {"input": {"prompt": " "}}, InvalidField, "input.prompt"),
    (
        "dashscope",
        {"input": {"messages": [{"role": "system", "content": [{"text": "x"}]}]}},
        InvalidField,
        "input.messages[0].role",
    ),
    (
        "dashscope",
        {"input": {"messages": [{"role": "user"}]}},
        MissingField,
        "input.messages[0].content",
    ),
    (
        "dashscope",
        {"input": {"messages": [{"role": "user", "content": []}]}},
        InvalidField,
        "input.messages[0].content",
    ),
    (
        "dashscope",
        {"input": {"messages": [{"role": "user", "content": [{"text": 7}]}]}},
        InvalidField,
        "input.messages[0].content[0].text",
    ),
    (
        "dashscope",
        {"input": {"messages": [{"role": "user", "content": [{}]}]}},
        MissingField,
        "input.messages[0].content[0].text",
    ),
    (
        "dashscope",
        {
            "input": {
                "messages": [
                    {"role": "user", "content": [{"text": "猫"}, {"image": "https://x/a.png"}]}
                ]
            }
        },
        UnsupportedField,
        "input.messages[0].content[1].image",
    ),
    (
        "dashscope",
        {"input": {"messages": [{"role": "user", "content": [{"image": "file:///etc/hosts"}]}]}},
        InvalidImage,
        "input.messages[0].content[0].image",
    ),
    (
        "dashscope",
        {"input": {"messages": [{"role": "user", "content": [{"text": "猫", "image": "x"}]}]}},
        InvalidField,
        "input.messages[0].content[0].image",
    ),
    *[
        ("dashscope", {"parameters": {field: value}}, InvalidField, f"parameters.{field}")
        for field, value in [*type_errors, ("prompt_extend", 1), ("watermark", "no"), ("n", 0)]
    ],
    ("dashscope", {"parameters": {"size": "1024*1024"}}, InvalidField, "parameters.size"),
    ("dashscope", {"parameters": {"n": 2}}, TooManyImages, "parameters.n"),
    ("dashscope", {"parameters": {"foo": 1}}, UnknownField, "parameters.foo"),
    ("dashscope", {"parameters": []}, InvalidField, "parameters"),
    (
        "dashscope",
        {
            "input": {**INPUT, "negative_prompt": "a"},
            "parameters": {"negative_prompt": "b"},
        },
        InvalidField,
        "parameters.negative_prompt",
    ),
]


@pytest.mark.parametrize(("name", "changes", "cls", "param"), CASES)
def test_names_the_field(
    name: str, changes: dict[str, Any], cls: type[RequestError], param: str
) -> None:
    dialect = DIALECTS[name]
    with pytest.raises(RequestError) as caught:
        dialect.decode_request(GOOD[name] | changes, CARDS[CARD_OF[name]])
    assert type(caught.value) is cls
    assert caught.value.param == param
    assert len(caught.value.message) < 1000
    reply = dialect.encode_error(caught.value, "req-1")
    if cls is TooManyImages:  # the wire's own message names n without its path
        param = "n"
    said = reply.body.get("error", reply.body)  # DashScope's own answers have no "error"
    assert param in f"{said.get('param')} {said['message']}"


@pytest.mark.parametrize("name", sorted(GOOD))
def test_the_good_bodies_are_good(name: str) -> None:
    task, _ = DIALECTS[name].decode_request(GOOD[name], CARDS[CARD_OF[name]])
    assert task.prompt == "猫"


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_null_is_an_absence(name: str) -> None:
    nulls = dict.fromkeys(("model", "parameters" if name == "dashscope" else "size"))
    card = CARDS[CARD_OF[name]]
    dialect = DIALECTS[name]
    assert dialect.decode_request(GOOD[name] | nulls, card) == dialect.decode_request(
        GOOD[name], card
    )


@pytest.mark.parametrize("name", sorted(GOOD))
def test_requested_model(name: str) -> None:
    dialect = DIALECTS[name]
    assert dialect.requested_model({"model": "x"}) == "x"
    assert dialect.requested_model({}) is None
    assert dialect.requested_model({"model": None}) is None
    assert dialect.requested_model({"model": ""}) is None
    for wrong in (7, True, ["x"], {}):
        with pytest.raises(InvalidField) as caught:
            dialect.requested_model({"model": wrong})
        assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("card", "changes", "cls", "param"),
    [
        ("jimeng-4.0", {}, MissingField, "size"),
        ("jimeng-4.0", {"size": "5:4"}, InvalidField, "size"),
        ("jimeng-4.0", {"size": "2:3", "n": 5}, TooManyImages, "n"),
        ("jimeng-4.0", {"size": "2:3", "watermark": 0}, InvalidField, "watermark"),
        ("gpt-image-1", {"watermark": False}, UnknownField, "watermark"),
        ("gpt-image-1", {"response_format": "url"}, UnknownField, "response_format"),
        ("gpt-image-1", {"style": "vivid"}, UnsupportedField, "style"),
        ("gpt-image-1", {"output_compression": 50}, UnsupportedField, "output_compression"),
    ],
)
def test_what_the_card_decides(
    card: str, changes: dict[str, Any], cls: type[RequestError], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        DIALECTS["openai"].decode_request({"prompt": "猫"} | changes, CARDS[card])
    assert (type(caught.value), caught.value.param) == (cls, param)


@pytest.mark.parametrize(("watermark", "label"), [(None, True), (True, True), (False, False)])
def test_jimengs_watermark_is_the_ai_label(watermark: bool | None, label: bool) -> None:
    body = {"prompt": "猫", "size": "2:3", "watermark": watermark}
    assert DIALECTS["openai"].decode_request(body, CARDS["jimeng-4.0"])[0].ai_label is label


def test_hd_is_refused_where_the_card_has_no_hd() -> None:
    card = CARDS["cogview-3-flash"]
    zhipu = DIALECTS["zhipu"]
    with pytest.raises(InvalidField, match=r"'quality'.*'standard'"):
        zhipu.decode_request({"prompt": "猫", "quality": "hd"}, card)
    assert zhipu.decode_request({"prompt": "猫", "quality": "auto"}, card)[0].quality == "standard"


def test_dashscope_cuts_long_texts_and_says_so() -> None:
    body = {"input": {"prompt": LONG}, "parameters": {"negative_prompt": LONG}}
    task, delivery = DIALECTS["dashscope"].decode_request(body, CARDS["qwen-image"])
    assert (len(task.prompt), len(task.negative_prompt)) == (800, 500)
    assert delivery.truncated == ("input.prompt", "parameters.negative_prompt")


@pytest.mark.parametrize("length", [1, 999, 1000])
def test_a_prompt_up_to_the_limit_passes_whole(length: int) -> None:
    task, delivery = DIALECTS["zhipu"].decode_request(
        {"prompt": "猫" * length}, CARDS["cogview-4-250304"]
    )
    assert (len(task.prompt), delivery.truncated) == (length, ())


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, 0, 1, 2, 2**31, 2**63])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["user", "text", "1024x1024", "2:3", "url", "hd", "vivid", "jpeg", "image_url"]
    )
)
# Every field any body or part of a body has, so that random bodies get past the first checks.
FIELDS = sorted({field for model in Wire.__subclasses__() for field in model.model_fields})
KEYS = st.sampled_from(FIELDS) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
SOME_BODY = st.dictionaries(KEYS, JSON, max_size=6)


@pytest.mark.parametrize("name", sorted(GOOD))
@settings(max_examples=120, deadline=None)
@given(
    card=st.sampled_from(["dall-e-3", "gpt-image-1", "jimeng-4.0", "qwen-image"]),
    body=SOME_BODY,
    whole=st.booleans(),
)
def test_raises_only_request_errors(
    name: str, card: str, body: dict[str, Any], whole: bool
) -> None:
    dialect = DIALECTS[name]
    body = body if whole else GOOD[name] | body
    try:
        dialect.requested_model(body)
        task, _ = dialect.decode_request(body, CARDS[card])
    except RequestError as error:
        dialect.encode_error(error, "req-1")
        return
    assert task.prompt.strip()
    assert 1 <= task.n <= CARDS[card].n_max
    assert task.quality in CARDS[card].qualities
