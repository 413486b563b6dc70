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
from training.pocket import data
from training.pocket.codebook import glyph_latents, ground_latents, start_codebook
from training.pocket.networks import Basis, Denoiser

from danqing.engine.families import pocket_layout as layout

SAVE_EVERY_S = 180.0
TABLE_FACTOR = 2.0


def new_denoiser(width: int = 256, depth: int = 4) -> Denoiser:
    """A denoiser for this vocabulary."""
    return Denoiser(
        data.CONTENTS, data.GROUNDS, data.COLOURS, data.SCENES, layout.VARIANTS, width, depth
    )


def fitted_basis(run: Path, seed: int, pictures: int = 3000) -> Basis:
    """The run's basis, fitted on first use."""
    basis = Basis()
    state = data.load(run / "basis.pt")
    if state is None:
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


def loss_of(model: Denoiser, clean: Tensor, plans: list[layout.Plan], grid: int,
            generator: torch.Generator) -> Tensor:  # fmt: skip
    """Mean squared error of the clean latents that the model sees in noisy ones."""
    t = torch.rand(len(clean), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = (1 - t)[:, None, None] * clean + t[:, None, None] * noise
    positions = torch.from_numpy(layout.positions(grid))
    return F.mse_loss(model(noisy, t, *data.plan_tensors(plans), positions), clean)


def train(run: Path, minutes: float, size: int, peak: float, seed: int, threads: int) -> None:
    """Train until `minutes` of running time are used up, over all resumes together."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    basis = fitted_basis(run, seed)
    model, average = new_denoiser(), new_denoiser()
    start_codebook(model.content, glyph_latents(basis), layout.DROPPED + 1)
    start_codebook(model.ground, ground_latents(basis), 1)
    average.load_state_dict(model.state_dict())
    optimizer = new_optimizer(model, peak)
    step, used_s = 0, 0.0
    state = data.load(run / "denoiser.pt")
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, used_s = state["step"], state["used_s"]
    rng = np.random.default_rng([seed, 2, step])
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    begun = saved = time.monotonic()
    shown, drawn_s = 0.0, 0.0
    while True:
        now_s = used_s + time.monotonic() - begun
        done = now_s >= minutes * 60
        if done or time.monotonic() - saved > SAVE_EVERY_S:
            data.save(run / "denoiser.pt", {
                "model": model.state_dict(), "average": average.state_dict(),
                "optimizer": optimizer.state_dict(), "step": step, "used_s": now_s, "batch": size,
            })  # fmt: skip
            saved = time.monotonic()
        if done:
            return
        render_begun = time.monotonic()
        grid, pictures, plans = data.batch(rng, size, drop=0.1)
        with torch.no_grad():
            clean = basis.encode(pictures).flatten(2).transpose(1, 2).contiguous()
        drawn_s += time.monotonic() - render_begun
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
        shown += loss.item()
        if step % 50 == 0:
            print(f"step {step} minute {now_s / 60:.1f} loss {shown / 50:.4f} "
                  f"samples {step * size} drawing {drawn_s:.0f} s", flush=True)  # fmt: skip
            shown = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    train(asked.run, asked.minutes, asked.batch, asked.rate, asked.seed, asked.threads)


if __name__ == "__main__":
    main()
