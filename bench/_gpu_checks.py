"""Is what is fast also right: each kernel, kernels and graphs in a whole network, and all against float32. Needs torch."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import torch

from bench._gpu_kernels import difference, timed_ms
from bench._gpu_measure import Bench
from bench._gpu_models import CONFIGS, build, run_pipeline, states
from danqing.engine.families.cogview4 import CogView4Denoiser
from danqing.engine.families.flow import pack
from danqing.engine.families.qwen_image import QwenDenoiser

KERNEL_ERROR_MAX = 8e-3
"""Of bfloat16 rows against float32; two roundings are 4e-3."""
STEPS = 8
LAYERS = {"cogview4": None, "qwen_image": 20}
"""Of the network that is run in float32 as well: all of Qwen-Image's would not fit."""


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(f"{((found.float() - wanted).norm() / wanted.norm()).item():.3g}")


def kernel(bench: Bench, part: str) -> dict[str, Any]:
    """One hand-written part at both families' widths: its error, its time; `passed` turns it on."""
    if bench.device.type != "cuda":
        return {"passed": False, "why": "there is no GPU here"}
    row: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        sizes = {
            "rows": 8464,
            "heads": config["transformer"]["num_attention_heads"],
            "width": config["transformer"]["attention_head_dim"],
        }
        row[f"{name}_error"] = difference(part, bench.device, torch.bfloat16, **sizes)
        row[f"{name}_ms"] = timed_ms(part, bench.device, **sizes)
    errors = [row[f"{name}_error"] for name in CONFIGS]
    return row | {"passed": all(error < KERNEL_ERROR_MAX for error in errors)}


def agree(bench: Bench, name: str) -> dict[str, Any]:
    """The same few steps by torch.compile, by the kernels, by the graphs; what disagrees is not used any more."""
    built = bench.get(name)
    ends: dict[str, torch.Tensor] = {}
    row: dict[str, Any] = {}
    for way in ("ours-compiled", "ours-kernels", "ours"):
        started_s = time.perf_counter()
        family = built.families[way]
        drawn = states(built, "ours", bench.sides[0], 2, bench.steps)
        # Unlike texts, so that attention runs in more than one group.
        drawn[1].texts = (drawn[1].texts[0][:-16], *drawn[1].texts[1:])
        noise = torch.stack([state.latents for state in drawn])
        for _ in range(STEPS):
            family.step(drawn)
        ends[way] = torch.stack([state.latents for state in drawn]) - noise
        row[f"{way}_s"] = round(time.perf_counter() - started_s, 3)
    wanted = ends["ours-compiled"]
    graphed = built.families["ours"].denoiser
    return row | {
        "kernels_error": relative(ends["ours-kernels"], wanted),
        "graph_error": relative(ends["ours"], ends["ours-kernels"]),
        "graph_refused": getattr(graphed, "fault", None), "captures": getattr(graphed, "captures", 0),
        "moved": round((wanted.norm() / noise.norm()).item(), 4),
    }  # fmt: skip


def precision(bench: Bench, name: str) -> dict[str, Any]:
    """Who is nearer to the truth, which is ours in float32 on the same weights: ours, ours rounded, diffusers."""
    side, steps = bench.sides[0], bench.steps // 2
    layers = None if bench.tiny else LAYERS[name]
    built = bench.get(name)
    if layers is not None:
        built = build(
            name, bench.device, torch.bfloat16, tiny=False, compiled=bench.compiled,
            kernels=bench.kernels, layers=layers,
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
    del truth, denoiser, exact  # its memory is another network's
    for way in ("ours-compiled", "ours-kernels"):
        row[f"{way}_error"] = relative(drawn(built.families[way]), wanted)
    row["ours-rounded_error"] = relative(
        drawn(built.families["ours-kernels"], rounded=True), wanted
    )
    noise = states(built, "ours", side, 1, steps)
    theirs = run_pipeline(built, side, noise, steps)[0]
    theirs = (pack(theirs) if name == "cogview4" else theirs).float()
    row["diffusers_error"] = relative(theirs, wanted)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return row
