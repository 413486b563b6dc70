"""Paths that have no record on a graphics card yet, each held against the plain one: work beside the steps, blocks in main memory. Needs torch and diffusers.

A cell's `differs` is the largest difference of pixels in 8 bits, `error` the latents' by their norm; `again_*` is what two plain runs give.
"""

from __future__ import annotations

import statistics
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bench._gpu_measure import Bench
from bench._gpu_models import GUIDANCE, build, states
from bench._gpu_precision import relative, release
from danqing.domain.task import Pixels
from danqing.engine.core import EngineCore
from danqing.engine.families.cogview4 import CogView4Denoiser
from danqing.engine.families.flow import FlowFamily
from danqing.engine.families.qwen_image import QwenDenoiser
from danqing.engine.messages import Job, JobDrawn, JobFailed, Submit

LAYERS = {"cogview4": 6, "qwen_image": 8}
"""Of the networks: enough for the paths, and little to build."""
JOBS = 6
DRAWN_S_MAX = 240.0


def overlap(bench: Bench, name: str, side: int) -> dict[str, Any]:
    """Jobs through the engine, one a step, an edit among them: taking turns twice, and beside each other."""
    row = _overlap(bench, name, side)
    release(bench)
    return row


def _overlap(bench: Bench, name: str, side: int) -> dict[str, Any]:
    built = build(
        name, bench.device, _dtype(bench), tiny=bench.tiny, compiled=bench.compiled,
        layers=None if bench.tiny else LAYERS[name],
    )  # fmt: skip
    family = built.families["ours"]
    width = built.text.shape[-1]

    def read(prompt: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        rows = torch.randn((16 + 16 * (len(prompt) % 8), width), generator=generator)
        return rows.to(built.text)

    family._read = read  # type: ignore[assignment]
    jobs = _jobs(side, 4 if bench.tiny else 12, GUIDANCE[name], edits=True)
    return _both_ways(family, jobs)


def pipelines_overlap(bench: Bench, name: str, side: int) -> dict[str, Any]:
    """The same of one of diffusers' pipelines, whose calls run in threads of their own."""
    from bench._gpu_distilled import GUIDANCE, STEPS
    from bench._gpu_distilled import build as build_pipeline

    family: Any = build_pipeline(bench, name, compiled=False)
    row = _both_ways(family, _jobs(side, STEPS[name], GUIDANCE[name], edits=False))
    del family
    release(bench)
    return row


def offload(bench: Bench, name: str, side: int) -> dict[str, Any]:
    """A few steps with the network on the device, and with its blocks brought to it one by one."""
    row = _offload(bench, name, side)
    release(bench)
    return row


def _offload(bench: Bench, name: str, side: int) -> dict[str, Any]:
    steps = 4 if bench.tiny else 8
    built = build(
        name, bench.device, _dtype(bench), tiny=bench.tiny, compiled=bench.compiled,
        layers=None if bench.tiny else LAYERS[name],
    )  # fmt: skip
    family = built.families["ours"]

    def drawn() -> tuple[torch.Tensor, list[float]]:
        state = states(built, "ours", side, 1, steps)[0]
        seconds: list[float] = []
        for _ in range(steps):
            began_s = time.perf_counter()
            family.step([state])
            bench.wait()
            seconds.append(time.perf_counter() - began_s)
        return state.latents, seconds

    wanted, whole_s = drawn()
    again, _ = drawn()
    built.transformer.transformer_blocks.to("cpu")
    denoiser: Any = CogView4Denoiser if name == "cogview4" else QwenDenoiser
    built.families.clear()  # the fused matrices on the device go with them
    family.denoiser = denoiser(built.transformer, compiled=bench.compiled, offloaded=True)
    built.families["ours"] = family
    release(bench)
    found, brought_s = drawn()
    return {
        "steps": steps, "blocks": len(family.denoiser._blocks),  # type: ignore[attr-defined]
        "error": relative(found, wanted), "again_error": relative(again, wanted),
        "whole_step_s": round(statistics.median(whole_s), 4), "offloaded_step_s": round(statistics.median(brought_s), 4),
    }  # fmt: skip


def _both_ways(family: Any, jobs: list[Job]) -> dict[str, Any]:
    row: dict[str, Any] = {"jobs": len(jobs)}
    wanted, wanted_latents = _draw(family, jobs, overlaps=False)[:2]
    again, again_latents = _draw(family, jobs, overlaps=False)[:2]
    found, latents, seconds, beside_s = _draw(family, jobs, overlaps=True)
    for kind, pixels, mine in (("", found, latents), ("again_", again, again_latents)):
        row[f"{kind}differs"] = max(
            int(np.abs(pixels[job.id].astype(int) - wanted[job.id]).max()) for job in jobs
        )
        if wanted_latents:
            row[f"{kind}error"] = max(relative(mine[x], wanted_latents[x].float()) for x in mine)
    return row | {"seconds": round(seconds, 3), "beside_s": round(beside_s, 3)}


def _draw(
    family: Any, jobs: list[Job], *, overlaps: bool
) -> tuple[dict[str, Pixels], dict[str, torch.Tensor], float, float]:
    """Pixels and last latents by job, the seconds of it all, and those in which something ran beside a step."""
    pixels: dict[str, Pixels] = {}
    failed: list[str] = []
    ended = threading.Event()

    def listen(event: object) -> None:
        if isinstance(event, JobDrawn):
            pixels[event.job_id] = event.pixels
        if isinstance(event, JobFailed):
            failed.append(event.message)
        if len(pixels) + len(failed) == len(jobs):
            ended.set()

    if isinstance(family, FlowFamily):
        family._embeddings.clear()
    family.overlaps = overlaps
    with _watched(family) as (latents, spans):
        core = EngineCore(lambda: family, warm_up=None, batch_max=1, hang_s=DRAWN_S_MAX)
        core.listen(listen)
        core.start()
        core.loaded.result()
        began_s = time.perf_counter()
        core.submit(Submit(tuple(jobs)))
        is_done = ended.wait(DRAWN_S_MAX)
        seconds = time.perf_counter() - began_s
        fault = core.health().fault
        core.stop(10)
    if not is_done or failed:
        raise RuntimeError(f"{len(pixels)} of {len(jobs)} were drawn; {failed[:1]}; {fault}")
    return pixels, latents, seconds, _beside_s(spans)


@contextmanager
def _watched(
    family: Any,
) -> Iterator[tuple[dict[str, torch.Tensor], list[tuple[str, float, float]]]]:
    """Latents as they are decoded, and (call, beginning, end) of every call."""
    latents: dict[str, torch.Tensor] = {}
    spans: list[tuple[str, float, float]] = []

    def watch(name: str) -> None:
        call = getattr(family, name)

        def watched(argument: Any) -> Any:
            if name == "decode" and isinstance(family, FlowFamily):
                latents.update({state.job.id: state.latents.clone() for state in argument})
            began_s = time.perf_counter()
            found = call(argument)
            spans.append((name, began_s, time.perf_counter()))
            return found

        setattr(family, name, watched)

    for name in ("encode", "step", "decode"):
        watch(name)
    try:
        yield latents, spans
    finally:
        for name in ("encode", "step", "decode"):
            delattr(family, name)


def _beside_s(spans: list[tuple[str, float, float]]) -> float:
    steps = [(begins, ends) for name, begins, ends in spans if name == "step"]
    others = [(begins, ends) for name, begins, ends in spans if name != "step"]
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in steps for b in others)


def _jobs(side: int, steps: int, guidance: float, *, edits: bool) -> list[Job]:
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    found = []
    for i in range(JOBS):
        edit = {"reference": picture, "strength": 0.6} if edits and i % 3 == 2 else {}
        found.append(
            Job(
                id=f"paths-{i}", task_id=f"paths-{i}", account_id=f"account-{i % 3}", prompt=f"{'a red apple ' * i}{i}",
                negative_prompt="blue" if guidance > 1 else "", width=side, height=side, steps=steps + i % 3,
                guidance=guidance, seed=i, previews=1, **edit,
            )
        )  # fmt: skip
    return found


def _dtype(bench: Bench) -> torch.dtype:
    return torch.float32 if bench.device.type == "cpu" else torch.bfloat16
