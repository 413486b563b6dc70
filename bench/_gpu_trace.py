"""The mixed trace: Poisson arrivals of small and large jobs, ours through the engine, compiled diffusers first come, first served."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench._gpu_measure import Bench
from bench._gpu_models import GUIDANCE, Built, compile_blocks, run_pipeline, states
from danqing.engine.core import EngineCore
from danqing.engine.families.flow import Conditioning, FlowFamily, to_pixels, unpack
from danqing.engine.messages import Job, JobDrawn, JobFailed, Submit

LARGE_SHARE = 0.2
UNGUIDED_SHARE = 0.3
TEXT_ROWS = (64, 128, 192, 256)
COMPILED_FIFO = "fifo-diffusers-compiled"
FIFO = "fifo-diffusers"
STALL_S = 600.0
"""After the last arrival."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request; `at_s` after the trace's start."""

    at_s: float
    side: int
    steps: int
    guided: bool
    text_rows: int


def arrivals(sides: tuple[int, int], rate: float, jobs: int, steps_max: int) -> list[Arrival]:
    """The same for every server: one seed. `rate`: a second."""
    chance = random.Random(20)
    found: list[Arrival] = []
    at_s = chance.expovariate(rate)
    while len(found) < jobs:
        side = sides[chance.random() < LARGE_SHARE]
        steps, guided = chance.randint(4, steps_max), chance.random() >= UNGUIDED_SHARE
        found.append(Arrival(at_s, side, steps, guided, chance.choice(TEXT_ROWS)))
        at_s += chance.expovariate(rate)
    return found


def quantile(values: list[float], share: float) -> float:
    """The nearest rank's."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def told(found: list[Arrival], ends_s: list[float], sides: tuple[int, int]) -> dict[str, Any]:
    row: dict[str, Any] = {"requests_per_s": round(len(found) / max(ends_s), 3)}
    for kind, side in zip(("small", "large"), sides, strict=True):
        waits = [end - a.at_s for a, end in zip(found, ends_s, strict=True) if a.side == side]
        if waits:
            row |= {f"{kind}_p50_s": quantile(waits, 0.5), f"{kind}_p95_s": quantile(waits, 0.95)}
    return row


def trace(
    bench: Bench, name: str, sides: tuple[int, int], server: str, rate: float, jobs: int, steps_max: int
) -> dict[str, Any]:  # fmt: skip
    """All servers hear the same arrivals; a request's time is from its arrival to its pixels."""
    built = bench.get(name)
    compile_blocks(built, enabled=server == COMPILED_FIFO)
    found = arrivals(sides, rate, jobs, steps_max)
    run = _ours if server == "ours" else _fifo
    kinds = {(a.side, a.guided, a.text_rows): replace(a, at_s=0.0, steps=2) for a in found}
    run(built, list(kinds.values()))  # plans and kernels of a first request are no one's wait
    return {
        "rate": rate, "jobs": len(found), "small": sum(a.side == sides[0] for a in found),
        "steps": sum(a.steps for a in found), **told(found, run(built, found), sides),
    }  # fmt: skip


def _ours(built: Built, found: list[Arrival]) -> list[float]:
    family = built.families["ours"]
    whole = states(built, "ours", found[0].side, 1, 4)[0].texts

    def encode(jobs: list[Job]) -> list[Conditioning]:
        return [
            Conditioning(whole[0][: int(job.prompt)], whole[1] if job.guidance > 1 else None)
            for job in jobs
        ]

    family.encode = encode  # type: ignore[method-assign, assignment]
    core = EngineCore(lambda: family, warm_up=None)
    ends: dict[str, float] = {}
    failed: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, JobFailed):
            failed.append(event.message)
        if isinstance(event, JobDrawn | JobFailed):
            ends[event.job_id] = time.perf_counter()

    core.listen(listen)
    core.start()
    core.loaded.result()
    began_s = time.perf_counter()
    for i, arrival in enumerate(found):
        time.sleep(max(0.0, began_s + arrival.at_s - time.perf_counter()))
        job = Job(
            id=f"trace-{i}", task_id=f"trace-{i}", account_id=f"account-{i % 3}", prompt=str(arrival.text_rows),
            negative_prompt=" " if arrival.guided else "", width=arrival.side, height=arrival.side,
            steps=arrival.steps, guidance=GUIDANCE[built.name] if arrival.guided else 1.0, seed=i,
        )  # fmt: skip
        core.submit(Submit((job,)))
    while len(ends) < len(found):
        time.sleep(0.002)
        if time.perf_counter() - began_s > found[-1].at_s + STALL_S:
            raise TimeoutError(f"{len(found) - len(ends)} jobs are not drawn")
    core.stop()
    if failed:
        raise RuntimeError(f"{len(failed)} jobs failed: {failed[0]}")
    return [ends[f"trace-{i}"] - began_s for i in range(len(found))]


def _fifo(built: Built, found: list[Arrival]) -> list[float]:
    family: FlowFamily = built.families["ours"]
    ends: list[float] = []
    began_s = time.perf_counter()
    for arrival in found:
        time.sleep(max(0.0, began_s + arrival.at_s - time.perf_counter()))
        noise = states(built, "ours", arrival.side, 1, arrival.steps)
        latents = run_pipeline(
            built, arrival.side, noise, arrival.steps, text_rows=arrival.text_rows,
            guidance=GUIDANCE[built.name] if arrival.guided else 1.0,
        )  # fmt: skip
        if latents.dim() == 3:  # Qwen-Image's pipeline leaves them packed
            latents = unpack(latents[0], noise[0].grid)[None]
        with torch.inference_mode():
            to_pixels(family.pictures.decode(latents)[0])
        ends.append(time.perf_counter() - began_s)
    return ends
