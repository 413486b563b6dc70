"""Calls of the dashscope SDK, run inside its own environment. It returns failures instead of raising them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import dashscope
from dashscope import AioMultiModalConversation, ImageSynthesis, MultiModalConversation
from dashscope.aigc.image_generation import AioImageGeneration, ImageGeneration
from dashscope.aigc.image_synthesis import AioImageSynthesis
from dashscope.client.base_api import BaseApi
from lines import serve


def answered(response: Any) -> dict[str, Any]:
    """The SDK's response as plain data."""
    return json.loads(json.dumps(response, default=lambda value: value.__dict__))


def at(url: str) -> None:
    dashscope.base_http_api_url = f"{url}/api/v1"


def conversation(url: str, token: str, **fields: Any) -> dict[str, Any]:
    at(url)
    return answered(MultiModalConversation.call(api_key=token, **fields))


def conversation_async(url: str, token: str, **fields: Any) -> dict[str, Any]:
    at(url)
    return answered(asyncio.run(AioMultiModalConversation.call(api_key=token, **fields)))


def bare(url: str, token: str, **fields: Any) -> dict[str, Any]:
    """A synchronous call by the SDK's base class, which looks at the model alone."""
    at(url)
    where = {"task_group": "aigc", "task": "multimodal-generation", "function": "generation"}
    return answered(BaseApi.call(api_key=token, **where, **fields))


def synthesis(url: str, token: str, **fields: Any) -> dict[str, Any]:
    """Post and poll until it ends, as the SDK does it."""
    at(url)
    return answered(ImageSynthesis.call(api_key=token, **fields))


def synthesis_start(url: str, token: str, **fields: Any) -> dict[str, Any]:
    at(url)
    return answered(ImageSynthesis.async_call(api_key=token, **fields))


def synthesis_wait(url: str, token: str, task: str) -> dict[str, Any]:
    at(url)
    return answered(ImageSynthesis.wait(task, api_key=token))


def synthesis_fetch(url: str, token: str, task: str) -> dict[str, Any]:
    at(url)
    return answered(ImageSynthesis.fetch(task, api_key=token))


def synthesis_cancel(url: str, token: str, task: str) -> dict[str, Any]:
    at(url)
    return answered(ImageSynthesis.cancel(task, api_key=token))


def synthesis_list(url: str, token: str, **query: Any) -> dict[str, Any]:
    at(url)
    return answered(ImageSynthesis.list(api_key=token, **query))


def generation(url: str, token: str, **fields: Any) -> dict[str, Any]:
    at(url)
    return answered(ImageGeneration.call(api_key=token, **fields))


def generation_start(url: str, token: str, **fields: Any) -> dict[str, Any]:
    at(url)
    return answered(ImageGeneration.async_call(api_key=token, **fields))


def generation_wait(url: str, token: str, task: str) -> dict[str, Any]:
    at(url)
    return answered(ImageGeneration.wait(task, api_key=token))


def synthesis_async(url: str, token: str, **fields: Any) -> dict[str, Any]:
    at(url)
    return answered(asyncio.run(AioImageSynthesis.call(api_key=token, **fields)))


def synthesis_steps_async(url: str, token: str, **fields: Any) -> list[dict[str, Any]]:
    """Begun, waited for, fetched."""
    at(url)

    async def work() -> list[Any]:
        begun = await AioImageSynthesis.async_call(api_key=token, **fields)
        ended = await AioImageSynthesis.wait(begun, api_key=token)
        return [begun, ended, await AioImageSynthesis.fetch(begun, api_key=token)]

    return [answered(response) for response in asyncio.run(work())]


def synthesis_cancel_async(url: str, token: str, task: str) -> dict[str, Any]:
    at(url)
    return answered(asyncio.run(AioImageSynthesis.cancel(task, api_key=token)))


def synthesis_list_async(url: str, token: str, **query: Any) -> dict[str, Any]:
    at(url)
    return answered(asyncio.run(AioImageSynthesis.list(api_key=token, **query)))


def generation_async(url: str, token: str, **fields: Any) -> dict[str, Any]:
    at(url)
    return answered(asyncio.run(AioImageGeneration.call(api_key=token, **fields)))


def generation_steps_async(url: str, token: str, **fields: Any) -> list[dict[str, Any]]:
    """Begun, waited for, fetched."""
    at(url)

    async def work() -> list[Any]:
        begun = await AioImageGeneration.async_call(api_key=token, **fields)
        ended = await AioImageGeneration.wait(begun, api_key=token)
        return [begun, ended, await AioImageGeneration.fetch(begun, api_key=token)]

    return [answered(response) for response in asyncio.run(work())]


CALLS = (
    conversation,
    conversation_async,
    bare,
    synthesis,
    synthesis_start,
    synthesis_wait,
    synthesis_fetch,
    synthesis_cancel,
    synthesis_list,
    generation,
    generation_start,
    generation_wait,
    synthesis_async,
    synthesis_steps_async,
    synthesis_cancel_async,
    synthesis_list_async,
    generation_async,
    generation_steps_async,
)

serve({call.__name__: call for call in CALLS})
