"""The engine's loop: pick → step → update, in one thread of its own. Knows no asyncio, no service, no tensor.

Where the family allows it, prompts are read and images decoded beside the steps, in two more threads (beside.py).
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass

from danqing.domain.errors import Busy, EngineFailed
from danqing.domain.task import Pixels
from danqing.engine import messages
from danqing.engine.beside import Beside, Call, Hung
from danqing.engine.families.base import Family, LoadError
from danqing.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    JobQueued,
    JobRefused,
    JobStarted,
    JobStepped,
    KeptPace,
    Submit,
)
from danqing.engine.pace_file import PaceFile
from danqing.engine.runner import Advance, Runner, Work
from danqing.engine.scheduler import RETRY_AFTER_S_MIN, Scheduler
from danqing.engine.warm_up import WARM_UP, draw_warm_up

log = logging.getLogger(__name__)

LOST = "The engine stopped before this image was drawn."
PIXEL_BYTES_MAX = 256_000_000
"""Finished images that nobody has taken yet: beyond this the engine keeps the next ones as latents."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """The engine's facts at one moment. `alive`: loaded and its thread runs."""

    alive: bool
    fault: str | None
    """Why the engine is dead, if it died."""
    queue_depth: int
    """Jobs admitted and not started."""
    live: int
    """Jobs started and not ended."""
    steps_total: int
    images_total: int
    failures_total: int
    batch_size_last: int
    step_s_last: float
    last_step_age_s: float | None
    """Seconds since the last step ended; None before the first."""
    busy_s: float | None = None
    """Seconds that the oldest step, reading or decoding at hand has lasted; None while idle."""
    restarts: int = 0
    """Processes of the engine that died or hung, and were replaced."""


class EngineCore:
    """One family, one queue, one thread. `submit` and `cancel` may be called from any thread.

    Everything that comes of a job is told through one listener, in order, and nothing after its terminal event
    (JobRefused, JobDrawn, JobFailed, JobCancelled). The listener runs under the core's lock, in the submitter's
    or the engine's thread: it must be quick, must not raise, and must not call back.
    """

    def __init__(
        self,
        family_factory: Callable[[], Family],
        *,
        queue_max: int = 256,
        live_max: int = 16,
        batch_max: int = 8,
        on_step: Callable[[float, int], None] | None = None,
        warm_up: Job | None = WARM_UP,
        hang_s: float | None = None,
        pace: KeptPace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`family_factory` loads the weights, in the engine's thread. `on_step(seconds, batch_size)`
        hears of every step. `warm_up` is drawn once before the engine is ready. `hang_s`: what is done beside the
        steps and lasts longer ends the engine. `pace`: where step times outlive the engine."""
        self._factory = family_factory
        self._on_step = on_step
        self._warm_up_job = warm_up
        self._hang_s = hang_s
        self._pace_file = None if pace is None else PaceFile(pace)
        self._clock = clock
        self._scheduler = Scheduler(queue_max=queue_max, live_max=live_max, batch_max=batch_max)
        self._works: dict[str, Work] = {}
        self._beside: Beside | None = None
        self._unread: deque[list[Work]] = deque()
        """Batches picked and not begun, for the thread that reads prompts."""
        self._pixel_bytes = 0
        self._condition = threading.Condition()
        self._listener: Callable[[JobEvent], None] = lambda event: None
        self._family: Family | None = None
        self._stopping = False
        self._fault: str | None = None
        self._thread: threading.Thread | None = None
        self._steps_total = self._images_total = self._failures_total = 0
        self._batch_size_last = 0
        self._step_s_last = 0.0
        self._stepped_at_s: float | None = None
        self._busy_since_s: float | None = None
        self.loaded: Future[None] = Future()
        """Done when jobs are accepted; holds EngineFailed when loading failed or was stopped."""

    def listen(self, listener: Callable[[JobEvent], None]) -> None:
        """Set the one listener; before the first submit."""
        self._listener = listener

    def start(self) -> None:
        """Start the thread, which loads the family first (see `loaded`). Once; more calls do nothing."""
        with self._condition:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
                self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """End after the step at hand; unfinished jobs fail. False when the step outlasts the timeout."""
        with self._condition:
            self._stopping = True
            if self._beside is not None:
                self._beside.stop()
            self._condition.notify_all()
            if self._thread is None:
                self._end("stopped")
                return True
        ends_s = time.monotonic() + timeout_s
        self._thread.join(timeout_s)
        left_s = max(0.0, ends_s - time.monotonic())
        ended = self._beside is None or self._beside.join(left_s)
        with self._condition:
            self._end("stopped")
        return ended and not self._thread.is_alive()

    def submit(self, message: Submit) -> None:
        """Admit all the jobs (a JobQueued each) or none (a JobRefused each).

        Raises EngineFailed when the engine is dead or stopping; ValueError for an id already queued.
        """
        with self._condition:
            if self._stopping or self._fault is not None:
                raise EngineFailed
            try:
                waiting = [work.job for work in self._works.values()]
                full = messages.input_bytes([*waiting, *message.jobs]) > messages.INPUT_BYTES_MAX
                if self._family is None or (full and waiting):
                    raise Busy(RETRY_AFTER_S_MIN)
                keys = [self._family.batch_key(job) for job in message.jobs]
                self._scheduler.admit(message.jobs, keys)
            except Busy as busy:
                for job in message.jobs:
                    self._listener(JobRefused(job.id, busy.retry_after_s))
                return
            now_s = self._clock()
            forecast = self._scheduler.forecast()
            for job in message.jobs:
                self._works[job.id] = Work(job, now_s)
                self._listener(JobQueued(job.id, *forecast[job.id]))
            self._condition.notify_all()

    def cancel(self, message: Cancel) -> None:
        """Drop jobs at once; a step already running ends without them. Unknown ids are fine."""
        with self._condition:
            for job_id in message.job_ids:
                if job_id in self._works:
                    self._forget(JobCancelled(job_id))
            self._condition.notify_all()

    @property
    def pixels_max(self) -> int | None:
        """See Family.pixels_max. None also while nothing is loaded."""
        return None if self._family is None else self._family.pixels_max

    def measure(self, text: str) -> Future[tuple[int, int] | None]:
        """See Family.measure; done at once, in the caller's thread. None also where that is not known now."""
        family, length = self._family, Future[tuple[int, int] | None]()
        length.set_result(None if family is None else family.measure(text))
        return length

    def health(self) -> EngineHealth:
        """The facts at this moment; waits for no step."""
        with self._condition:
            stepped_at_s = self._stepped_at_s
            beside_s = None if self._beside is None else self._beside.busy_since_s()
            busy = [since_s for since_s in (self._busy_since_s, beside_s) if since_s is not None]
            running = self._thread is not None and self._thread.is_alive()
            return EngineHealth(
                alive=running and self._family is not None and not self._stopping,
                fault=self._fault,
                queue_depth=len(self._scheduler) - self._scheduler.live,
                live=self._scheduler.live,
                steps_total=self._steps_total,
                images_total=self._images_total,
                failures_total=self._failures_total,
                batch_size_last=self._batch_size_last,
                step_s_last=self._step_s_last,
                last_step_age_s=None if stepped_at_s is None else self._clock() - stepped_at_s,
                busy_s=self._clock() - min(busy) if busy else None,
            )

    def _main(self) -> None:
        """The thread: load, warm up, loop; whatever ends it, no job is left without an answer."""
        try:
            family = self._factory()
            runner = Runner(family, self._clock, self._hush)
            if self._warm_up_job is not None:
                draw_warm_up(self._warm_up_job, family, runner, self._scheduler.pace, self._clock)
            if self._pace_file is not None:
                self._pace_file.restore(self._scheduler.pace)
            with self._condition:
                self._family = family
                if family.beside() is not None and not self._stopping:
                    self._open_beside(family, runner)
            self.loaded.set_result(None)
            while self._beat(runner):
                self._keep_pace()
            self._keep_pace(is_last=True)
        except BaseException as error:  # the thread's last line: nothing above it would hear of it
            # Of a backend that cannot be had all is said in a line; anything else is a riddle to be traced.
            log.error("the engine died: %s", error, exc_info=not isinstance(error, LoadError))
            with self._condition:
                self._end(_told(error))
        else:
            with self._condition:
                self._end("stopped")

    def _open_beside(self, family: Family, runner: Runner) -> None:
        """The threads that read and decode from now on. Steps hush them where memory is short."""
        around = lambda: family.beside() or nullcontext()  # noqa: E731
        died = lambda error: self._end(_told(error))  # noqa: E731
        self._beside = Beside(self._condition, self._clock, around, died)
        self._beside.open("engine-read", lambda: self._reading(runner))
        self._beside.open("engine-decode", lambda: self._decoding(runner))

    def _keep_pace(self, *, is_last: bool = False) -> None:
        """Write the step times down now and then, and at the end."""
        if self._pace_file is None or not (self._pace_file.is_due(self._clock()) or is_last):
            return
        with self._condition:
            known = self._scheduler.pace.known()
        self._pace_file.save(known, self._clock())

    def _hush(self) -> bool:
        return self._beside is not None and self._beside.hush()

    def _beat(self, runner: Runner) -> bool:
        """One round: a step for one batch, the previews due after it, the decoding of one finished image whose turn it is."""
        if self._beside is not None:
            self._settle(self._beside)
        with self._condition:
            self._busy_since_s = None
            works = self._pick()
            while not (works or self._has_calls() or self._stopping):
                if not self._condition.wait(1.0 if self._scheduler.undecoded else None):
                    gc.collect()  # pixels may hang in a cycle of garbage
                works = self._pick()
            if self._stopping:
                return False
            self._busy_since_s = self._clock()
        if works:
            began_s = self._clock()
            advance = runner.advance(works)
            with self._condition:
                self._update(works, advance, began_s)
            for work in works:
                if work.job.previews and work.wants_preview:
                    self._preview(runner, work)
        if self._beside is None:
            with self._condition:
                call = self._decoding(runner)
                self._busy_since_s = self._clock()
            if call is not None:
                call(False)
        return True

    def _has_calls(self) -> bool:
        """Something but a step is to be done by the loop."""
        return self._decodable() if self._beside is None else bool(self._beside.short)

    def _settle(self, beside: Beside) -> None:
        """Do alone what had no room beside a step, and let things run beside the steps again. Raises Hung."""
        with self._condition:
            since_s = beside.busy_since_s()
            if None not in (since_s, self._hang_s) and self._clock() - since_s > self._hang_s:  # type: ignore[operator]
                raise Hung(f"reading or decoding did not end within {self._hang_s} s")
            if beside.short:
                self._busy_since_s = self._clock()
        while beside.short:
            beside.hush()
            beside.short.popleft()(False)
        beside.go_on()

    def _reading(self, runner: Runner) -> Call | None:
        """The next call that begins jobs."""
        if not self._unread:
            return None
        batch = self._unread.popleft()

        def call(beside: bool) -> None:
            with self._condition:
                works = [work for work in batch if self._works.get(work.job.id) is work]
            began_s = self._clock()
            runner.begin(works, beside=beside)
            with self._condition:
                self._begun(works, self._clock() - began_s)

        return call

    def _begun(self, works: list[Work], seconds: float) -> None:
        """They take part from the next step on."""
        for work in works:
            job_id = work.job.id
            self._scheduler.charge(work.job, seconds / len(works))
            if self._works.get(job_id) is not work:
                continue
            if work.fault is not None:
                self._failures_total += 1
                self._forget(JobFailed(job_id, work.fault))
            else:
                self._scheduler.go_on(job_id)
        self._condition.notify_all()

    def _decoding(self, runner: Runner) -> Call | None:
        """The next call that decodes an image, if it is one's turn and there is room for its pixels."""
        if not self._decodable():
            return None
        job_id = self._scheduler.pick_decoding(beside=self._beside is not None)
        if job_id is None:
            return None
        work = self._works[job_id]

        def call(beside: bool) -> None:
            if self._works.get(work.job.id) is not work:  # cancelled before it was tried again
                return
            began_s = self._clock()
            drawn = runner.finish(work, beside=beside)
            with self._condition:
                self._decoded(work, drawn, self._clock() - began_s)

        return call

    def _decoded(
        self, work: Work, drawn: tuple[Pixels, dict[str, float]] | None, seconds: float
    ) -> None:
        job_id = work.job.id
        self._scheduler.decoded(work.job, seconds)
        if self._works.get(job_id) is work:
            self._images_total += drawn is not None
            self._failures_total += drawn is None
            if drawn is not None:
                self._lend(drawn[0])
            self._forget(JobDrawn(job_id, *drawn) if drawn else JobFailed(job_id, str(work.fault)))
        self._condition.notify_all()

    def _preview(self, runner: Runner, work: Work) -> None:
        """One look, made outside the lock and told if its job still goes on. Its account pays the time."""
        began_s = self._clock()
        pixels = runner.preview(work)
        with self._condition:
            job, state = work.job, work.state
            self._scheduler.charge(job, self._clock() - began_s)
            if self._works.get(job.id) is not work or state is None:
                return
            if pixels is not None:
                number, work.previews_sent = work.previews_sent, work.previews_sent + 1
                self._listener(JobPreview(job.id, number, state.step, job.steps_drawn, pixels))

    def _decodable(self) -> bool:
        return self._scheduler.undecoded > 0 and self._pixel_bytes < PIXEL_BYTES_MAX

    def _lend(self, pixels: Pixels) -> None:
        """Count an image's bytes until whoever gets it lets go of it."""
        self._pixel_bytes += pixels.nbytes
        weakref.finalize(pixels, self._returned, pixels.nbytes).atexit = False

    def _returned(self, bytes_count: int) -> None:
        with self._condition:
            self._pixel_bytes -= bytes_count
            self._condition.notify_all()

    def _pick(self) -> list[Work]:
        """The batch of the next step. What is not begun is begun by that step, or handed to the thread that reads."""
        now_s = self._clock()
        while True:
            works = [self._works[job_id] for job_id in self._scheduler.pick()]
            new = [work for work in works if work.state is None]
            self._start(new, now_s)
            if self._beside is None:
                return works
            self._hand_over(new)
            works = [work for work in works if work.state is not None]
            if works or not new:
                break
        if (job_id := self._scheduler.ahead()) is not None:
            self._start([self._works[job_id]], now_s)
            self._hand_over([self._works[job_id]])
        return works

    def _start(self, works: list[Work], now_s: float) -> None:
        for work in works:
            work.picked_s = now_s
            self._listener(JobStarted(work.job.id))

    def _hand_over(self, works: list[Work]) -> None:
        """To the thread that reads."""
        for work in works:
            self._scheduler.hold(work.job.id)
        if works:
            self._unread.append(works)
            self._condition.notify_all()

    def _update(self, works: list[Work], advance: Advance, began_s: float) -> None:
        now_s = self._clock()
        seconds = sum(seconds for _, seconds in advance.calls)
        stepped = {work.job.id: work for work in advance.stepped}
        self._scheduler.update(
            {job_id: work.state.step for job_id, work in stepped.items() if work.state},
            now_s - began_s,  # encoding and failed tries are charged too
            advance.calls,
            advance.overflow,
        )
        if advance.calls:
            self._steps_total += len(advance.calls)
            self._batch_size_last = max(size for size, _ in advance.calls)
            self._step_s_last = seconds
            self._stepped_at_s = now_s
        if self._on_step is not None:
            for size, call_s in advance.calls:
                self._on_step(call_s, size)
        for work in works:
            if self._works.get(work.job.id) is not work:  # cancelled during the step
                continue
            if work.fault is not None:
                self._failures_total += 1
                self._forget(JobFailed(work.job.id, work.fault))
            elif work.state is not None:
                self._listener(JobStepped(work.job.id, work.state.step, work.job.steps_drawn))
        self._condition.notify_all()

    def _forget(self, event: JobEvent) -> None:
        """A job's end: out of the queue, and told."""
        self._works.pop(event.job_id)
        self._scheduler.remove(event.job_id)
        self._listener(event)

    def _end(self, fault: str) -> None:
        """Fail what is left; refuse what comes."""
        self._fault = self._fault or fault
        self._stopping = True
        if self._beside is not None:
            self._beside.stop()
        if not self.loaded.done():
            self.loaded.set_exception(EngineFailed(f"The engine did not start: {fault}"))
        self._failures_total += len(self._works)
        for job_id in list(self._works):
            self._forget(JobFailed(job_id, LOST))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
