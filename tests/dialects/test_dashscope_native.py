"""DashScope's own routes as a codec: every error's code and status, the provider's words, pictures, times."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.dialects.cards import CARDS
from tests.dialects.test_errors import CLASSES, instance

from danqing.dialects import dashscope_native
from danqing.dialects.base import Dialect
from danqing.dialects.client import Incoming
from danqing.dialects.dashscope_client import DashScopeClient
from danqing.dialects.registry import DIALECTS
from danqing.domain import errors
from danqing.domain.task import ImageSource

NATIVE = ("dashscope_native", "dashscope_synthesis")

TABLE: dict[str, tuple[int, str]] = {
    "DanqingError": (500, "InternalError"),
    "RequestError": (400, "InvalidParameter"),
    "InvalidBody": (400, "InvalidParameter"),
    "BodyTooLarge": (413, "BadRequest.TooLarge"),
    "BodyTooSlow": (408, "RequestTimeOut"),
    "MissingField": (400, "InvalidParameter"),
    "InvalidField": (400, "InvalidParameter"),
    "PromptTooLong": (400, "InvalidParameter"),
    "TooManyImages": (400, "InvalidParameter"),
    "ExclusiveFields": (400, "InvalidParameter"),
    "InvalidImage": (400, "InvalidParameter"),
    "UnknownField": (400, "InvalidParameter"),
    "UnsupportedField": (400, "InvalidParameter"),
    "ModelNotFound": (404, "ModelNotFound"),
    "NotFound": (400, "InvalidParameter"),
    "MethodNotAllowed": (405, "InvalidParameter"),
    "IdempotencyConflict": (400, "InvalidParameter"),
    "DuplicateRequestId": (400, "InvalidParameter"),
    "AuthError": (401, "InvalidApiKey"),
    "MissingToken": (401, "InvalidApiKey"),
    "InvalidToken": (401, "InvalidApiKey"),
    "ExpiredToken": (401, "InvalidApiKey"),
    "PermissionDenied": (403, "AccessDenied"),
    "WaiverRequired": (403, "AccessDenied"),
    "AccountSuspended": (400, "Arrearage"),
    "EndUserBlocked": (403, "AccessDenied"),
    "ModelNotAllowed": (403, "Model.AccessDenied"),
    "QuotaExceeded": (400, "Arrearage"),
    "TokenBudgetExceeded": (400, "Arrearage"),
    "ContentRefused": (400, "DataInspectionFailed"),
    "Busy": (429, "Throttling"),
    "RateLimited": (429, "Throttling.RateQuota"),
    "ConcurrencyExceeded": (429, "LimitRequests"),
    "Cancelled": (408, "RequestTimeOut"),
    "ServerFault": (500, "InternalError"),
    "EngineFailed": (500, "InternalError.Algo"),
    "ProviderFailed": (500, "InternalError.Algo"),
    "Unavailable": (503, "ModelUnavailable"),
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", NATIVE)
def test_shape(name: str, cls: type[errors.DanqingError]) -> None:
    error = instance(cls)
    reply = DIALECTS[name].encode_error(error, "req-1")
    assert (reply.status, reply.body["code"]) == TABLE[cls.__name__]
    assert set(reply.body) == {"code", "message", "request_id"}
    assert reply.body["request_id"] == reply.headers["x-request-id"] == "req-1"
    param: str | None = getattr(error, "param", None)
    theirs = isinstance(error, errors.TooManyImages)
    assert theirs or param is None or f"'{param}'" in reply.body["message"]
    assert json.loads(json.dumps(reply.body)) == reply.body


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.MissingToken("x"), "InvalidApiKey", "No API-key provided."),
        (errors.InvalidToken("x"), "InvalidApiKey", "Invalid API-key provided."),
        (errors.NotFound("No such page."), "InvalidParameter", "url error, please check url!"),
        (
            errors.TooManyImages("parameters.n", 1),
            "InvalidParameter",
            "num_images_per_prompt must be 1",
        ),
        (
            errors.ContentRefused("user", 0),
            "DataInspectionFailed",
            "Input data may contain inappropriate content.",
        ),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_the_providers_own_words(error: errors.DanqingError, code: str, message: str) -> None:
    body = DIALECTS["dashscope_native"].encode_error(error, "r").body
    assert (body["code"], body["message"]) == (code, message)


def test_an_empty_balance_is_said_in_the_providers_words() -> None:
    body = DIALECTS["dashscope_native"].encode_error(errors.QuotaExceeded(5000, 1), "r").body
    assert body["message"].startswith(
        "Access denied, please make sure your account is in good standing."
    )


@pytest.mark.parametrize(
    ("field", "code"),
    [("input", "EmptyInput"), ("model", "EmptyModel"), ("parameters", "EmptyParameters")],
)
def test_what_is_missing_whole_has_its_own_code(field: str, code: str) -> None:
    reply = DIALECTS["dashscope_native"].encode_error(errors.MissingField(field), "r")
    assert (reply.status, reply.body["code"]) == (400, f"BadRequest.{code}")


def messages(*content: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


PICTURE = "data:image/png;base64," + base64.b64encode(b"png").decode()


@pytest.mark.parametrize("name", ["dashscope_native", "dashscope"])
def test_pictures_in_a_message_make_an_edit(name: str) -> None:
    body = {
        "input": messages(
            {"image": "https://x.example/a.png"}, {"text": "加帽子"}, {"image": PICTURE}
        )
    }
    task, _ = DIALECTS[name].decode_request(body, CARDS["qwen-image-2.0"])
    assert (task.prompt, task.fit_reference) == ("加帽子", True)
    path = "input.messages[0].content"
    assert task.references == (
        ImageSource(f"{path}[0].image", url="https://x.example/a.png"),
        ImageSource(f"{path}[2].image", data=b"png"),
    )
    assert [one.param for one in task.references] == [f"{path}[0].image", f"{path}[2].image"]


def test_pictures_beside_a_prompt_make_an_edit() -> None:
    body = {"input": {"prompt": "加帽子", "images": [PICTURE, "https://x.example/b.png"]}}
    task, _ = DIALECTS["dashscope_synthesis"].decode_request(body, CARDS["qwen-image-2.0"])
    assert (task.prompt, task.fit_reference) == ("加帽子", True)
    assert task.references == (
        ImageSource("input.images[0]", data=b"png"),
        ImageSource("input.images[1]", url="https://x.example/b.png"),
    )
    assert [one.param for one in task.references] == ["input.images[0]", "input.images[1]"]


def test_an_edit_may_have_a_size_of_its_own() -> None:
    body = {
        "input": messages({"text": "加帽子"}, {"image": PICTURE}),
        "parameters": {"size": "1024*2048"},
    }
    task, _ = DIALECTS["dashscope_native"].decode_request(body, CARDS["qwen-image-2.0"])
    assert (str(task.size), task.fit_reference) == ("1024x2048", False)


PATH = "input.messages[0].content"
REFUSED: list[tuple[str, str, dict[str, Any], type[errors.RequestError], str]] = [
    ("dashscope_native", "qwen-image", {}, errors.MissingField, "input"),
    (
        "dashscope_native",
        "qwen-image",
        {"input": {"prompt": "猫"}},
        errors.MissingField,
        "input.messages",
    ),
    (
        "dashscope_native",
        "qwen-image",
        {"input": messages({"text": "猫"}) | {"prompt": "猫"}},
        errors.InvalidField,
        "input.prompt",
    ),
    (
        "dashscope_synthesis",
        "qwen-image",
        {"input": messages({"text": "猫"})},
        errors.InvalidField,
        "input.messages",
    ),
    (
        "dashscope_synthesis",
        "qwen-image",
        {"input": {"prompt": "猫", "images": [PICTURE]}},
        errors.UnsupportedField,
        "input.images[0]",
    ),
    (
        "dashscope_synthesis",
        "qwen-image-2.0",
        {"input": {"prompt": "猫", "images": [PICTURE, "oss://bucket/a.png"]}},
        errors.InvalidImage,
        "input.images[1]",
    ),
    ("dashscope_synthesis", "qwen-image", {"input": {}}, errors.MissingField, "input.prompt"),
    (
        "dashscope_native",
        "qwen-image",
        {"input": messages({"text": "猫"}, {"image": PICTURE})},
        errors.UnsupportedField,
        f"{PATH}[1].image",
    ),
    (
        "dashscope_native",
        "qwen-image-2.0",
        {"input": messages({"text": "猫"}, *[{"image": PICTURE}] * 4)},
        errors.InvalidField,
        f"{PATH}[1].image",
    ),
    (
        "dashscope_native",
        "qwen-image-2.0",
        {"input": messages({"image": PICTURE})},
        errors.InvalidField,
        PATH,
    ),
    *[
        (
            "dashscope_native",
            "qwen-image-2.0",
            {"input": messages({"text": "猫"}), "parameters": {field: value}},
            cls,
            f"parameters.{field}",
        )
        for field, value, cls in [
            ("n", 7, errors.TooManyImages),
            ("watermark", "yes", errors.InvalidField),
            ("enable_sequential", True, errors.InvalidField),
            ("thinking_mode", True, errors.InvalidField),
            ("enable_thinking", True, errors.InvalidField),
            ("bbox_list", [], errors.UnknownField),
            ("color_palette", [], errors.UnknownField),
            ("prompt_extend_mode", "direct", errors.UnknownField),
            ("size", "100*100", errors.InvalidField),
            ("size", "2K", errors.InvalidField),
            ("seed", 2**31, errors.InvalidField),
        ]
    ],
]


@pytest.mark.parametrize(("name", "card", "body", "cls", "param"), REFUSED, ids=str)
def test_refused_by_name(
    name: str, card: str, body: dict[str, Any], cls: type[errors.RequestError], param: str
) -> None:
    dialect: Dialect = DIALECTS[name]
    with pytest.raises(errors.RequestError) as caught:
        dialect.decode_request(body, CARDS[card])
    assert (type(caught.value), caught.value.param) == (cls, param)


def test_extending_is_the_models_default() -> None:
    body = {"input": messages({"text": "猫"})}
    for card, extends in (("qwen-image", True), ("cogview-3-flash", False)):
        assert (
            DIALECTS["dashscope_native"].decode_request(body, CARDS[card])[0].prompt_extend
            is extends
        )


def test_times_are_beijings() -> None:
    at_ms = dashscope_native.read_time("20260102100000", "start_time")
    assert at_ms == 1_767_319_200_000
    for text in ("2026", "20260102 10000", "20261302100000", "２０２６０１０２１０００００", ""):
        with pytest.raises(errors.InvalidField) as caught:
            dashscope_native.read_time(text, "end_time")
        assert caught.value.param == "end_time"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("empty", 400, "InvalidURL"),
        ("address", 400, "InvalidURL"),
        ("fetch", 415, "BadRequest.InputDownloadFailed"),
        ("format", 415, "BadRequest.UnsupportedFileFormat"),
        (None, 400, "InvalidParameter"),
    ],
)
def test_what_is_wrong_with_a_picture_has_its_own_code(fault: Any, status: int, code: str) -> None:
    """And our own client reads it as the picture's fault."""
    error = errors.InvalidImage("'image' is bad.", "image", fault)
    reply = DIALECTS["dashscope_native"].encode_error(error, "r")
    assert (reply.status, reply.body["code"]) == (status, code)
    read = DashScopeClient().decode_error(Incoming(status, json.dumps(reply.body).encode()))
    assert isinstance(read, errors.InvalidImage)
    assert (read.param, read.fault) == ("image", "address" if fault == "empty" else fault)


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        ("", "InvalidURL"),
        ("cat.png", "InvalidURL"),
        ("ftp://img.example/a.png", "InvalidURL"),
        ("data:image/png;base64,", "InvalidURL"),
        ("data:image/png;base64,!!", "BadRequest.UnsupportedFileFormat"),
        ("data:text/plain;base64,QUJD", "BadRequest.UnsupportedFileFormat"),
    ],
)
def test_a_picture_that_is_none_is_refused_by_its_code(picture: str, code: str) -> None:
    body = {"input": messages({"image": picture}, {"text": "加帽子"})}
    with pytest.raises(errors.InvalidImage) as caught:
        DIALECTS["dashscope_native"].decode_request(body, CARDS["qwen-image-2.0"])
    reply = DIALECTS["dashscope_native"].encode_error(caught.value, "r")
    assert reply.body["code"] == code
    assert "input.messages[0].content[0].image" in reply.body["message"]
