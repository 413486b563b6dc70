"""One call and what it comes to: the words that the pipeline and the floors around it share. No deeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from danqing.db.rows import ImageRow
from danqing.domain.card import Backend, Card
from danqing.domain.errors import DanqingError
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder
from danqing.domain.task import (
    DeliveredImage,
    Delivery,
    FailedImage,
    FinishedImage,
    ImageResult,
    ImageTask,
    Linked,
    Relayed,
    SafetyLevel,
    Turned,
)
from danqing.service.auth import Principal
from danqing.service.delivery import Life, StoredImage
from danqing.service.finishing import LabelPlan
from danqing.service.ratelimit import Taken
from danqing.service.references import Inputs
from danqing.service.streaming import Feed
from danqing.service.upstream import Upstream, passed_on, worst_of

Stop = Literal["client", "server"]
"""Who ends a drawing early: its client (hung up, or DELETE), or the server that stops."""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """An Idempotency-Key (or a dialect's own request id), digested with its account and route.

    `replays` False: the key again is an error even with the same body, as Zhipu has it.
    """

    digest: str
    fingerprint: str
    replays: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated, decoded request."""

    dialect: str
    principal: Principal
    card: Card
    task: ImageTask
    delivery: Delivery
    base_url: str
    """What links begin with."""
    received_s: float
    client_key: ClientKey | None = None
    background: bool = False
    """Answer at once; nobody's connection waits for the images."""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set before the call is cancelled because its client left; else it is the server that stops."""
    feed: Feed | None = None
    """Who reads a streamed answer; None = nobody waits for its events."""
    request_id: str = ""
    """What its pictures in memory are counted under."""

    @property
    def label_switch(self) -> str:
        """What its dialect calls the switch of the AI label."""
        return "watermark_enabled" if self.dialect == "zhipu" else "watermark"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer and its facts for the headers."""

    result: ImageResult
    task_id: str
    charged: int
    seeds: tuple[int, ...]
    """Empty where a provider drew that knows no seeds."""
    timing_ms: dict[str, float]
    replayed: bool = False
    """The task was drawn for an earlier request with the same key; nothing was charged for this one."""
    rate: Taken | None = None
    """What is left of the token's rate limit, where it has one."""
    extension: str | None = None
    """How the prompt was extended, where it was to be."""
    backend: Backend | None = None
    """What drew, where it is known that it was not the card's first choice."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The task was taken; it is drawn in the background."""

    task_id: str
    rate: Taken | None = None
    """As an outcome's."""


@dataclass(slots=True)
class Work:
    """What the drawing of one task has come to so far."""

    call: Call
    held: int
    order: DrawOrder
    plan: LabelPlan
    life: Life
    inputs: Inputs | None = None
    """The pictures that an edit starts from, while they are in memory."""
    epoch: int = 1
    revised: str | None = None
    extension: str | None = None
    """How the prompt was extended (extension.Extended.how); None where that was not asked for."""
    safety: tuple[SafetyLevel, ...] = ()
    done: dict[int, Fraction] = field(default_factory=dict[int, Fraction])
    """Index → the share of the image's own steps that is done; an edit has fewer than a drawing."""
    stored: dict[int, StoredImage] = field(default_factory=dict[int, StoredImage])
    images: dict[int, DeliveredImage | DanqingError] = field(
        default_factory=dict[int, DeliveredImage | DanqingError]
    )
    timing_ms: dict[str, float] = field(default_factory=dict[str, float])
    upstream: Upstream = field(default_factory=Upstream)
    settle_id: str = field(default_factory=uuid7)
    """The id of the transfer that resolves the hold: the same in every try."""
    stopped: Stop | None = None
    is_undone: bool = False
    """Its charge could not be written and is being taken back."""
    interrupt: Callable[[], object] | None = None
    """Cancels the drawing, while there is one."""

    @property
    def task_id(self) -> str:
        return self.order.task_id

    @property
    def started(self) -> bool:
        return any(self.done.values()) or bool(self.images)

    @property
    def left(self) -> frozenset[int]:
        """Indexes of the images of which the client has seen something: a look, or the whole."""
        return frozenset() if self.call.feed is None else frozenset(self.call.feed.left)

    @property
    def kept(self) -> frozenset[int]:
        """Indexes of the images that the client has whole, streamed before the task has ended."""
        return frozenset() if self.call.feed is None else frozenset(self.call.feed.kept)

    def cut_feed(self) -> None:
        """Let nothing more leave: what has left is what is charged."""
        if self.call.feed is not None:
            self.call.feed.cut()

    @property
    def is_complete(self) -> bool:
        """Every image came out, and is stored or stays with its provider."""
        return len(self.stored) + len(self.upstream.links) == self.order.task.n

    @property
    def is_asked(self) -> bool:
        """A provider has the request, and may want to be paid for it."""
        return self.order.card.backend.is_relay and any(self.done.values())

    def hear(self, event: Relayed | Linked | Turned) -> None:
        """Take in what a relay says."""
        match event:
            case Relayed():
                self.upstream.requests.append(event)
                self.revised = event.revised_prompt or self.revised
                self.safety = worst_of(*self.safety, *event.safety)
            case Linked():
                self.upstream.links[event.index] = event
                image = self.images[event.index] = passed_on(event)
                if self.call.feed is not None:
                    self.call.feed.tell(FinishedImage(event.index, image, self.revised))
            case Turned():
                card = self.order.card
                backend = next(one for one in card.fallbacks if one.name == event.backend)
                card = replace(card, backend=backend, qualities=backend.presets)
                self.order = replace(self.order, card=card)
                self.done.clear()

    def begin_from(self, inputs: Inputs) -> None:
        """Take the pictures of an edit in; they are counted until `release`."""
        self.inputs = inputs
        self.order = replace(self.order, references=inputs.references, mask=inputs.mask)

    def release(self) -> None:
        """Let the pictures go."""
        if self.inputs is not None:
            self.inputs.share.release()
            self.inputs = None
            self.order = replace(self.order, references=(), mask=None)

    def deliver(self, index: int, stored: StoredImage, image: DeliveredImage) -> None:
        """An image has come out and is stored; who reads a stream hears of it."""
        self.stored[index] = stored
        self.images[index] = image
        if self.call.feed is not None:
            self.images[index] = replace(image, b64=None)  # the feed has it, as long as it needs it
            self.call.feed.tell(FinishedImage(index, image, self.revised))

    def fail(self, index: int, error: DanqingError) -> None:
        """An image will not come."""
        self.images[index] = error
        if self.call.feed is not None:
            self.call.feed.tell(FailedImage(index, error))

    def stop(self, by: Stop) -> None:
        """End the drawing early; the first reason counts. What is being settled goes on."""
        if self.stopped is None:
            self.stopped = by
        if self.interrupt is not None:
            self.interrupt()

    def rows(self, only: Collection[int] | None = None) -> list[ImageRow]:
        """The rows of the images that were stored; `only` those of these indexes."""
        return [
            image_row(image, self.task_id, self.order.account_id, index)
            for index, image in sorted(self.stored.items())
            if only is None or index in only
        ]


def image_row(image: StoredImage, task_id: str, account_id: str, index: int) -> ImageRow:
    return ImageRow(
        id=image.image_id,
        task_id=task_id,
        account_id=account_id,
        idx=index,
        format=image.format,
        width=image.size.width,
        height=image.size.height,
        bytes=image.bytes_count,
        sha256=image.sha256,
        seed=image.seed,
        blob_key=image.blob_key,
        label_visible=image.plan.visible,
        label_metadata=image.plan.metadata,
        label_pixel=image.plan.pixel,
        created_ms=image.created_ms,
        expires_ms=image.expires_ms,
    )
