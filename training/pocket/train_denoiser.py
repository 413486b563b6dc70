"""Train the basis (seconds) and the denoiser (the rest): python -m training.pocket.train_denoiser --help."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training.pocket import data, shipped
from training.pocket.codebook import air_latents, glyph_latents, ground_latents, start_codebook
from training.pocket.networks import Basis, Denoiser
from training.pocket.stream import stream

from danqing.engine.families import pocket_layout as layout

SAVE_EVERY_S = 180.0
TELL_EVERY_S = 20.0
SAVE_FAST_S = 40.0  # beside others that follow it
TABLE_FACTOR = 2.0


def new_denoiser(width: int = 256, depth: int = 4) -> Denoiser:
    """A denoiser for this vocabulary."""
    return Denoiser(
        data.CONTENTS, data.GROUNDS, data.AIRS, data.COLOURS, data.SCENES, layout.VARIANTS,
        len(layout.HOURS), len(layout.WEATHERS), width, depth,
    )  # fmt: skip


def fitted_basis(run: Path, seed: int, pictures: int = 3000, anew: bool = False) -> Basis:
    """The run's basis: the shipped one, or fitted `anew`, on first use."""
    basis = Basis()
    state = data.load(run / "basis.pt")
    if state is None and not anew:
        basis = shipped.basis_of()
        data.save(run / "basis.pt", basis.state_dict())
    elif state is None:
        rng = np.random.default_rng([seed, 1])
        batches = [data.batch(rng, 4)[1] for _ in range(pictures // 4)]
        basis.fit([picture for b in batches for picture in b])
        data.save(run / "basis.pt", basis.state_dict())
    else:
        basis.load_state_dict(state)
    return basis.eval()


def new_optimizer(model: Denoiser, peak: float) -> torch.optim.Optimizer:
    """Embedding rows are seen rarely, so they learn faster than the blocks."""
    tables = [
        p
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters()
    ]
    chosen = {id(p) for p in tables}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": rest, "peak": peak}, {"params": tables, "peak": peak * TABLE_FACTOR}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Warm-up over 200 steps, then a cosine down to 2 % at the planned end."""
    decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return peak * min(1.0, (step + 1) / 200) * decay


def loss_of(model: Denoiser, clean: Tensor, plans: data.Plans, grid: int,
            generator: torch.Generator) -> Tensor:  # fmt: skip
    """Mean squared error of the clean latents that the model sees in noisy ones."""
    device = clean.device
    t = torch.rand(len(clean), generator=generator, device=device)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    noisy = (1 - t)[:, None, None] * clean + t[:, None, None] * noise
    positions = torch.from_numpy(layout.positions(grid)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        guess = model(noisy, t, *plans, positions)
    return F.mse_loss(guess.float(), clean)


def start(model: Denoiser, basis: Basis, anew: bool) -> None:
    """The first weights: the shipped ones and what they make of new renders, or the renders alone."""
    things, grounds = glyph_latents(basis), ground_latents(basis)
    start_codebook(model.air, air_latents(basis), 1)
    if anew:
        start_codebook(model.content, things, layout.DROPPED + 1)
        start_codebook(model.ground, grounds, 1)
    else:
        shipped.start_denoiser(model, things, grounds)


def prepare(run: Path, seed: int, threads: int) -> None:
    """Write the run's first checkpoint, where it has none yet."""
    if (run / "denoiser.pt").exists():
        return
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = new_denoiser()
    start(model, fitted_basis(run, seed), anew=False)
    state = model.state_dict()
    data.save(run / "denoiser.pt", {
        "model": state, "average": state, "optimizer": new_optimizer(model, 1e-3).state_dict(),
        "step": 0, "used_s": 0.0, "batch": 1,
    })  # fmt: skip


def train(run: Path, minutes: float, size: int, peak: float, seed: int, threads: int,
          anew: bool = False, device: str = "cpu", workers: int = 0) -> None:  # fmt: skip
    """Train until `minutes` of running time are used up, over all resumes together."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state = data.load(run / "denoiser.pt")
    step, used_s = (state["step"], state["used_s"]) if state is not None else (0, 0.0)
    batches = stream(lambda rng: data.drawn(rng, size, 0.1), [seed, 2, step], workers)
    ahead = next(batches) if workers else None  # workers are forked before the device is touched
    basis = fitted_basis(run, seed, anew=anew)
    model, average = new_denoiser(), new_denoiser()
    if state is None:
        start(model, basis, anew)
        average.load_state_dict(model.state_dict())
    else:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
    model, average, basis = model.to(device), average.to(device), basis.to(device)
    optimizer = new_optimizer(model, peak)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
    begun = saved = told = time.monotonic()
    shown, untold = torch.zeros((), device=device), 0
    while True:
        now_s = used_s + time.monotonic() - begun
        done = now_s >= minutes * 60
        if done or time.monotonic() - saved > (SAVE_EVERY_S if device == "cpu" else SAVE_FAST_S):
            data.save(run / "denoiser.pt", {
                "model": model.state_dict(), "average": average.state_dict(),
                "optimizer": optimizer.state_dict(), "step": step, "used_s": now_s, "batch": size,
            })  # fmt: skip
            saved = time.monotonic()
        if done:
            return
        arrays, grid = next(batches) if ahead is None else ahead
        ahead = None
        pictures, plans = data.on_device(arrays, device)
        with torch.no_grad():
            clean = basis.encode(pictures).flatten(2).transpose(1, 2).contiguous()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(now_s / (minutes * 60), step, group["peak"])
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, clean, plans, grid, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        step += 1
        shown += loss.detach()
        untold += 1
        if untold == 50 or time.monotonic() - told > TELL_EVERY_S:
            print(f"denoiser: step {step} minute {now_s / 60:.1f} of {minutes:g} "
                  f"loss {shown.item() / untold:.4f} samples {step * size}", flush=True)  # fmt: skip
            shown.zero_()
            untold, told = 0, time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--anew", action="store_true", help="do not start from the shipped weights")
    asked = parser.parse_args()
    train(asked.run, asked.minutes, asked.batch, asked.rate, asked.seed, asked.threads, asked.anew)


if __name__ == "__main__":
    main()
