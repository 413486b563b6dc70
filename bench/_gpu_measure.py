"""What bench/gpu.py measures: parity, a step, a decode, the engine. One result a call, as a dict. Needs torch and diffusers."""

from __future__ import annotations

import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch.profiler import ProfilerActivity

from bench._gpu_models import (
    GUIDANCE,
    Built,
    build,
    compile_blocks,
    run_pipeline,
    states,
    teraflop,
)
from danqing.engine.core import EngineCore
from danqing.engine.families.flow import Conditioning, pack
from danqing.engine.messages import Job, JobDrawn, JobFailed, Submit

TIMED_MAX = 5
CELL_S_MAX = 4.0
"""A cell's timed steps end after this, but two are always timed."""
PEERS = ("diffusers", "diffusers-compiled")


@dataclass
class Bench:
    """What a run knows: where results go, what is built, how long it may go on."""

    results: Path
    device: torch.device
    tiny: bool
    compiled: bool
    budget_s: float
    steps: int = 50
    trace_jobs: int = 100
    commit: str = "unknown"
    began_s: float = field(default_factory=time.perf_counter)
    done: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    built: dict[str, Built] = field(default_factory=dict[str, Built])

    @property
    def sides(self) -> tuple[int, ...]:
        return (64, 96) if self.tiny else (512, 768, 1024, 1328)

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.began_s

    def run(self, key: str, measure: Callable[[], dict[str, Any]], expected_s: float = 0.0) -> None:
        """Measure a cell that is not there yet or has failed, if there is time, and write it down at once with where it comes from."""
        if key in self.done and not is_failed(self.done[key]):
            return
        if self.elapsed_s() + expected_s > self.budget_s:
            return
        source = provenance(self)
        before_s = time.perf_counter()
        try:
            row = measure()
        except Exception as error:  # one cell's fault is a result, not the run's end
            traceback.print_exc()
            row = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        row = {"key": key, **row, "cell_s": round(time.perf_counter() - before_s, 2)} | source
        self.done[key] = row
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{self.elapsed_s():6.1f} s  {json.dumps(row)}", flush=True)

    def get(self, name: str) -> Built:
        """The family's weights, built when they are first needed."""
        if name not in self.built:
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            started_s = time.perf_counter()
            self.built[name] = build(
                name, self.device, dtype, tiny=self.tiny, compiled=self.compiled
            )
            self.wait()
            print(f"built {name} in {time.perf_counter() - started_s:.1f} s", flush=True)
        return self.built[name]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self, name: str) -> float | None:
        """The most that was allocated since the reset, without what other families hold."""
        if self.device.type != "cuda":
            return None
        others = sum(built.weights_bytes for key, built in self.built.items() if key != name)
        return round((torch.cuda.max_memory_allocated() - others) / 2**30, 2)


def is_failed(row: Mapping[str, Any]) -> bool:
    """The cell, or one of its ways, has an error for a result: to be tried again."""
    return (
        isinstance(row.get("error"), str)
        or bool(row.get("failed"))
        or any(name.endswith("_fault") for name in row)
    )


def provenance(bench: Bench) -> dict[str, Any]:
    """Which code, machine and versions a row is of: one file may have rows of several. `load`: of the processors, before the cell."""
    is_cuda = bench.device.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), "commit": bench.commit,
        "card": torch.cuda.get_device_name(bench.device) if is_cuda else "none", "driver": driver(),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "diffusers": diffusers.__version__, "transformers": transformers.__version__,
        },
        "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


@functools.cache
def driver() -> str:
    """The graphics driver's version, or "none"."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return told[0] if told else "none"


def commit() -> str:
    """Of the working tree, with "+" where it was changed; "unknown" where git does not tell."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def environment(bench: Bench) -> dict[str, Any]:
    row: dict[str, Any] = {"device": str(bench.device), "command": " ".join(sys.argv)}
    if bench.device.type != "cuda":
        return row
    facts = torch.cuda.get_device_properties(bench.device)
    size = 8192
    a, b = (torch.randn((size, size), device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = median_s(bench, lambda: a @ b, 10)
    return row | {
        "gpu": facts.name, "gib": round(facts.total_memory / 2**30, 1), "cudnn": torch.backends.cudnn.version(),
        "matmul_tflops": round(2 * size**3 / seconds / 1e12, 1),
    }  # fmt: skip


def median_s(bench: Bench, work: Callable[[], Any], rounds: int) -> float:
    """After two warm-ups."""
    times: list[float] = []
    for _ in range(rounds + 2):
        started_s = time.perf_counter()
        work()
        bench.wait()
        times.append(time.perf_counter() - started_s)
    return statistics.median(times[2:])


def parity(bench: Bench, name: str, side: int) -> dict[str, Any]:
    """50 steps of ours and of diffusers' pipeline from one noise: how far apart, how long, how much memory."""
    built = bench.get(name)
    compile_blocks(built, enabled=False)
    row: dict[str, Any] = {}
    ends: dict[str, torch.Tensor] = {}
    for way in ("ours", "ours-rounded"):
        try:
            ends[way] = _drawn(bench, built, way, side, row)
        except Exception as error:  # the other ways are still worth a look
            traceback.print_exc()
            row[f"{way}_fault"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    noise = states(built, "ours", side, 1, bench.steps)
    run_pipeline(built, side, noise, 2)
    bench.reset_peak()
    bench.wait()
    started_s = time.perf_counter()
    theirs = run_pipeline(built, side, noise, bench.steps)[0]
    bench.wait()
    row["diffusers_s"] = round(time.perf_counter() - started_s, 3)
    row["diffusers_peak_gib"] = bench.peak_gib(name)
    theirs = (pack(theirs) if name == "cogview4" else theirs).float()
    for way, mine in ends.items():
        row[f"{way}_error"] = float(f"{((mine - theirs).norm() / theirs.norm()).item():.3g}")
    row["moved"] = round(((theirs - noise[0].latents).norm() / noise[0].latents.norm()).item(), 4)
    return row


def _drawn(bench: Bench, built: Built, way: str, side: int, row: dict[str, Any]) -> torch.Tensor:
    """All steps of one image of ours, told of in `row` -> its latents.

    "ours-rounded": with the latents in bfloat16 between steps, as diffusers has them; ours keep float32.
    """
    rounded = way == "ours-rounded"
    family = built.families["ours" if rounded else way]
    started_s = time.perf_counter()
    family.step(states(built, "ours", side, 1, bench.steps))
    row[f"{way}_first_step_s"] = round(time.perf_counter() - started_s, 2)
    bench.reset_peak()
    started_s = time.perf_counter()
    drawn = states(built, "ours", side, 1, bench.steps)
    for _ in range(bench.steps):
        family.step(drawn)
        if rounded:
            drawn[0].latents = drawn[0].latents.bfloat16().float()
    row[f"{way}_s"] = round(time.perf_counter() - started_s, 3)
    row[f"{way}_peak_gib"] = bench.peak_gib(built.name)
    if way == "ours":
        family.decode(drawn)
        bench.reset_peak()
        started_s = time.perf_counter()
        pixels = family.decode(drawn)[0]
        row["decode_s"] = round(time.perf_counter() - started_s, 4)
        row["decode_peak_gib"] = bench.peak_gib(built.name)
        row["pixels"] = [*pixels.shape, round(float(pixels.std()), 2)]
    return drawn[0].latents


def whole(bench: Bench, name: str, side: int) -> dict[str, Any]:
    """All steps of one image of ours, and its decoding."""
    built = bench.get(name)
    row: dict[str, Any] = {}
    _drawn(bench, built, "ours", side, row)
    return row | {"whole_s": round(row["ours_s"] + row["decode_s"], 3)}


def vae(bench: Bench, name: str, side: int) -> dict[str, Any]:
    """The decoder as diffusers runs it and as ours does, on the same latents."""
    built = bench.get(name)
    ours = built.families["ours"].pictures
    theirs = built.pipeline.vae
    latents = torch.randn((1, ours.channels, side // 8, side // 8), device=bench.device)

    def whole() -> Any:
        scaled = latents.to(theirs.dtype)
        if name == "cogview4":
            return theirs.decode(scaled, return_dict=False)[0]
        mean, deviation = (
            torch.tensor(x, device=bench.device, dtype=theirs.dtype).view(1, -1, 1, 1, 1)
            for x in (theirs.config.latents_mean, theirs.config.latents_std)
        )
        scaled = scaled.unsqueeze(2) * deviation + mean
        return theirs.decode(scaled, return_dict=False)[0][:, :, 0]

    with torch.inference_mode():
        mine, other = ours.decode(latents).float(), whole().float()
        return {
            "error": float(f"{((mine - other).norm() / other.norm()).item():.3g}"),
            "ours_s": round(median_s(bench, lambda: ours.decode(latents), 3), 4),
            "diffusers_s": round(median_s(bench, whole, 3), 4),
        }


def cell(
    bench: Bench, name: str, side: int, batch: int, way: str, guided: bool = True
) -> dict[str, Any]:
    """Seconds of one step of a batch: the median of at most five, after one that is not counted."""
    built = bench.get(name)
    compile_blocks(built, enabled=way == "diffusers-compiled")
    bench.reset_peak()
    if way in PEERS:
        warm_s, times = _peer_times(bench, built, side, batch)
    else:
        family = built.families[way]
        drawn = states(built, way, side, batch, bench.steps, guided=guided)
        started_s = time.perf_counter()
        family.step(drawn)
        warm_s = time.perf_counter() - started_s
        times = []
        while len(times) < TIMED_MAX and (len(times) < 2 or sum(times) < CELL_S_MAX):
            started_s = time.perf_counter()
            family.step(drawn)
            times.append(time.perf_counter() - started_s)
    step_s = statistics.median(times)
    work = teraflop(name, side, batch, tiny=bench.tiny, guided=guided)
    return {
        "step_s": round(step_s, 5), "times_s": [round(s, 5) for s in times], "warm_s": round(warm_s, 3),
        "tflop": round(work, 3), "tflops": round(work / step_s, 1), "peak_gib": bench.peak_gib(name),
    }  # fmt: skip


def _peer_times(bench: Bench, built: Built, side: int, batch: int) -> tuple[float, list[float]]:
    """Between the ends of the steps of diffusers' own loop; the device is waited for at each end, as ours does."""
    marks = [time.perf_counter()]

    def on_step(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        bench.wait()
        marks.append(time.perf_counter())
        spent_s = marks[-1] - marks[1]
        if index >= TIMED_MAX or (index >= 2 and spent_s > CELL_S_MAX):
            pipeline._interrupt = True
        return {}

    run_pipeline(built, side, states(built, "ours", side, batch, bench.steps), bench.steps, on_step)
    times = [after - before for before, after in itertools.pairwise(marks)]
    return times[0], times[1:]


def mixed(bench: Bench, name: str, side: int, batch: int) -> dict[str, Any]:
    """A batch of unlike texts, each new to the device, against one of equal texts: what a new length costs."""
    built = bench.get(name)
    row: dict[str, Any] = {}
    for way in ("ours", "ours-flash"):
        family = built.families[way]
        drawn = states(built, way, side, batch, bench.steps)
        family.step(drawn)
        for i, state in enumerate(drawn):
            state.texts = (state.texts[0][: -16 * (i + 1)], state.texts[1])
        times: list[float] = []
        for _ in range(6):
            started_s = time.perf_counter()
            family.step(drawn)
            times.append(round(time.perf_counter() - started_s, 5))
        row[way] = {"new_s": times[0], "step_s": times[-1], "times_s": times}
    return row


def served(
    bench: Bench, name: str, side: int, steps: int, count: int, cap: int | None = None
) -> dict[str, Any]:
    """Requests through the real engine, without texts to encode: one after the other, then `count` at once.

    `cap`: the size of batches, where the engine is not to find out itself.
    """
    built = bench.get(name)
    texts = states(built, "ours", side, 1, steps)[0].texts
    family = built.families["ours"]
    family.encode = lambda jobs: [Conditioning(*texts) for _ in jobs]  # type: ignore[method-assign]
    core = EngineCore(lambda: family, warm_up=None)
    ends: list[float] = []
    failed: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, JobFailed):
            failed.append(event.message)
        if isinstance(event, JobDrawn | JobFailed):
            ends.append(time.perf_counter())

    if cap is not None:
        core._scheduler.pace.batch_size = lambda key: cap  # type: ignore[method-assign]
    core.listen(listen)
    core.start()
    core.loaded.result()

    def draw(tag: str, number: int) -> list[float]:
        """Seconds until each of `number` jobs, handed in at once, was there."""
        ends.clear()
        jobs = tuple(
            Job(
                id=f"{tag}-{i}", task_id=tag, account_id="a", prompt="", negative_prompt=" ", width=side,
                height=side, steps=steps, guidance=GUIDANCE[name], seed=i,
            )
            for i in range(number)
        )  # fmt: skip
        started_s = time.perf_counter()
        core.submit(Submit(jobs))
        while len(ends) < number:
            time.sleep(0.002)
        return [round(end - started_s, 4) for end in ends]

    draw("warm", 1)
    alone = [draw(f"alone-{i}", 1)[0] for i in range(3)]
    if cap is None:
        draw("learn", count)  # the engine learns by itself which batch pays
    together = draw("together", count)
    core.stop()
    return {
        "alone_s": statistics.median(alone), "together_s": together, "batch": core.health().batch_size_last,
        "requests_per_s": round(count / together[-1], 3), "failed": failed,
    }  # fmt: skip


def profile(
    bench: Bench, name: str, side: int, way: str = "ours", batch: int = 1
) -> dict[str, Any]:
    """Which kernels a step's time goes to."""
    built = bench.get(name)
    family = built.families[way]
    drawn = states(built, way, side, batch, bench.steps)
    family.step(drawn)
    cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    started_s = time.perf_counter()
    with torch.profiler.profile(activities=activities) as seen:
        family.step(drawn)
        bench.wait()
    wall_s = time.perf_counter() - started_s
    kernels: dict[str, list[float]] = {}
    for event in seen.events():
        # Ranges that only name what runs below them would be counted twice.
        if (event.device_type.name == "CUDA") == cuda and not event.name.startswith("##"):
            spent = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
            entry = kernels.setdefault(event.name[:90], [0, 0.0])
            entry[0] += 1
            entry[1] += spent / 1e3
    top = sorted(kernels.items(), key=lambda item: -item[1][1])[:22]
    return {
        "wall_ms": round(wall_s * 1e3, 2), "kernels_ms": round(sum(ms for _, ms in kernels.values()), 2),
        "launches": int(sum(count for count, _ in kernels.values())),
        "top": [[kernel, int(count), round(ms, 3)] for kernel, (count, ms) in top],
    }  # fmt: skip
