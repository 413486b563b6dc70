"""Row 5 of the list, as far as the code has it: each way to save work alone and all together, its error beside its gain. Needs torch and diffusers.

Lossless: modulation from a table, both guidance halves in one forward, the folded VAE (Qwen-Image's). Not lossless, off unless a preset asks for it: guidance kept to
an interval of noise levels; on random weights its error says how far the latents move, nothing of pictures. Not in the code, so not here: FP8, step caches, CUDA graphs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from bench._gpu_measure import Bench
from bench._gpu_models import Built, states
from bench._gpu_precision import relative
from bench._without import halves_apart, without_tables
from danqing.engine.families.flow import FlowFamily
from danqing.engine.families.qwen_image import QwenPictures

TRICKS = ("table", "cfg", "vae", "interval", "together")
INTERVAL = (0.2, 0.95)
STEPS = 10
"""Of the images that one trick alone is timed on."""


def names_of(family: str) -> tuple[str, ...]:
    """CogView4's VAE has nothing to fold."""
    return tuple(trick for trick in TRICKS if (family, trick) != ("cogview4", "vae"))


def trick(bench: Bench, name: str, side: int, which: str) -> dict[str, Any]:
    """A whole image with it and without, each after one that does not count; the decoding is counted where it is what differs."""
    built = bench.get(name)
    family = built.families["ours"]
    steps = bench.steps if which == "together" else min(bench.steps, STEPS)
    found: dict[str, Any] = {"steps": steps}
    images: dict[str, torch.Tensor] = {}
    for way in ("without", "with"):
        asked = TRICKS[:-1] if which == "together" else (which,)
        off = asked if way == "without" else ()
        with _without(built, family, off):
            interval = INTERVAL if "interval" in asked and way == "with" else (0.0, 1.0)
            decoded = "vae" in asked
            _image(bench, built, side, min(steps, 2), interval, decoded=decoded)
            bench.reset_peak()
            began_s = time.perf_counter()
            images[way] = _image(bench, built, side, steps, interval, decoded=decoded)
            found[f"{way}_s"] = round(time.perf_counter() - began_s, 4)
            found[f"{way}_peak_gib"] = bench.peak_gib(name)
    error = relative(images["with"], images["without"].float())
    return found | {"gain": round(found["without_s"] / found["with_s"], 3), "error": error}


def _image(
    bench: Bench, built: Built, side: int, steps: int, interval: tuple[float, float], *, decoded: bool
) -> torch.Tensor:  # fmt: skip
    """Its latents, or its pixels."""
    family = built.families["ours"]
    built.families["ours"]._tables.clear()
    (state,) = states(built, "ours", side, 1, steps)
    state.job = replace(state.job, guidance_interval=interval)
    for _ in range(steps):
        family.step([state])
    found = torch.from_numpy(family.decode([state])[0].copy()) if decoded else state.latents
    bench.wait()
    return found


@contextmanager
def _without(built: Built, family: FlowFamily, off: tuple[str, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        if "table" in off:
            stack.enter_context(without_tables())
        if "cfg" in off:
            stack.enter_context(halves_apart(family))
        kept = family.pictures
        if "vae" in off and built.name == "qwen_image":
            family.pictures = QwenPictures(copy.copy(built.pipeline.vae), folded=False)
        try:
            yield
        finally:
            family.pictures = kept
