"""The asyncio face of an engine. Knows the core's messages and one event loop per draw."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol

from danqing.domain.errors import Busy, EngineFailed
from danqing.engine.core import EngineHealth
from danqing.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    JobRefused,
    Submit,
)

MEASURE_S = 2.0
"""How long a prompt's length is waited for. Beyond that the engine says later whether it was too long."""
TERMINAL = (JobRefused, JobDrawn, JobFailed, JobCancelled)


class _Mailbox:
    """A task's events on their way from the engine's thread to its coroutine.

    Holds at most one step per job, a newer one driving out one not yet read; everything else comes once (previews
    as often as the job asks for). So it is bounded, events stay in order, and an end is never lost.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._events: dict[tuple[str, type[JobEvent], int], JobEvent] = {}
        self._filled = asyncio.Event()

    def put(self, event: JobEvent) -> None:
        """Any thread."""
        with self._lock:
            wake = not self._events
            number = event.number if isinstance(event, JobPreview) else 0
            key = (event.job_id, type(event), number)
            self._events.pop(key, None)  # the newer one goes to the end
            self._events[key] = event
        if wake:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._filled.set)

    async def get(self) -> JobEvent:
        """The oldest event. One reader, in the mailbox's own loop."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        with self._lock:
            return self._events.pop(next(iter(self._events)))


class Core(Protocol):
    """What an engine shows, be it a thread of this process (EngineCore) or a process of its own (ChildCore)."""

    @property
    def loaded(self) -> Future[None]: ...
    @property
    def pixels_max(self) -> int | None: ...
    def listen(self, listener: Callable[[JobEvent], None]) -> None: ...
    def start(self) -> None: ...
    def stop(self, timeout_s: float = 10.0) -> bool: ...
    def submit(self, message: Submit) -> None: ...
    def cancel(self, message: Cancel) -> None: ...
    def measure(self, text: str) -> Future[tuple[int, int] | None]: ...
    def health(self) -> EngineHealth: ...


class InProcessClient:
    """Draws with a core whose face is in this process; any number of draws at once."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._mailboxes: dict[str, _Mailbox] = {}
        core.listen(self._deliver)

    async def ready(self) -> None:
        """Start the engine if need be and wait until it takes jobs. Raises EngineFailed."""
        self._core.start()
        # Shielded: one waiter that gives up must not cancel the future that all wait for.
        await asyncio.shield(asyncio.wrap_future(self._core.loaded))
        if not self._core.health().alive:
            raise EngineFailed

    async def draw(self, jobs: tuple[Job, ...]) -> AsyncGenerator[JobEvent, None]:
        """Submit the jobs of one task together and yield their events until each has ended.

        Each job's events come in order: JobQueued, JobStarted, JobStepped and JobPreview (the latest of each: a slow
        reader misses the ones before, a preview's number tells), then one of JobDrawn, JobFailed (the engine's
        death included), JobCancelled. A job that outlives its engine's process begins anew, once. Closing the generator cancels what is left.
        Raises, before the first event, Busy when the queue has no room and EngineFailed when the engine is dead.
        """
        mailbox = _Mailbox()
        open_ids = {job.id for job in jobs}
        if not open_ids.isdisjoint(self._mailboxes):
            raise ValueError("a job id is being drawn already")
        self._mailboxes.update(dict.fromkeys(open_ids, mailbox))
        try:
            self._core.submit(Submit(jobs))
            while open_ids:
                event = await mailbox.get()
                if isinstance(event, TERMINAL):
                    open_ids.discard(event.job_id)
                if isinstance(event, JobRefused):
                    open_ids.clear()
                    raise Busy(event.retry_after_s)
                yield event
                del event  # its pixels are not to be held while waiting for the next one
        finally:
            for job in jobs:
                self._mailboxes.pop(job.id, None)
            if open_ids:
                self._core.cancel(Cancel(tuple(open_ids)))

    @property
    def pixels_max(self) -> int | None:
        """The most pixels that a picture may have for the engine's memory; None = any, or not known."""
        return self._core.pixels_max

    async def measure(self, prompt: str) -> tuple[int, int] | None:
        """(tokens, tokens at most) as the family counts them; None where there is no limit, or no answer for now."""
        try:
            asked = asyncio.wrap_future(self._core.measure(prompt))
            return await asyncio.wait_for(asked, MEASURE_S)
        except TimeoutError:
            return None

    def health(self) -> EngineHealth:
        """The engine's facts at this moment."""
        return self._core.health()

    def facts(self, hang_s: float) -> dict[str, object]:
        """What the public may know of its health. `ok`: alive, and at nothing for longer than `hang_s`."""
        health = self._core.health()
        facts: dict[str, object] = asdict(health)
        facts.pop("fault")  # an exception's raw text; the log has it
        return {"ok": health.alive and (health.busy_s or 0.0) <= hang_s} | facts

    async def close(self, timeout_s: float = 10.0) -> None:
        """Stop the engine after the step at hand; draws still open get their JobFailed."""
        await asyncio.to_thread(self._core.stop, timeout_s)

    def _deliver(self, event: JobEvent) -> None:
        """The core's listener: runs in the engine's thread or in a submitter's."""
        mailbox = self._mailboxes.get(event.job_id)
        if mailbox is not None:
            mailbox.put(event)
