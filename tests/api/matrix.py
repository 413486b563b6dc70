"""What the matrix is made of: the wires of a relay, and each API's own request with where its answer has the images."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from tests.api.sse import Sent


@dataclass(frozen=True)
class Wire:
    """How the first server speaks to the second."""

    dialect: str
    mount: str
    model: str
    """The second server's name of it; all of them cost the same."""
    background: bool = False
    extras: tuple[str, ...] = ()
    edits: bool = False


WIRES = {
    "openai": Wire("openai", "/v1", "dall-e-2", extras=("response_format",), edits=True),
    "chat": Wire("chat", "/v1", "dall-e-2", extras=("n",), edits=True),
    "draw": Wire("draw", "/v1", "draw"),
    "zhipu": Wire("zhipu", "/api/paas/v4", "cogview-4"),
    "zhipu-task": Wire("zhipu", "/api/paas/v4", "cogview-4", background=True),
    "dashscope": Wire("dashscope", "/api/v1", "qwen-image-2.0", edits=True),
    "dashscope-task": Wire("dashscope", "/api/v1", "qwen-image-2.0", background=True, edits=True),
    "ark": Wire("ark", "/api/v3", "doubao-seedream-4-0-250828", edits=True),
    "jimeng": Wire(
        "jimeng", "/v1", "jimeng-4.0", extras=("images", "seed", "watermark"), edits=True
    ),
    "qwen": Wire("qwen", "/v1", "qwen-image-2.0", edits=True),
}

SECOND = """
[models."jimeng-4.0".price]
per = "image"
"""
"""The other server's catalog: all of its models cost the same."""

CATALOG = """
[backends."{name}"]
dialect = "{dialect}"
base_url = "{url}{mount}"
key_file = "{key}"
background = {background}
extras = {extras}
timeout_s = 30

[models."{name}"]
like = "dall-e-2"
backend = "{name}"
backend_model = "{model}"
sizes = ["1024x1024"]
size_default = "1024x1024"
label_visible = true
references_max = 1
features = ["response_format", "stream"]
"""


def links(body: dict[str, Any]) -> list[str]:
    return [item["url"] for item in body["data"]]


def chat_links(body: dict[str, Any]) -> list[str]:
    return re.findall(r"\]\((http[^)]+)\)", body["choices"][0]["message"]["content"])


def choice_links(body: dict[str, Any]) -> list[str]:
    return [part["image"] for part in body["output"]["choices"][0]["message"]["content"]]


@dataclass(frozen=True)
class Inbound:
    """One API's own request, and where its answer has the images."""

    dialect: str
    path: str
    body: Callable[[str, str], dict[str, Any]]
    """Of a model and a prompt."""
    links: Callable[[dict[str, Any]], list[str]]
    n: int = 1


def _messages(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": prompt}]}]


INBOUND = {
    "openai": Inbound(
        "openai",
        "/v1/images/generations",
        lambda model, prompt: {"model": model, "prompt": prompt, "n": 2, "size": "1024x1024"},
        links,
        n=2,
    ),
    "chat": Inbound(
        "chat",
        "/v1/chat/completions",
        lambda model, prompt: {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.7,
        },
        chat_links,
    ),
    "draw": Inbound(
        "draw",
        "/v1/chat/completions",
        lambda model, prompt: {"model": model, "prompt": prompt},
        links,
    ),
    "zhipu": Inbound(
        "zhipu",
        "/api/paas/v4/images/generations",
        lambda model, prompt: {"model": model, "prompt": prompt, "size": "1024x1024"},
        links,
    ),
    "qwen": Inbound(
        "dashscope",
        "/v1/images/generations",
        lambda model, prompt: {
            "model": model,
            "input": {"messages": _messages(prompt)},
            "parameters": {"prompt_extend": False, "size": "1024*1024"},
        },
        links,
    ),
    "dashscope": Inbound(
        "dashscope_native",
        "/api/v1/services/aigc/multimodal-generation/generation",
        lambda model, prompt: {
            "model": model,
            "input": {"messages": _messages(prompt)},
            "parameters": {"prompt_extend": False, "size": "1024*1024", "n": 2},
        },
        choice_links,
        n=2,
    ),
    "ark": Inbound(
        "ark",
        "/api/v3/images/generations",
        lambda model, prompt: {
            "model": model,
            "prompt": prompt,
            "size": "1024x1024",
            "image": None,
            "seed": None,
        },
        links,
    ),
}


def table_of(name: str, wire: Wire, url: str, key: Path) -> str:
    return CATALOG.format(
        name=name,
        dialect=wire.dialect,
        url=url,
        mount=wire.mount,
        key=key,
        model=wire.model,
        background=str(wire.background).lower(),
        extras=list(wire.extras),
    )


def red() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (256, 256), "red").save(stream, "PNG")
    return stream.getvalue()


RED = "data:image/png;base64," + base64.b64encode(red()).decode()

EDITS: dict[str, tuple[Inbound, str]] = {
    "chat": (
        Inbound(
            "chat",
            "/v1/chat/completions",
            lambda model, prompt: {
                "model": model,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": prompt},
                            {"type": "image_url", "image_url": {"url": RED}},
                        ],
                    }
                ],
            },
            chat_links,
        ),
        "messages",
    ),
    "openai": (
        Inbound(
            "openai",
            "/v1/images/edits",
            lambda model, prompt: {
                "model": model,
                "prompt": prompt,
                "images": [{"image_url": RED}],
                "size": "1024x1024",
            },
            links,
        ),
        "images",
    ),
    "dashscope": (
        Inbound(
            "dashscope_native",
            "/api/v1/services/aigc/multimodal-generation/generation",
            lambda model, prompt: {
                "model": model,
                "input": {
                    "messages": [{"role": "user", "content": [{"image": RED}, {"text": prompt}]}]
                },
                "parameters": {"prompt_extend": False, "size": "1024*1024"},
            },
            choice_links,
        ),
        "input.messages",
    ),
    "ark": (
        Inbound(
            "ark",
            "/api/v3/images/generations",
            lambda model, prompt: {
                "model": model,
                "prompt": prompt,
                "image": RED,
                "size": "1024x1024",
            },
            links,
        ),
        "image",
    ),
}


def fetched(link: str) -> Image.Image:
    answer = httpx2.get(link)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def _openai_stream(sent: list[Sent]) -> list[Image.Image]:
    assert [one.name for one in sent] == ["image_generation.completed"]
    data = base64.b64decode(sent[0].data["b64_json"])
    return [Image.open(io.BytesIO(data))]


def _ark_stream(sent: list[Sent]) -> list[Image.Image]:
    assert [one.name for one in sent[:2]] == [
        "image_generation.partial_succeeded",
        "image_generation.completed",
    ]
    assert sent[-1].data == "[DONE]"
    return [fetched(sent[0].data["url"])]


def _chat_stream(sent: list[Sent]) -> list[Image.Image]:
    assert sent[-1].data == "[DONE]"
    choices = [one.data["choices"][0] for one in sent[:-1] if one.data["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return [fetched(link) for link in re.findall(r"\]\((http[^)]+)\)", text)]


STREAMS: dict[str, Callable[[list[Sent]], list[Image.Image]]] = {
    "openai": _openai_stream,
    "ark": _ark_stream,
    "chat": _chat_stream,
}
