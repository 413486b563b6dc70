"""Zhipu's two official clients: zai-sdk (in the tests' own environment) and zhipuai (in its own)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import zai

from tests.conftest import LiveServer
from tests.contract.conftest import (
    CRASHING_PROMPT,
    PROVIDER_TROUBLES,
    REFUSED_PROMPT,
    Callers,
    picture,
)
from tests.contract.sdk import Sdk, SdkError

pytestmark = pytest.mark.slow

CAT = {"model": "cogview-4-250304", "prompt": "一只小猫"}
CLIENTS = {"zai": zai.ZaiClient, "zhipu": zai.ZhipuAiClient}


def zai_client(server: LiveServer, token: str, *, jwt: bool = False, kind: str = "zhipu") -> Any:
    return CLIENTS[kind](
        api_key=token,
        base_url=f"{server.url}/api/paas/v4",
        disable_token_cache=not jwt,
        max_retries=0,
    )


@pytest.fixture(scope="session")
def zhipuai(start: Callable[[str], Sdk]) -> Sdk:
    return start("zhipuai")


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("jwt", [False, True])
def test_zai_generates(house: LiveServer, kind: str, jwt: bool) -> None:
    client = zai_client(house, house.token, jwt=jwt, kind=kind)
    answer = client.images.generations(
        **CAT, size="768x1344", quality="hd", user_id="someone-1", request_id=f"r-{kind}-{jwt}"
    )
    assert picture(answer.data[0].url).size == (768, 1344)
    assert answer.created > 1_700_000_000


@pytest.mark.parametrize("jwt", [False, True])
def test_zhipuai_generates(zhipuai: Sdk, jwt: bool) -> None:
    answer = zhipuai.call("generate", jwt=jwt, **CAT, size="1440x720")
    assert picture(answer["data"][0]["url"]).size == (1440, 720)


def ended(client: Any, task: str) -> Any:
    """The task's answer once it is no longer processing."""
    deadline = time.monotonic() + 60
    while (answer := client.images.retrieve_images_result(task)).task_status == "PROCESSING":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return answer


def test_zai_asynchronously(house: LiveServer) -> None:
    client = zai_client(house, house.token)
    begun = client.images.async_generations(
        model="glm-image", prompt="一只小猫", size="1728x960", request_id="job-001"
    )
    assert (begun.task_status, begun.request_id, begun.model) == (
        "PROCESSING",
        "job-001",
        "glm-image",
    )
    answer = ended(client, begun.id)
    assert (answer.task_status, answer.request_id) == ("SUCCESS", "job-001")
    assert picture(answer.image_result[0].url).size == (1728, 960)


def test_zai_asynchronously_failing(house: LiveServer) -> None:
    client = zai_client(house, house.token)
    begun = client.images.async_generations(model="glm-image", prompt=CRASHING_PROMPT)
    assert ended(client, begun.id).task_status == "FAIL"
    with pytest.raises(zai.core.APIRequestFailedError) as refused:
        client.images.async_generations(model="glm-image", prompt=REFUSED_PROMPT)
    assert refused.value.response.json()["error"]["code"] == "1301"
    with pytest.raises(zai.core.APIStatusError) as unknown:
        client.images.retrieve_images_result("nothing")
    assert unknown.value.status_code == 404


# trouble → what it raises in both clients, HTTP status, Zhipu's code
ERRORS = {
    "bad key": ("APIAuthenticationError", 401, "1002"),
    "bad field": ("APIRequestFailedError", 400, "1214"),
    "unknown model": ("APIRequestFailedError", 400, "1211"),
    "no prompt": ("APIRequestFailedError", 400, "1213"),
    "no waiver": ("APIStatusError", 434, "1220"),
    "refused": ("APIRequestFailedError", 400, "1301"),
    "quota": ("APIReachLimitError", 429, "1113"),
    "rate": ("APIReachLimitError", 429, "1303"),
    "crash": ("APIInternalError", 500, "500"),
}


def troubled(trouble: str, callers: Callers) -> tuple[str | None, dict[str, Any]]:
    """Whose token (None: the operator's) and which fields get into it."""
    return {
        "bad key": (callers.stranger, CAT),
        "bad field": (None, CAT | {"size": "1x1"}),
        "unknown model": (None, CAT | {"model": "nothing"}),
        "no prompt": (None, CAT | {"prompt": None}),
        "no waiver": (None, CAT | {"watermark_enabled": False}),
        "refused": (None, CAT | {"prompt": REFUSED_PROMPT}),
        "quota": (callers.poor, CAT),
        "rate": (callers.hasty, CAT),
        "crash": (None, CAT | {"prompt": CRASHING_PROMPT}),
    }[trouble]


@pytest.mark.parametrize("trouble", ERRORS)
def test_zai_errors(house: LiveServer, callers: Callers, trouble: str) -> None:
    token, fields = troubled(trouble, callers)
    if "watermark_enabled" in fields:
        fields = {**fields, "extra_body": {"watermark_enabled": fields["watermark_enabled"]}}
        del fields["watermark_enabled"]
    with pytest.raises(zai.core.APIStatusError) as raised:
        zai_client(house, token or house.token).images.generations(**fields)
    kind, status, code = ERRORS[trouble]
    assert type(raised.value).__name__ == kind
    assert raised.value.status_code == status
    assert raised.value.response.json()["error"]["code"] == code


@pytest.mark.parametrize("trouble", ERRORS)
def test_zhipuai_errors(zhipuai: Sdk, callers: Callers, trouble: str) -> None:
    token, fields = troubled(trouble, callers)
    if "watermark_enabled" in fields:
        fields = {**fields, "extra_body": {"watermark_enabled": fields["watermark_enabled"]}}
        del fields["watermark_enabled"]
    with pytest.raises(SdkError) as raised:
        zhipuai.call("generate", **fields, **({"token": token} if token else {}))
    kind, status, code = ERRORS[trouble]
    assert raised.value.type == kind
    assert raised.value.status == status
    assert raised.value.body["error"]["code"] == code


# model of the relaying server → what it raises in both clients, HTTP status, Zhipu's code
PROVIDER_ERRORS = {
    "failing": ("APIInternalError", 500, "500"),
    "down": ("APIServerFlowExceedError", 503, "500"),
}


@pytest.mark.parametrize("model", PROVIDER_ERRORS)
def test_both_and_a_provider_in_trouble(relaying: LiveServer, zhipuai: Sdk, model: str) -> None:
    fields = {"model": model, "prompt": PROVIDER_TROUBLES[model]}
    kind, status, code = PROVIDER_ERRORS[model]
    with pytest.raises(zai.core.APIStatusError) as raised:
        zai_client(relaying, relaying.token).images.generations(**fields)
    assert (type(raised.value).__name__, raised.value.status_code) == (kind, status)
    assert raised.value.response.json()["error"]["code"] == code
    with pytest.raises(SdkError) as second:
        zhipuai.call("generate", url=relaying.url, token=relaying.token, **fields)
    assert (second.value.type, second.value.status) == (kind, status)
    assert second.value.body["error"]["code"] == code


def test_both_when_the_server_is_busy(busy: LiveServer, zhipuai: Sdk) -> None:
    with pytest.raises(zai.core.APIReachLimitError) as raised:
        zai_client(busy, busy.token).images.generations(**CAT)
    assert raised.value.response.json()["error"]["code"] == "1305"
    with pytest.raises(SdkError) as second:
        zhipuai.call("generate", url=busy.url, token=busy.token, **CAT)
    assert (second.value.type, second.value.body["error"]["code"]) == ("APIReachLimitError", "1305")
    assert int(second.value.headers["retry-after"]) >= 1
