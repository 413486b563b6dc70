"""The OpenAI client side: the round trip with our own server side, and what providers really answer."""

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
from danqing.dialects.client import Incoming, ProviderImage, Target
from danqing.dialects.openai import OpenAIDialect
from danqing.dialects.openai_client import EXTRAS, OpenAIClient
from danqing.domain import errors
from danqing.domain.card import Preset
from danqing.domain.sizes import Size, SizeRange, SizeRule
from danqing.domain.task import SEED_MAX, DeliveredImage, Delivery, ImageResult, ImageTask

CARD = card(
    "gpt-image-2",
    sizes=SizeRule(
        default=Size(1024, 1024),
        free=SizeRange(side_min=256, side_max=3840, multiple=16, pixels_max=8294400),
    ),
    n_max=10,
    n_default=4,
    format="jpeg",
    qualities={name: Preset(8, 4.0) for name in ("low", "standard", "hd")},
    features=frozenset({"response_format", "output_format", "style", "watermark"}),
)
CLIENT, SERVER = OpenAIClient(), OpenAIDialect()
TARGET = Target("gpt-image-2")

storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
prompts = storable.map(lambda text: "猫" + text)
sizes = st.builds(Size, st.integers(64, 128), st.integers(64, 128)).map(
    lambda size: Size(size.width * 16, size.height * 16)
)
tasks = st.builds(
    ImageTask,
    model=st.just("gpt-image-2"),
    prompt=prompts,
    size=sizes,
    quality=st.sampled_from(sorted(CARD.qualities)),
    n=st.integers(1, 10),
    negative_prompt=storable,
    style=st.sampled_from([None, "vivid", "natural"]),
    seed=st.none() | st.integers(0, SEED_MAX),
    ai_label=st.booleans(),
    end_user=st.none() | storable.map(lambda text: "u" + text),
)


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    kind = draw(st.sampled_from(["png", "jpeg", "webp"]))
    compression = None if kind == "png" else draw(st.none() | st.integers(0, 100))
    return Delivery(draw(st.sampled_from(["url", "b64_json"])), kind, compression)


def answer(body: Any, status: int = 200, **headers: str) -> Incoming:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming(status, raw, {name.replace("_", "-"): text for name, text in headers.items()})


def task(**changes: Any) -> ImageTask:
    return replace(ImageTask("gpt-image-2", "a cat", Size(1024, 1024), "standard"), **changes)


@given(tasks, deliveries())
def test_our_server_reads_the_task_that_our_client_was_given(
    task: ImageTask, delivery: Delivery
) -> None:
    assert CLIENT.unsupported(task, delivery) == frozenset()
    sent = CLIENT.encode_request(task, delivery, TARGET)
    assert (sent.method, sent.path) == ("POST", "/images/generations")
    body = parse_json(json.dumps(sent.json).encode())
    assert SERVER.decode_request(body, CARD) == (task, delivery)


@given(tasks, deliveries(), st.sets(st.sampled_from(sorted(EXTRAS))))
def test_what_the_other_side_cannot_say_is_refused_by_name_and_nothing_else_is(
    task: ImageTask, delivery: Delivery, extras: set[str]
) -> None:
    client = OpenAIClient(frozenset(extras))
    assert client.unsupported(replace(task, brand_mark=True), delivery) >= {"brand_mark"}
    cannot = client.unsupported(task, delivery)
    if cannot:
        with pytest.raises(errors.UnsupportedField) as refused:
            client.encode_request(task, delivery, TARGET)
        assert refused.value.param in cannot
        return
    sent = client.encode_request(task, delivery, TARGET).json
    assert sent is not None
    assert not set(sent) & (EXTRAS - extras)
    read, _ = SERVER.decode_request(sent, CARD)
    assert read == task


def image(index: int, form: str) -> DeliveredImage:
    data = base64.b64encode(f"image {index}".encode()).decode()
    url = f"https://img.example/{index}.png"
    return DeliveredImage(
        image_id=f"{index:011x}",
        size=Size(1024, 1024),
        seed=index,
        format="png",
        url=url if form == "url" else None,
        b64=data if form == "b64_json" else None,
    )


@given(
    st.sampled_from(["url", "b64_json"]),
    st.lists(st.booleans(), min_size=1, max_size=10).filter(any),
    st.none() | storable.filter(bool),
    st.booleans(),
)
def test_our_client_reads_the_result_that_our_server_gave(
    form: Any, came: list[bool], revised: str | None, echo: bool
) -> None:
    images = [image(index, form) if ok else errors.EngineFailed() for index, ok in enumerate(came)]
    result = ImageResult(1, "gpt-image-2", tuple(images), "a cat", revised)
    reply = SERVER.encode_result(result, Delivery(form, echo=echo), "id")
    read = CLIENT.decode_result(answer(reply.body, x_request_id="req-1"), task(n=len(came)))
    delivered = [image for image in read.images if isinstance(image, ProviderImage)]
    assert [one.url or one.data for one in delivered] == [
        one.url or base64.b64decode(one.b64 or "") for one in result.delivered
    ]
    assert len(read.images) == len(came)
    assert isinstance(read.images[-1], errors.ProviderFailed) or all(came)
    assert (read.revised_prompt, read.upstream_id) == (revised, "req-1")
    assert bool(read.usage) == echo
    if echo:
        assert (delivered[0].size, delivered[0].format) == (Size(1024, 1024), "png")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_our_server_errors_come_back_as_the_callers_or_the_providers(cls: Any) -> None:
    """What the caller sent is theirs to mend; our key, our money there and the provider's faults are not."""
    error = instance(cls)
    if isinstance(error, errors.RequestError) and error.param is None:
        error.param = "size"
    reply = SERVER.encode_error(error, "req-1")
    read = CLIENT.decode_error(answer(reply.body, reply.status, **reply.headers))
    assert read is not None
    match error:
        case errors.ContentRefused():
            assert isinstance(read, errors.ContentRefused)
        case errors.Busy() | errors.RateLimited():
            assert isinstance(read, errors.Busy)
            assert read.retry_after_s == float(reply.headers["retry-after"])
        case errors.Unavailable():
            assert isinstance(read, errors.Unavailable)
        case errors.TooManyImages():
            assert isinstance(read, errors.TooManyImages)
        case errors.UnsupportedField() | errors.UnknownField():
            assert (type(read), read.param) == (errors.UnsupportedField, "size")
        case errors.InvalidImage():
            assert (type(read), read.param) == (errors.InvalidImage, "size")
        case errors.RequestError(param="size"):
            assert (type(read), read.param) == (errors.InvalidField, "size")
        case _:
            assert type(read) is errors.ProviderFailed


# What real providers and gateways answer: OpenAI's error guide and specification, LocalAI, FastAPI servers.

DALLE_REFUSED = {
    "error": {
        "code": "content_policy_violation",
        "message": "Your request was rejected as a result of our safety system. ",
        "param": None,
        "type": "invalid_request_error",
    }
}
GPT_REFUSED = {
    "error": {
        "message": "Your request was rejected by the safety system. safety_violations=[sexual].",
        "type": "image_generation_user_error",
        "param": None,
        "code": "moderation_blocked",
    }
}
NO_MONEY = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "param": None,
        "code": None,
    }
}
SIZE = {
    "error": {
        "message": "Invalid value: '512x512'. Supported values are: '1024x1024' and 'auto'.",
        "type": "invalid_request_error",
        "param": "size",
        "code": "invalid_value",
    }
}


@pytest.mark.parametrize(
    ("status", "body", "expected", "param"),
    [
        (400, DALLE_REFUSED, errors.ContentRefused, None),
        (200, DALLE_REFUSED, errors.ContentRefused, None),
        (400, GPT_REFUSED, errors.ContentRefused, None),
        (429, NO_MONEY, errors.ProviderFailed, None),
        (400, SIZE, errors.InvalidField, "size"),
        (200, SIZE, errors.InvalidField, "size"),
        (401, {"error": {"message": "Incorrect API key provided: sk-abc1234.", "code": "invalid_api_key"}}, errors.ProviderFailed, None),
        (404, {"error": {"message": "no such model", "param": "model", "code": "model_not_found"}}, errors.ProviderFailed, None),
        (400, {"error": {"message": "Unknown parameter: 'style'.", "param": "style", "code": "unknown_parameter"}}, errors.UnsupportedField, "style"),
        (503, {"error": {"message": "busy", "code": "slow_down"}}, errors.Busy, None),
        (503, {"error": {"message": "busy", "code": "server_is_overloaded"}}, errors.Unavailable, None),
        (400, {"error": {"message": "Not by this model.", "type": "image_generation_user_error", "code": "invalid_input_fidelity_model"}}, errors.UnsupportedField, "input_fidelity"),
        (400, {"error": {"message": "Unknown parameter: 'moderation'.", "param": "moderation", "code": "unknown_parameter"}}, errors.UnsupportedField, "moderation"),
        (503, b"<html>Service Unavailable</html>", errors.Unavailable, None),
        (500, {"error": "backend crashed"}, errors.ProviderFailed, None),
        (200, {"error": "model is not loaded"}, errors.ProviderFailed, None),
        (422, {"detail": [{"loc": ["body", "size"], "msg": "bad size", "type": "x"}]}, errors.InvalidField, "size"),
        (400, {"detail": "blocked by content policy"}, errors.ContentRefused, None),
        (502, b"", errors.ProviderFailed, None),
    ],
)  # fmt: skip
def test_errors_of_real_providers(status: int, body: Any, expected: Any, param: Any) -> None:
    read = CLIENT.decode_error(answer(body, status))
    assert type(read) is expected
    assert getattr(read, "param", None) == param
    with pytest.raises(expected):
        CLIENT.decode_result(answer(body, status), task())
    assert "sk-" not in read.message


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome to nginx!</html>",
        b"",
        b"[]",
        b"[" * 100_000,
        {"created": 1, "data": []},
        {"created": 1, "data": None},
        {"created": 1},
    ],
)
def test_an_answer_without_images_is_the_providers_failure(body: Any) -> None:
    assert CLIENT.decode_error(answer(body)) is None
    with pytest.raises(errors.ProviderFailed):
        CLIENT.decode_result(answer(body), task())


def test_an_image_that_is_none_is_an_error_in_its_place() -> None:
    good = base64.b64encode(b"png").decode()
    items = [
        {"b64_json": good},
        {"b64_json": "not base64!"},
        {"url": "", "b64_json": None},
        None,
        {"url": f"data:image/png;base64,{good}"},
        {"error": {"code": "content_policy_violation", "message": "no"}},
        {"b64_json": good},
    ]
    read = CLIENT.decode_result(answer({"data": items}), task(n=8))
    kinds = [getattr(one, "data", None) or type(one) for one in read.images]
    failed = errors.ProviderFailed
    assert kinds == [
        *(b"png", failed, failed, failed, b"png"),
        *(errors.ContentRefused, b"png", failed),
    ]
    assert len(CLIENT.decode_result(answer({"data": items}), task(n=2)).images) == 2


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5", "retry-after-ms": "1500"}, 1.5),
        (
            {
                "retry-after": "Thu, 26 Nov 2026 06:00:30 GMT",
                "date": "Thu, 26 Nov 2026 06:00:00 GMT",
            },
            30,
        ),
        ({"retry-after": "soon"}, 5),
        ({"retry-after": "nan"}, 5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "1e9"}, 3600),
        ({}, 5),
    ],
)
def test_retry_after_in_every_form(headers: dict[str, str], expected: float) -> None:
    read = CLIENT.decode_error(Incoming(429, b"{}", headers))
    assert isinstance(read, errors.Busy)
    assert read.retry_after_s == expected


def test_edits_and_variations_go_out_as_forms() -> None:
    from danqing.dialects.base import Upload
    from danqing.domain.task import ImageSource, InputImage

    picture = InputImage(b"bytes", "png", Size(64, 64))
    source = ImageSource("image", data=b"bytes")
    edit = task(references=(source, source), mask=source, n=2, seed=7)
    sent = CLIENT.encode_request(
        edit, Delivery("b64_json"), Target("m", (picture, picture), picture)
    )
    assert (sent.method, sent.path, sent.json) == ("POST", "/images/edits", None)
    upload = Upload(b"bytes", "image.png", "image/png")
    assert sent.form == (
        ("model", "m"),
        ("prompt", "a cat"),
        ("n", "2"),
        ("size", "1024x1024"),
        ("quality", "standard"),
        ("seed", "7"),
        ("response_format", "b64_json"),
        ("output_format", "png"),
        ("image[]", upload),
        ("image[]", upload),
        ("mask", Upload(b"bytes", "mask.png", "image/png")),
    )
    variation = task(prompt="", references=(source,))
    sent = CLIENT.encode_request(variation, Delivery(), Target("m", (picture,)))
    assert (sent.path, dict(sent.form or ())["image"]) == ("/images/variations", upload)
    assert "prompt" not in dict(sent.form or ())


def test_unknown_extras_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        OpenAIClient(frozenset({"steps"}))
