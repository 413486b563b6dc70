"""Whatever a provider answers, each client side makes an error of our tree of it, or images: nothing else ever escapes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.dialects.client import Incoming, Pending, ProviderImage
from danqing.dialects.registry import CLIENTS
from danqing.domain.errors import DanqingError
from danqing.domain.sizes import Size
from danqing.domain.task import ImageTask
from danqing.service.records import error_json

# The keys that some provider's answer has, so that random answers look like one for a while.
KEYS = st.sampled_from(
    [
        *("error", "code", "codes", "message", "mess", "type", "param", "data", "url", "b64_json"),
        *("size", "usage", "created", "model", "id", "choices", "content", "images", "image_url"),
        *("finish_reason", "text", "image", "output", "results", "result", "task_id", "request_id"),
        *("task_status", "image_result", "content_filter", "contentFilter", "role", "level"),
        *("revised_prompt", "actual_prompt", "output_format", "detail", "loc", "msg"),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3000, 3000)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a\0b", "a\ud800b", "a\ud83d\ude00", "size.\udfff" + "x" * 300, 10**100])
    | st.sampled_from(
        [
            *("https://a.example/1.png", "data:image/png;base64,QUJD", "![a](https://a.example/1)"),
            *("data:,", "QUJD", "1024x1024", "1024*1024", "png", "user", "assistant"),
            *("SUCCEEDED", "SUCCESS", "FAIL", "FAILED", "PROCESSING", "PENDING", "UNKNOWN"),
            *("1301", "1113", "InvalidParameter", "DataInspectionFailed", "content_filter"),
        ]
    )
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
BODIES = (
    st.dictionaries(KEYS, JSON, max_size=6).map(lambda body: json.dumps(body).encode())
    | JSON.map(lambda body: json.dumps(body).encode())
    | st.binary(max_size=40)
    | st.sampled_from([b"", b"<html>", b"null", b"{", b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe{}"])
)
STATUSES = st.sampled_from([200, 201, 202, 204, 301, 400, 401, 402, 403, 404, 408, 413, 418, 422])
STATUSES |= st.sampled_from([429, 434, 499, 500, 502, 503, 504, 529])
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "date", "x-request-id", "x-error-code"]),
    st.text(max_size=10) | st.sampled_from(["5", "1e99", "-1", "Thu, 26 Nov 2026 06:00:30 GMT"]),
    max_size=3,
)


def is_storable(value: object) -> bool:
    """Whether every database takes it as JSON, and every answer as UTF-8."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return bool(text.encode()) and "\\u0000" not in text


def read(name: str, answer: Incoming, task: ImageTask) -> Any:
    try:
        return CLIENTS[name].decode_result(answer, task)
    except DanqingError as error:
        return error


@pytest.mark.parametrize("name", sorted(CLIENTS))
@settings(max_examples=60, deadline=None)
@given(BODIES, STATUSES, HEADERS, st.integers(1, 4))
def test_nothing_but_errors_of_ours_and_images(
    name: str, body: bytes, status: int, headers: dict[str, str], n: int
) -> None:
    answer = Incoming(status, body, headers)
    error = CLIENTS[name].decode_error(answer)
    task = ImageTask("m", "a cat", Size(1024, 1024), "standard", n)
    result = read(name, answer, task)
    if error is not None or status >= 400:
        assert isinstance(error, DanqingError)
        assert type(result) is type(error)
        assert len(error.message) < 1000
        assert "\n" not in error.message
        assert len(error_json(error).get("param") or "") <= 100
        assert is_storable(error_json(error))
        return
    if isinstance(result, DanqingError | Pending):
        return
    assert len(result.images) == n
    assert is_storable([result.revised_prompt, dict(result.usage)])
    for image in result.images:
        assert isinstance(image, DanqingError | ProviderImage)
        if isinstance(image, ProviderImage):
            # A row keeps it as text.
            assert image.size is None or Size.parse(str(image.size)) == image.size
            assert is_storable(image.url)
            assert (image.url is None) != (image.data is None)
            assert image.url or image.data


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_what_no_database_takes_is_replaced(name: str) -> None:
    """PostgreSQL takes no NUL and no infinity, UTF-8 no lone surrogate: an image must not be lost by them."""
    odd = "a\0b\ud800c\ud83d\ude00"
    image = {"url": "https://a.example/1.png", "image": "https://a.example/1.png"}
    body = {
        "data": [image | {"revised_prompt": odd, "b64_json": None}],
        "output": {"choices": [{"message": {"content": [image]}}], "actual_prompt": odd},
        "choices": [{"message": {"content": "![a](https://a.example/1.png)"}}],
        "usage": {odd: odd, "cost": float("inf")},
    }
    raw = json.dumps(body).replace('"cost": Infinity', '"cost": 1e999').encode()
    found = CLIENTS[name].decode_result(
        Incoming(200, raw, {}), ImageTask("m", "a cat", Size(64, 64), "standard")
    )
    assert is_storable([found.revised_prompt, dict(found.usage)])
    assert found.usage == {"a\ufffdb\ufffdc\U0001f600": "a\ufffdb\ufffdc\U0001f600", "cost": None}


@pytest.mark.parametrize("text", ["http://" * 400_000, "![" * 1_000_000, "![a](" * 400_000])
def test_a_malicious_text_is_read_in_linear_time(text: str) -> None:
    body = {"choices": [{"message": {"content": text}}]}
    answer = Incoming(200, json.dumps(body).encode(), {})
    started = time.process_time()
    read("chat", answer, ImageTask("m", "a cat", Size(64, 64), "standard"))
    assert time.process_time() - started < 30  # what is quadratic takes hours


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_an_answer_of_millions_of_values_is_not_parsed(name: str) -> None:
    answer = Incoming(200, b'{"data":[' + b"{}," * 1_000_000 + b"{}]}", {})
    started = time.process_time()
    assert isinstance(
        read(name, answer, ImageTask("m", "a", Size(64, 64), "standard")), DanqingError
    )
    assert time.process_time() - started < 5
