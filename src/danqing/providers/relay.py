"""Draws by asking a provider in its own dialect. Knows the dialects' client sides; nothing of money or HTTP serving."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from danqing.backends import RelayRow
from danqing.dialects.answers import list_of, mapping_of
from danqing.dialects.client import ProviderImage, ProviderResult, Target
from danqing.domain.card import Card
from danqing.domain.errors import Busy, DanqingError, ProviderFailed, Unavailable, UnsupportedField
from danqing.domain.ports import DrawOrder
from danqing.domain.task import (
    Delivery,
    Drawn,
    Event,
    Failed,
    ImageTask,
    Linked,
    Preview,
    Queued,
    Relayed,
    Started,
)
from danqing.net.outbound import Outbound
from danqing.net.turns import Turns
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.providers.answers import Answers
from danqing.providers.asking import ID_CHARS_MAX, Asker, Emit, Part
from danqing.providers.blame import Caller
from danqing.providers.results import Fetcher, pixels_allowed
from danqing.providers.upstream import Untaken

log = get_logger(__name__)

_NAMES = {
    "ai_label": "watermark",
    "brand_mark": "parameters.watermark",
    "references": "image",
    "transparent": "background",
}
"""What callers call a field of the task."""
_OURS = frozenset({"prompt_extend", "history", "client_request_id", "end_user", "fit_reference"})
"""What is honoured here, whether the provider is told or not."""
_ANY_FORM = frozenset({"form", "format", "compression"})
"""Whatever form the images come in is read."""
_REVISED_CHARS_MAX = 20_000
_USAGE_CHARS_MAX = 10_000
_USAGE_DEPTH_MAX = 16
_LINK = re.compile(r"https?://[!#-;=?-\[\]-_a-~]{1,8000}", re.I)
"""A link that is passed on: no blank, control or quotation mark, nothing that opens a tag."""


class Relay:
    """The Provider port over one provider."""

    def __init__(
        self,
        name: str,
        row: RelayRow,
        keys: Sequence[tuple[str, int]],
        outbound: Outbound,
        metrics: Metrics,
        answers: Answers,
    ) -> None:
        """`keys` are texts and weights. Raises ValueError for an entry of `allow_hosts` that is no host."""
        self.name = name
        self._row = row
        self._asker = Asker(name, row, keys, outbound, metrics, answers)
        self._answers = answers
        self._client = self._asker.client
        self._fetcher = Fetcher(outbound, [row.host, *row.allow_hosts], row.fetch_timeout_s)
        self._turns = Turns(row.concurrency_max, row.queue_max)
        self._unsaid_by_kind: dict[tuple[bool, bool], frozenset[str]] = {}

    async def check(self, task: ImageTask, card: Card) -> None:
        """See Provider.check."""
        sent = self._task(task, task.prompt, card)
        cannot = self._cannot(sent) - {"n"}
        if self._row.rehost:
            cannot -= {"brand_mark"}  # it is drawn here
        if task.prompt_extend:
            cannot -= {"style"}  # our extension writes it into the prompt
        if cannot:
            field = min(cannot)
            name = task.references[0].param if field == "references" else _NAMES.get(field, field)
            if field == "size":
                raise self._no_size(sent, card)
            raise UnsupportedField(
                f"'{name}' is not supported by the provider of '{card.name}'.", name
            )

    def _no_size(self, task: ImageTask, card: Card) -> UnsupportedField:
        """What to say of a size that the provider cannot be asked for: the model's sizes that it can."""
        sizes = [
            str(size)
            for size in dict.fromkeys(card.sizes.known())
            if "size" not in self._cannot(replace(task, size=size))
        ]
        works = f" Supported values are: {', '.join(sizes)}." if sizes else ""
        return UnsupportedField(
            f"'size' {task.size} is not supported by the provider of '{card.name}'.{works}", "size"
        )

    def health(self) -> dict[str, object]:
        """The facts for /healthz: no address, no key."""
        return {
            "dialect": self._row.dialect,
            "circuit": self._asker.breaker.state,
            "keys": self._asker.ring.total,
            "keys_usable": self._asker.ring.usable,
            "running": self._turns.running,
            "waiting": self._turns.waiting,
        }

    async def draw(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        """See Provider.draw. Raises Untaken where nothing was drawn, and none of it can have been charged."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        parts = self._parts(order)
        for part in parts:
            for place in part.places:
                yield Started(place)
        running = [asyncio.create_task(self._run(order, part, events.put_nowait)) for part in parts]
        for one in running:
            one.add_done_callback(lambda _: events.put_nowait(None))
        left = len(running)
        try:
            while left:
                event = await events.get()
                if event is None:
                    left -= 1
                else:
                    yield event
                del event  # its pixels are not to be held while waiting for the next one
            ends = [one.exception() for one in running]
        finally:
            if left:
                for one in running:
                    one.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        for failed in self._failures(parts, ends):
            yield failed

    def _failures(
        self, parts: Sequence[Part], ends: Sequence[BaseException | None]
    ) -> list[Failed]:
        """What became of the parts that gave no images. Raises Untaken where that is all of them."""
        untaken = [end for end in ends if isinstance(end, Untaken)]
        if len(untaken) == len(ends):
            raise untaken[0]
        failed: list[Failed] = []
        for part, end in zip(parts, ends, strict=True):
            if end is None:
                continue
            error = end.error if isinstance(end, Untaken) else end
            if not isinstance(error, DanqingError):
                raise error
            if isinstance(error, Busy | Unavailable):
                # These say "nothing was done, ask again"; but another part may have been drawn.
                error = ProviderFailed("The provider of this model took only a part of the task.")
            failed += [Failed(place, error) for place in part.places]
        return failed

    # What is asked

    def _task(self, task: ImageTask, prompt: str, card: Card) -> ImageTask:
        """The task in the provider's words, without what is honoured here."""
        backend = card.backend
        return replace(
            task,
            model=backend.model,
            prompt=prompt,
            quality=self._row.qualities.get(task.quality, task.quality),
            prompt_extend=False,
            history=(),
            client_request_id=None,
            # Whoever labels: the other one need not.
            ai_label=task.ai_label if backend.labels == "provider" else True,
        )

    def _cannot(self, task: ImageTask) -> frozenset[str]:
        return self._client.unsupported(task, Delivery()) - _OURS - _ANY_FORM

    def _parts(self, order: DrawOrder) -> list[Part]:
        """The requests that ask for all images of an order. Raises UnsupportedField."""
        task = self._task(order.task, order.prompt, order.card)
        backend = order.card.backend
        changes: dict[str, Any] = {}
        if order.prompt != order.task.prompt and "style" in self._cannot(task):
            changes["style"] = None
        if order.mask is not None and task.mask is None:  # read from the first picture's own alpha
            changes["mask"] = task.references[0]
        unsaid = self._unsaid(task)
        if task.end_user and "end_user" in self._client.unsupported(task, Delivery()):
            changes["end_user"] = None
        if backend.labels == "ours" and "ai_label" not in unsaid:
            changes["ai_label"] = False  # ours goes on later
        if task.brand_mark and "brand_mark" in unsaid:
            changes["brand_mark"] = False
        if changes:
            task = replace(task, **changes)
        links = order.links and not backend.rehost
        delivery = Delivery() if links or "form" in unsaid else Delivery("b64_json")
        live = Delivery("b64_json", stream=True, partial_images=order.previews)
        looks = order.previews > 0 and not (
            {"stream", "partial_images"} & self._client.unsupported(task, live)
        )
        if looks:
            delivery = live
        seeded = "seed" not in unsaid
        caller = Caller.of(order, self._row)
        parts: list[Part] = []
        start = 0
        while start < task.n:
            places = range(start, start + (1 if looks else self._most(task, task.n - start)))
            start = places.stop
            seed = order.seeds[places.start] if seeded else None
            parts.append(
                Part(
                    replace(task, n=len(places), seed=seed),
                    delivery,
                    Target(backend.model, order.references, order.mask, self._row.background),
                    places,
                    [order.seeds[place] for place in places],
                    seeded,
                    caller,
                    self._answers.hold(),
                )
            )
        return parts

    def _most(self, task: ImageTask, left: int) -> int:
        """How many of the `left` images the next request can ask for."""
        counts = range(min(self._row.n_max, left), 1, -1)
        return next((n for n in counts if "n" not in self._cannot(replace(task, n=n))), 1)

    def _unsaid(self, task: ImageTask) -> frozenset[str]:
        """Which of the fields that the relay itself may set this wire cannot say, for this kind of task."""
        kind = (task.is_edit, bool(task.prompt))
        if kind not in self._unsaid_by_kind:
            probe = replace(task, seed=1, ai_label=False, brand_mark=True)
            self._unsaid_by_kind[kind] = self._client.unsupported(probe, Delivery("b64_json"))
        return self._unsaid_by_kind[kind]

    # One request and its images

    async def _run(self, order: DrawOrder, part: Part, emit: Emit) -> None:
        """One part from its place in the queue to its last image. Raises Untaken, DanqingError."""
        if part.delivery.stream:
            part = replace(part, look=partial(self._look, part, emit))
        with part.held:
            await self._run_within(order, part, emit)

    async def _run_within(self, order: DrawOrder, part: Part, emit: Emit) -> None:
        def on_wait(position: int, eta_s: float) -> None:
            emit(Queued(position, eta_s))

        queued = time.perf_counter()
        turn = self._turns.take(
            order.account_id,
            cost=len(part.places),
            background=order.priority == "background",
            on_wait=on_wait,
        )
        asked: float | None = None
        try:
            async with turn:
                asked = time.perf_counter()
                result = await self._asker.ask(part, emit)
        except Busy as busy:
            if asked is None:  # no place came free
                raise Untaken(busy) from None
            raise
        part.held.keep(sum(map(_bytes_of, result.images)))
        emit(
            Relayed(
                backend=self.name,
                upstream_id=result.upstream_id and result.upstream_id[:ID_CHARS_MAX],
                usage=_kept(result.usage),
                revised_prompt=result.revised_prompt and result.revised_prompt[:_REVISED_CHARS_MAX],
                safety=result.safety,
                seeded=part.seeded,
            )
        )
        timing_ms = {
            "queue": (asked - queued) * 1000,
            "upstream": (time.perf_counter() - asked) * 1000,
        }
        links = order.links and not order.card.backend.rehost
        getting = self._getting(part, result, timing_ms, links, emit)
        del result  # each image goes when it is decoded
        if getting:
            await asyncio.gather(*getting)

    def _getting(
        self,
        part: Part,
        result: ProviderResult,
        timing_ms: dict[str, float],
        links: bool,
        emit: Emit,
    ) -> list[Coroutine[Any, Any, None]]:
        """Tell what can be told at once of an answer's images; what is to be awaited for the others."""
        getting: list[Coroutine[Any, Any, None]] = []
        for offset, found in enumerate(result.images[: len(part.places)]):
            if isinstance(found, DanqingError):
                emit(Failed(part.places[offset], part.caller.hears(found, self.name)))
            elif links and found.url is not None:
                emit(_passed_on(part, offset, found, found.url))
            else:
                getting.append(self._image(part, offset, found, timing_ms, emit))
        return getting

    async def _look(self, part: Part, emit: Emit, number: int, found: ProviderImage) -> None:
        """A look at the one image of a request; a look less is no reason to lose the image."""
        task = part.task
        try:
            pixels = await self._fetcher.look(
                found, part.held, transparent=task.transparent, size=task.size
            )
        except ProviderFailed as error:
            log.warning("provider_look_lost", backend=self.name, reason=error.message)
            return
        emit(Preview(part.places[0], number, 1, 1, pixels))

    async def _image(
        self,
        part: Part,
        offset: int,
        found: ProviderImage,
        timing_ms: dict[str, float],
        emit: Emit,
    ) -> None:
        """One image of an answer, fetched and decoded; what is wrong with it is its own result."""
        place = part.places[offset]
        started = time.perf_counter()
        try:
            pixels = await self._fetcher.pixels(
                found,
                part.held,
                transparent=part.task.transparent,
                pixels_max=pixels_allowed(part.task.size),
            )
        except ProviderFailed as error:
            log.warning("provider_image_lost", backend=self.name, reason=error.message)
            emit(Failed(place, error))
            return
        fetched_ms = (time.perf_counter() - started) * 1000
        timing_ms = timing_ms | {"fetch": fetched_ms}
        branded = part.task.brand_mark
        emit(Drawn(place, pixels, part.seeds[offset], timing_ms, branded))


def _kept(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a provider says it cost, unless it is too long or too deep for whoever has to read it."""
    level: list[object] = [usage]
    for _ in range(_USAGE_DEPTH_MAX):
        level = [inner for one in level for inner in (*mapping_of(one).values(), *list_of(one))]
        if not level:
            return usage if len(str(usage)) <= _USAGE_CHARS_MAX else {}
    return {}


def _bytes_of(found: ProviderImage | DanqingError) -> int:
    return 0 if isinstance(found, DanqingError) or found.data is None else len(found.data)


def _passed_on(part: Part, offset: int, found: ProviderImage, link: str) -> Linked | Failed:
    """One image of an answer that stays where it is."""
    place = part.places[offset]
    if _LINK.fullmatch(link) is None:
        return Failed(place, ProviderFailed("The provider's link is no web address."))
    size, kind = found.size or part.task.size, found.format or "png"
    return Linked(place, link, size, part.seeds[offset], kind)
