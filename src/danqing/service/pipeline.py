"""The use case: one call from a checked request to a settled charge. Knows no HTTP and no dialect's words.

client's key → rate limit → resolve → moderate → HOLD + task row → draw (drawing.py) → POST or VOID (settling.py)
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from danqing.catalog import Catalog
from danqing.db.rows import PERMILLE, NewTask, TaskRow
from danqing.domain.card import Card, multiplied
from danqing.domain.errors import (
    Busy,
    Cancelled,
    DanqingError,
    DuplicateRequestId,
    EngineFailed,
    IdempotencyConflict,
    ModelNotAllowed,
    QuotaExceeded,
    ServerFault,
    Unavailable,
    WaiverRequired,
)
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import SEED_MAX, ImageResult, SafetyLevel
from danqing.observability.logging import get_logger
from danqing.service.auth import Principal
from danqing.service.blocks import Blocks
from danqing.service.calls import Accepted, Call, Outcome, Work
from danqing.service.delivery import Life
from danqing.service.drawing import Artist
from danqing.service.finishing import LabelPlan
from danqing.service.gallery import Gallery
from danqing.service.ledger import KeyInUse, Ledger, StaleTask
from danqing.service.ratelimit import RateLimiter, Taken
from danqing.service.records import StoredRequest, stored_head, stream_head
from danqing.service.referee import Referee
from danqing.service.references import Inputs, References
from danqing.service.settling import Settler, TakenOver, result_of
from danqing.service.upstream import worst_of
from danqing.settings import Settings

log = get_logger(__name__)
T = TypeVar("T")

OPEN_TRIES = 2
OPEN_WAIT_S = 0.2
POLL_S = (0.05, 1.0)
"""How often a waiting duplicate looks whether the first has ended: at first, and in the end."""


class Pipeline:
    """Runs calls. One instance serves all requests of a server."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        ledger: Ledger,
        artist: Artist,
        settler: Settler,
        referee: Referee,
        references: References,
        gallery: Gallery,
        blocks: Blocks,
        limiter: RateLimiter,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._ledger = ledger
        self._artist = artist
        self._settler = settler
        self._referee = referee
        self._references = references
        self._gallery = gallery
        self._blocks = blocks
        self._limiter = limiter
        self._works: dict[str, Work] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def draw(self, call: Call) -> Outcome | Accepted:
        """Draw, store and charge one call. Cancel the coroutine when the client hangs up (see Call.hung_up).

        Raises any DanqingError; whatever is raised, the hold is resolved by the card's rules. A call
        whose client hangs up goes on to its end where it has a key to come back with.
        """
        rate = await self._limited(call.principal)  # a replay is a request, too
        if call.feed is not None:
            call.feed.rate = rate
        if call.client_key is not None:
            first = await self._ledger.task_of_key(call.client_key.digest)
            if first is not None:
                return replace(await self._replayed(call, first), rate=rate)
        safety = await self._admit(call)
        inputs = None
        if call.task.is_edit:
            await self._require_some_quota(call)
            inputs = await self._references.check(
                call.task, call.principal.account_id, call.request_id
            )
            safety = worst_of(*safety, *await self._referee.look_at(call, inputs))
        work = self._work(call, uuid7(), inputs)
        work.safety = safety
        running = self._keep(self._opened_and_drawn(work))
        try:
            opened = await asyncio.shield(running)
        except asyncio.CancelledError:
            if call.client_key is None or not call.hung_up.is_set():
                work.stop("client" if call.hung_up.is_set() else "server")
                await asyncio.wait({running})
            raise
        if isinstance(opened, TaskRow):
            opened = await self._replayed(call, opened)
        return replace(opened, rate=rate)

    async def cancel(self, task_id: str) -> None:
        """Cancel a task that is not over: at once if this server draws it, else its owner is told."""
        work = self._works.get(task_id)
        if work is not None:
            work.stop("client")
        else:
            await self._ledger.ask_cancel(task_id)

    def can_resume(self, row: TaskRow, stored: StoredRequest) -> bool:
        """Whether the catalog still has what a task wants."""
        try:
            card = self._drawable(self._catalog.find(row.model, row.dialect))
        except DanqingError:
            return False
        if row.state == "running" and card.may_be_relayed:
            return False  # a provider may have been paid for it: it is not asked twice
        return stored.task.quality in card.qualities

    def knows_seeds(self, row: TaskRow, stored: StoredRequest) -> bool:
        """Whether the images of a task whose server died were drawn by its seeds: who drew them is not known."""
        if stored.task.seed is not None:
            return True  # what cannot take a seed that was asked for does not get the task
        try:
            return not self._catalog.find(row.model, row.dialect).may_be_relayed
        except DanqingError:
            return False

    async def resume(self, row: TaskRow, stored: StoredRequest) -> None:
        """Draw a claimed task again, under the hold it has. Raises ModelNotFound (see can_resume), StaleTask."""
        card = self._catalog.find(row.model, row.dialect)
        call = Call(
            dialect=row.dialect,
            principal=Principal(
                account_id=row.account_id,
                account_name="",
                token_id=row.token_id or "",
                waiver_id=row.waiver_id,
                scopes=frozenset(),
                is_admin=False,
                price_permille=PERMILLE,
                models=None,
                rate_per_minute=None,
                block_level=stored.block_level,
            ),
            card=card,
            task=stored.task,
            delivery=stored.delivery,
            base_url="",
            received_s=stored.received_s,
            background=True,
        )
        row = await self._ledger.draw_again(row)
        work = self._work(call, row.id)
        work.order = DrawOrder(
            task=stored.task,
            card=card,
            task_id=row.id,
            account_id=row.account_id,
            prompt=stored.task.prompt,
            seeds=stored.seeds,
            priority="background",
            label_switch=call.label_switch,
            links=stored.delivery.form == "url",
        )
        work.held, work.plan, work.epoch = stored.held, stored.plan, row.epoch
        work.life = stored.life
        self._works[row.id] = work
        self._keep(self._logged(work))

    def is_drawing(self, task_id: str) -> bool:
        """Whether this very server works on the task."""
        return task_id in self._works

    async def drain(self) -> None:
        """Stop what is going on and wait until all of it is settled; for shutdown."""
        self._stopping = True
        while self._running:
            for work in list(self._works.values()):
                work.stop("server")
            await asyncio.wait(self._running)

    # Before the hold

    async def _limited(self, principal: Principal) -> Taken | None:
        if principal.rate_per_minute is None:
            return None
        return await self._limiter.take(f"token:{principal.token_id}", principal.rate_per_minute)

    async def _admit(self, call: Call) -> tuple[SafetyLevel, ...]:
        """Everything that can be refused for nothing."""
        principal = call.principal
        names = {name.lower() for name in (call.card.name, *call.card.aliases)}
        if principal.models is not None and not names & principal.models:
            raise ModelNotAllowed(call.card.name)
        self._drawable(call.card)
        if not call.task.ai_label and principal.waiver_id is None:
            raise WaiverRequired(call.label_switch)
        await self._artist.check(call)
        if call.task.end_user is not None:
            await self._blocks.require_free(principal.account_id, call.task.end_user)
        return await self._referee.read(call)

    async def _require_some_quota(self, call: Call) -> None:
        """Fetch and decode nothing for who cannot pay for the smallest size. Raises QuotaExceeded."""
        task, card = call.task, call.card
        price = card.price.of(task.quality, Size(1, 1), task.n, edit=True)
        needed = multiplied(price, call.principal.price_permille)
        balance = await self._ledger.balance(call.principal.account_id)
        if balance < needed:
            raise QuotaExceeded(needed, balance)

    def _drawable(self, card: Card) -> Card:
        return self._catalog.drawable(card, self._settings.standin)

    async def _replayed(self, call: Call, first: TaskRow) -> Outcome | Accepted:
        """The answer of the task that has the call's key: waited for, then encoded anew."""
        assert call.client_key is not None
        if not call.client_key.replays:
            raise DuplicateRequestId(call.task.client_request_id or "")
        if first.fingerprint != call.client_key.fingerprint:
            raise IdempotencyConflict
        if call.background:
            return Accepted(first.id)
        if call.feed is not None:
            call.feed.open(stored_head(first), replayed=True)
        row, wait_s = first, POLL_S[0]
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                while row.is_open:
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 1.5, POLL_S[1])
                    row = await self._ledger.task(first.id) or row
        except TimeoutError:
            raise Unavailable(f"Task {first.id} is not done yet. Please retry later.") from None
        outcome = await self._gallery.outcome(row, call.base_url, aside=call.feed is not None)
        if call.feed is not None:
            call.feed.extension = outcome.extension
            call.feed.finish(outcome.result)
        return outcome

    # The hold and what it pays for

    def _work(self, call: Call, task_id: str, inputs: Inputs | None = None) -> Work:
        task, card, principal = call.task, call.card, call.principal
        if inputs is not None and task.fit_reference:
            size = card.sizes.nearest(inputs.references[0].size, task.size)
            task = replace(task, size=size, fit_reference=False)
        seed = task.seed if task.seed is not None else secrets.randbelow(SEED_MAX + 1)
        price = card.price.of(task.quality, task.size, task.n, edit=task.is_edit)
        waived = principal.waiver_id is not None
        plan = LabelPlan.of(card, task, waived, self._settings.labels)
        if plan.covers_others(card, self._settings.labels):
            task = replace(task, brand_mark=False)  # no provider is asked for it
        work = Work(
            call=call,
            held=multiplied(price, principal.price_permille),
            order=DrawOrder(
                task=task,
                card=card,
                task_id=task_id,
                account_id=principal.account_id,
                prompt=task.prompt,
                seeds=tuple((seed + index) % (SEED_MAX + 1) for index in range(task.n)),
                priority="background" if call.background else "interactive",
                previews=0 if call.feed is None else call.delivery.partial_images,
                is_fitted=call.task.fit_reference,
                label_switch=call.label_switch,
                links=call.delivery.form == "url",
            ),
            plan=plan,
            life=Life.of(card, principal.image_days, self._settings.image_days_max),
        )
        if inputs is not None:
            work.begin_from(inputs)
        return work

    async def _opened_and_drawn(self, work: Work) -> Outcome | Accepted | TaskRow:
        """Hold, then draw. The row of another task where that one has the client's key."""
        try:
            await self._open(work)
        except BaseException as error:
            work.release()
            # What was not answered may have been written: then the task needs its pictures.
            if not isinstance(error, Unavailable):
                await self._references.discard(work.order.task)
            if isinstance(error, KeyInUse):
                return error.task
            raise
        self._works[work.task_id] = work
        if work.call.background:
            self._keep(self._logged(work))
            return Accepted(work.task_id)
        feed = work.call.feed
        if feed is not None:
            pixels = 0 if work.inputs is None else work.inputs.pixels
            feed.open(stream_head(work.task_id, work.order.task, work.call.received_s, pixels))
        outcome = await self._drawn(work)
        if feed is not None:
            feed.finish(outcome.result)
        return outcome

    async def _open(self, work: Work) -> None:
        """HOLD the characters and write the task row, in one transaction; the task's pictures before."""
        if work.inputs is not None:
            task = await self._references.store(work.task_id, work.order.task, work.inputs)
            work.order = replace(work.order, task=task)
            work.call = replace(work.call, task=task)
        call, order = work.call, work.order
        request = StoredRequest(
            task=order.task,
            delivery=call.delivery,
            plan=work.plan,
            seeds=order.seeds,
            held=work.held,
            received_s=call.received_s,
            life=work.life,
            input_pixels=0 if work.inputs is None else work.inputs.pixels,
            block_level=call.principal.block_level,
        )
        key = call.client_key
        row = NewTask(
            id=work.task_id,
            account_id=order.account_id,
            token_id=call.principal.token_id,
            dialect=call.dialect,
            model=order.card.name,
            request=request.as_json(),
            end_user=call.task.end_user,
            client_key=None if key is None else key.digest,
            fingerprint=None if key is None else key.fingerprint,
            background=call.background,
            waiver_id=None if order.task.ai_label else call.principal.waiver_id,
        )
        hold_id = uuid7()
        for left in reversed(range(OPEN_TRIES)):
            try:
                await self._ledger.open_task(
                    row, hold_id, characters=work.held, lease_s=self._settings.task_lease_s
                )
                break
            except Unavailable:
                # It may be written all the same: the same ids again answer what is there.
                if not left:
                    raise
                await asyncio.sleep(OPEN_WAIT_S)
        log.debug("task_opened", task=work.task_id, model=row.model, held=work.held, n=call.task.n)

    async def _logged(self, work: Work) -> None:
        """A drawing for which nobody waits: its error is in its row, and in the log."""
        try:
            await self._drawn(work)
        except DanqingError as error:
            log.info("background_task_ended", task=work.task_id, code=error.code)

    async def _drawn(self, work: Work) -> Outcome:
        """Draw, then settle once. Not to be cancelled: `Work.stop` ends the drawing early."""
        drawing = asyncio.create_task(self._artist.draw(work))
        work.interrupt = drawing.cancel
        if work.stopped is not None or self._stopping:
            work.stop(work.stopped or "server")
        try:
            error = await self._end_of(drawing, work)
            await self._referee.note_all(work, error)
            return await self._settled(work, error)
        finally:
            work.release()
            if not work.is_undone:
                self._works.pop(work.task_id, None)

    async def _end_of(self, drawing: asyncio.Task[None], work: Work) -> DanqingError | None:
        """Wait for the drawing; what went wrong with it as a whole, other than being stopped."""
        try:
            if not await self._followed(drawing, work):
                return EngineFailed("The drawing took too long.")
            fault = None if drawing.cancelled() else drawing.exception()
        except Exception as error:  # the heartbeat's
            fault = error
        match fault:
            case None:
                return None
            case DanqingError() as error:
                return error
            case crash:
                log.error("task_crashed", task=work.task_id, exc_info=crash)
                return ServerFault()

    async def _followed(self, drawing: asyncio.Task[None], work: Work) -> bool:
        """Renew the lease until the drawing has ended; False where it was ended for taking too long.

        Raises StaleTask, the drawing ended. A slow disk must not lose the task: what is being stored is
        part of the drawing.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.request_timeout_s
        try:
            while not drawing.done():
                left_s = end - loop.time()
                if left_s <= 0:
                    return False
                await asyncio.wait({drawing}, timeout=min(left_s, self._settings.task_lease_s / 3))
                if not drawing.done():
                    await self._artist.beat(work)
            return True
        finally:
            if not drawing.done():
                drawing.cancel()
                await asyncio.wait({drawing})

    async def _settled(self, work: Work, error: DanqingError | None) -> Outcome:
        if isinstance(error, StaleTask):
            await self._settler.lost(work)
            raise TakenOver
        result = error or result_of(work)
        if work.is_complete and isinstance(result, ImageResult):
            return await self._posted(work, result)  # whoever stopped it came too late
        if work.stopped == "client":
            await self._settler.cancelled(work)
            raise Cancelled
        if work.stopped == "server":
            result = Unavailable("The server is stopping. Please retry later.")
        asked = work.stopped == "server" and work.is_asked
        if work.call.background and isinstance(result, Busy | Unavailable) and not asked:
            # It was accepted: it waits, under its hold, until a server has room for it.
            await self._ledger.give_back(work.task_id, work.epoch)
            raise result
        if isinstance(result, DanqingError) and work.kept:
            result = result_of(work, result)  # a stream's client has some already: they are charged
        if isinstance(result, DanqingError):
            await self._settler.failed(work, result)
            raise result
        return await self._posted(work, result)

    async def _posted(self, work: Work, result: ImageResult) -> Outcome:
        try:
            return await self._settler.delivered(work, result)
        except TakenOver:
            raise
        except (Unavailable, Busy):
            if work.call.client_key is None and not work.call.background and not work.kept:
                # The client hears 503 and has nothing to come back with: it must not pay for that.
                work.is_undone = True
                self._keep(self._undo(work))
            raise

    async def _undo(self, work: Work) -> None:
        """Give the hold back as soon as the database answers, unless it had been charged after all."""
        try:
            while not self._stopping:
                await asyncio.sleep(min(1.0, self._settings.task_lease_s / 3))
                try:
                    await self._settler.undo(work)
                    return
                except TakenOver:
                    return
                except (Unavailable, Busy):
                    continue
        finally:
            self._works.pop(work.task_id, None)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that is never cancelled and that `drain` waits for."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # a client that has left asks nobody for it: that is no news for the log
