"""The local provider: an order becomes jobs, the engine's events become the domain's."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import numpy as np

from danqing import catalog
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Drawn, Event, ImageTask, Preview, Stepped
from danqing.engine.client import InProcessClient
from danqing.engine.core import EngineCore
from danqing.providers.local import LocalProvider
from danqing.settings import Settings
from tests.engine.null_family import NullFamily


def order(**changes: Any) -> DrawOrder:
    card = catalog.load(Settings()).find("pocket", "openai")
    task = ImageTask("pocket", "a cat", Size(64, 128), "standard", n=2)
    fields = {"task_id": "t", "account_id": "a", "prompt": "a cat", "seeds": (5, 6)}
    return DrawOrder(task=task, card=card, **(fields | changes))  # type: ignore[arg-type]


async def drawn(family: NullFamily, asked: DrawOrder) -> list[Event]:
    client = InProcessClient(EngineCore(lambda: family, warm_up=None))
    await client.ready()
    try:
        async with aclosing(LocalProvider(client).draw(asked)) as events:
            return [event async for event in events]
    finally:
        await client.close()


def test_an_order_yields_its_images_and_the_looks_asked_for() -> None:
    family = NullFamily(step_s=0.002)
    events = asyncio.run(drawn(family, order(previews=2)))
    images = [event for event in events if isinstance(event, Drawn)]
    assert sorted((image.index, image.seed) for image in images) == [(0, 5), (1, 6)]
    assert {event.steps for event in events if isinstance(event, Stepped)} == {8}
    looks = [event for event in events if isinstance(event, Preview)]
    assert {look.index for look in looks} == {0, 1}
    for look in looks:
        assert (look.step, look.steps) == ((2, 5)[look.number], 8)
        assert look.pixels.shape == (128, 64, 3)
        assert np.all(look.pixels == 5 + look.index + look.step)


def test_nobody_asked_so_no_looks_are_made() -> None:
    family = NullFamily()
    events = asyncio.run(drawn(family, order()))
    assert not any(isinstance(event, Preview) for event in events)
    assert family.previewed == []
