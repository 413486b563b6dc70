"""The client sides of chat and draw: round trips with our own server sides, and what gateways really answer."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cards import card
from tests.dialects.test_errors import CLASSES, instance

from danqing.dialects.base import parse_json
from danqing.dialects.chat import ChatDialect, DrawDialect
from danqing.dialects.chat_client import CHAT_EXTRAS, DRAW_EXTRAS, ChatClient, DrawClient
from danqing.dialects.client import Incoming, ProviderImage, Target
from danqing.domain import errors
from danqing.domain.card import Preset
from danqing.domain.sizes import Size, SizeRange, SizeRule
from danqing.domain.task import (
    SEED_MAX,
    DeliveredImage,
    Delivery,
    ImageResult,
    ImageSource,
    ImageTask,
    InputImage,
)

CARD = card(
    "painter",
    sizes=SizeRule(
        default=Size(1024, 1024),
        free=SizeRange(side_min=256, side_max=3840, multiple=1, pixels_max=8294400),
    ),
    n_max=10,
    n_default=2,
    references_max=4,
    qualities={name: Preset(8, 4.0) for name in ("standard", "hd")},
)
SIDES = {"chat": (ChatClient, ChatDialect()), "draw": (DrawClient, DrawDialect())}
ALL = {"chat": CHAT_EXTRAS, "draw": DRAW_EXTRAS}
TARGET = Target("painter")

storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
tasks = st.builds(
    ImageTask,
    model=st.just("painter"),
    prompt=storable.map(lambda text: "猫" + text),
    size=st.builds(Size, st.integers(256, 2048), st.integers(256, 2048)),
    quality=st.sampled_from(["standard", "standard", "hd"]),
    n=st.just(1) | st.integers(1, 10),
    negative_prompt=st.just("") | storable,
    style=st.sampled_from([None, None, None, "vivid"]),
    seed=st.none() | st.integers(0, SEED_MAX),
    ai_label=st.sampled_from([True, True, False]),
    end_user=st.none() | storable.map(lambda text: "u" + text),
    history=st.just(()) | st.just(("before",)),
)
deliveries = st.builds(Delivery, st.sampled_from(["url", "b64_json"]))


def answer(body: Any, status: int = 200, **headers: str) -> Incoming:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming(status, raw, {name.replace("_", "-"): text for name, text in headers.items()})


def a_task(**changes: Any) -> ImageTask:
    return replace(ImageTask("painter", "a cat", Size(1024, 1024), "standard"), **changes)


@pytest.mark.parametrize("name", SIDES)
@given(st.data(), tasks, deliveries)
def test_our_server_reads_the_task_that_our_client_was_given(
    name: str, data: st.DataObject, task: ImageTask, delivery: Delivery
) -> None:
    kind, server = SIDES[name]
    some = st.sets(st.sampled_from(sorted(ALL[name]))) | st.just(set(ALL[name]))
    extras = data.draw(some)
    client = kind(frozenset(extras))
    cannot = client.unsupported(task, delivery)
    if cannot:
        with pytest.raises(errors.UnsupportedField) as refused:
            client.encode_request(task, delivery, TARGET)
        assert refused.value.param in cannot
        return
    sent = client.encode_request(task, delivery, TARGET)
    assert (sent.method, sent.path) == ("POST", "/chat/completions")
    assert not set(sent.json or {}) & (ALL[name] - extras - {"n"})  # n = 1 is always said
    read, how = server.decode_request(parse_json(json.dumps(sent.json).encode()), CARD)
    assert read == task
    assert how == delivery


def test_a_picture_goes_out_as_a_part_of_the_message() -> None:
    picture = InputImage(b"ABC", "jpeg", Size(64, 64))
    task = a_task(references=(ImageSource("image", b"ABC"),))
    sent = ChatClient().encode_request(task, Delivery(), Target("painter", (picture,)))
    assert sent.json is not None
    assert sent.json["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a cat"},
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QUJD"}},
            ],
        }
    ]
    assert ChatDialect().decode_request(sent.json, CARD)[0] == task


def test_draw_says_no_more_than_it_must() -> None:
    sent = DrawClient(frozenset()).encode_request(a_task(), Delivery(), Target("draw"))
    assert sent.json == {"model": "draw", "prompt": "a cat", "size": "1024x1024"}


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("draw", {"n": 2}, "n"),
        ("draw", {"quality": "hd"}, "quality"),
        ("draw", {"references": (ImageSource("image", b"x"),)}, "references"),
        *[
            (name, changes, next(iter(changes)))
            for name in SIDES
            for changes in (
                {"prompt": ""},
                {"mask": ImageSource("mask", b"x")},
                {"strength": 0.0},
                {"style": "vivid"},
                {"prompt_extend": True},
                {"ai_label": False},
                {"brand_mark": True},
                {"history": ("x",)},
                {"client_request_id": "x"},
            )
        ],
    ],
)
def test_what_they_cannot_say(name: str, changes: dict[str, Any], field: str) -> None:
    assert SIDES[name][0]().unsupported(a_task(**changes), Delivery()) == {field}


def images_of(form: str, count: int) -> tuple[DeliveredImage, ...]:
    def image(index: int) -> DeliveredImage:
        what: dict[str, str] = {"url": f"https://img.example/{index}?x-expires=1&sign=a%2B"}
        if form == "b64_json":
            what = {"b64": base64.b64encode(b"image %d" % index).decode()}
        return DeliveredImage(f"{index:011x}", Size(1024, 1024), index, "jpeg", **what)

    return tuple(map(image, range(count)))


@pytest.mark.parametrize("form", ["url", "b64_json"])
@pytest.mark.parametrize(("came", "n"), [(1, 1), (3, 3), (2, 4)])
def test_our_client_reads_what_our_chat_answers(form: Any, came: int, n: int) -> None:
    result = ImageResult(1, "painter", images_of(form, came), "a cat")
    reply = ChatDialect().encode_result(result, Delivery(form), "id-1")
    read = ChatClient().decode_result(answer(reply.body), a_task(n=n))
    pictures = [one for one in read.images if isinstance(one, ProviderImage)]
    assert [one.url for one in pictures] == [one.url for one in result.delivered]
    assert [one.data for one in pictures] == [
        base64.b64decode(one.b64) if one.b64 else None for one in result.delivered
    ]
    assert [type(one) for one in read.images[came:]] == [errors.ProviderFailed] * (n - came)
    assert read.upstream_id == "chatcmpl-id-1"
    assert read.usage["prompt_tokens"] == 5


def test_our_client_reads_what_our_draw_answers() -> None:
    result = ImageResult(1, "draw", images_of("url", 1), "a cat")
    reply = DrawDialect().encode_result(result, Delivery(), "id-1")
    read = DrawClient().decode_result(answer(reply.body, x_request_id="req-1"), a_task())
    assert read.images == (ProviderImage(url=result.delivered[0].url),)
    assert read.upstream_id == "req-1"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", SIDES)
def test_our_server_errors_come_back_as_the_callers_or_the_providers(name: str, cls: Any) -> None:
    error = instance(cls)
    if isinstance(error, errors.RequestError) and error.param is None:
        error.param = "size"
    kind, server = SIDES[name]
    reply = server.encode_error(error, "req-1")
    read = kind().decode_error(answer(reply.body, reply.status, **reply.headers))
    assert read is not None
    match error:
        case errors.ContentRefused():
            assert isinstance(read, errors.ContentRefused)
        case errors.Busy() | errors.RateLimited():
            assert isinstance(read, errors.Busy)
            assert read.retry_after_s == float(reply.headers["retry-after"])
        case errors.Unavailable():  # draw says it by the code alone
            expected = errors.Unavailable
            assert type(read) is expected
        case errors.RequestError(param="size"):
            assert isinstance(read, errors.InvalidField | errors.UnsupportedField)
        case _:
            assert type(read) is errors.ProviderFailed


PNG = base64.b64encode(b"png").decode()
DATA = f"data:image/png;base64,{PNG}"


def completion(content: Any, **message: Any) -> dict[str, Any]:
    whole = {"role": "assistant", "content": content, **message}
    return {"id": "gen-1", "choices": [{"index": 0, "message": whole, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # OpenRouter: an `images` list beside the words; what the words repeat is not counted twice.
        (completion("Here it is.", images=[{"type": "image_url", "image_url": {"url": DATA}}]), [b"png"]),
        (completion(f"![cat]({DATA})", images=[{"type": "image_url", "image_url": {"url": DATA}}]), [b"png"]),
        (completion(None, images=[{"image_url": "https://a.example/1"}, {"url": "https://a.example/2"}]), ["https://a.example/1", "https://a.example/2"]),
        # Content parts.
        (completion([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": DATA}}]), [b"png"]),
        (completion([{"type": "text", "text": "![a](https://a.example/1)"}]), ["https://a.example/1"]),
        # Markdown, with a title, in angle brackets, linked, and repeated as a download link.
        (completion('done\n\n![a b](https://a.example/1?x=(1 "the cat")'), ["https://a.example/1?x=(1"]),
        (completion("![](<https://a.example/1>) and ![ ]( https://a.example/2 )"), ["https://a.example/1", "https://a.example/2"]),
        (completion("[![x](https://a.example/t.png)](https://a.example/big.png)"), ["https://a.example/t.png"]),
        (completion("> 进度 100%\n![x](https://a.example/1.png)\n[点击下载](https://a.example/1.png)\n![x](https://a.example/1.png)"), ["https://a.example/1.png"]),
        # Nothing but an address.
        (completion(DATA), [b"png"]),
        (completion("图片已生成：https://a.example/cat.png?sign=1，请查看 https://a.example/page"), ["https://a.example/cat.png?sign=1"]),
        (completion("[cat](https://a.example/cat.WEBP)"), ["https://a.example/cat.WEBP"]),
        # Several choices.
        ({"choices": [*completion(f"![a]({DATA})")["choices"], *completion("![b](https://a.example/2)")["choices"]]}, [b"png", "https://a.example/2"]),
    ],
)  # fmt: skip
def test_answers_of_other_gateways(body: dict[str, Any], expected: list[Any]) -> None:
    read = ChatClient().decode_result(answer(body), a_task(n=len(expected)))
    assert [
        getattr(one, "url", None) or getattr(one, "data", one) for one in read.images
    ] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (completion("I cannot draw."), errors.ProviderFailed),
        (completion(""), errors.ProviderFailed),
        (completion(None, refusal="No."), errors.ContentRefused),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}, errors.ContentRefused),
        ({"choices": [{"error": {"code": 429, "message": "rate-limited upstream"}}]}, errors.Busy),
        ({"choices": [{"error": {"code": "content_policy_violation", "message": "no"}}]}, errors.ContentRefused),
        ({"error": {"message": "insufficient credits", "code": 402}}, errors.ProviderFailed),
        ({"choices": []}, errors.ProviderFailed),
        ({"choices": [None, {"message": "x"}]}, errors.ProviderFailed),
        (b"<html>", errors.ProviderFailed),
        (b"data: {}", errors.ProviderFailed),
    ],
)  # fmt: skip
def test_answers_without_a_picture(body: Any, expected: Any) -> None:
    with pytest.raises(expected) as caught:
        ChatClient().decode_result(answer(body), a_task())
    assert type(caught.value) is expected


def test_an_error_of_a_message_is_one_of_the_prompt() -> None:
    body = {"error": {"message": "too long", "param": "messages[0].content", "code": "x"}}
    read = ChatClient().decode_error(answer(body, 400))
    assert isinstance(read, errors.InvalidField)
    assert read.param == "prompt"


# What the draw API documents, word for word.
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"codes": 900, "mess": "密钥错误或已过期，请联系管理员获取", "data": "token"}, errors.ProviderFailed),
        ({"codes": 300, "mess": "当前额度不足，请充值后继续使用", "data": ""}, errors.ProviderFailed),
        ({"codes": 500, "mess": "?", "data": None}, errors.ProviderFailed),
        ({"error": {"code": "content_policy_violation", "message": "Your request was rejected as a result of our safety system. ", "param": None, "type": "invalid_request_error"}}, errors.ContentRefused),
        ({"error": {"code": None, "message": "You must provide n=1 for this model.", "param": None, "type": "invalid_request_error"}}, errors.TooManyImages),
        ({"created": 1, "data": []}, errors.ProviderFailed),
        (b"<html>", errors.ProviderFailed),
        (b"", errors.ProviderFailed),
    ],
)  # fmt: skip
def test_draw_answers_200_whatever_happens(body: Any, expected: Any) -> None:
    with pytest.raises(expected) as caught:
        DrawClient().decode_result(answer(body), a_task())
    assert type(caught.value) is expected
    assert "密钥" not in str(caught.value)


def test_a_success_that_has_a_code_is_one() -> None:
    body = {"codes": 200, "created": 1, "data": [{"url": "https://a.example/1.png"}]}
    assert DrawClient().decode_error(answer(body)) is None
    (image,) = DrawClient().decode_result(answer(body), a_task()).images
    assert image == ProviderImage(url="https://a.example/1.png")


@pytest.mark.parametrize("name", SIDES)
def test_unknown_extras_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="steps"):
        SIDES[name][0](frozenset({"steps"}))
