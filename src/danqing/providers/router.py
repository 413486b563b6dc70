"""Which provider draws a card's backend. Knows providers by the backend's name; nothing of money or HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from danqing.domain.errors import Unavailable
from danqing.domain.ports import DrawOrder, Provider
from danqing.domain.task import Event


class Router:
    """A Provider that hands each order to the provider of its card's backend."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = dict(providers)

    def draw(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        """See Provider.draw. Raises Unavailable when the backend is not running."""
        provider = self._providers.get(order.card.backend.name)
        if provider is None:
            raise Unavailable(f"The backend of '{order.card.name}' is not running.")
        return provider.draw(order)
