"""The dashscope SDK: synchronous calls, tasks with polling, and the failures that it returns instead of raising."""

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

MODEL = "qwen-image"
RED = "data:image/png;base64," + base64.b64encode(png()).decode()


@pytest.fixture(scope="session")
def dashscope(start: Callable[[str], Sdk]) -> Sdk:
    return start("dashscope")


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


@pytest.mark.parametrize("call", ["conversation", "conversation_async"])
def test_synchronously(dashscope: Sdk, call: str) -> None:
    answer = dashscope.call(
        call,
        model=MODEL,
        messages=said("一只猫"),
        size="1328*1328",
        n=1,
        negative_prompt="云",
        prompt_extend=False,
        watermark=False,
        seed=7,
    )
    assert answer["status_code"] == 200, answer
    assert answer["code"] == ""
    assert answer["request_id"]
    (content,) = answer["output"]["choices"][0]["message"]["content"]
    assert picture(content["image"]).size == (1328, 1328)
    usage = answer["usage"]  # the SDK adds counts of its own
    assert (usage["image_count"], usage["width"], usage["height"]) == (1, 1328, 1328)


def test_synthesis_posts_and_polls(dashscope: Sdk) -> None:
    answer = dashscope.call(
        "synthesis", model=MODEL, prompt="一只猫", negative_prompt="云", size="1664*928", n=1
    )
    assert answer["status_code"] == 200, answer
    assert answer["output"]["task_status"] == "SUCCEEDED"
    (result,) = answer["output"]["results"]
    assert result["orig_prompt"] == "一只猫"
    assert picture(result["url"]).size == (1664, 928)
    assert answer["usage"]["image_count"] == 1


def test_synthesis_step_by_step(dashscope: Sdk) -> None:
    begun = dashscope.call("synthesis_start", model=MODEL, prompt="一只猫")
    assert begun["status_code"] == 200, begun
    task = begun["output"]["task_id"]
    assert begun["output"]["task_status"] == "PENDING"
    ended = dashscope.call("synthesis_wait", task=task)
    assert ended["output"]["task_status"] == "SUCCEEDED"
    fetched = dashscope.call("synthesis_fetch", task=task)
    assert picture(fetched["output"]["results"][0]["url"])
    listed = dashscope.call("synthesis_list", model_name=MODEL, status="SUCCEEDED")
    assert listed["status_code"] == 200, listed


def test_image_generation_with_messages(dashscope: Sdk) -> None:
    asked = {"model": MODEL, "messages": said("一只猫"), "size": "1328*1328"}
    answer = dashscope.call("generation", **asked)
    assert answer["status_code"] == 200, answer
    assert picture(answer["output"]["choices"][0]["message"]["content"][0]["image"])
    begun = dashscope.call("generation_start", **asked)
    assert begun["status_code"] == 200, begun
    ended = dashscope.call("generation_wait", task=begun["output"]["task_id"])
    assert ended["output"]["task_status"] == "SUCCEEDED", ended
    assert picture(ended["output"]["choices"][0]["message"]["content"][0]["image"])


def test_asynchronous_classes(dashscope: Sdk) -> None:
    asked = {"model": MODEL, "prompt": "一只猫", "size": "1664*928"}
    answer = dashscope.call("synthesis_async", **asked)
    assert answer["status_code"] == 200, answer
    assert answer["output"]["task_status"] == "SUCCEEDED", answer
    assert picture(answer["output"]["results"][0]["url"]).size == (1664, 928)
    begun, ended, fetched = dashscope.call("synthesis_steps_async", **asked)
    assert begun["output"]["task_status"] == "PENDING", begun
    assert ended["output"]["task_status"] == "SUCCEEDED", ended
    assert picture(fetched["output"]["results"][0]["url"]).size == (1664, 928)
    listed = dashscope.call("synthesis_list_async", model_name=MODEL, status="SUCCEEDED")
    assert listed["status_code"] == 200, listed

    asked = {"model": MODEL, "messages": said("一只猫"), "size": "1328*1328"}
    answer = dashscope.call("generation_async", **asked)
    assert answer["status_code"] == 200, answer
    assert picture(answer["output"]["choices"][0]["message"]["content"][0]["image"])
    begun, ended, fetched = dashscope.call("generation_steps_async", **asked)
    assert begun["output"]["task_status"] == "PENDING", begun
    assert ended["output"]["task_status"] == "SUCCEEDED", ended
    (content,) = fetched["output"]["choices"][0]["message"]["content"]
    assert picture(content["image"]).size == (1328, 1328)


def test_edits_pictures_in_a_message(dashscope: Sdk) -> None:
    content = [{"image": RED}, {"text": "make it blue"}]
    answer = dashscope.call(
        "conversation",
        model="qwen-image-2.0",
        messages=[{"role": "user", "content": content}],
        size="1024*1024",
        prompt_extend=False,
    )
    assert answer["status_code"] == 200, answer
    (content,) = answer["output"]["choices"][0]["message"]["content"]
    assert picture(content["image"]).size == (1024, 1024)


def test_edits_pictures_beside_a_prompt(dashscope: Sdk) -> None:
    answer = dashscope.call(
        "synthesis",
        model="wan2.7-image",
        prompt="make it blue",
        images=[RED],
        task="image2image",
        n=1,
        prompt_extend=False,
    )
    assert answer["status_code"] == 200, answer
    assert answer["output"]["task_status"] == "SUCCEEDED", answer
    assert picture(answer["output"]["results"][0]["url"])


@pytest.mark.parametrize("cancel", ["synthesis_cancel", "synthesis_cancel_async"])
def test_cancelling_what_waits(dashscope: Sdk, busy_queue: LiveServer, cancel: str) -> None:
    at = {"url": busy_queue.url, "token": busy_queue.token}
    begun = dashscope.call("synthesis_start", **at, model=MODEL, prompt="一只猫")
    task = begun["output"]["task_id"]
    cancelled = dashscope.call(cancel, **at, task=task)
    assert cancelled["status_code"] == 200, cancelled
    fetched = dashscope.call("synthesis_fetch", **at, task=task)
    assert fetched["output"]["task_status"] == "CANCELED"
    again = dashscope.call(cancel, **at, task=task)
    assert (again["status_code"], again["code"]) == (400, "UnsupportedOperation")


def test_a_task_that_fails(dashscope: Sdk) -> None:
    begun = dashscope.call(
        "synthesis_start", model=MODEL, prompt=CRASHING_PROMPT, prompt_extend=False
    )
    ended = dashscope.call("synthesis_wait", task=begun["output"]["task_id"])
    assert ended["status_code"] == 200
    assert ended["output"]["task_status"] == "FAILED"
    assert ended["output"]["code"] == "InternalError.Algo"


def test_an_unknown_task(dashscope: Sdk) -> None:
    answer = dashscope.call("synthesis_fetch", task="nothing")
    assert (answer["status_code"], answer["output"]["task_status"]) == (200, "UNKNOWN")


# trouble → HTTP status, DashScope's code
ERRORS = {
    "bad key": (401, "InvalidApiKey"),
    "bad field": (400, "InvalidParameter"),
    "too many": (400, "InvalidParameter"),
    "unknown model": (404, "ModelNotFound"),
    "not this model": (403, "Model.AccessDenied"),
    "not to draw": (403, "AccessDenied"),
    "refused": (400, "DataInspectionFailed"),
    "quota": (400, "Arrearage"),
    "rate": (429, "Throttling.RateQuota"),
    "crash": (500, "InternalError.Algo"),
}


def troubled(trouble: str, callers: Callers) -> tuple[str, dict[str, Any]]:
    """The prompt, and the fields that get into it; the operator's token where they name none."""
    prompt = {"refused": REFUSED_PROMPT, "crash": CRASHING_PROMPT}.get(trouble, "一只猫")
    fields = {
        "bad key": {"token": callers.stranger},
        "bad field": {"size": "1*1"},
        "too many": {"n": 2},
        "unknown model": {"model": "nothing"},
        "not this model": {"token": callers.narrow},
        "not to draw": {"token": callers.reader},
        "quota": {"token": callers.poor},
        "rate": {"token": callers.hasty},
    }.get(trouble, {})
    return prompt, {"model": MODEL, "prompt_extend": False} | fields


@pytest.mark.parametrize("call", ["conversation", "conversation_async", "generation_async"])
@pytest.mark.parametrize("trouble", ERRORS)
def test_errors_of_a_synchronous_call(
    dashscope: Sdk, callers: Callers, trouble: str, call: str
) -> None:
    prompt, fields = troubled(trouble, callers)
    answer = dashscope.call(call, messages=said(prompt), **fields)
    assert (answer["status_code"], answer["code"]) == ERRORS[trouble], answer
    assert answer["message"]
    assert answer["request_id"]
    assert not answer["output"]


@pytest.mark.parametrize("trouble", [one for one in ERRORS if one != "crash"])
def test_errors_of_a_task(dashscope: Sdk, callers: Callers, trouble: str) -> None:
    prompt, fields = troubled(trouble, callers)
    answer = dashscope.call("synthesis_start", prompt=prompt, **fields)
    assert (answer["status_code"], answer["code"]) == ERRORS[trouble], answer
    assert answer["message"]


def test_what_is_missing_whole(dashscope: Sdk) -> None:
    """The SDK refuses to leave the model or the input out, down to its base class, and always sends parameters.

    So none of the three `BadRequest.Empty…` can come of it: an empty input is the most that it sends.
    """
    for call, fields, kind in (
        ("conversation", {"model": "", "messages": said("一只猫")}, "ModelRequired"),
        ("conversation", {"model": MODEL, "messages": []}, "ValueError"),
        ("generation", {"model": "", "messages": said("一只猫")}, "ModelRequired"),
        ("generation", {"model": MODEL, "messages": []}, "InputRequired"),
        ("synthesis_start", {"model": "", "prompt": "一只猫"}, "ModelRequired"),
        ("synthesis_start", {"model": MODEL, "prompt": ""}, "InputRequired"),
        ("bare", {"model": "", "input": {"prompt": "一只猫"}}, "ModelRequired"),
        ("bare", {"model": MODEL, "input": None}, "InputDataRequired"),
    ):
        with pytest.raises(SdkError) as raised:
            dashscope.call(call, **fields)
        assert raised.value.type == kind, (call, fields)
    answer = dashscope.call("bare", model=MODEL, input={})
    assert (answer["status_code"], answer["code"]) == (400, "InvalidParameter"), answer
    assert "input.messages" in answer["message"]
    assert answer["request_id"]


# model of the relaying server → HTTP status, DashScope's code
PROVIDER_ERRORS = {"failing": (500, "InternalError.Algo"), "down": (503, "ModelUnavailable")}


@pytest.mark.parametrize("call", ["conversation", "conversation_async"])
@pytest.mark.parametrize("model", PROVIDER_ERRORS)
def test_a_provider_in_trouble(dashscope: Sdk, relaying: LiveServer, model: str, call: str) -> None:
    at = {"url": relaying.url, "token": relaying.token}
    answer = dashscope.call(call, **at, model=model, messages=said(PROVIDER_TROUBLES[model]))
    assert (answer["status_code"], answer["code"]) == PROVIDER_ERRORS[model], answer
    assert answer["message"]


def test_when_the_server_is_busy(dashscope: Sdk, busy: LiveServer) -> None:
    answer = dashscope.call(
        "conversation", url=busy.url, token=busy.token, model=MODEL, messages=said("一只猫")
    )
    assert (answer["status_code"], answer["code"]) == (429, "Throttling")
