"""A family that draws one colour in no time, for tests of the engine. Faults are asked for by the prompt.

Prompts, words separated by spaces: `fail@K` and `nan@K` (at the step that follows K done ones), `die@K` and `lost@K`
(end the engine's thread), `kill@K` and `kill-once@K` (its process), `hang@K` and `hang-once@K`, `fail-encode`,
`fail-start`, `hang-decode-once`, `kill-decode` (when somebody removes the file `flag`, which it makes), `fail-preview@K`,
`fail-decode`, `nan-decode`, `wrong-shape`, `nan-seed@S` (only the image of that seed).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danqing.domain.task import Pixels
from danqing.engine import core
from danqing.engine.families.base import DeviceLost, preview_size
from danqing.engine.messages import Job

WORDS_MAX = 300
"""Of a prompt: the words that it counts as tokens."""


@dataclass
class NullState:
    job: Job
    step: int = 0
    finite: bool = True

    def asks(self, fault: str) -> bool:
        return f"{fault}@{self.step}" in self.job.prompt.split()


class NullFamily:
    """`step_s`: seconds a step sleeps. `fits`: images above which a step raises MemoryError. `pixels_fit`: an image's pixels above
    which a call ("encode", "start", "step", "decode") does.

    `gated`: every step waits for a permit from `let(n)`, and `entered` tells that it is waiting.
    """

    name = "null"

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        fits: int | None = None,
        pixels_fit: dict[str, int] | None = None,
        gated: bool = False,
        flag: str | None = None,
        is_beside: bool = False,
        pixels_max: int | None = None,
    ) -> None:
        self.pixels_max = pixels_max
        self.is_beside = is_beside
        self.step_s = step_s
        self.flag = None if flag is None else Path(flag)
        self.fits = fits
        self.pixels_fit = pixels_fit or {}
        self.calls: list[list[str]] = []
        """Job ids of every step that was tried."""
        self.decoded: list[str] = []
        self.previewed: list[tuple[str, int]] = []
        """(job id, steps done) of every preview that was tried."""
        self.on_decode: Callable[[], None] = lambda: None
        self.on_encode: Callable[[Sequence[Job]], None] = lambda jobs: None
        self.on_preview: Callable[[], None] = lambda: None
        self.entered = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._gated = gated

    def _fit(self, call: str, jobs: Sequence[Job]) -> None:
        if any(job.width * job.height > self.pixels_fit.get(call, 2**40) for job in jobs):
            raise MemoryError

    def let(self, steps: int) -> None:
        self._permits.release(steps)

    def open(self) -> None:
        """No gate any more."""
        self._gated = False
        self._permits.release(1)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=60), "no step began"

    def batch_key(self, job: Job) -> Hashable:
        return (job.width, job.height)

    def beside(self) -> AbstractContextManager[object] | None:
        return nullcontext() if self.is_beside else None

    def measure(self, prompt: str) -> tuple[int, int]:
        return len(prompt.split()), WORDS_MAX

    def encode(self, jobs: Sequence[Job]) -> list[str]:
        self.on_encode(jobs)
        self._fit("encode", jobs)
        if any("fail-encode" in job.prompt for job in jobs):
            raise ValueError("a prompt that cannot be read")
        return [job.prompt for job in jobs]

    def start(self, job: Job, conditioning: str) -> NullState:
        assert conditioning == job.prompt
        self._fit("start", [job])
        if "fail-start" in job.prompt:
            raise ValueError("no noise")
        return NullState(job)

    def step(self, states: Sequence[NullState]) -> None:
        self.calls.append([state.job.id for state in states])
        if self._gated:
            self.entered.release()
            self._permits.acquire()
        if self.step_s:
            time.sleep(self.step_s)
        if self.fits is not None and len(states) > self.fits:
            raise MemoryError
        self._fit("step", [state.job for state in states])
        if any(state.asks("lost") for state in states):
            raise DeviceLost("gone")
        if any(state.asks("die") for state in states):
            raise SystemExit
        self._end_the_process(states)
        if any(state.asks("fail") for state in states):
            raise RuntimeError("a bad member")
        for state in states:
            spoilt = f"nan-seed@{state.job.seed}" in state.job.prompt.split()
            state.finite = not (state.asks("nan") or spoilt)
            state.step += 1

    def _end_the_process(self, states: Sequence[NullState]) -> None:
        """For engines in a process of their own. `once` is told by the file `flag`, which outlives the process."""
        for fault in ("kill", "hang"):
            once = any(state.asks(f"{fault}-once") for state in states)
            if once and self.flag is not None and not self.flag.exists():
                self.flag.touch()
            elif not any(state.asks(fault) for state in states):
                continue
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)

    def _hang_once(self, word: str, states: Sequence[NullState]) -> None:
        asked = any(word in state.job.prompt.split() for state in states)
        if asked and self.flag is not None and not self.flag.exists():
            self.flag.touch()
            time.sleep(3600)

    def _kill_when_told(self, states: Sequence[NullState]) -> None:
        if self.flag is not None and any("kill-decode" in state.job.prompt for state in states):
            self.flag.touch()
            while self.flag.exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)

    def is_finite(self, state: NullState) -> bool:
        return state.finite

    def preview(self, state: NullState) -> Pixels:
        """Brighter with every step, so that one can be told from another."""
        self.previewed.append((state.job.id, state.step))
        self.on_preview()
        if state.asks("fail-preview"):
            raise ValueError("no look")
        width, height = preview_size(state.job)
        return np.full(
            (height, width, state.job.channels), (state.job.seed + state.step) % 256, np.uint8
        )

    def decode(self, states: Sequence[NullState]) -> list[Pixels]:
        self.decoded += [state.job.id for state in states]
        self.on_decode()
        self._fit("decode", [state.job for state in states])
        self._hang_once("hang-decode-once", states)
        self._kill_when_told(states)
        if any("fail-decode" in state.job.prompt for state in states):
            raise ValueError("no pixels")
        if any("nan-decode" in state.job.prompt for state in states):
            raise FloatingPointError
        extra = 1 if any("wrong-shape" in state.job.prompt for state in states) else 0
        return [
            np.full(
                (state.job.height, state.job.width + extra, state.job.channels),
                state.job.seed % 256,
                np.uint8,
            )
            for state in states
        ]


def from_environment(name: str, threads: int) -> NullFamily:
    """For the process of a null server's engine."""
    return NullFamily(step_s=float(os.environ.get("NULL_STEP_S", "0")))


PIXEL_BYTES_MAX = 700


def in_little_memory() -> NullFamily:
    """For a process of its own: it has room for this many bytes of finished images."""
    core.PIXEL_BYTES_MAX = PIXEL_BYTES_MAX
    return NullFamily()


def make_job(job_id: str, **changes: Any) -> Job:
    """A small job of account "a"; its task is the part of the id before the dot."""
    fields: dict[str, Any] = {
        "id": job_id,
        "task_id": job_id.split(".")[0],
        "account_id": "a",
        "prompt": "",
        "negative_prompt": "",
        "width": 16,
        "height": 8,
        "steps": 4,
        "guidance": 1.0,
        "seed": 7,
    }
    return Job(**(fields | changes))
