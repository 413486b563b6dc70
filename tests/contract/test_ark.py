"""The Ark SDK (volcengine-ark-runtime), which sends explicit nulls for whatever is not set."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import LiveServer
from tests.contract.conftest import (
    CRASHING_PROMPT,
    PROVIDER_TROUBLES,
    REFUSED_PROMPT,
    Callers,
    picture,
    png,
)
from tests.contract.sdk import Sdk, SdkError

pytestmark = pytest.mark.slow

CAT = {"model": "doubao-seedream-4-0-250828", "prompt": "a cat"}
AUTO = {"sequential_image_generation": "auto"}
RED = "data:image/png;base64," + base64.b64encode(png()).decode()


@pytest.fixture(scope="session")
def ark(start: Callable[[str], Sdk]) -> Sdk:
    return start("ark")


@pytest.mark.parametrize("call", ["generate", "generate_async"])
def test_generates(ark: Sdk, call: str) -> None:
    answer = ark.call(call, **CAT, size="1K", watermark=True)
    assert answer["model"] == CAT["model"]
    (item,) = answer["data"]
    assert item["size"] == "1024x1024"
    assert picture(item["url"]).size == (1024, 1024)
    assert answer["usage"]["generated_images"] == 1
    assert answer["usage"]["output_tokens"] == 1024 * 1024 // 256


def test_base64(ark: Sdk) -> None:
    answer = ark.call("generate", **CAT, size="1024x1024", response_format="b64_json")
    assert picture(b64=answer["data"][0]["b64_json"]).size == (1024, 1024)


def test_a_series(ark: Sdk) -> None:
    options = {"max_images": 3}
    answer = ark.call(
        "generate", **CAT, **AUTO, size="1K", sequential_image_generation_options=options
    )
    assert len(answer["data"]) == answer["usage"]["generated_images"] == 3
    assert all(picture(item["url"]).size == (1024, 1024) for item in answer["data"])


STREAMS = pytest.mark.parametrize("call", ["stream", "stream_async"])


@STREAMS
def test_streams_each_image_as_it_comes(ark: Sdk, call: str) -> None:
    events = ark.call(
        call,
        **CAT,
        **AUTO,
        size="1K",
        sequential_image_generation_options={"max_images": 2},
    )
    kinds = [event["type"] for event in events]
    assert kinds == ["image_generation.partial_succeeded"] * 2 + ["image_generation.completed"]
    assert sorted(event["image_index"] for event in events[:2]) == [0, 1]
    assert all(picture(event["url"]).size == (1024, 1024) for event in events[:2])
    assert events[-1]["usage"]["generated_images"] == 2


@STREAMS
def test_streams_base64(ark: Sdk, call: str) -> None:
    events = ark.call(call, **CAT, size="1K", response_format="b64_json")
    assert picture(b64=events[0]["b64_json"]).size == (1024, 1024)
    assert events[0]["url"] is None
    assert events[-1]["usage"]["generated_images"] == 1


SPOILT = AUTO | {
    "model": CAT["model"],
    "prompt": "nan-seed@8",
    "size": "1K",
    "seed": 7,
    "sequential_image_generation_options": {"max_images": 3},
}
"""Of three images, of the seeds 7 to 9, the second fails."""


@pytest.mark.parametrize("call", ["generate", "generate_async"])
def test_one_image_of_a_series_fails(ark: Sdk, call: str) -> None:
    answer = ark.call(call, **SPOILT)
    assert [item["url"] is not None for item in answer["data"]] == [True, False, True]
    assert answer["data"][1]["error"]["code"] == "InternalServiceError"
    assert answer["usage"]["generated_images"] == 2


@STREAMS
def test_one_image_of_a_stream_fails(ark: Sdk, call: str) -> None:
    """The SDK stops at the first event that holds an error, Ark's own `partial_failed` too."""
    with pytest.raises(SdkError) as raised:
        ark.call(call, **SPOILT)
    assert "ArkAPIError" in raised.value.types
    assert raised.value.body["code"] == "InternalServiceError"


@pytest.mark.parametrize("images", [RED, [RED]], ids=["one", "list"])
def test_edits(ark: Sdk, images: Any) -> None:
    answer = ark.call("generate", **CAT, image=images, size="1K")
    assert picture(answer["data"][0]["url"]).size == (1024, 1024)


# trouble → what the SDK raises, HTTP status, Ark's code
ERRORS = {
    "bad key": ("ArkAuthenticationError", 401, "AuthenticationError"),
    "bad field": ("ArkBadRequestError", 400, "InvalidParameter"),
    "no prompt": ("ArkBadRequestError", 400, "MissingParameter"),
    "unknown model": ("ArkNotFoundError", 404, "InvalidEndpointOrModel.NotFound"),
    "bad picture": ("ArkBadRequestError", 400, "InvalidImageURL.InvalidFormat"),
    "too many pictures": ("ArkBadRequestError", 400, "InvalidParameter"),
    "not this model": ("ArkNotFoundError", 404, "ModelNotOpen"),
    "no waiver": ("ArkPermissionDeniedError", 403, "AccessDenied"),
    "refused": ("ArkBadRequestError", 400, "InputTextSensitiveContentDetected"),
    "quota": ("ArkPermissionDeniedError", 403, "AccountOverdueError"),
    "rate": ("ArkRateLimitError", 429, "AccountRateLimitExceeded"),
    "crash": ("ArkInternalServerError", 500, "InternalServiceError"),
}


def troubled(trouble: str, callers: Callers) -> dict[str, Any]:
    """What gets into it; the operator's token where it names none."""
    return (
        CAT
        | {
            "bad key": {"token": callers.stranger},
            "bad field": {"size": "1x1"},
            "no prompt": {"prompt": None},
            "unknown model": {"model": "nothing"},
            "bad picture": {"image": "data:image/png;base64,AAAA"},
            "too many pictures": {"image": [RED] * 16},
            "not this model": {"token": callers.narrow},
            "no waiver": {"watermark": False},
            "refused": {"prompt": REFUSED_PROMPT},
            "quota": {"token": callers.poor},
            "rate": {"token": callers.hasty},
            "crash": {"prompt": CRASHING_PROMPT},
        }[trouble]
    )


# By the time of a crash a stream has begun: its event is tested below.
CASES = [
    (trouble, call)
    for trouble in ERRORS
    for call in ("generate", "generate_async", "stream", "stream_async")
    if not (trouble == "crash" and call.startswith("stream"))
]


@pytest.mark.parametrize(("trouble", "call"), CASES)
def test_errors(ark: Sdk, callers: Callers, trouble: str, call: str) -> None:
    with pytest.raises(SdkError) as raised:
        ark.call(call, **troubled(trouble, callers))
    error = raised.value
    kind, status, code = ERRORS[trouble]
    assert (error.type, error.status) == (kind, status)
    assert error.body["error"]["code"] == code
    assert error.headers["x-error-code"] == code


# model of the relaying server → HTTP status; the SDK has one class for all of 500 and up
PROVIDER_ERRORS = {"failing": 500, "down": 503}


@pytest.mark.parametrize("call", ["generate", "generate_async"])
@pytest.mark.parametrize("model", PROVIDER_ERRORS)
def test_a_provider_in_trouble(ark: Sdk, relaying: LiveServer, model: str, call: str) -> None:
    at = {"url": relaying.url, "token": relaying.token}
    with pytest.raises(SdkError) as raised:
        ark.call(call, **at, model=model, prompt=PROVIDER_TROUBLES[model])
    error = raised.value
    assert (error.type, error.status) == ("ArkInternalServerError", PROVIDER_ERRORS[model])
    assert error.body["error"]["code"] == "InternalServiceError"


@STREAMS
def test_a_stream_that_breaks(ark: Sdk, call: str) -> None:
    """The SDK raises on an event that holds an error."""
    with pytest.raises(SdkError) as raised:
        ark.call(call, **CAT | {"prompt": CRASHING_PROMPT})
    assert "ArkAPIError" in raised.value.types


def test_when_the_server_is_busy(ark: Sdk, busy: LiveServer) -> None:
    with pytest.raises(SdkError) as raised:
        ark.call("generate", url=busy.url, token=busy.token, **CAT, size="1K")
    assert raised.value.type == "ArkRateLimitError"
    assert raised.value.body["error"]["code"] == "ServerOverloaded"
    assert int(raised.value.headers["retry-after"]) >= 1
