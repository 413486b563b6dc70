"""Ark's codec: sizes by tier and prompt, series, refusals by name, and every error in Ark's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.dialects.cards import CARDS
from tests.dialects.test_errors import CLASSES, instance

from danqing.dialects import ark_shapes
from danqing.dialects.ark_client import ArkClient
from danqing.dialects.client import Incoming
from danqing.dialects.registry import DIALECTS
from danqing.domain import errors
from danqing.domain.sizes import Size
from danqing.domain.task import DeliveredImage, Delivery, ImageResult, ImageTask

ARK = DIALECTS["ark"]
FOUR, PRO = "doubao-seedream-4-0-250828", "doubao-seedream-5-0-pro-260628"
DATA_URL = "data:image/png;base64,QUJD"

# class: status, type, code
TABLE: dict[str, tuple[int, str, str]] = {
    "DanqingError": (500, "InternalServerError", "InternalServiceError"),
    "RequestError": (400, "BadRequest", "InvalidParameter"),
    "InvalidBody": (400, "BadRequest", "InvalidParameter"),
    "BodyTooLarge": (413, "BadRequest", "InvalidParameter"),
    "BodyTooSlow": (408, "BadRequest", "InvalidParameter"),
    "MissingField": (400, "BadRequest", "MissingParameter"),
    "InvalidField": (400, "BadRequest", "InvalidParameter"),
    "PromptTooLong": (400, "BadRequest", "InvalidParameter"),
    "TooManyImages": (400, "BadRequest", "InvalidParameter"),
    "ExclusiveFields": (400, "BadRequest", "InvalidParameter"),
    "InvalidImage": (400, "BadRequest", "InvalidImageURL.InvalidFormat"),
    "UnknownField": (400, "BadRequest", "InvalidParameter"),
    "UnsupportedField": (400, "BadRequest", "InvalidParameter"),
    "ModelNotFound": (404, "NotFound", "InvalidEndpointOrModel.NotFound"),
    "NotFound": (404, "NotFound", "InvalidParameter"),
    "MethodNotAllowed": (405, "BadRequest", "InvalidParameter"),
    "IdempotencyConflict": (400, "BadRequest", "InvalidParameter"),
    "DuplicateRequestId": (400, "BadRequest", "InvalidParameter"),
    "AuthError": (401, "Unauthorized", "AuthenticationError"),
    "MissingToken": (401, "Unauthorized", "AuthenticationError"),
    "InvalidToken": (401, "Unauthorized", "AuthenticationError"),
    "ExpiredToken": (401, "Unauthorized", "AuthenticationError"),
    "PermissionDenied": (403, "Forbidden", "AccessDenied"),
    "WaiverRequired": (403, "Forbidden", "AccessDenied"),
    "AccountSuspended": (403, "Forbidden", "AccessDenied"),
    "EndUserBlocked": (403, "Forbidden", "AccessDenied"),
    "ModelNotAllowed": (404, "NotFound", "ModelNotOpen"),
    "QuotaExceeded": (403, "Forbidden", "AccountOverdueError"),
    "TokenBudgetExceeded": (429, "TooManyRequests", "SetLimitExceeded"),
    "ContentRefused": (400, "BadRequest", "InputTextSensitiveContentDetected"),
    "Busy": (429, "TooManyRequests", "ServerOverloaded"),
    "RateLimited": (429, "TooManyRequests", "AccountRateLimitExceeded"),
    "ConcurrencyExceeded": (429, "TooManyRequests", "InflightBatchsizeExceeded"),
    "Cancelled": (499, "BadRequest", "InvalidParameter"),
    "ServerFault": (500, "InternalServerError", "InternalServiceError"),
    "EngineFailed": (500, "InternalServerError", "InternalServiceError"),
    "ProviderFailed": (500, "InternalServerError", "InternalServiceError"),
    "Unavailable": (503, "InternalServerError", "InternalServiceError"),
}


def decode(card: str = FOUR, **body: Any) -> ImageTask:
    return ARK.decode_request({"prompt": "猫"} | body, CARDS[card])[0]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_in_arks_shape(cls: type[errors.DanqingError]) -> None:
    error = instance(cls)
    reply = ARK.encode_error(error, "req-1")
    status, kind, code = TABLE[cls.__name__]
    assert reply.status == status
    assert set(reply.body) == {"error"}
    assert set(reply.body["error"]) == {"code", "message", "param", "type"}
    assert (reply.body["error"]["type"], reply.body["error"]["code"]) == (kind, code)
    assert reply.body["error"]["param"] == (getattr(error, "param", None) or "")
    assert reply.body["error"]["message"].lower().endswith("request id: req-1")
    assert reply.headers["x-request-id"] == "req-1"
    assert reply.headers["x-error-code"] == code
    assert json.loads(json.dumps(reply.body)) == reply.body


def test_the_key_error_has_the_providers_words() -> None:
    message = ARK.encode_error(errors.InvalidToken("ours"), "req-1").body["error"]["message"]
    assert message == (
        "the API key or AK/SK in the request is missing or invalid. request id: req-1"
    )


@pytest.mark.parametrize(
    ("role", "code"),
    [
        ("user", "InputTextSensitiveContentDetected"),
        ("history", "InputTextSensitiveContentDetected"),
        ("assistant", "OutputImageSensitiveContentDetected"),
        ("somebody", "SensitiveContentDetected"),
    ],
)
def test_a_refusal_says_whose_content_it_was(role: str, code: str) -> None:
    refused = errors.ContentRefused(role, 0)
    assert ARK.encode_error(refused, "r").body["error"]["code"] == code
    image = DeliveredImage("i", Size(1024, 1024), 1, "jpeg", url="https://img.example/1.jpeg")
    result = ImageResult(created=1, model="m", images=(refused, image), prompt="x")
    data = ARK.encode_result(result, Delivery(), "1").body["data"]
    assert data[0]["error"]["code"] == code
    assert data[0]["error"]["message"]
    assert data[1]["url"] == "https://img.example/1.jpeg"


@pytest.mark.parametrize(
    ("card", "body", "size"),
    [
        (FOUR, {}, (2048, 2048)),
        (FOUR, {"prompt": "竖屏的猫"}, (2048, 2048)),  # the default is no tier
        (FOUR, {"size": "2K"}, (2048, 2048)),
        (FOUR, {"size": "1k", "prompt": "a cat, 16:9"}, (1280, 720)),
        (FOUR, {"size": "2K", "prompt": "手机壁纸，猫"}, (1600, 2848)),
        (FOUR, {"size": "2K", "prompt": "a portrait of a cat"}, (2048, 2048)),  # no 3:4 here
        (FOUR, {"size": "1280x720", "prompt": "竖屏的猫"}, (1280, 720)),
        (FOUR, {"size": "960x960"}, (960, 960)),
        (PRO, {}, (2048, 2048)),
        (PRO, {"prompt": "横版的猫"}, (2848, 1600)),
        (PRO, {"prompt": "横版的猫", "size": "1K"}, (1280, 720)),
    ],
)
def test_sizes(card: str, body: dict[str, Any], size: tuple[int, int]) -> None:
    assert decode(card, **body).size == size


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"size": "2K"}, True),
        ({"size": "2K", "prompt": "16:9的猫"}, False),
        ({"size": "2K", "prompt": "a portrait of a cat"}, True),  # no 3:4 here
        ({"size": "2048x2048"}, False),
        ({}, False),
    ],
)
def test_a_picture_says_the_ratio_that_the_prompt_leaves_open(
    body: dict[str, Any], fits: bool
) -> None:
    assert decode(**body, image=DATA_URL).fit_reference is fits
    assert decode(**body).fit_reference is False


@pytest.mark.parametrize(
    ("options", "prompt", "references", "n"),
    [
        (None, "猫", 0, 1),
        (None, "四张猫的图", 0, 4),
        (None, "二十张图", 0, 15),
        (None, "二十张图", 5, 10),
        ({"max_images": 3}, "猫", 0, 3),
        ({"max_images": 3}, "两张图", 0, 2),
        ({"max_images": 3}, "10 pictures of a cat", 0, 3),
        ({"max_images": 15}, "猫", 0, 15),
        ({"max_images": 1}, "猫", 14, 1),
        ({"max_images": None}, "猫", 0, 1),
        ({}, "画三张", 0, 3),
    ],
)
def test_series(options: Any, prompt: str, references: int, n: int) -> None:
    body = {
        "prompt": prompt,
        "sequential_image_generation": "auto",
        "sequential_image_generation_options": options,
        "image": [DATA_URL] * references,
    }
    assert decode(**body).n == n
    alone = body | {"sequential_image_generation": "disabled"}
    if not (options or {}).get("max_images"):
        assert decode(**alone).n == 1


def test_pictures_come_as_one_or_as_a_list() -> None:
    one = decode(image=DATA_URL).references
    assert [(source.param, source.data) for source in one] == [("image", b"ABC")]
    two = decode(image=["https://img.example/a.png", DATA_URL]).references
    assert [(source.param, source.url) for source in two] == [
        ("image[0]", "https://img.example/a.png"),
        ("image[1]", None),
    ]
    assert decode(image=[]).references == decode(image=None).references == ()


MAX = "sequential_image_generation_options.max_images"
SERIES = {"sequential_image_generation": "auto"}


def of_series(most: Any) -> dict[str, Any]:
    return {"sequential_image_generation_options": {"max_images": most}}


@pytest.mark.parametrize(
    ("card", "body", "cls", "param"),
    [
        (FOUR, {"prompt": None}, errors.MissingField, "prompt"),
        (FOUR, {"prompt": " "}, errors.InvalidField, "prompt"),
        (FOUR, {"prompt": "猫" * 5000}, errors.PromptTooLong, "prompt"),
        (FOUR, {"n": 2}, errors.UnknownField, "n"),
        (FOUR, {"quality": "hd"}, errors.UnknownField, "quality"),
        (FOUR, {"size": "8K"}, errors.InvalidField, "size"),
        (FOUR, {"size": "512x512"}, errors.InvalidField, "size"),
        (FOUR, {"size": "5000x5000"}, errors.InvalidField, "size"),
        (FOUR, {"size": "8192x240"}, errors.InvalidField, "size"),
        (FOUR, {"size": 1024}, errors.InvalidField, "size"),
        (FOUR, {"seed": -2}, errors.InvalidField, "seed"),
        (FOUR, {"guidance_scale": 2.5}, errors.UnsupportedField, "guidance_scale"),
        (FOUR, {"guidance_scale": 3}, errors.UnsupportedField, "guidance_scale"),
        (FOUR, {"output_format": "png"}, errors.UnsupportedField, "output_format"),
        (PRO, {"output_format": "webp"}, errors.InvalidField, "output_format"),
        (FOUR, {"tools": [{"type": "web_search"}]}, errors.UnsupportedField, "tools"),
        (PRO, {"background": "transparent"}, errors.UnsupportedField, "background"),
        (PRO, {"layer_decomposition": {}}, errors.UnsupportedField, "layer_decomposition"),
        (PRO, {"layer_decomposition": True}, errors.UnsupportedField, "layer_decomposition"),
        (PRO, {"optimize_prompt_options": {"mode": "fast"}}, errors.UnsupportedField, "optimize_prompt_options.mode"),
        (FOUR, {"optimize_prompt_options": {"mode": "slow"}}, errors.InvalidField, "optimize_prompt_options.mode"),
        (FOUR, {"sequential_image_generation": True}, errors.InvalidField, "sequential_image_generation"),
        (PRO, SERIES, errors.UnsupportedField, "sequential_image_generation"),
        (FOUR, of_series(4), errors.UnsupportedField, MAX),
        (FOUR, SERIES | of_series(0), errors.InvalidField, MAX),
        (FOUR, SERIES | of_series(16), errors.InvalidField, MAX),
        (FOUR, SERIES | of_series("4"), errors.InvalidField, MAX),
        (FOUR, SERIES | of_series(10) | {"image": [DATA_URL] * 6}, errors.TooManyImages, MAX),
        (FOUR, {"image": 7}, errors.InvalidField, "image"),
        (FOUR, {"image": [DATA_URL, 7]}, errors.InvalidField, "image"),
        (FOUR, {"image": ""}, errors.InvalidImage, "image"),
        (FOUR, {"image": [DATA_URL, "cat.png"]}, errors.InvalidImage, "image[1]"),
        (FOUR, {"image": [DATA_URL] * 15}, errors.InvalidField, "image"),
        (PRO, {"image": [DATA_URL] * 11}, errors.InvalidField, "image"),
        (FOUR, {"watermark": "false"}, errors.InvalidField, "watermark"),
        (FOUR, {"response_format": "b64"}, errors.InvalidField, "response_format"),
    ],
)  # fmt: skip
def test_refused_by_name(card: str, body: dict[str, Any], cls: Any, param: str) -> None:
    with pytest.raises(errors.RequestError) as refused:
        decode(card, **body)
    assert (type(refused.value), refused.value.param) == (cls, param)


def test_a_model_that_only_draws_takes_no_pictures() -> None:
    with pytest.raises(errors.UnsupportedField, match="'image'"):
        ARK.decode_request({"prompt": "x", "image": DATA_URL}, CARDS["dall-e-3"])


def test_what_asks_for_nothing_is_taken() -> None:
    assert decode(tools=[], layer_decomposition=False, background=None, seed=-1).seed is None
    assert decode(seed=0).seed == 0
    assert not decode(optimize_prompt=False).prompt_extend
    assert decode(optimize_prompt=True).prompt_extend
    assert decode(optimize_prompt_options={"mode": "standard"}).prompt_extend


@pytest.mark.parametrize(("picture", "param"), [("", "image"), ([DATA_URL, ""], "image[1]")])
def test_an_empty_address_has_its_own_code(picture: Any, param: str) -> None:
    with pytest.raises(errors.InvalidImage) as caught:
        decode(image=picture)
    error = ARK.encode_error(caught.value, "r").body["error"]
    assert (error["code"], error["param"]) == ("InvalidImageURL.EmptyURL", param)
    read = ArkClient().decode_error(Incoming(400, json.dumps({"error": error}).encode()))
    assert isinstance(read, errors.InvalidImage)
    assert ARK.encode_error(read, "r").body["error"]["code"] == error["code"]


@pytest.mark.parametrize(
    "code",
    [
        "SensitiveContentDetected.SevereViolation",
        "SensitiveContentDetected.Violence",
        "InputTextSensitiveContentDetected",
        "InputImageSensitiveContentDetected",
        "InputImageSensitiveContentDetected.PolicyViolation",
        "InputImageSensitiveContentDetected.PrivacyInformation",
        "OutputImageSensitiveContentDetected",
        "OutputImageSensitiveContentDetected.DeepFake",
    ],
)
def test_a_refusal_behind_a_relay_keeps_its_code(code: str) -> None:
    """Ark's own causes go through; what our judges call theirs stays with the operator."""
    said = {"error": {"code": code, "message": "no", "param": "", "type": "BadRequest"}}
    read = ArkClient().decode_error(Incoming(400, json.dumps(said).encode()))
    assert isinstance(read, errors.ContentRefused)
    assert ARK.encode_error(read, "r").body["error"]["code"] == code
    image = {"error": {"code": code, "message": "no"}}
    assert ark_shapes.item_error(read)["code"] == image["error"]["code"]
    ours = errors.ContentRefused("user", 0, source="lists", category="DeepFake")
    assert ARK.encode_error(ours, "r").body["error"]["code"] == "InputTextSensitiveContentDetected"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("ep-20260101-abcde", "RateLimitExceeded.EndpointRPMExceeded"),
        (FOUR, "AccountRateLimitExceeded"),
    ],
)
def test_a_limit_met_by_an_endpoint_says_so(model: str, code: str) -> None:
    _, delivery = ARK.decode_request({"model": model, "prompt": "猫"}, CARDS[FOUR])
    limited = ARK.encode_error(errors.RateLimited(60, 2.0), "r", delivery)
    assert (limited.status, limited.body["error"]["code"]) == (429, code)
    crowded = ARK.encode_error(errors.ConcurrencyExceeded(4), "r", delivery)
    assert crowded.body["error"]["code"] == "InflightBatchsizeExceeded"
