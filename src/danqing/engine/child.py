"""An engine in a process of its own, with EngineCore's face. Knows messages and processes, no family, no asyncio.

The process may die or hang; then another takes its place. Jobs that only waited go on in the new one as if
nothing had happened. Those that were started are suspects: each is begun anew once, by itself, and fails when that too
ends so; the rest wait until the guilty one is found, or there is none. So who was only beside it loses nothing.
A process that was at a job that has been cancelled convicts nobody: it may have ended by that one.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count, groupby

from danqing.domain.errors import EngineFailed
from danqing.engine import messages
from danqing.engine.channel import Channel, ChannelClosed
from danqing.engine.core import LOST, PIXEL_BYTES_MAX, EngineHealth
from danqing.engine.messages import (
    Begin,
    Cancel,
    Fault,
    Job,
    JobCancelled,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    JobQueued,
    JobRefused,
    JobStarted,
    Loaded,
    Measure,
    Measured,
    Returned,
    StepDone,
    Stop,
    Submit,
)
from danqing.engine.scheduler import RETRY_AFTER_S_MIN

log = logging.getLogger(__name__)

HUNG = "it hangs"
TICK_S = 0.5
"""How often the watchdog looks."""
LOADS_MAX = 3
"""Processes in a row that may die before they take jobs; then the engine is dead."""
ASKED_MAX = 1000
"""Texts being measured at once at most: a process that hangs answers none of them."""
PAUSE_S_MAX = 10.0
"""Before a new process where one after the other dies without having drawn an image."""
PROGRESS = (Loaded, StepDone, JobStarted, JobPreview, JobDrawn, JobFailed)
"""What a process that hangs does not say. It may still queue and cancel."""


@dataclass(slots=True)
class _Pending:
    job: Job
    started: bool = False
    is_sent: bool = False
    """To the process of this moment."""
    is_second_try: bool = False
    previews_told: int = 0
    ends_s: float | None = None
    """When it was predicted to be drawn, by the process of this moment or the one before."""


class ChildCore:
    """Keeps one engine process running, and the jobs it has not answered yet."""

    def __init__(
        self,
        begin: Begin,
        *,
        hang_s: float,
        load_s: float,
        on_step: Callable[[float, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hang_s`: a process with work that ends no step, and no job, for so long is replaced. `load_s`: the
        same for its start. `on_step` as EngineCore's."""
        self._begin = replace(begin, hang_s=hang_s)
        self._hang_s = hang_s
        self._load_s = load_s
        self._on_step = on_step
        self._clock = clock
        self._lock = threading.RLock()
        self._listener: Callable[[JobEvent], None] = lambda event: None
        self._pending: dict[str, _Pending] = {}
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._is_loaded = False
        self._stopping = threading.Event()
        self._fault: str | None = None
        self._progress_s = 0.0
        self._may_do_cancelled = False
        """The process of this moment was sent a job that was cancelled: it may still be at it, and end by it."""
        self._lent_bytes = 0
        self._returned_bytes: deque[int] = deque()
        self._loads_failed = self._deaths_in_a_row = self._restarts = 0
        self._steps_total = self._images_total = self._failures_total = 0
        self._step_last = StepDone(0.0, 0)
        self._pixels_max: int | None = None
        self._numbers = count()
        self._asked: dict[int, Future[tuple[int, int] | None]] = {}
        """What the process of this moment has been asked to measure."""
        self._stepped_at_s: float | None = None
        self.loaded: Future[None] = Future()
        """Done when the first process takes jobs; holds EngineFailed when there is to be none."""

    def listen(self, listener: Callable[[JobEvent], None]) -> None:
        """See EngineCore.listen. After a death a job's events may begin anew, its previews go on."""
        self._listener = listener

    def start(self) -> None:
        """Start the first process. Once; more calls do nothing."""
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._main, name="engine-child", daemon=True)
                self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """End after the step at hand; unfinished jobs fail. False when the process had to be killed."""
        self._stopping.set()
        with self._lock:
            channel, thread, process = self._channel, self._thread, self._process
            is_loaded = self._is_loaded
        if channel is not None:
            channel.send(Stop())
        if thread is not None:
            thread.join(timeout_s if is_loaded else 0)  # one that loads does not listen
        gently = process is None or process.poll() is not None
        if process is not None and not gently:
            process.kill()
        if thread is not None:
            thread.join(timeout_s)
        with self._lock:
            self._end("stopped")
        return gently

    def submit(self, message: Submit) -> None:
        """See EngineCore.submit. While a process is being replaced jobs wait for the new one."""
        with self._lock:
            if self._stopping.is_set() or self._fault is not None:
                raise EngineFailed
            if any(job.id in self._pending for job in message.jobs):
                raise ValueError("a job id is queued twice")
            waiting = [pending.job for pending in self._pending.values()]
            excess = len(waiting) + len(message.jobs) - self._begin.queue_max
            full = messages.input_bytes([*waiting, *message.jobs]) > messages.INPUT_BYTES_MAX
            if not self.loaded.done() or excess > 0 or (full and waiting):
                wait_s = self._room_s(excess)
                for job in message.jobs:
                    self._listener(JobRefused(job.id, wait_s))
                return
            if self._is_loaded and not self._pending:
                self._progress_s = self._clock()  # until now there was nothing to do
            self._pending.update({job.id: _Pending(job) for job in message.jobs})
            self._send_due()

    def _room_s(self, excess: int) -> float:
        """Until so many jobs will have ended, by what the process predicted when they came."""
        ends = sorted(each.ends_s for each in self._pending.values() if each.ends_s is not None)
        end_s = ends[min(excess, len(ends)) - 1] if excess > 0 and ends else 0.0
        return max(RETRY_AFTER_S_MIN, end_s - self._clock())

    def cancel(self, message: Cancel) -> None:
        """See EngineCore.cancel."""
        with self._lock:
            for job_id in message.job_ids:
                if (pending := self._pending.pop(job_id, None)) is not None:
                    self._may_do_cancelled |= pending.is_sent
                    self._listener(JobCancelled(job_id))
            if self._channel is not None:
                self._channel.send(message)
            self._send_due()

    @property
    def pixels_max(self) -> int | None:
        """See EngineCore.pixels_max: as the last process found it."""
        return self._pixels_max

    def measure(self, text: str) -> Future[tuple[int, int] | None]:
        """See EngineCore.measure. A process that hangs may never answer."""
        length = Future[tuple[int, int] | None]()
        with self._lock:
            if self._channel is None or not self._is_loaded or len(self._asked) >= ASKED_MAX:
                length.set_result(None)
                return length
            number = next(self._numbers)
            self._asked[number] = length
            length.add_done_callback(lambda _: self._asked.pop(number, None))
            self._channel.send(Measure(number, text))
        return length

    def health(self) -> EngineHealth:
        """The facts at this moment; not alive while a process is being replaced."""
        with self._lock:
            live = sum(pending.started for pending in self._pending.values())
            stepped_at_s = self._stepped_at_s
            return EngineHealth(
                alive=self._is_loaded and self._fault is None and not self._stopping.is_set(),
                fault=self._fault,
                queue_depth=len(self._pending) - live,
                live=live,
                steps_total=self._steps_total,
                images_total=self._images_total,
                failures_total=self._failures_total,
                batch_size_last=self._step_last.size,
                step_s_last=self._step_last.seconds,
                last_step_age_s=None if stepped_at_s is None else self._clock() - stepped_at_s,
                busy_s=self._clock() - self._progress_s if self._pending else None,
                restarts=self._restarts,
            )

    @property
    def pid(self) -> int | None:
        """The process of this moment."""
        process = self._process
        return None if process is None else process.pid

    def _main(self) -> None:
        """The thread: one process after the other, until told to stop or they die too often."""
        try:
            while not self._stopping.is_set() and self._fault is None:
                self._died(self._one_process())
        except Exception as error:  # the thread's last line
            log.exception("the engine's keeper failed")
            with self._lock:
                self._end(f"{type(error).__name__}: {error}")

    def _one_process(self) -> str:
        """Start a process, pass its events on until it ends; returns why it did."""
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
        }
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "danqing.engine.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        channel = Channel(ours, timeout_s=self._hang_s)
        with self._lock:
            self._process, self._channel, self._is_loaded = process, channel, False
            self._progress_s, self._may_do_cancelled = self._clock(), False
        try:
            channel.send(self._begin)
            reason = self._follow(channel)
        finally:
            with self._lock:
                self._channel, self._is_loaded = None, False
                unanswered = list(self._asked.values())
            for length in unanswered:
                _answer(length, None)
            channel.close()
            if not self._stopping.is_set():
                process.kill()  # it hangs, or is ending by itself
            process.wait()
        return reason or f"exit code {process.returncode}"

    def _follow(self, channel: Channel) -> str | None:
        """Why the process is to be given up; None where it closed the channel without a word."""
        while True:
            try:
                message = channel.receive(TICK_S)
            except ChannelClosed:
                return None
            if isinstance(message, Fault):
                return message.reason
            with self._lock:
                if isinstance(message, PROGRESS):
                    self._progress_s = self._clock()
                if message is not None:
                    self._hear(channel, message)
                if self._is_stuck():
                    log.error("the engine process ended no step for %s s", self._hang_s)
                    return HUNG

    def _is_stuck(self) -> bool:
        while self._returned_bytes:
            self._lent_bytes -= self._returned_bytes.popleft()
        silent_s = self._clock() - self._progress_s
        if not self._is_loaded:
            return silent_s > self._load_s
        # With the pixels' limit reached it may only wait for those who hold them.
        return (
            bool(self._pending)
            and self._lent_bytes < PIXEL_BYTES_MAX
            and not self._stopping.is_set()
            and silent_s > self._hang_s
        )

    def _hear(self, channel: Channel, message: object) -> None:
        match message:
            case Loaded(pixels_max):
                self._pixels_max = pixels_max
                self._is_loaded, self._loads_failed = True, 0
                self._send_due()
                if not self.loaded.done():
                    self.loaded.set_result(None)
            case Measured(number, length):
                if (asked := self._asked.get(number)) is not None:
                    _answer(asked, length)
            case StepDone():
                self._steps_total += 1
                self._step_last, self._stepped_at_s = message, self._clock()
                if self._on_step is not None:
                    self._on_step(message.seconds, message.size)
            case JobDrawn():
                self._deaths_in_a_row = 0
                self._lend(channel, message)
                if message.job_id in self._pending:
                    self._images_total += 1
                    self._told_last(message)
            case JobFailed():
                if message.job_id in self._pending:
                    self._failures_total += 1
                    self._told_last(message)
            case JobCancelled() | JobRefused():
                self._told_last(message)
            case _:
                self._pass_on(message)

    def _pass_on(self, event: object) -> None:
        """An event of a job that goes on. Previews that were told before a death are not told again."""
        pending = self._pending.get(getattr(event, "job_id", ""))
        if pending is None:
            return
        if isinstance(event, JobQueued):
            pending.ends_s = self._clock() + event.eta_s
        if isinstance(event, JobStarted):
            pending.started = True
        if isinstance(event, JobPreview):
            if event.number < pending.previews_told:
                return
            pending.previews_told = event.number + 1
        self._listener(event)  # type: ignore[arg-type]

    def _told_last(self, event: JobEvent) -> None:
        if self._pending.pop(event.job_id, None) is not None:
            self._listener(event)
            self._send_due()

    def _lend(self, channel: Channel, drawn: JobDrawn) -> None:
        """Tell the process when the pixels are let go of: until then it counts them."""
        job_id, size, sizes = drawn.job_id, drawn.pixels.nbytes, self._returned_bytes
        self._lent_bytes += size

        def returned() -> None:  # by the garbage collector, in any thread: takes no lock
            sizes.append(size)
            channel.send(Returned(job_id))

        weakref.finalize(drawn.pixels, returned).atexit = False

    def _send_due(self) -> None:
        """Submit what has not been, each task's jobs together and in order; suspects one by one, and before the rest."""
        if self._channel is None or not self._is_loaded:
            return
        suspect = next((each for each in self._pending.values() if each.is_second_try), None)
        due = [suspect] if suspect is not None else list(self._pending.values())
        due = [each for each in due if not each.is_sent]
        for _, task in groupby(due, lambda each: each.job.task_id):
            together = tuple(task)
            for each in together:
                each.is_sent = True
            self._channel.send(Submit(tuple(each.job for each in together)))

    def _died(self, reason: str) -> None:
        """A process ended: settle what it was at, and pause before the next one where they keep dying."""
        with self._lock:
            if self._stopping.is_set():
                self._end("stopped")
                return
            log.error("the engine process ended: %s", reason)
            self._restarts += 1
            self._deaths_in_a_row += 1
            self._loads_failed += 1  # 0 again as soon as one takes jobs
            self._requeue(list(self._pending.values()))
            if not self.loaded.done() or self._loads_failed > LOADS_MAX:
                self._end(reason)
                return
            pause_s = min(PAUSE_S_MAX, 2.0 ** (self._deaths_in_a_row - 1) - 1)
        self._stopping.wait(pause_s)

    def _requeue(self, pending: Sequence[_Pending]) -> None:
        guilty = [each for each in pending if each.started and each.is_second_try]
        if self._may_do_cancelled:
            guilty = []  # who knows; in the next process they are alone
        for each in pending:
            suspected = each.started or (each.is_second_try and not guilty)
            self._pending[each.job.id] = replace(
                each, started=False, is_sent=False, is_second_try=suspected
            )
        for each in guilty:
            self._failures_total += 1
            self._told_last(JobFailed(each.job.id, LOST))

    def _end(self, fault: str) -> None:
        """Fail what is left; refuse what comes."""
        self._fault = self._fault or fault
        if not self.loaded.done():
            self.loaded.set_exception(EngineFailed(f"The engine did not start: {fault}"))
        self._failures_total += len(self._pending)
        for job_id in list(self._pending):
            self._told_last(JobFailed(job_id, LOST))


def _answer(asked: Future[tuple[int, int] | None], length: tuple[int, int] | None) -> None:
    """Unless whoever asked has left."""
    if asked.set_running_or_notify_cancel():
        asked.set_result(length)
