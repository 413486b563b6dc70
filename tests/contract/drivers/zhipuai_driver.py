"""Calls of the zhipuai SDK, run inside its own environment."""

from __future__ import annotations

from typing import Any

from lines import serve
from zhipuai import ZhipuAI


def client(url: str, token: str, jwt: bool = False) -> ZhipuAI:
    return ZhipuAI(
        api_key=token,
        base_url=f"{url}/api/paas/v4",
        disable_token_cache=not jwt,
        max_retries=0,
    )


def generate(url: str, token: str, jwt: bool = False, **fields: Any) -> dict[str, Any]:
    return client(url, token, jwt).images.generations(**fields).model_dump()


serve({"generate": generate})
