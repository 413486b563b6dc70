"""A long call that is run piece by piece: in a thread of its own, which moves only while somebody waits for it. Knows no tensor.

What cannot be left in the middle and taken up again (a pipeline's whole `__call__`) so becomes steps. Of a call and whoever
resumes it only one runs at any moment, so what these two share needs no locks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Abandoned(BaseException):
    """Raised inside a call that nobody will resume. No Exception, so that it is not caught for a fault."""


class Gate(Generic[_T]):
    """What a call and its Paused share. The call holds it and not the Paused, so that the latter can be dropped."""

    def __init__(self) -> None:
        self._go = threading.Semaphore(0)
        self._came = threading.Semaphore(0)
        self._is_dropped = False
        self.is_done = False
        self.result: _T | None = None
        self.error: BaseException | None = None

    def pause(self) -> None:
        """For the call: wait here to be resumed. Raises Abandoned when that will not be."""
        if not self._is_dropped:
            self._came.release()
            self._go.acquire()
        if self._is_dropped:
            raise Abandoned

    def resume(self) -> None:
        """For the Paused: let the call run to its next pause or its end."""
        self._go.release()
        self._came.acquire()

    def drop(self) -> None:
        self._is_dropped = True
        self._go.release()

    def run(self, call: Callable[[Gate[_T]], _T]) -> None:
        """The thread's."""
        self._go.acquire()
        try:
            if not self._is_dropped:
                self.result = call(self)
        except Abandoned:
            pass
        except BaseException as error:  # told to whoever resumes
            self.error = error
        finally:
            del call  # and what it holds, before anybody goes on
            self.is_done = True
            self._came.release()


class Paused(Generic[_T]):
    """`call(gate)`, not begun. It ends with its Paused: one that is dropped unwinds at its last pause."""

    def __init__(self, call: Callable[[Gate[_T]], _T], name: str) -> None:
        self._gate: Gate[_T] = Gate()
        thread = threading.Thread(target=self._gate.run, args=(call,), name=name, daemon=True)
        weakref.finalize(self, self._gate.drop).atexit = False
        thread.start()

    def advance(self) -> bool:
        """Run to the next pause. False when it is at its end; raises what the call raised."""
        if not self._gate.is_done:
            self._gate.resume()
        error, self._gate.error = self._gate.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: a cycle would keep its tensors
        return not self._gate.is_done

    def finish(self) -> _T:
        """Run to the end. Raises what the call raised, and RuntimeError where it had ended without a result."""
        while self.advance():
            pass
        if self._gate.result is None:
            raise RuntimeError("the call has no result")
        return self._gate.result
