"""Loads a family by its name. Knows their files; imports only the one that is asked for."""

from __future__ import annotations

import os

from danqing.engine.families.base import Family


def load_family(name: str, threads: int = 0) -> Family:
    """A family with its weights. `threads`: of the CPU; 0 = one per core. Raises ValueError for an unknown name."""
    if name != "pocket":
        raise ValueError(f"unknown family {name}")
    from danqing.engine.families.pocket import Pocket  # loads onnxruntime

    return Pocket(threads=threads or len(os.sched_getaffinity(0)))
