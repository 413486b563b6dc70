"""Every error of the tree in every dialect: the shape, the status, the headers, the clients' strings."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from danqing.catalog import load
from danqing.dialects.client import Incoming
from danqing.dialects.openai_client import OpenAIClient
from danqing.dialects.registry import DIALECTS
from danqing.dialects.zhipu_client import ZhipuClient
from danqing.domain import errors
from danqing.domain.sizes import Size
from danqing.domain.task import Broken, Delivery, StreamHead
from danqing.settings import Settings

CARDS = load(Settings()).cards

EXAMPLES: dict[str, Any] = {
    "message": "Something is wrong.",
    "param": "size",
    "name": "no-such-model",
    "chars": 100_000,
    "chars_max": 1000,
    "n_max": 1,
    "needed": 5000,
    "available": 1,
    "role": "user",
    "level": 1,
    "retry_after_s": 2.2,
    "limit": 60,
    "window": "day",
    "request_id": "client-1",
    "other": "width",
}


def instance(cls: type[errors.DanqingError]) -> errors.DanqingError:
    parameters = list(inspect.signature(cls).parameters.values())
    return cls(**{p.name: EXAMPLES[p.name] for p in parameters if p.default is p.empty})


CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.DanqingError)
]
OPENAI_SHAPED = ("openai", "openai_edits", "openai_variations", "chat", "dashscope")

# class: (OpenAI status, type, code), (Zhipu status, code)
TABLE: dict[str, tuple[tuple[int, str, str | None], tuple[int, str]]] = {
    "DanqingError": ((500, "server_error", "server_error"), (500, "500")),
    "RequestError": ((400, "invalid_request_error", "invalid_request"), (400, "1210")),
    "InvalidBody": ((400, "invalid_request_error", "invalid_body"), (400, "1210")),
    "BodyTooLarge": ((413, "invalid_request_error", "request_too_large"), (413, "1210")),
    "BodyTooSlow": ((408, "invalid_request_error", "request_timeout"), (408, "1210")),
    "MissingField": ((400, "invalid_request_error", "missing_required_parameter"), (400, "1213")),
    "InvalidField": ((400, "invalid_request_error", "invalid_value"), (400, "1214")),
    "PromptTooLong": ((400, "invalid_request_error", "string_above_max_length"), (400, "1214")),
    "TooManyImages": ((400, "invalid_request_error", None), (400, "1214")),
    "ExclusiveFields": ((400, "invalid_request_error", "invalid_value"), (400, "1215")),
    "InvalidImage": ((400, "invalid_request_error", "invalid_image_file"), (400, "1214")),
    "UnknownField": ((400, "invalid_request_error", "unknown_parameter"), (400, "1210")),
    "UnsupportedField": ((400, "invalid_request_error", "unsupported_parameter"), (400, "1210")),
    "ModelNotFound": ((404, "invalid_request_error", "model_not_found"), (400, "1211")),
    "NotFound": ((404, "invalid_request_error", "not_found"), (404, "1222")),
    "MethodNotAllowed": ((405, "invalid_request_error", "method_not_allowed"), (405, "1222")),
    "IdempotencyConflict": ((409, "invalid_request_error", "idempotency_conflict"), (400, "1210")),
    "DuplicateRequestId": ((409, "invalid_request_error", "duplicate_request_id"), (400, "1231")),
    "AuthError": ((401, "invalid_request_error", "invalid_api_key"), (401, "1000")),
    "MissingToken": ((401, "invalid_request_error", "invalid_api_key"), (401, "1001")),
    "InvalidToken": ((401, "invalid_request_error", "invalid_api_key"), (401, "1002")),
    "ExpiredToken": ((401, "invalid_request_error", "invalid_api_key"), (401, "1003")),
    "PermissionDenied": ((403, "invalid_request_error", "permission_denied"), (434, "1220")),
    "WaiverRequired": ((403, "invalid_request_error", "waiver_required"), (434, "1220")),
    "AccountSuspended": ((403, "invalid_request_error", "account_suspended"), (429, "1112")),
    "EndUserBlocked": ((403, "invalid_request_error", "end_user_blocked"), (434, "1300")),
    "ModelNotAllowed": ((403, "invalid_request_error", "model_not_allowed"), (434, "1220")),
    "QuotaExceeded": ((429, "insufficient_quota", "insufficient_quota"), (429, "1113")),
    "TokenBudgetExceeded": ((429, "insufficient_quota", "insufficient_quota"), (429, "1113")),
    "ContentRefused": ((400, "invalid_request_error", "content_policy_violation"), (400, "1301")),
    "Busy": ((429, "rate_limit_error", "rate_limit_exceeded"), (429, "1305")),
    "RateLimited": ((429, "requests", "rate_limit_exceeded"), (429, "1303")),
    "ConcurrencyExceeded": ((429, "requests", "rate_limit_exceeded"), (429, "1302")),
    "Cancelled": ((499, "invalid_request_error", "cancelled"), (499, "1230")),
    "ServerFault": ((500, "server_error", "server_error"), (500, "500")),
    "EngineFailed": ((500, "server_error", "server_error"), (500, "500")),
    "ProviderFailed": ((502, "server_error", "provider_failed"), (500, "500")),
    "Unavailable": ((503, "server_error", "server_is_overloaded"), (503, "500")),
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", OPENAI_SHAPED)
def test_openai_shape(name: str, cls: type[errors.DanqingError]) -> None:
    reply = DIALECTS[name].encode_error(instance(cls), "req-1")
    status, kind, code = TABLE[cls.__name__][0]
    assert reply.status == status
    assert set(reply.body) == {"error"}
    assert set(reply.body["error"]) == {"message", "type", "param", "code"}
    assert (reply.body["error"]["type"], reply.body["error"]["code"]) == (kind, code)
    assert reply.headers["x-request-id"] == "req-1"
    assert json.loads(json.dumps(reply.body)) == reply.body


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_zhipu_shape(cls: type[errors.DanqingError]) -> None:
    error = instance(cls)
    reply = DIALECTS["zhipu"].encode_error(error, "req-1")
    status, code = TABLE[cls.__name__][1]
    assert (reply.status, reply.body["error"]["code"]) == (status, code)
    assert set(reply.body["error"]) == {"code", "message"}
    assert set(reply.body) - {"contentFilter"} == {"error"}
    param = getattr(error, "param", None)
    verbatim = isinstance(error, errors.DuplicateRequestId)
    assert verbatim or param is None or f"'{param}'" in reply.body["error"]["message"]
    assert json.loads(json.dumps(reply.body)) == reply.body


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_draw_is_always_200(cls: type[errors.DanqingError]) -> None:
    error = instance(cls)
    reply = DIALECTS["draw"].encode_error(error, "req-1")
    assert reply.status == 200
    if isinstance(error, errors.AuthError | errors.QuotaExceeded):
        assert set(reply.body) == {"codes", "mess", "data"}
    else:
        assert reply.body == DIALECTS["openai"].encode_error(error, "req-1").body
    assert json.loads(json.dumps(reply.body)) == reply.body


def test_draw_words() -> None:
    draw = DIALECTS["draw"]
    bad_key = draw.encode_error(errors.MissingToken("x"), "r").body
    assert (bad_key["codes"], bad_key["data"]) == (900, "token")
    assert bad_key["mess"].startswith("密钥错误或已过期")
    assert draw.encode_error(errors.QuotaExceeded(5000, 1), "r").body == {
        "codes": 300,
        "mess": "当前额度不足，请充值后继续使用",
        "data": "",
    }
    assert draw.encode_error(errors.TooManyImages("n", 1), "r").body == {
        "error": {
            "code": None,
            "message": "You must provide n=1 for this model.",
            "param": None,
            "type": "invalid_request_error",
        }
    }
    assert draw.encode_error(errors.ContentRefused("user", 0, "ours"), "r").body == {
        "error": {
            "code": "content_policy_violation",
            "message": "Your request was rejected as a result of our safety system. ",
            "param": None,
            "type": "invalid_request_error",
        }
    }


def test_zhipu_refusal_is_the_providers_own() -> None:
    reply = DIALECTS["zhipu"].encode_error(errors.ContentRefused("user", 1), "r")
    assert reply.body == {
        "contentFilter": [{"level": 1, "role": "user"}],
        "error": {
            "code": "1301",
            "message": "系统检测到输入或生成内容可能包含不安全或敏感内容，"
            "请您避免输入易产生敏感内容的提示语，感谢您的配合。",
        },
    }


@pytest.mark.parametrize(
    ("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (2.2, "3"), (60, "60")]
)
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_busy_and_limited_say_when_to_come_back(name: str, wait_s: float, header: str) -> None:
    for error in (errors.Busy(wait_s), errors.RateLimited(60, wait_s)):
        reply = DIALECTS[name].encode_error(error, "r")
        assert reply.headers["retry-after"] == header
        assert "x-should-retry" not in reply.headers


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_too_many_at_once_may_come_back_in_a_second(name: str) -> None:
    reply = DIALECTS[name].encode_error(errors.ConcurrencyExceeded(4), "r")
    assert reply.headers["retry-after"] == "1"
    assert "4 requests at once" in reply.body.get("error", reply.body)["message"]


@pytest.mark.parametrize(
    "error",
    [
        errors.QuotaExceeded(5000, 1),
        errors.TokenBudgetExceeded("day", 5000, 1),
        errors.AccountSuspended("x"),
        errors.IdempotencyConflict(),
        errors.DuplicateRequestId("client-1"),
    ],
    ids=lambda error: error.code,
)
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_what_no_retry_mends_is_not_to_be_retried(name: str, error: errors.DanqingError) -> None:
    reply = DIALECTS[name].encode_error(error, "r")
    assert reply.headers["x-should-retry"] == "false"
    assert "retry-after" not in reply.headers


def test_a_budget_names_its_window() -> None:
    error = errors.TokenBudgetExceeded("month", 5000, 1)
    assert (error.window, error.needed, error.available) == ("month", 5000, 1)
    assert "(month)" in str(error)


def test_zhipu_duplicate_is_the_providers_own() -> None:
    reply = DIALECTS["zhipu"].encode_error(errors.DuplicateRequestId("client-1"), "r")
    assert reply.body == {
        "error": {"code": "1231", "message": "You already have a request: client-1"}
    }


def test_a_limit_above_one_names_the_field() -> None:
    error = DIALECTS["openai"].encode_error(errors.TooManyImages("n", 10), "r").body["error"]
    assert (error["param"], error["code"]) == ("n", "invalid_value")


def test_a_class_of_the_future_is_shaped_as_its_parent() -> None:
    class Newer(errors.InvalidToken):
        pass

    assert DIALECTS["openai"].encode_error(Newer("x"), "r").status == 401
    assert DIALECTS["zhipu"].encode_error(Newer("x"), "r").body["error"]["code"] == "1002"


def test_openai_tells_the_rate_limit_it_refuses_by() -> None:
    reply = DIALECTS["openai"].encode_error(errors.RateLimited(60, 2.2), "r")
    told = {name: value for name, value in reply.headers.items() if "ratelimit" in name}
    assert told == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "3s",
    }
    for other in (errors.ConcurrencyExceeded(4), errors.Busy(1.0)):
        assert not any(
            "ratelimit" in name for name in DIALECTS["openai"].encode_error(other, "r").headers
        )


@pytest.mark.parametrize("name", ["openai", "openai_edits"])
@pytest.mark.parametrize(
    ("role", "stage"), [("user", "input"), ("history", "input"), ("assistant", "output")]
)
def test_a_refusal_by_gpt_image_is_its_providers_own(name: str, role: str, stage: str) -> None:
    """`echo` is what GPT Image's deliveries have; dall-e's say content_policy_violation."""
    error = errors.ContentRefused(role, 1, "ours")
    reply = DIALECTS[name].encode_error(error, "r", Delivery(echo=True))
    assert reply.status == 400
    assert reply.body == {
        "error": {
            "message": "Your request was rejected by the safety system.",
            "type": "image_generation_user_error",
            "param": None,
            "code": "moderation_blocked",
            "moderation_details": {"moderation_stage": stage, "categories": []},
        }
    }
    for other in (None, Delivery()):
        dall_e = DIALECTS[name].encode_error(error, "r", other).body["error"]
        assert dall_e["code"] == "content_policy_violation"
        assert set(dall_e) == {"message", "type", "param", "code"}
    read = OpenAIClient().decode_error(Incoming(400, json.dumps(reply.body).encode()))
    assert isinstance(read, errors.ContentRefused)
    assert read.role == ("assistant" if stage == "output" else "user")


def test_a_stream_of_gpt_image_is_refused_as_its_answer_is() -> None:
    head = StreamHead("task-1", 1, "gpt-image-1", "a cat", "medium", Size(1024, 1024), 1)
    event = Broken(errors.ContentRefused("assistant", 1))
    (told,) = DIALECTS["openai"].encode_event(event, head, Delivery(stream=True, echo=True))
    assert isinstance(told.data, dict)
    assert told.data["error"]["code"] == "moderation_blocked"
    (told,) = DIALECTS["openai"].encode_event(event, head, Delivery(stream=True))
    assert isinstance(told.data, dict)
    assert told.data["error"]["code"] == "content_policy_violation"


@pytest.mark.parametrize("model", ["gpt-image-2", "gpt-image-2.5-flare", "gpt-image-1", "dall-e-3"])
def test_gpt_image_2_has_a_type_of_its_own_for_what_the_user_can_mend(model: str) -> None:
    delivery = Delivery.of_card(CARDS[model])
    is_new = model.startswith("gpt-image-2")
    own = "image_generation_user_error" if is_new else "invalid_request_error"
    for error, code in (
        (errors.InvalidField("'size' is bad.", "size"), "invalid_value"),
        (errors.InvalidImage("'image' is bad.", "image"), "invalid_image_file"),
    ):
        told = DIALECTS["openai"].encode_error(error, "r", delivery).body["error"]
        assert (told["type"], told["code"]) == (own, code)
        read = OpenAIClient().decode_error(Incoming(400, json.dumps({"error": told}).encode()))
        assert type(read) is type(error)
    for error in (errors.MissingField("prompt"), errors.UnknownField("x"), errors.AuthError("x")):
        told = DIALECTS["openai"].encode_error(error, "r", delivery).body["error"]
        assert told["type"] == "invalid_request_error"


def test_who_reads_a_request_of_that_model_keeps_its_type() -> None:
    for name in ("openai", "openai_edits"):
        body = {"prompt": "a cat"}
        if name == "openai_edits":
            body |= {"images": [{"image_url": "https://img.example/1.png"}]}  # type: ignore[dict-item]
        _, delivery = DIALECTS[name].decode_request(body, CARDS["gpt-image-2"])
        assert delivery.user_errors


def test_an_overload_is_read_as_one() -> None:
    reply = DIALECTS["openai"].encode_error(errors.Unavailable("x"), "r")
    answer = Incoming(503, json.dumps(reply.body).encode(), reply.headers)
    assert type(OpenAIClient().decode_error(answer)) is errors.Unavailable


@pytest.mark.parametrize(
    ("body", "code"),
    [({"user_id": "somebody", "user": "another"}, "1215"), ({"stream": True}, "1212")],
)
def test_zhipu_has_codes_for_fields_that_exclude_each_other_and_for_the_manner(
    body: dict[str, Any], code: str
) -> None:
    with pytest.raises(errors.RequestError) as caught:
        DIALECTS["zhipu"].decode_request({"prompt": "猫"} | body, CARDS["cogview-4"])
    reply = DIALECTS["zhipu"].encode_error(caught.value, "r")
    assert (reply.status, reply.body["error"]["code"]) == (400, code)
    read = ZhipuClient().decode_error(Incoming(400, json.dumps(reply.body).encode()))
    assert isinstance(read, errors.RequestError if code == "1215" else errors.ProviderFailed)


def test_zhipu_takes_the_same_user_by_both_names() -> None:
    body = {"prompt": "猫", "user_id": "somebody", "user": "somebody", "stream": False}
    task, _ = DIALECTS["zhipu"].decode_request(body, CARDS["cogview-4"])
    assert task.end_user == "somebody"
