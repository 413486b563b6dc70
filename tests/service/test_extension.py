"""Prompt extension by a chat model, over real HTTP: what is asked, what is taken, and that the original is drawn else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.net.servers import Answer, Received, answer, serving

from danqing.net.outbound import Outbound
from danqing.observability.metrics import Metrics
from danqing.service.extension import Extended, Extender, cleaned
from danqing.service.remote import Remote
from danqing.settings import ExtensionSettings


def saying(content: object) -> Answer:
    body = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    return answer(200, json.dumps(body).encode())


def asked(
    handle: Answer,
    prompt: str = "a cat",
    chars_max: int = 1000,
    style: str | None = None,
    **more: Any,
) -> tuple[Extended, list[Received]]:
    async def inside() -> tuple[Extended, list[Received]]:
        outbound = Outbound()
        try:
            async with serving(handle) as server:
                settings = ExtensionSettings(base_url=server.url, model="writer", **more)
                remote = Remote(server.url, "sk-k", outbound, timeout_s=settings.timeout_s)
                extender = Extender(remote, settings, Metrics())
                return await extender.extend(prompt, style, chars_max), server.requests
        finally:
            await outbound.aclose()

    return asyncio.run(inside())


def test_what_is_asked_and_taken() -> None:
    extended, (request,) = asked(saying("a ginger cat in soft light"), style="natural")
    assert extended == Extended("a ginger cat in soft light", "model")
    assert request.line.startswith("POST /chat/completions ")
    assert request.headers["authorization"] == "Bearer sk-k"
    body = json.loads(request.body)
    assert (body["model"], body["temperature"], body["stream"]) == ("writer", 0, False)
    system, user = body["messages"]
    assert (system["role"], user) == ("system", {"role": "user", "content": "a cat"})
    assert "natural" in system["content"]
    assert "800 characters" in system["content"]


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ('  "a big cat"\n', "a big cat"),
        ("“a big cat”", "a big cat"),
        ("<think>the user wants\na cat</think>\n\na big\ncat", "a big cat"),
        ("a big\u0000 cat\u200b", "a big cat"),
        ("a cat. " + "It sits in the sun, " * 100, None),
    ],
)
def test_what_comes_is_cleaned_and_bounded(said: str, taken: str | None) -> None:
    extended, _ = asked(saying(said), chars_max=100)
    if taken is not None:
        assert extended.prompt == taken
    assert len(extended.prompt) <= 100
    assert extended.how == "model"
    assert "\n" not in extended.prompt


@pytest.mark.parametrize(
    ("handle", "reason"),
    [
        (saying("一只姜黄色的猫"), "another language"),
        (saying("   "), "nothing said"),
        (saying(None), "no message"),
        (saying(["a cat"]), "no message"),
        (answer(200, b'{"choices": []}'), "no message"),
        (answer(200, b'{"choices": {}}'), "no message"),
        (answer(200, b"x"), "no JSON"),
        (answer(500), "status 500"),
        (answer(401, b"{}"), "status 401"),
    ],
)
def test_the_original_is_drawn_and_that_is_said(handle: Answer, reason: str) -> None:
    extended, requests = asked(handle)
    assert extended == Extended("a cat", f"original; {reason}")
    assert len(requests) == 1  # a model costs money: it is not asked again


def test_too_slow() -> None:
    async def never(_: Received, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    extended, _ = asked(never, timeout_s=0.3)
    assert extended == Extended("a cat", "original; timeout")


def test_without_a_model_the_rules_do_it() -> None:
    extender = Extender(None, ExtensionSettings(), Metrics())
    extended = asyncio.run(extender.extend("a cat", "vivid", 1000))
    assert extended == Extended("a cat, vivid colours, dramatic lighting, rich detail", "rules")


@given(st.text(max_size=300), st.integers(1, 80))
def test_cleaning_is_bounded_and_done_once(text: str, chars_max: int) -> None:
    once = cleaned(text, chars_max)
    assert len(once) <= chars_max
    assert cleaned(once, chars_max) == once
    assert all(sign.isprintable() for sign in once)
