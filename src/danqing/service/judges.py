"""Who judges texts and pictures beside the word lists: an API of OpenAI's shape, or a classifier. Decides no refusal.

The API is `POST {base_url}/moderations` (OpenAI's reference, omni-moderation): texts as a list of strings,
a picture as one `image_url` part with a data URL; a result has `categories` and `category_scores`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from danqing.domain.ports import JudgeFailed, Verdict
from danqing.domain.task import Pixels
from danqing.service.folding import TEXT_CHARS_MAX
from danqing.service.moderation import LEVEL_NONE
from danqing.service.remote import Remote, RemoteFailed
from danqing.settings import ModerationApiSettings
from danqing.storage import codecs

PIECE_CHARS = 20_000
"""A longer text is sent in pieces: models read some 30,000 tokens."""
SIDE_MAX = 1024
"""The longer side of a picture as it is sent; no judge looks closer."""
_JPEG_QUALITY = 85

Thresholds = tuple[float, float, float]


class ApiJudge:
    """Both ports, TextJudge and ImageJudge, over one API."""

    source = "api"

    def __init__(self, remote: Remote, settings: ModerationApiSettings) -> None:
        self._remote = remote
        self._settings = settings

    async def texts(self, texts: Sequence[str]) -> Sequence[Verdict]:
        """See TextJudge."""
        pieces = [(at, piece) for at, text in enumerate(texts) for piece in _pieces(text)]
        if not pieces:
            return [Verdict(LEVEL_NONE)] * len(texts)
        found = await self._ask([piece for _, piece in pieces], len(pieces))
        verdicts = [Verdict(LEVEL_NONE)] * len(texts)
        for (at, _), verdict in zip(pieces, found, strict=True):
            verdicts[at] = min(verdicts[at], verdict, key=lambda one: one.level)
        return verdicts

    async def image(self, pixels: Pixels) -> Verdict:
        """See ImageJudge."""
        data = await asyncio.to_thread(_small_jpeg, pixels)
        url = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
        part = {"type": "image_url", "image_url": {"url": url}}
        (verdict,) = await self._ask([part], 1)
        return verdict

    async def _ask(self, inputs: Sequence[object], count: int) -> list[Verdict]:
        body = {"model": self._settings.model, "input": inputs}
        try:
            answer = await self._remote.post("/moderations", body)
        except RemoteFailed as error:
            raise JudgeFailed(str(error)) from None
        results = answer.get("results")
        if not isinstance(results, list) or len(cast("list[object]", results)) != count:
            raise JudgeFailed("not one result for each input")
        return [self._verdict(result) for result in cast("list[object]", results)]

    def _verdict(self, result: object) -> Verdict:
        """The worst that scores and flags say. Raises JudgeFailed where they say nothing."""
        if not isinstance(result, dict):
            raise JudgeFailed("a result is no object")
        facts = cast("dict[str, object]", result)
        flags = _table(facts.get("categories"), bool)
        scores = _table(facts.get("category_scores"), int | float)
        if not flags and not scores and not isinstance(facts.get("flagged"), bool):
            raise JudgeFailed("a result without categories")
        levels = {
            name: level_of(score, self._settings.category_levels.get(name, self._settings.levels))
            for name, score in scores.items()
        }
        flagged = [name for name, is_set in flags.items() if is_set]
        for name in flagged:
            levels[name] = min(self._settings.flagged_level, levels.get(name, LEVEL_NONE))
        if facts.get("flagged") is True and not flagged:
            levels.setdefault("flagged", self._settings.flagged_level)
        worst = min(levels, key=lambda name: levels[name], default=None)
        if worst is None or levels[worst] == LEVEL_NONE:
            return Verdict(LEVEL_NONE)
        said = "".join(sign if sign.isprintable() else "\ufffd" for sign in worst[:100])
        return Verdict(levels[worst], said)


class Scorer(Protocol):
    """A network that scores a picture by label; it may be slow, and is called in a thread."""

    @property
    def levels(self) -> Mapping[str, Thresholds]: ...

    def scores(self, pixels: Pixels) -> Mapping[str, float]: ...


class ClassifierJudge:
    """The ImageJudge over a network of this machine's own, one picture at a time."""

    source = "classifier"

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._turn = asyncio.Semaphore(1)

    async def image(self, pixels: Pixels) -> Verdict:
        """See ImageJudge."""
        async with self._turn:
            try:
                scores = await asyncio.to_thread(self._scorer.scores, pixels)
            except Exception as error:
                raise JudgeFailed(f"the classifier failed: {type(error).__name__}") from error
        found = {
            label: level_of(scores[label], levels) for label, levels in self._scorer.levels.items()
        }
        worst = min(found, key=lambda label: found[label])
        return Verdict(found[worst], None if found[worst] == LEVEL_NONE else worst)


def level_of(score: float, thresholds: Thresholds) -> int:
    """The level of a score: 0, 1 or 2 where it reaches the first, second or third threshold, else 3."""
    # Turned round so that a score that is no number counts as the worst.
    return next((at for at, least in enumerate(thresholds) if not score < least), LEVEL_NONE)


def _pieces(text: str) -> list[str]:
    text = text[-TEXT_CHARS_MAX:].strip()
    return [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]


def _small_jpeg(pixels: Pixels) -> bytes:
    return codecs.encode(codecs.within(pixels, SIDE_MAX), "jpeg", compression=_JPEG_QUALITY)


def _table(value: object, kind: Any) -> dict[str, Any]:
    """What is said of the categories, without nulls. Raises JudgeFailed where a value is of another kind: what
    cannot be read says nothing, least of all that all is well."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise JudgeFailed("categories that are no object")
    table = {name: item for name, item in cast("dict[str, Any]", value).items() if item is not None}
    if not all(isinstance(item, kind) for item in table.values()):
        raise JudgeFailed("a category's value of the wrong kind")
    return table
