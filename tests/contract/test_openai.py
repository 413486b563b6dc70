"""OpenAI's official clients: Python, sync and async, and Node (in an environment of its own)."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import openai
import pytest
from PIL import Image

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

CAT = {"model": "dall-e-3", "prompt": "a cat"}
GPT = {"model": "gpt-image-1", "prompt": "a cat"}


@pytest.fixture(scope="session")
def client(house: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(api_key=house.token, base_url=f"{house.url}/v1", max_retries=0)


@pytest.fixture(scope="session")
def node(start: Callable[[str], Sdk]) -> Sdk:
    return start("node")


def test_by_link(client: openai.OpenAI) -> None:
    answer = client.images.generate(**CAT, n=2, size="1792x1024", style="natural", quality="hd")
    assert [picture(item.url).size for item in answer.data] == [(1792, 1024)] * 2
    assert answer.data[0].revised_prompt


def test_base64_with_what_was_applied(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        **GPT, size="1536x1024", quality="low", output_format="jpeg", output_compression=50
    )
    image = picture(b64=answer.data[0].b64_json)
    assert (image.format, image.size) == ("JPEG", (1536, 1024))
    assert (answer.size, answer.quality, answer.output_format, answer.background) == (
        "1536x1024",
        "low",
        "jpeg",
        "opaque",
    )
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


EVENT = {
    *("type", "b64_json", "created_at", "size", "quality", "background", "output_format"),
}
"""Keys of every event of a stream (openai-openapi's ImageGenPartialImageEvent and -CompletedEvent)."""


def test_streams(full_house: LiveServer) -> None:
    """Of a server that draws slowly enough for every look to be asked for."""
    client = openai.OpenAI(api_key=full_house.token, base_url=f"{full_house.url}/v1", max_retries=0)
    seen = list(client.images.generate(**GPT, size="1024x1536", stream=True, partial_images=2))
    assert [event.type for event in seen] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in seen[:-1]] == [0, 1]
    for event in seen:
        assert set(event.model_dump()) >= EVENT
        assert all(getattr(event, key) is not None for key in EVENT)
        assert picture(b64=event.b64_json)
    assert picture(b64=seen[-1].b64_json).size == (1024, 1536)
    assert seen[-1].usage.total_tokens > 0


def test_streams_to_the_async_client(house: LiveServer) -> None:
    async def work() -> list[Any]:
        async with openai.AsyncOpenAI(
            api_key=house.token, base_url=f"{house.url}/v1", max_retries=0
        ) as client:
            stream = await client.images.generate(**GPT, stream=True)
            return [event async for event in stream]

    assert [event.type for event in asyncio.run(work())] == ["image_generation.completed"]


def test_streams_to_node(node: Sdk) -> None:
    seen = node.call("stream", **GPT, partial_images=1)
    assert seen[-1]["type"] == "image_generation.completed"
    assert {event["type"] for event in seen[:-1]} <= {"image_generation.partial_image"}
    assert all(set(event) >= EVENT and picture(b64=event["b64_json"]) for event in seen)


def test_a_stream_that_breaks(client: openai.OpenAI, node: Sdk) -> None:
    with pytest.raises(openai.APIError):
        list(client.images.generate(**GPT | {"prompt": CRASHING_PROMPT}, stream=True))
    with pytest.raises(SdkError) as raised:
        node.call("stream", **GPT | {"prompt": CRASHING_PROMPT})
    assert "APIError" in raised.value.types


def test_a_stream_that_cannot_begin(client: openai.OpenAI, callers: Callers) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(**GPT | {"prompt": REFUSED_PROMPT}, stream=True)
    assert refused.value.code == "moderation_blocked"
    with pytest.raises(openai.RateLimitError):
        client.with_options(api_key=callers.poor).images.generate(**GPT, stream=True)


def test_chat_streams(client: openai.OpenAI, node: Sdk) -> None:
    said = {"model": "dall-e-3", "messages": [{"role": "user", "content": "a cat"}]}
    chunks = list(client.chat.completions.create(**said, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "](http" in text
    assert chunks[-1].choices[0].finish_reason == "stop"
    chunks = node.call("chat_stream", **said)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert "](http" in text


def test_async_client(house: LiveServer) -> None:
    async def work() -> list[Any]:
        async with openai.AsyncOpenAI(
            api_key=house.token, base_url=f"{house.url}/v1", max_retries=0
        ) as client:
            return await asyncio.gather(*(client.images.generate(**CAT) for _ in range(3)))

    answers = asyncio.run(work())
    assert len({answer.data[0].url for answer in answers}) == 3


def hole(size: tuple[int, int] = (256, 256)) -> bytes:
    """A mask that repaints the middle."""
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (64, 64, 192, 192))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_edits(client: openai.OpenAI, house: LiveServer) -> None:
    one = ("one.png", png(), "image/png")
    answer = client.images.edit(**GPT, image=one, size="1024x1024", n=2)
    assert [picture(b64=item.b64_json).size for item in answer.data] == [(1024, 1024)] * 2
    answer = client.images.edit(**GPT, image=[one], mask=("mask.png", hole(), "image/png"))
    assert picture(b64=answer.data[0].b64_json)
    assert answer.usage.input_tokens_details.image_tokens > 0

    async def work() -> Any:
        async with openai.AsyncOpenAI(
            api_key=house.token, base_url=f"{house.url}/v1", max_retries=0
        ) as other:
            return await other.images.edit(**GPT, image=io.BytesIO(png()))

    assert picture(b64=asyncio.run(work()).data[0].b64_json)


def test_edits_stream(client: openai.OpenAI, node: Sdk) -> None:
    seen = list(client.images.edit(**GPT, image=("one.png", png()), stream=True))
    assert seen[-1].type == "image_edit.completed"
    assert picture(b64=seen[-1].b64_json)
    shown = node.call("edit_stream", **GPT, images=[base64.b64encode(png()).decode()])
    assert shown[-1]["type"] == "image_edit.completed"
    assert picture(b64=shown[-1]["b64_json"])


def test_variations(client: openai.OpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = client.images.create_variation(
            image=("one.png", png()), model="dall-e-2", n=2, size="512x512"
        )
    assert [picture(item.url).size for item in answer.data] == [(512, 512)] * 2


def test_node_edits(node: Sdk) -> None:
    b64 = base64.b64encode(png()).decode()
    answer = node.call("edit", **GPT, images=[b64], size="1024x1024", n=2)
    sizes = [picture(b64=item["b64_json"]).size for item in answer["data"]]
    assert sizes == [(1024, 1024)] * 2
    answer = node.call("edit", **GPT, images=[b64], mask=base64.b64encode(hole()).decode())
    assert answer["usage"]["input_tokens_details"]["image_tokens"] > 0
    with pytest.raises(SdkError, match="holds 2 images") as two:  # more than what draws here takes
        node.call("edit", **GPT, images=[b64, b64])
    assert (two.value.type, two.value.param) == ("BadRequestError", "image")
    answer = node.call("variation", image=b64, model="dall-e-2", size="256x256", n=2)
    assert [picture(item["url"]).size for item in answer["data"]] == [(256, 256)] * 2


def test_edits_that_cannot_be(client: openai.OpenAI, node: Sdk) -> None:
    with pytest.raises(openai.BadRequestError) as junk:
        client.images.edit(**GPT, image=("one.png", b"junk", "image/png"))
    assert (junk.value.code, junk.value.param) == ("invalid_image_file", "image")
    with pytest.raises(openai.BadRequestError) as other_size:
        client.images.edit(**GPT, image=("one.png", png()), mask=("mask.png", hole((64, 64))))
    assert other_size.value.param == "mask"
    with pytest.raises(openai.BadRequestError) as many:
        client.images.edit(**GPT, image=[("one.png", png())] * 17)
    assert many.value.param == "image"
    with pytest.raises(SdkError) as raised:
        node.call("edit", **GPT, images=[base64.b64encode(b"junk").decode()])
    assert (raised.value.type, raised.value.param) == ("BadRequestError", "image")


def test_headers(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(**CAT)
    assert raw.request_id == raw.headers["x-request-id"]
    assert raw.headers["x-danqing-charged"] == "5000"
    assert raw.headers["x-danqing-size"] == "1024x1024"
    assert raw.parse().data[0].url


def test_models(client: openai.OpenAI, node: Sdk) -> None:
    ids = [model.id for model in client.models.list()]
    assert {"dall-e-3", "gpt-image-1", "cogview-4", "qwen-image", "jimeng-4.0"} <= set(ids)
    assert [model["id"] for model in node.call("models")] == ids
    found = client.models.retrieve("gpt-image-1")
    assert (found.id, found.object) == ("gpt-image-1", "model")
    assert node.call("model", name="gpt-image-1")["created"] == found.created
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_chat(client: openai.OpenAI, node: Sdk) -> None:
    said = {"model": "dall-e-3", "messages": [{"role": "user", "content": "a cat"}]}
    answer = client.chat.completions.create(**said)
    assert "](http" in answer.choices[0].message.content
    assert "](http" in node.call("chat", **said)["choices"][0]["message"]["content"]


def test_node_generates(node: Sdk) -> None:
    answer = node.call("generate", **CAT, n=2)
    assert [picture(item["url"]).size for item in answer["data"]] == [(1024, 1024)] * 2
    answer = node.call("generate", **GPT, output_format="webp", n=3)
    assert [picture(b64=item["b64_json"]).format for item in answer["data"]] == ["WEBP"] * 3


# trouble → what both clients raise, HTTP status, code, param
ERRORS = {
    "bad key": ("AuthenticationError", 401, "invalid_api_key", None),
    "bad field": ("BadRequestError", 400, "invalid_value", "size"),
    "unknown field": ("BadRequestError", 400, "unknown_parameter", "sizes"),
    "too many": ("BadRequestError", 400, "invalid_value", "n"),
    "unknown model": ("NotFoundError", 404, "model_not_found", "model"),
    "no waiver": ("PermissionDeniedError", 403, "waiver_required", "watermark"),
    "not this model": ("PermissionDeniedError", 403, "model_not_allowed", "model"),
    "another body": ("ConflictError", 409, "idempotency_conflict", "Idempotency-Key"),
    "refused": ("BadRequestError", 400, "content_policy_violation", None),
    "quota": ("RateLimitError", 429, "insufficient_quota", None),
    "rate": ("RateLimitError", 429, "rate_limit_exceeded", None),
    "crash": ("InternalServerError", 500, "server_error", None),
}


def troubled(trouble: str, callers: Callers) -> tuple[str | None, dict[str, Any]]:
    """Whose token (None: the operator's) and which fields get into it."""
    return {
        "bad key": (callers.stranger, CAT),
        "bad field": (None, CAT | {"size": "1x1"}),
        "unknown field": (None, CAT | {"extra_body": {"sizes": "1x1"}}),
        "too many": (None, CAT | {"n": 11}),
        "unknown model": (None, CAT | {"model": "nothing"}),
        "no waiver": (None, CAT | {"model": "cogview-4", "extra_body": {"watermark": False}}),
        "not this model": (callers.narrow, CAT),
        "another body": (None, CAT | {"extra_headers": {"idempotency-key": callers.spent_key}}),
        "refused": (None, CAT | {"prompt": REFUSED_PROMPT}),
        "quota": (callers.poor, CAT),
        "rate": (callers.hasty, CAT),
        "crash": (None, GPT | {"prompt": CRASHING_PROMPT}),
    }[trouble]


def check(error: openai.APIStatusError, expected: tuple[str, int, str, str | None]) -> None:
    kind, status, code, param = expected
    assert (type(error).__name__, error.status_code) == (kind, status)
    assert (error.code, error.param) == (code, param)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.request_id


def generated(server: LiveServer, token: str | None, fields: dict[str, Any]) -> Any:
    base_url, key = f"{server.url}/v1", token or server.token
    client = openai.OpenAI(api_key=key, base_url=base_url, max_retries=0)
    return client.images.generate(**fields)


def generated_async(server: LiveServer, token: str | None, fields: dict[str, Any]) -> Any:
    async def work() -> Any:
        base_url, key = f"{server.url}/v1", token or server.token
        async with openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0) as client:
            return await client.images.generate(**fields)

    return asyncio.run(work())


BOTH = pytest.mark.parametrize("generate", [generated, generated_async], ids=["sync", "async"])


@BOTH
@pytest.mark.parametrize("trouble", ERRORS)
def test_errors(house: LiveServer, callers: Callers, trouble: str, generate: Any) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        generate(house, *troubled(trouble, callers))
    check(raised.value, ERRORS[trouble])


@pytest.mark.parametrize("trouble", ERRORS)
def test_node_errors(node: Sdk, callers: Callers, trouble: str) -> None:
    token, fields = troubled(trouble, callers)
    extra = {"headers": fields.get("extra_headers"), **fields.get("extra_body", {})}
    fields = {key: value for key, value in fields.items() if not key.startswith("extra_")} | extra
    with pytest.raises(SdkError) as raised:
        node.call("generate", **fields, **({"token": token} if token else {}))
    error = raised.value
    kind, status, code, param = ERRORS[trouble]
    assert (error.type, error.status) == (kind, status)
    assert (error.code, error.param) == (code, param)


# model of the relaying server → what all three raise
PROVIDER_ERRORS = {
    "failing": ("InternalServerError", 502, "provider_failed", None),
    "down": ("InternalServerError", 503, "server_is_overloaded", None),
}


@BOTH
@pytest.mark.parametrize("model", PROVIDER_ERRORS)
def test_a_provider_in_trouble(relaying: LiveServer, model: str, generate: Any) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        generate(relaying, None, {"model": model, "prompt": PROVIDER_TROUBLES[model]})
    check(raised.value, PROVIDER_ERRORS[model])


@pytest.mark.parametrize("model", PROVIDER_ERRORS)
def test_node_and_a_provider_in_trouble(relaying: LiveServer, node: Sdk, model: str) -> None:
    at = {"url": relaying.url, "token": relaying.token}
    with pytest.raises(SdkError) as raised:
        node.call("generate", **at, model=model, prompt=PROVIDER_TROUBLES[model])
    error = raised.value
    assert (error.type, error.status, error.code, error.param) == PROVIDER_ERRORS[model]


def test_both_when_the_server_is_busy(busy: LiveServer, node: Sdk) -> None:
    """The clients read Retry-After themselves; with their own retries off they say so at once."""
    client = openai.OpenAI(api_key=busy.token, base_url=f"{busy.url}/v1", max_retries=0)
    with pytest.raises(openai.RateLimitError) as raised:
        client.images.generate(**CAT)
    assert float(raised.value.response.headers["retry-after"]) >= 1
    with pytest.raises(SdkError) as second:
        node.call("generate", url=busy.url, token=busy.token, **CAT)
    assert second.value.type == "RateLimitError"
    assert float(second.value.headers["retry-after"]) >= 1


def test_quota_errors_are_not_tried_again(house: LiveServer, callers: Callers) -> None:
    """`x-should-retry: false` keeps the client's two retries from knocking again."""
    seen = house.metric("danqing_requests_total")
    client = openai.OpenAI(api_key=callers.poor, base_url=f"{house.url}/v1", max_retries=2)
    with pytest.raises(openai.RateLimitError):
        client.images.generate(**CAT)
    assert house.metric("danqing_requests_total") == seen + 1
