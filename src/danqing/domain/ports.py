"""Ports: what the service needs from the floors above and below it, as protocols. No implementation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from danqing.domain.card import Card
from danqing.domain.task import Event, ImageTask, InputImage, Pixels


@dataclass(frozen=True, slots=True)
class DrawOrder:
    """A task as a provider gets it: resolved, paid for, and with the account it is fair to."""

    task: ImageTask
    card: Card
    task_id: str
    account_id: str
    prompt: str
    """The prompt to draw (extended when asked for)."""
    seeds: tuple[int, ...]
    """One per image."""
    priority: Literal["interactive", "background"] = "interactive"
    references: tuple[InputImage, ...] = ()
    """The task's references, checked; the first is what is edited."""
    mask: InputImage | None = None
    """Of the first reference's size; transparent where it is repainted."""
    previews: int = 0
    """Looks at each unfinished image that somebody waits for."""
    is_fitted: bool = False
    """The task's size was chosen here, after its reference."""
    label_switch: str = "watermark"
    """What its caller calls the switch of the AI label."""
    links: bool = False
    """A provider's own links will do: whoever waits wants links, not bytes."""


class Provider(Protocol):
    """Something that draws."""

    async def check(self, task: ImageTask, card: Card) -> None:
        """Raises UnsupportedField for a field of `task` that what draws `card` cannot honour, PromptTooLong
        for a text that it cannot read to its end."""
        ...

    def draw(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        """Yield events until each image is Drawn or Failed. Raises Busy before the first event, EngineFailed.

        Closing the iterator (aclose) cancels what is still going on.
        """
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of a text or a picture; level 0 is the worst, 3 harmless."""

    level: int
    category: str | None = None


class JudgeFailed(Exception):
    """A judge gave no verdict. The text says why, and holds nothing of what was to be judged."""


class TextJudge(Protocol):
    """Whoever judges texts beside the word lists. `source` is its name in metrics and records."""

    @property
    def source(self) -> str: ...

    async def texts(self, texts: Sequence[str]) -> Sequence[Verdict]:
        """One verdict for each. Raises JudgeFailed."""
        ...


class ImageJudge(Protocol):
    """Whoever judges pictures, H x W x 3."""

    @property
    def source(self) -> str: ...

    async def image(self, pixels: Pixels) -> Verdict:
        """Raises JudgeFailed."""
        ...
