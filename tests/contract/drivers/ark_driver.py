"""Calls of the Ark SDK, run inside its own environment."""

from __future__ import annotations

import asyncio
from typing import Any

from lines import serve
from volcenginesdkarkruntime import Ark, AsyncArk
from volcenginesdkarkruntime.types.images import (
    OptimizePromptOptions,
    SequentialImageGenerationOptions,
)

Fields = dict[str, Any]


def typed(fields: Fields) -> Fields:
    """The SDK takes these two as objects of its own."""
    kinds = {
        "sequential_image_generation_options": SequentialImageGenerationOptions,
        "optimize_prompt_options": OptimizePromptOptions,
    }
    return {key: kinds[key](**value) if key in kinds else value for key, value in fields.items()}


def generate(url: str, token: str, **fields: Any) -> Fields:
    with Ark(api_key=token, base_url=f"{url}/api/v3", max_retries=0) as client:
        return client.images.generate(**typed(fields)).model_dump()


def generate_async(url: str, token: str, **fields: Any) -> Fields:
    async def work() -> Fields:
        async with AsyncArk(api_key=token, base_url=f"{url}/api/v3", max_retries=0) as client:
            return (await client.images.generate(**typed(fields))).model_dump()

    return asyncio.run(work())


def stream(url: str, token: str, **fields: Any) -> list[Fields]:
    with Ark(api_key=token, base_url=f"{url}/api/v3", max_retries=0) as client:
        events = client.images.generate(stream=True, **typed(fields))
        return [event.model_dump() for event in events if event is not None]


def stream_async(url: str, token: str, **fields: Any) -> list[Fields]:
    async def work() -> list[Fields]:
        async with AsyncArk(api_key=token, base_url=f"{url}/api/v3", max_retries=0) as client:
            events = await client.images.generate(stream=True, **typed(fields))
            return [event.model_dump() async for event in events if event is not None]

    return asyncio.run(work())


CALLS = (generate, generate_async, stream, stream_async)

serve({call.__name__: call for call in CALLS})
