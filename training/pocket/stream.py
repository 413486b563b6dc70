"""Batches made by worker processes ahead of the training. Knows arrays and processes; no pictures, no torch.

Workers are forked before any device is touched and write into anonymous shared memory, so that no pixels are pickled.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Made = tuple[dict[str, np.ndarray], Any]
"""Named arrays, and whatever small else goes with them."""
Make = Callable[[np.random.Generator], Made]

_fork = multiprocessing.get_context("fork")


def stream(
    make: Make, seed: list[int], workers: int = 0, slots: int = 12, slot_mb: int = 48
) -> Iterator[Made]:
    """Endless batches. With workers, arrays are views that hold until the next batch is asked for."""
    if not workers:
        rng = np.random.default_rng(seed)
        while True:
            yield make(rng)
    size = slot_mb * 2**20
    shared = mmap.mmap(-1, slots * size)
    free, ready = _fork.Queue(), _fork.Queue()
    for slot in range(slots):
        free.put(slot)
    for worker in range(workers):
        args = (make, [*seed, worker], shared, size, free, ready)
        _fork.Process(target=_work, args=args, daemon=True).start()
    while True:
        slot, layouts, rest = ready.get()
        arrays: dict[str, np.ndarray] = {}
        for name, kind, shape, at in layouts:
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(shared, kind, count, slot * size + at).reshape(shape)
        yield arrays, rest
        free.put(slot)


def _work(make: Make, seed: list[int], shared: mmap.mmap, size: int, free: Any, ready: Any) -> None:
    rng = np.random.default_rng(seed)
    parent = os.getppid()
    while os.getppid() == parent:
        arrays, rest = make(rng)
        slot = free.get()
        at = slot * size
        layouts: list[tuple[str, str, tuple[int, ...], int]] = []
        for name, values in arrays.items():
            flat = np.ascontiguousarray(values)
            assert at + flat.nbytes <= (slot + 1) * size, "a batch is larger than a slot"
            shared[at : at + flat.nbytes] = flat.data.cast("B")
            layouts.append((name, flat.dtype.str, flat.shape, at - slot * size))
            at += -(-flat.nbytes // 64) * 64
        ready.put((slot, layouts, rest))
