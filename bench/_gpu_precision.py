"""Who is nearer to float32 on the same weights: ours in bfloat16, or diffusers. Needs torch and diffusers."""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import replace
from typing import Any

import torch

from bench._gpu_measure import Bench
from bench._gpu_models import build, run_pipeline, states
from danqing.engine.families.cogview4 import CogView4Denoiser
from danqing.engine.families.flow import pack
from danqing.engine.families.qwen_image import QwenDenoiser

LAYERS = {"cogview4": None, "qwen_image": 20}
"""Of the network that is run in float32 as well: all of Qwen-Image's would not fit."""


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(f"{((found.float() - wanted).norm() / wanted.norm()).item():.3g}")


def release(bench: Bench) -> None:
    """What networks that nobody needs any more still hold: their modules point at each other, so counts do not do it."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def precision(bench: Bench, name: str) -> dict[str, Any]:
    """Who is nearer to the truth, which is ours in float32 on the same weights: ours, ours rounded, diffusers."""
    row = _errors(bench, name)
    release(bench)
    return row


def _errors(bench: Bench, name: str) -> dict[str, Any]:
    side, steps = bench.sides[0], bench.steps // 2
    layers = None if bench.tiny else LAYERS[name]
    built = bench.get(name)
    if layers is not None:
        built = build(
            name, bench.device, torch.bfloat16, tiny=False, compiled=bench.compiled, layers=layers
        )  # fmt: skip
    exact = copy.deepcopy(built.transformer).float()
    denoiser: Any = (CogView4Denoiser if name == "cogview4" else QwenDenoiser)(exact)
    family_class: Any = type(built.families["ours-eager"])
    family = built.families["ours-eager"]
    truth = family_class(denoiser, family.pictures, family._read, family._sampling)  # type: ignore[attr-defined]

    def drawn(family: Any, *, exact: bool = False, rounded: bool = False) -> torch.Tensor:
        state = states(built, "ours", side, 1, steps)[0]
        if exact:
            with torch.inference_mode():
                project = family.denoiser.project
                state.texts = tuple(project(x[0]) for x in (built.text, built.negative))
            state.table = None
            if name == "qwen_image" and not bench.tiny:
                # Ours and diffusers round the time alike; what is asked is what comes after that.
                times = torch.tensor(state.schedule.timesteps).bfloat16() / 1000
                times = tuple((times.float() * 1000).tolist())
                state.schedule = replace(state.schedule, timesteps=times)
        for _ in range(steps):
            family.step([state])
            if rounded:
                state.latents = state.latents.bfloat16().float()
        return state.latents

    started_s = time.perf_counter()
    wanted = drawn(truth, exact=True)
    row: dict[str, Any] = {
        "steps": steps, "layers": layers or built.transformer.config.num_layers,
        "float32_s": round(time.perf_counter() - started_s, 2),
    }  # fmt: skip
    del truth, denoiser, exact
    release(bench)
    for way in ("ours", "ours-flash"):
        row[f"{way}_error"] = relative(drawn(built.families[way]), wanted)
    row["ours-rounded_error"] = relative(drawn(built.families["ours"], rounded=True), wanted)
    noise = states(built, "ours", side, 1, steps)
    theirs = run_pipeline(built, side, noise, steps)[0]
    theirs = (pack(theirs) if name == "cogview4" else theirs).float()
    row["diffusers_error"] = relative(theirs, wanted)
    return row
