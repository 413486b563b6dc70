"""What is asked about every text before it is drawn: the word lists, and whoever else judges. Knows no HTTP, no task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from danqing.domain.errors import ContentRefused
from danqing.domain.task import SafetyLevel
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.service.moderation import Role, TextModerator
from danqing.settings import SettingsError

log = get_logger(__name__)

LARGE_CHARS = 20_000
"""Texts above this, taken together, are folded off the event loop."""


class Screen:
    """Moderation as the rest of the service sees it. Reloading swaps the lists whole, or not at all."""

    def __init__(self, load: Callable[[], TextModerator], metrics: Metrics) -> None:
        """`load` reads the lists; raises SettingsError as it does."""
        self._load = load
        self._lists = load()
        self._metrics = metrics

    @property
    def lists(self) -> TextModerator:
        """The lists in use."""
        return self._lists

    async def reload(self) -> TextModerator:
        """Read the lists again. Raises SettingsError naming file and lines; then the old ones stay in use."""
        try:
            self._lists = await asyncio.to_thread(self._load)
        except SettingsError as error:
            log.error("word_lists_not_reloaded", fault=str(error))
            raise
        log.info("word_lists_reloaded", terms=self._lists.terms_count)
        return self._lists

    async def texts(
        self, texts: Mapping[Role, Sequence[str]], block_level: int | None = None
    ) -> tuple[SafetyLevel, ...]:
        """The worst level of each role that has texts; `block_level` None: the settings' own.

        Raises ContentRefused, naming role and level.
        """
        lists = self._lists
        try:
            if sum(len(text) for of_role in texts.values() for text in of_role) > LARGE_CHARS:
                levels = await asyncio.to_thread(lists.require, texts, block_level)
            else:
                levels = lists.require(texts, block_level)
        except ContentRefused as error:
            self._metrics.moderation.labels(error.source, "refused").inc()
            raise
        self._metrics.moderation.labels("lists", "passed").inc()
        return levels
