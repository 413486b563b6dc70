"""Golden files of the Zhipu and DashScope clients: what they send, and what they make of every answer."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from danqing.dialects.client import Incoming, Pending, ProviderImage, Target
from danqing.dialects.registry import CLIENTS, client_of
from danqing.domain import errors
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask, InputImage

GOLDEN = {
    path.stem: json.loads(path.read_bytes())
    for path in sorted((Path(__file__).parent / "golden" / "clients").glob("*.json"))
}
EXTRAS = {"zhipu": ("watermark_enabled", "response_format", "style", "seed", "negative_prompt")}


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{case.get('name', index)}")
        for name, golden in GOLDEN.items()
        for index, case in enumerate(golden[kind])
    ]


@pytest.mark.parametrize(("name", "case"), cases("requests"))
def test_request(name: str, case: dict[str, Any]) -> None:
    client = client_of(name, frozenset(case.get("extras", EXTRAS.get(name, ()))))
    task = ImageTask(**case["task"] | {"size": Size(*case["task"]["size"])})
    pictures = tuple(
        InputImage(base64.b64decode(data), "png", Size(8, 8)) for data in case.get("references", ())
    )
    target = Target("upstream", references=pictures, background=case.get("background", False))
    delivery = Delivery(form=case.get("form", "url"))
    assert client.unsupported(task, delivery) == frozenset()
    sent = client.encode_request(task, delivery, target)
    assert (sent.method, sent.path, sent.form) == (case["method"], case["path"], None)
    assert sent.json == case["json"]
    assert dict(sent.headers) == case.get("headers", {})


@pytest.mark.parametrize(("name", "case"), cases("answers"))
def test_answer(name: str, case: dict[str, Any]) -> None:
    body = case["text"] if "text" in case else json.dumps(case["body"])
    answer = Incoming(case.get("status", 200), body.encode(), case.get("headers", {}))
    task = ImageTask("m", "一只猫", Size(1024, 1024), "standard", n=case.get("n", 1))
    client = CLIENTS[name]
    if "error" in case:
        with pytest.raises(errors.DanqingError) as raised:
            client.decode_result(answer, task)
        check_error(raised.value, case)
        found = client.decode_error(answer)
        if found is None:  # it is an answer, only not one that makes sense
            assert answer.status < 400
        else:
            check_error(found, case)
        return
    assert client.decode_error(answer) is None
    result = client.decode_result(answer, task)
    if "pending" in case:
        assert isinstance(result, Pending)
        assert result.upstream_id == case["pending"]
        assert [result.poll.method, result.poll.path] == case["poll"]
        cancel = result.cancel and [result.cancel.method, result.cancel.path]
        assert cancel == case.get("cancel")
        return
    assert not isinstance(result, Pending)
    came = [one.url if isinstance(one, ProviderImage) else None for one in result.images]
    assert came == case["urls"]
    assert [[one.role, one.level] for one in result.safety] == case.get("safety", [])
    assert result.revised_prompt == case.get("revised_prompt")
    if "upstream_id" in case:
        assert result.upstream_id == case["upstream_id"]
    size = Size(*case["size"]) if "size" in case else None
    assert {one.size for one in result.images if isinstance(one, ProviderImage)} <= {size}


def check_error(error: errors.DanqingError, case: dict[str, Any]) -> None:
    assert type(error).__name__ == case["error"]
    assert not isinstance(error, errors.QuotaExceeded)
    assert case.get("says", "") in error.message
    for field in ("param", "role", "level", "retry_after_s"):
        if field in case:
            assert getattr(error, field) == case[field]


def test_keys_in_a_providers_words_go_no_further() -> None:
    body = {"code": "InvalidParameter", "message": "size: key sk-abcdef0123456789 is odd"}
    error = CLIENTS["dashscope"].decode_error(Incoming(400, json.dumps(body).encode()))
    assert error is not None
    assert "abcdef" not in error.message
