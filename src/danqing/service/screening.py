"""What is asked about every text and picture before it is drawn or given out. Knows no HTTP, no task, no money."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from danqing.domain.errors import ContentRefused, Unavailable
from danqing.domain.ports import ImageJudge, JudgeFailed, TextJudge, Verdict
from danqing.domain.task import Pixels, SafetyLevel
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.service.judges import SIDE_MAX
from danqing.service.moderation import Role, TextModerator
from danqing.service.upstream import worst_of
from danqing.settings import SettingsError
from danqing.storage import codecs

log = get_logger(__name__)

LARGE_CHARS = 20_000
"""Texts above this, taken together, are folded off the event loop."""
DECODES = 2
"""Clients' pictures decoded at once, to be judged."""
AWAY = "Moderation is not available just now. Please retry later."


class Screen:
    """Moderation as the rest of the service sees it. Reloading swaps the lists whole, or not at all."""

    def __init__(
        self,
        load: Callable[[], TextModerator],
        metrics: Metrics,
        *,
        text_judge: TextJudge | None = None,
        image_judge: ImageJudge | None = None,
        fails_open: bool = False,
    ) -> None:
        """`load` reads the lists; raises SettingsError as it does. `fails_open`: what a judge that failed
        says nothing of is let through; else it is answered as unavailable."""
        self._load = load
        self._lists = load()
        self._metrics = metrics
        self._text_judge = text_judge
        self._image_judge = image_judge
        self._fails_open = fails_open
        self._decodes = asyncio.Semaphore(DECODES)

    @property
    def lists(self) -> TextModerator:
        """The lists in use."""
        return self._lists

    @property
    def sees_images(self) -> bool:
        """Whether anybody judges images."""
        return self._image_judge is not None

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

        Raises ContentRefused, naming role and level; Unavailable where a judge failed that is needed.
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
        if self._text_judge is None:
            return levels
        return worst_of(*levels, *await self._judged(self._text_judge, texts, block_level))

    async def image(
        self, pixels: Pixels, role: Role = "assistant", block_level: int | None = None
    ) -> tuple[SafetyLevel, ...]:
        """What is said of a picture; nothing where nobody judges images. Raises as `texts`."""
        if self._image_judge is None:
            return ()
        views = await asyncio.to_thread(codecs.views, pixels)
        return await self._seen(self._image_judge, views, role, block_level)

    async def picture(self, data: bytes, block_level: int | None = None) -> tuple[SafetyLevel, ...]:
        """The same of a client's encoded picture, which was checked. Raises as `image`."""
        if self._image_judge is None:
            return ()
        async with self._decodes:
            views = await asyncio.to_thread(codecs.decode_views, data, SIDE_MAX)
        return await self._seen(self._image_judge, views, "user", block_level)

    async def _seen(
        self, judge: ImageJudge, views: Sequence[Pixels], role: Role, block_level: int | None
    ) -> tuple[SafetyLevel, ...]:
        # A picture may be in the opacity alone, or in colours behind it that any editor brings out.
        asked = (judge.image(view) for view in views)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        verdicts = [answer for answer in answers if isinstance(answer, Verdict)]
        worst = min(verdicts, key=lambda verdict: verdict.level, default=None)
        if worst is not None:
            self._require(judge.source, role, worst, block_level, "image")
        for answer in answers:
            if isinstance(answer, JudgeFailed):
                return self._failed(judge.source, answer, block_level)
            if isinstance(answer, BaseException):
                raise answer
        assert worst is not None
        self._metrics.moderation.labels(judge.source, "passed").inc()
        return (SafetyLevel(role, worst.level),)

    async def _judged(
        self, judge: TextJudge, texts: Mapping[Role, Sequence[str]], block_level: int | None
    ) -> tuple[SafetyLevel, ...]:
        # A history's turns go as one text: a call per turn would be slow, and its sense is in them all.
        asked: list[tuple[Role, str]] = []
        for role, of_role in texts.items():
            whole = ["\n\n".join(of_role)] if role == "history" else of_role
            for text in whole:
                if text.strip():
                    asked.append((role, text))
        if not asked:
            return ()
        try:
            verdicts = await judge.texts([text for _, text in asked])
        except JudgeFailed as error:
            return self._failed(judge.source, error, block_level)
        for (role, _), verdict in zip(asked, verdicts, strict=True):
            self._require(judge.source, role, verdict, block_level, "text")
        self._metrics.moderation.labels(judge.source, "passed").inc()
        return tuple(
            SafetyLevel(role, verdict.level)
            for (role, _), verdict in zip(asked, verdicts, strict=True)
        )

    def _require(
        self,
        source: str,
        role: Role,
        verdict: Verdict,
        block_level: int | None,
        subject: Literal["text", "image"],
    ) -> None:
        """Raises ContentRefused."""
        if verdict.level > self._refused_to(block_level):
            return
        self._metrics.moderation.labels(source, "refused").inc()
        raise ContentRefused(
            role,
            verdict.level,
            subject=subject,
            source=source,
            category=verdict.category,
        )

    def _refused_to(self, block_level: int | None) -> int:
        return self._lists.block_level if block_level is None else block_level

    def _failed(self, source: str, error: JudgeFailed, block_level: int | None) -> tuple[()]:
        """Let through, or raise Unavailable. Who refuses nothing needs no verdict."""
        is_open = self._fails_open or self._refused_to(block_level) < 0
        outcome = "failed_open" if is_open else "failed_closed"
        self._metrics.moderation.labels(source, outcome).inc()
        log.warning("moderation_failed", source=source, outcome=outcome, why=str(error))
        if not is_open:
            raise Unavailable(AWAY)
        return ()
