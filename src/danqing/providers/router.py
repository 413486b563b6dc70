"""Which provider draws a card's backend, and who steps in. Knows providers by the backend's name; nothing of money or HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from danqing.domain.card import Card
from danqing.domain.errors import (
    Busy,
    DanqingError,
    EngineFailed,
    PromptTooLong,
    Unavailable,
    UnsupportedField,
)
from danqing.domain.ports import DrawOrder, Provider
from danqing.domain.task import Drawn, Event, Failed, ImageTask, Linked, Turned
from danqing.observability.logging import get_logger
from danqing.providers.upstream import Untaken

log = get_logger(__name__)


class Router:
    """A Provider that hands each order to the provider of its card's backend, else to a fallback's."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = dict(providers)

    async def check(self, task: ImageTask, card: Card) -> None:
        """See Provider.check. A field that a fallback can honour is fine."""
        refused: UnsupportedField | PromptTooLong | None = None
        for mine in card.faces():
            provider = self._providers.get(mine.backend.name)
            if provider is None:
                return  # draw says so
            try:
                await provider.check(task, mine)
                return
            except (UnsupportedField, PromptTooLong) as error:
                refused = refused or error
        assert refused is not None
        raise refused

    async def draw(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        """See Provider.draw. Raises Unavailable when the backend is not running.

        A fallback is asked where the one before drew nothing and cannot have been paid: never around
        a refusal of what is asked, and never once an image came or failed.
        """
        first: DanqingError | None = None
        for mine in order.card.faces():
            name = mine.backend.name
            provider = self._providers.get(name)
            if provider is None:
                first = first or Unavailable(f"The backend of '{mine.name}' is not running.")
                continue
            if mine is not order.card:
                log.warning("fallback", task=order.task_id, backend=name)
                yield Turned(name)
            ended = False
            try:
                await provider.check(order.task, mine)
                its = order if mine is order.card else replace(order, card=mine)
                async with aclosing(provider.draw(its)) as events:
                    async for event in events:
                        ended = ended or isinstance(event, Drawn | Failed | Linked)
                        yield event
                        del event  # its pixels are not to be held while waiting for the next one
                return
            except (UnsupportedField, PromptTooLong) as error:
                first = first or error
            except Untaken as untaken:
                first = first or untaken.error
            except (Busy, Unavailable, EngineFailed) as error:
                if ended or mine.backend.is_relay:
                    raise
                first = first or error
        assert first is not None
        raise first
