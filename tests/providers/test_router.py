"""Who steps in for whom: never around a refusal, never where somebody may have been paid."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from danqing.domain import errors
from danqing.domain.card import RELAYED, Backend, Card, Preset
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Drawn, Event, Failed, ImageTask, Stepped, Turned
from danqing.providers.router import Router
from danqing.providers.upstream import Untaken
from tests.dialects.cards import card as plain_card

PIXELS = np.zeros((8, 8, 3), np.uint8)
FAR = Backend("far", "", dialect="openai", presets={"standard": RELAYED})
NEAR = Backend("near", "", dialect="openai", presets={"standard": RELAYED})
HOME = Backend("home", "pocket", presets={"standard": Preset(20, 2.0)})
CARD = plain_card("house", backend=FAR, fallbacks=(NEAR, HOME), qualities=FAR.presets)


class Fake:
    """Yields events, then raises `error` if there is one."""

    def __init__(
        self,
        *events: Event,
        error: Exception | None = None,
        refuses: errors.DanqingError | None = None,
    ) -> None:
        self.events, self.error, self.refuses = events, error, refuses
        self.cards: list[Card] = []

    async def check(self, task: ImageTask, card: Card) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def draw(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        self.cards.append(order.card)
        for event in self.events:
            yield event
        if self.error is not None:
            raise self.error


DRAWN = Drawn(0, PIXELS, 1)
ORDER = DrawOrder(ImageTask("house", "x", Size(8, 8), "standard"), CARD, "t", "a", "x", (1,))


def draw(**providers: Fake) -> list[Event]:
    async def run() -> list[Event]:
        async with aclosing(Router(providers).draw(ORDER)) as events:
            return [event async for event in events]

    return asyncio.run(run())


def test_the_first_choice_draws() -> None:
    near = Fake(DRAWN)
    assert draw(far=Fake(DRAWN), near=near, home=Fake()) == [DRAWN]
    assert near.cards == []


def test_who_took_nothing_is_stepped_in_for_in_order() -> None:
    far = Fake(Stepped(0, 1, 1), error=Untaken(errors.Busy(5)))
    home = Fake(DRAWN)
    near = Fake(error=Untaken(errors.ProviderFailed()))
    assert draw(far=far, near=near, home=home) == [
        *(Stepped(0, 1, 1), Turned("near"), Turned("home")),
        DRAWN,
    ]
    (used,) = home.cards
    assert (used.backend, used.qualities) == (HOME, HOME.presets)


@pytest.mark.parametrize(
    "error",
    [
        errors.ContentRefused("user", 1),
        errors.InvalidField("no", "size"),
        errors.ProviderFailed(),
        errors.Busy(1),
    ],
)
def test_nobody_steps_in_where_somebody_may_have_been_paid(error: errors.DanqingError) -> None:
    near = Fake(DRAWN)
    with pytest.raises(type(error)):
        draw(far=Fake(error=error), near=near, home=near)
    assert near.cards == []


def test_nobody_steps_in_once_an_image_came_or_failed() -> None:
    failed = Failed(0, errors.ContentRefused("user", 1))
    near = Fake(DRAWN)
    assert draw(far=Fake(failed), near=near, home=near) == [failed]
    assert near.cards == []


def test_the_first_error_is_told_when_all_fail() -> None:
    down = Fake(error=Untaken(errors.ProviderFailed("down")))
    with pytest.raises(errors.Busy):
        draw(far=Fake(error=Untaken(errors.Busy(5))), near=down, home=Fake(error=errors.Busy(9)))


def test_who_cannot_say_the_task_is_passed_over() -> None:
    far = Fake(DRAWN, refuses=errors.UnsupportedField("no", "seed"))
    near = Fake(DRAWN)
    assert draw(far=far, near=near, home=Fake()) == [Turned("near"), DRAWN]
    assert far.cards == []
    router = Router({"far": far, "near": far, "home": far})
    with pytest.raises(errors.UnsupportedField):
        asyncio.run(router.check(ORDER.task, CARD))
    asyncio.run(Router({"far": far, "near": near}).check(ORDER.task, CARD))


def test_a_prompt_too_long_for_one_goes_to_another() -> None:
    home = Fake(DRAWN, refuses=errors.PromptTooLong("prompt", 1100, 1024, "tokens"))
    card = replace(CARD, backend=HOME, fallbacks=(NEAR,), qualities=HOME.presets)

    async def run() -> list[Event]:
        router = Router({"home": home, "near": Fake(DRAWN)})
        await router.check(ORDER.task, card)
        async with aclosing(router.draw(replace(ORDER, card=card))) as events:
            return [event async for event in events]

    assert asyncio.run(run()) == [Turned("near"), DRAWN]
    with pytest.raises(errors.PromptTooLong, match="1100 tokens, at most 1024"):
        asyncio.run(Router({"home": home, "near": home}).check(ORDER.task, card))


def test_a_local_engine_that_is_full_is_stepped_in_for_until_it_drew() -> None:
    card = replace(CARD, backend=HOME, fallbacks=(NEAR,), qualities=HOME.presets)
    order = replace(ORDER, card=card)

    async def run(home: Fake, near: Fake) -> list[Event]:
        async with aclosing(Router({"home": home, "near": near}).draw(order)) as events:
            return [event async for event in events]

    assert asyncio.run(run(Fake(error=errors.Busy(1)), Fake(DRAWN))) == [Turned("near"), DRAWN]
    with pytest.raises(errors.EngineFailed):
        asyncio.run(run(Fake(DRAWN, error=errors.EngineFailed()), Fake(DRAWN)))


def test_a_backend_that_is_not_running() -> None:
    with pytest.raises(errors.Unavailable):
        draw()
    assert draw(near=Fake(DRAWN))[-1] is DRAWN
