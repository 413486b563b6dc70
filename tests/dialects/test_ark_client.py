"""Ark's client side: the round trip with our own server side, and what the provider really answers."""

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

from danqing.dialects.ark import ArkDialect
from danqing.dialects.ark_client import EXTRAS, ArkClient
from danqing.dialects.base import parse_json
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

MODEL = "doubao-seedream-5-0-260128"
CARD = card(
    MODEL,
    sizes=SizeRule(
        default=Size(2048, 2048),
        tiers={"2K": {"1:1": Size(2048, 2048), "16:9": Size(2848, 1600)}},
        default_tier="2K",
        free=SizeRange(side_min=240, side_max=8192, multiple=1, pixels_max=2**24),
    ),
    n_max=15,
    format="jpeg",
    references_max=14,
    qualities={name: Preset(8, 4.0) for name in ("standard", "hd")},
    features=frozenset({"watermark", "sequential", "output_format"}),
)
CLIENT, SERVER = ArkClient(), ArkDialect()

storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
# Some prompts name a number and a ratio themselves.
prompts = st.builds(
    "猫{}{}".format, storable, st.sampled_from(["", "，竖屏", "，3张图", " 16:9, two pictures"])
)
pictures = st.builds(
    InputImage,
    data=st.binary(min_size=1, max_size=9),
    format=st.sampled_from(["png", "jpeg", "webp"]),
    size=st.just(Size(64, 64)),
)


@st.composite
def asked(draw: st.DrawFn) -> tuple[ImageTask, Delivery, Target]:
    """A task with any field set, how to answer it, and where it goes."""
    images = tuple(draw(st.just([]) | st.lists(pictures, max_size=16)))
    task = ImageTask(
        model=MODEL,
        prompt=draw(prompts),
        size=Size(draw(st.integers(300, 4096)), draw(st.integers(300, 4096))),
        quality=draw(st.sampled_from(["standard", "standard", "hd"])),
        n=draw(st.just(1) | st.integers(1, 16)),
        negative_prompt=draw(st.just("") | storable),
        style=draw(st.sampled_from([None, None, None, "vivid"])),
        seed=draw(st.none() | st.integers(0, SEED_MAX)),
        prompt_extend=draw(st.booleans()),
        ai_label=draw(st.booleans()),
        end_user=draw(st.none() | storable.map(lambda text: "u" + text)),
        references=tuple(ImageSource("image", one.data) for one in images),
    )
    delivery = Delivery(
        form=draw(st.sampled_from(["url", "b64_json"])),
        format=draw(st.sampled_from(["png", "jpeg", "jpeg", "webp"])),
    )
    return task, delivery, Target(MODEL, images)


def answer(body: Any, status: int = 200, **headers: str) -> Incoming:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming(status, raw, {name.replace("_", "-"): text for name, text in headers.items()})


def a_task(**changes: Any) -> ImageTask:
    return replace(ImageTask(MODEL, "a cat", Size(2048, 2048), "standard"), **changes)


@given(asked(), st.sets(st.sampled_from(sorted(EXTRAS))) | st.just(set(EXTRAS)))
def test_our_server_reads_the_task_that_our_client_was_given(
    said: tuple[ImageTask, Delivery, Target], extras: set[str]
) -> None:
    task, delivery, target = said
    client = ArkClient(frozenset(extras))
    cannot = client.unsupported(task, delivery)
    if cannot:
        with pytest.raises(errors.UnsupportedField) as refused:
            client.encode_request(task, delivery, target)
        assert refused.value.param in cannot
        return
    sent = client.encode_request(task, delivery, target)
    assert (sent.method, sent.path) == ("POST", "/images/generations")
    assert not set(sent.json or {}) & (EXTRAS - extras)
    read, how = SERVER.decode_request(parse_json(json.dumps(sent.json).encode()), CARD)
    assert read == task
    assert how.form == delivery.form
    if "output_format" in extras:
        assert how.format == delivery.format


def test_what_it_can_say_is_said_as_the_provider_documents_it() -> None:
    picture = InputImage(b"ABC", "png", Size(64, 64))
    task = a_task(n=3, ai_label=False, references=(ImageSource("image", b"ABC"),))
    sent = ArkClient(frozenset()).encode_request(task, Delivery(), Target("ep-1", (picture,)))
    assert sent.json == {
        "model": "ep-1",
        "prompt": "a cat",
        "size": "2048x2048",
        "response_format": "url",
        "watermark": False,
        "image": ["data:image/png;base64,QUJD"],
        "sequential_image_generation": "auto",
        "sequential_image_generation_options": {"max_images": 3},
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"n": 16}, "n"),
        ({"n": 2, "prompt": "画四张"}, "n"),
        ({"n": 2, "references": (ImageSource("image", b"x"),) * 14}, "n"),
        ({"references": (ImageSource("image", b"x"),) * 15}, "references"),
        ({"quality": "hd"}, "quality"),
        ({"prompt": ""}, "prompt"),
        ({"mask": ImageSource("mask", b"x")}, "mask"),
        ({"strength": 0.0}, "strength"),
        ({"style": "vivid"}, "style"),
        ({"brand_mark": True}, "brand_mark"),
        ({"history": ("x",)}, "history"),
        ({"client_request_id": "x"}, "client_request_id"),
    ],
)
def test_what_it_cannot_say(changes: dict[str, Any], field: str) -> None:
    assert CLIENT.unsupported(a_task(**changes), Delivery()) == {field}


@given(
    st.sampled_from(["url", "b64_json"]),
    st.lists(st.booleans(), min_size=1, max_size=15).filter(any),
)
def test_our_client_reads_the_result_that_our_server_gave(form: Any, came: list[bool]) -> None:
    def image(index: int) -> DeliveredImage:
        what: dict[str, str] = {"url": f"https://img.example/{index}.jpeg"}
        if form == "b64_json":
            what = {"b64": base64.b64encode(b"image %d" % index).decode()}
        return DeliveredImage(f"{index:011x}", Size(640, 480), index, "jpeg", **what)

    failures = (errors.EngineFailed(), errors.ContentRefused("assistant", 1))
    images = [image(index) if ok else failures[index % 2] for index, ok in enumerate(came)]
    result = ImageResult(1, MODEL, tuple(images), "a cat")
    reply = SERVER.encode_result(result, Delivery(form), "id")
    read = CLIENT.decode_result(answer(reply.body, x_request_id="req-1"), a_task(n=len(came)))
    assert len(read.images) == len(came)
    for ours, theirs in zip(images, read.images, strict=True):
        match ours:
            case DeliveredImage():
                assert isinstance(theirs, ProviderImage)
                assert theirs.url == ours.url
                assert theirs.data == (base64.b64decode(ours.b64) if ours.b64 else None)
                assert theirs.size == ours.size
            case errors.ContentRefused():
                assert isinstance(theirs, errors.ContentRefused)
                assert theirs.role == "assistant"
            case _:
                assert type(theirs) is errors.ProviderFailed
    assert read.upstream_id == "req-1"
    assert read.usage["generated_images"] == sum(came)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_our_server_errors_come_back_as_the_callers_or_the_providers(cls: Any) -> None:
    error = instance(cls)
    if isinstance(error, errors.RequestError) and error.param is None:
        error.param = "size"
    reply = SERVER.encode_error(error, "req-1")
    read = CLIENT.decode_error(answer(reply.body, reply.status, **reply.headers))
    assert read is not None
    assert "req-1" not in read.message
    match error:
        case errors.ContentRefused():
            assert isinstance(read, errors.ContentRefused)
            assert read.role == error.role
        case errors.Busy() | errors.RateLimited():
            assert isinstance(read, errors.Busy)
            assert read.retry_after_s == float(reply.headers["retry-after"])
        case errors.Unavailable():
            assert isinstance(read, errors.Unavailable)
        case errors.InvalidImage():
            assert (type(read), read.param) == (errors.InvalidImage, "size")
        case errors.RequestError(param="size"):
            assert (type(read), read.param) == (errors.InvalidField, "size")
        case _:
            assert type(read) is errors.ProviderFailed


def an_error(code: str, message: str = "No.", param: str = "", kind: str = "BadRequest") -> Any:
    return {"error": {"code": code, "message": message, "param": param, "type": kind}}


# The codes of the provider's table.
@pytest.mark.parametrize(
    ("status", "body", "expected", "param"),
    [
        (400, an_error("InputTextSensitiveContentDetected"), errors.ContentRefused, None),
        (400, an_error("SensitiveContentDetected.SevereViolation"), errors.ContentRefused, None),
        (400, an_error("OutputImageSensitiveContentDetected.DeepFake"), errors.ContentRefused, None),
        (400, an_error("InputImageSensitiveContentDetected.PrivacyInformation"), errors.ContentRefused, None),
        (400, an_error("InvalidParameter", "The parameter `size` specified in the request is not valid: too small. Request id: 0217"), errors.InvalidField, "size"),
        (400, an_error("InvalidParameter", param="sequential_image_generation_options.max_images"), errors.InvalidField, "n"),
        (400, an_error("InvalidParameter", "The parameter `model` is not valid."), errors.ProviderFailed, None),
        (400, an_error("InvalidParameter", "What?"), errors.ProviderFailed, None),
        (400, an_error("MissingParameter", param="prompt"), errors.InvalidField, "prompt"),
        (400, an_error("InvalidImageURL.EmptyURL"), errors.InvalidImage, "image"),
        (400, an_error("InvalidEndpoint.ClosedEndpoint"), errors.ProviderFailed, None),
        (401, an_error("AuthenticationError"), errors.ProviderFailed, None),
        (403, an_error("AccountOverdueError"), errors.ProviderFailed, None),
        (403, an_error("AccessDenied", param="watermark"), errors.WaiverRequired, "watermark"),
        (403, an_error("OperationDenied.PermissionDenied", "The parameter `watermark` may not be false."), errors.WaiverRequired, "watermark"),
        (403, an_error("OperationDenied.ServiceNotOpen"), errors.ProviderFailed, None),
        (404, an_error("InvalidEndpointOrModel.NotFound"), errors.ProviderFailed, None),
        (429, an_error("QuotaExceeded"), errors.ProviderFailed, None),
        (429, an_error("SetLimitExceeded"), errors.ProviderFailed, None),
        (429, an_error("ModelAccountIpmRateLimitExceeded"), errors.Busy, None),
        (429, an_error("ServerOverloaded"), errors.Busy, None),
        (429, b"<html>slow down</html>", errors.Busy, None),
        (500, an_error("InternalServiceError"), errors.ProviderFailed, None),
        (200, an_error("InternalServiceError"), errors.ProviderFailed, None),
        (503, b"", errors.Unavailable, None),
        (502, b"<html>Bad Gateway</html>", errors.ProviderFailed, None),
        (400, {"error": "text"}, errors.ProviderFailed, None),
    ],
)  # fmt: skip
def test_errors_of_the_provider(status: int, body: Any, expected: Any, param: Any) -> None:
    read = CLIENT.decode_error(answer(body, status))
    assert type(read) is expected
    assert getattr(read, "param", None) == param
    assert "0217" not in read.message
    with pytest.raises(expected):
        CLIENT.decode_result(answer(body, status), a_task())


def test_how_bad_a_refusal_is() -> None:
    severe = CLIENT.decode_error(
        answer(an_error("SensitiveContentDetected.SevereViolation"), status=400)
    )
    assert isinstance(severe, errors.ContentRefused)
    assert (severe.role, severe.level) == ("user", 0)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>nginx</html>",
        b"",
        b"[]",
        {"data": []},
        {"data": None},
        {"data": "x"},
        {"created": 1},
    ],
)
def test_an_answer_without_images_is_the_providers_failure(body: Any) -> None:
    assert CLIENT.decode_error(answer(body)) is None
    with pytest.raises(errors.ProviderFailed):
        CLIENT.decode_result(answer(body), a_task())


def test_what_is_no_image_is_an_error_in_its_place() -> None:
    items = [
        {"url": "https://img.example/1.jpeg", "size": "wide"},
        {"b64_json": "not base64!"},
        None,
        {"error": {"code": "OutputImageSensitiveContentDetected", "message": "no"}},
        {"url": "https://img.example/2.jpeg", "size": "2048x2048"},
    ]
    read = CLIENT.decode_result(answer({"data": items}), a_task(n=6))
    failed = errors.ProviderFailed
    assert [getattr(one, "url", None) or type(one) for one in read.images] == [
        "https://img.example/1.jpeg",
        *(failed, failed, errors.ContentRefused),
        "https://img.example/2.jpeg",
        failed,
    ]
    assert len(CLIENT.decode_result(answer({"data": items}), a_task()).images) == 1


def test_unknown_extras_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        ArkClient(frozenset({"steps"}))
