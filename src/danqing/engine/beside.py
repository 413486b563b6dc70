"""Calls beside the steps: threads with one call each at a time, which can be hushed. Knows no job, no tensor."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

log = logging.getLogger(__name__)

Call = Callable[[bool], None]
"""`call(beside)`. Beside steps it may raise MemoryError: then it is made again, with False, when nothing else runs."""


class Hung(BaseException):
    """A call beside the steps does not end. It ends the engine."""


class Beside:
    """One thread a line. All is guarded by the owner's condition, which is notified of every change."""

    def __init__(
        self,
        condition: threading.Condition,
        clock: Callable[[], float],
        around: Callable[[], AbstractContextManager[object]],
        died: Callable[[BaseException], None],
    ) -> None:
        """`around`: what a call is made in. `died` hears, under the condition, of what ended a thread."""
        self._condition = condition
        self._clock = clock
        self._around = around
        self._died = died
        self._threads: list[threading.Thread] = []
        self._since_s: dict[str, float] = {}
        """Line -> when its call at hand began."""
        self._is_hushed = False
        self._is_stopping = False
        self.short: deque[Call] = deque()
        """Calls that found no room beside a step."""

    def open(self, name: str, take: Callable[[], Call | None]) -> None:
        """Start a line. `take`, asked under the condition, gives its next call, if there is one."""
        thread = threading.Thread(target=self._main, args=(name, take), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def hush(self) -> bool:
        """Let nothing begin, and wait for what runs. False where nothing ran. Lasts until `go_on`."""
        with self._condition:
            self._is_hushed = True
            ran = bool(self._since_s)
            while self._since_s and not self._is_stopping:
                self._condition.wait()
        return ran

    def go_on(self) -> None:
        with self._condition:
            if self._is_hushed:
                self._is_hushed = False
                self._condition.notify_all()

    def busy_since_s(self) -> float | None:
        """When the oldest call at hand began."""
        return min(self._since_s.values(), default=None)

    def stop(self) -> None:
        """End each line after its call at hand."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify_all()

    def join(self, timeout_s: float) -> bool:
        """False when a call outlasts the timeout."""
        ends_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, ends_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _main(self, name: str, take: Callable[[], Call | None]) -> None:
        try:
            while (call := self._next(name, take)) is not None:
                try:
                    with self._around():
                        call(True)
                except MemoryError:
                    log.warning("%s: no room beside a step; it is done alone", name)
                    with self._condition:
                        self.short.append(call)
                del call  # and what it holds
        except BaseException as error:  # the thread's last line: nothing above it would hear of it
            log.exception("%s died", name)
            with self._condition:
                self._since_s.pop(name, None)
                self._died(error)
                self._condition.notify_all()

    def _next(self, name: str, take: Callable[[], Call | None]) -> Call | None:
        """Wait for a call; None when it is time to end."""
        with self._condition:
            if self._since_s.pop(name, None) is not None:
                self._condition.notify_all()
            while not self._is_stopping:
                call = None if self._is_hushed else take()
                if call is not None:
                    self._since_s[name] = self._clock()
                    return call
                self._condition.wait()
        return None
