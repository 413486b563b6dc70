"""All parts of pocket trained at once beside each other, for a machine with a GPU and many cores, then exported.

`python -m training.pocket.together --help`. Knows the parts, not how they learn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
from training.pocket import (
    crisp,
    data,
    export,
    recogniser,
    train_decoder,
    train_denoiser,
    train_text,
    train_upscaler,
)
from training.pocket import vocabulary as v

SHARES = {"denoiser": 6, "decoder": 2, "upscaler": 3, "recogniser": 2, "text": 2}
"""Of the cores that render."""

_fork = multiprocessing.get_context("fork")


def _in_processes(jobs: dict[str, Callable[[], object]]) -> None:
    """Run the jobs at once; the first that fails ends them all. Raises RuntimeError naming it."""
    running = {name: _fork.Process(target=job, name=name) for name, job in jobs.items()}
    for process in running.values():
        process.start()
    failed: list[str] = []
    while not failed and any(process.is_alive() for process in running.values()):
        time.sleep(0.5)
        failed = [name for name, process in running.items() if process.exitcode]
    if failed:
        for process in running.values():
            process.terminate()
        raise RuntimeError(f"failed: {', '.join(failed)}")


def train(run: Path, minutes: float, seed: int, device: str, cores: int, parts: list[str]) -> None:
    """Everything for `minutes`, from the run's checkpoints or the shipped weights.

    Forked before any device or thread pool is touched.
    """
    begun = time.monotonic()
    _in_processes({"start": lambda: train_denoiser.prepare(run, seed, threads=cores)})
    print(f"started from: {time.monotonic() - begun:.0f} s", flush=True)
    data.paint_all(cores)
    with _fork.Pool(cores) as pool:
        things = range(1, len(v.concepts()) + 1)
        pool.starmap(crisp.keep, [(thing, run / "crisp") for thing in things], chunksize=4)
    print(f"painted: {time.monotonic() - begun:.0f} s", flush=True)
    total = sum(SHARES[name] for name in parts)
    workers = {name: max(1, round(SHARES[name] * cores / total)) for name in parts}
    jobs: dict[str, Callable[[], object]] = {
        "denoiser": lambda: train_denoiser.train(
            run, minutes, 128, 1e-3, seed, 1, device=device, workers=workers["denoiser"]),
        "decoder": lambda: train_decoder.train(
            run, minutes, 16, 1e-3, seed, 1, follow=True, device=device, workers=workers["decoder"]),
        "upscaler": lambda: train_upscaler.train(
            run, minutes, 2e-3, seed, 1, device=device, workers=workers["upscaler"]),
        "recogniser": lambda: recogniser.train(
            run, 10**9, seed + 10, 1, 64, device=device, workers=workers["recogniser"], minutes=minutes),
        "text": lambda: train_text.train(
            run, minutes, 128, 2e-3, seed, 1, device=device, workers=workers["text"]),
    }  # fmt: skip
    _in_processes({name: jobs[name] for name in parts})


def keep_small(run: Path, folder: Path) -> None:
    """What a later training can go on from, in half precision and without optimizers."""
    for name, part in (("denoiser", "average"), ("decoder", "model"), ("recogniser", "model"),
                       ("upscaler", "model"), ("text", "model")):  # fmt: skip
        state = data.load(run / f"{name}.pt")
        if state is None:
            continue
        half = {k: w.half() if w.is_floating_point() else w for k, w in state[part].items()}
        rest = {k: w for k, w in state.items() if k not in ("model", "average", "optimizer")}
        data.save(folder / f"{name}.pt", {part: half, **rest})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exports")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cores", type=int, default=15)
    parser.add_argument("--parts", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--no-export", action="store_true", help="only keep the checkpoints")
    asked = parser.parse_args()
    train(asked.run, asked.minutes, asked.seed, asked.device, asked.cores, asked.parts)
    keep_small(asked.run, asked.out / "small")
    if asked.no_export:
        return
    torch.set_num_threads(4)
    export.export(asked.run, asked.out, asked.seed)
    for path in sorted(asked.out.iterdir()):
        print(f"{path.name} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
