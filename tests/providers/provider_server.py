"""A provider on loopback that answers by script, and a relay that asks it: real HTTP, no account and no ledger."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from danqing.backends import RelayRow
from danqing.domain.card import RELAYED, Backend, Card
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Drawn, Event, ImageTask
from danqing.net.outbound import Outbound
from danqing.observability.metrics import Metrics
from danqing.providers.answers import Answers
from danqing.providers.relay import Relay
from danqing.storage import codecs
from tests.dialects.cards import card as plain_card
from tests.net.servers import Answer, Received, Server, answer, serving

SIZE = Size(64, 48)


def picture(shade: int = 90) -> bytes:
    return codecs.encode(np.full((SIZE.height, SIZE.width, 3), shade, np.uint8), "png")


def bomb() -> bytes:
    """A sound PNG of some kilobytes that is 75 MB when it is decoded: more than any provider of these sizes draws."""
    stream = io.BytesIO()
    Image.new("1", (5000, 5000)).save(stream, "PNG")
    return stream.getvalue()


def inline(*shades: int, **more: Any) -> Answer:
    """An OpenAI answer with images in base64."""
    data = [{"b64_json": base64.b64encode(picture(shade)).decode()} for shade in shades]
    return says({"created": 1, "data": data, **more})


def says(body: Any, status: int = 200, headers: Sequence[str] = ()) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answer(status, raw, headers)


def error(status: int, code: str, *headers: str, message: str = "no", param: Any = None) -> Answer:
    body = {"error": {"message": message, "type": "x", "param": param, "code": code}}
    return says(body, status, headers)


async def cut(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
    await writer.drain()
    writer.close()


async def silent(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


@dataclass
class Provider:
    """`drawings` answer POSTs and `images` GETs, one after the other, the last of them for good."""

    drawings: list[Answer]
    images: list[Answer] = field(default_factory=lambda: [answer(200, picture())])
    server: Server = field(default_factory=Server)

    async def handle(self, got: Received, writer: asyncio.StreamWriter) -> None:
        answers = self.drawings if got.line.startswith("POST") else self.images
        await (answers.pop(0) if len(answers) > 1 else answers[0])(got, writer)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the drawings that were asked for."""
        return [json.loads(got.body) for got in self.posts]

    @property
    def posts(self) -> list[Received]:
        return [got for got in self.server.requests if got.line.startswith("POST")]

    @property
    def gets(self) -> list[Received]:
        return [got for got in self.server.requests if got.line.startswith("GET")]

    def link(self, path: str = "/1.png") -> Answer:
        """An answer with a link to this server."""

        async def write(got: Received, writer: asyncio.StreamWriter) -> None:
            body = {"created": 1, "data": [{"url": self.server.url + path}]}
            await says(body)(got, writer)

        return write


@dataclass
class Bench:
    """A relay and its provider."""

    relay: Relay
    provider: Provider
    metrics: Metrics
    card: Card

    def order(self, **changes: Any) -> DrawOrder:
        links = changes.pop("links", False)
        extended = changes.pop("extended", None)
        plain = {"model": "house", "prompt": "a cat", "size": SIZE, "quality": "standard"}
        task = ImageTask(**(plain | changes))
        seed = 7 if task.seed is None else task.seed
        seeds = tuple(seed + index for index in range(task.n))
        prompt = extended or task.prompt
        return DrawOrder(task, self.card, "task-1", "account-1", prompt, seeds, links=links)

    async def draw(self, **changes: Any) -> list[Event]:
        events: list[Event] = []
        async with aclosing(self.relay.draw(self.order(**changes))) as drawing:
            async for event in drawing:
                events.append(event)
        return events

    def outcomes(self) -> dict[str, float]:
        """How requests to the provider ended, by the metric."""
        return {
            sample.labels["outcome"]: sample.value
            for family in self.metrics.upstream_requests.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }


def card(**backend: Any) -> Card:
    presets = {"standard": RELAYED, "hd": RELAYED}
    values = {"dialect": "openai", "model": "theirs", "presets": presets} | backend
    return plain_card("house", n_max=10, qualities=presets, backend=Backend("far", "", **values))


@asynccontextmanager
async def bench(
    *drawings: Answer,
    images: Sequence[Answer] = (),
    keys: Sequence[tuple[str, int]] = (("sk-first-key", 1),),
    backend: dict[str, Any] | None = None,
    answers: Answers | None = None,
    **row: Any,
) -> AsyncIterator[Bench]:
    """A provider that answers so, and a relay to it."""
    provider = Provider(list(drawings))
    if images:
        provider.images = list(images)
    async with serving(provider.handle) as server:
        provider.server = server
        outbound, metrics = Outbound(), Metrics()
        plain = {"dialect": "openai", "base_url": f"{server.url}/v1/", "fetch_timeout_s": 60.0}
        configured = RelayRow.model_validate(plain | row)
        relay = Relay("far", configured, keys, outbound, metrics, answers or Answers())
        try:
            yield Bench(relay, provider, metrics, card(**(backend or {})))
        finally:
            await outbound.aclose()


def shades(events: Sequence[Event]) -> dict[int, int]:
    """Each image that came, by its place, and its colour."""
    return {event.index: int(event.pixels[0, 0, 0]) for event in events if isinstance(event, Drawn)}
