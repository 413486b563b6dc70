"""Train the decoder on latents of renders, later on the denoiser's own: python -m training.pocket.train_decoder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from training.pocket import data
from training.pocket.networks import Decoder, Denoiser
from training.pocket.train_denoiser import fitted_basis, learning_rate, new_denoiser

from danqing.engine.families import pocket_layout as layout

SAVE_EVERY_S = 120.0
NOISE = 0.08  # spread of the noise on latents: the denoiser's are never exact


def picture_loss(drawn: Tensor, truth: Tensor) -> Tensor:
    """Absolute error of pixels, and of their differences so that edges come out sharp."""
    across = (drawn.diff(dim=3) - truth.diff(dim=3)).abs().mean()
    down = (drawn.diff(dim=2) - truth.diff(dim=2)).abs().mean()
    return (drawn - truth).abs().mean() + across + down


@torch.no_grad()
def denoised(model: Denoiser, clean: Tensor, plans: list[layout.Plan], grid: int,
             generator: torch.Generator) -> Tensor:  # fmt: skip
    """What the denoiser makes of noisy latents: the errors that the decoder will meet."""
    b, channels, rows, columns = clean.shape
    tokens = clean.flatten(2).transpose(1, 2)
    t = torch.rand(b, generator=generator) * 0.9 + 0.1
    noise = torch.randn(tokens.shape, generator=generator)
    noisy = (1 - t)[:, None, None] * tokens + t[:, None, None] * noise
    positions = torch.from_numpy(layout.positions(grid))
    guess = model(noisy, t, *data.plan_tensors(plans), positions)
    return guess.transpose(1, 2).reshape(b, channels, rows, columns)


def train(run: Path, minutes: float, size: int, peak: float, seed: int, threads: int,
          follow: bool) -> None:  # fmt: skip
    """Train for `minutes`. With `follow`, half of each batch goes through the denoiser first."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    basis = fitted_basis(run, seed)
    decoder = Decoder(basis).to(memory_format=torch.channels_last)
    state = data.load(run / "decoder.pt")
    seen = 0
    if state is not None:
        decoder.load_state_dict(state["model"])
        seen = state["seen"]
    model: Denoiser | None = None
    if follow:
        model = new_denoiser().eval()
        trained = data.load(run / "denoiser.pt")
        assert trained is not None, "train the denoiser first"
        model.load_state_dict(trained["average"])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0)
    rng = np.random.default_rng([seed, 3, seen])
    generator = torch.Generator().manual_seed(seed * 1_000_003 + seen)
    begun = saved = time.monotonic()
    step, shown = 0, 0.0
    while True:
        now_s = time.monotonic() - begun
        done = now_s >= minutes * 60
        if done or time.monotonic() - saved > SAVE_EVERY_S:
            data.save(run / "decoder.pt", {"model": decoder.state_dict(), "seen": seen})
            saved = time.monotonic()
        if done:
            return
        grid, truth, plans = data.batch(rng, size)
        with torch.no_grad():
            clean = basis.encode(truth)
            z = clean + NOISE * torch.randn(clean.shape, generator=generator)
            if model is not None:
                half = size // 2
                z[:half] = denoised(model, clean[:half], plans[:half], grid, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(now_s / (minutes * 60), step, peak)
        optimizer.zero_grad(set_to_none=True)
        loss = picture_loss(decoder(z.contiguous(memory_format=torch.channels_last)), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step, seen, shown = step + 1, seen + size, shown + loss.item()
        if step % 50 == 0:
            print(f"step {step} minute {now_s / 60:.1f} loss {shown / 50:.4f} pictures {seen}",
                  flush=True)  # fmt: skip
            shown = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--follow", action="store_true", help="learn the denoiser's errors too")
    asked = parser.parse_args()
    train(
        asked.run, asked.minutes, asked.batch, asked.rate, asked.seed, asked.threads, asked.follow
    )


if __name__ == "__main__":
    main()
