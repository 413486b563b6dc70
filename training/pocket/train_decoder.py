"""Train the decoder on latents of renders, later on the denoiser's own: python -m training.pocket.train_decoder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from training.pocket import data, shipped
from training.pocket.networks import Decoder, Denoiser
from training.pocket.stream import stream
from training.pocket.train_denoiser import (
    SAVE_FAST_S,
    fitted_basis,
    learning_rate,
    new_denoiser,
)

from danqing.engine.families import pocket_layout as layout

SAVE_EVERY_S = 120.0
NOISE = 0.08  # spread of the noise on latents: the denoiser's are never exact


def picture_loss(drawn: Tensor, truth: Tensor) -> Tensor:
    """Absolute error of pixels, and of their differences so that edges come out sharp."""
    across = (drawn.diff(dim=3) - truth.diff(dim=3)).abs().mean()
    down = (drawn.diff(dim=2) - truth.diff(dim=2)).abs().mean()
    return (drawn - truth).abs().mean() + across + down


@torch.no_grad()
def denoised(model: Denoiser, clean: Tensor, plans: data.Plans, grid: int,
             generator: torch.Generator) -> Tensor:  # fmt: skip
    """What the denoiser makes of noisy latents: the errors that the decoder will meet."""
    b, channels, rows, columns = clean.shape
    device = clean.device
    tokens = clean.flatten(2).transpose(1, 2)
    t = torch.rand(b, generator=generator, device=device) * 0.9 + 0.1
    noise = torch.randn(tokens.shape, generator=generator, device=device)
    noisy = (1 - t)[:, None, None] * tokens + t[:, None, None] * noise
    positions = torch.from_numpy(layout.positions(grid)).to(device)
    guess = model(noisy, t, *(part[:b] for part in plans), positions)
    return guess.transpose(1, 2).reshape(b, channels, rows, columns)


def followed(run: Path, device: str) -> Denoiser | None:
    """The run's denoiser as it is by now; None where there is none."""
    trained = data.load(run / "denoiser.pt")
    if trained is None:
        return None
    model = new_denoiser().eval()
    model.load_state_dict(trained["average"])
    return model.to(device)


def train(run: Path, minutes: float, size: int, peak: float, seed: int, threads: int,
          follow: bool, anew: bool = False, device: str = "cpu", workers: int = 0) -> None:  # fmt: skip
    """Train for `minutes`. With `follow`, half of each batch goes through the run's denoiser first."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state = data.load(run / "decoder.pt")
    seen = state["seen"] if state is not None else 0
    batches = stream(lambda rng: data.drawn(rng, size), [seed, 3, seen], workers)
    ahead = next(batches) if workers else None
    decoder = Decoder(fitted_basis(run, seed, anew=anew))
    if state is not None:
        decoder.load_state_dict(state["model"])
    elif not anew:
        shipped.start_decoder(decoder)
    decoder = decoder.to(device, memory_format=torch.channels_last)
    model = followed(run, device) if follow else None
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0)
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + seen)
    begun = saved = time.monotonic()
    step, shown = 0, torch.zeros((), device=device)
    while True:
        now_s = time.monotonic() - begun
        done = now_s >= minutes * 60
        if done or time.monotonic() - saved > (SAVE_EVERY_S if device == "cpu" else SAVE_FAST_S):
            data.save(run / "decoder.pt", {"model": decoder.state_dict(), "seen": seen})
            saved = time.monotonic()
            model = followed(run, device) if follow else None
        if done:
            return
        arrays, grid = next(batches) if ahead is None else ahead
        ahead = None
        truth, plans = data.on_device(arrays, device)
        with torch.no_grad():
            clean = decoder.basis.encode(truth)
            z = clean + NOISE * torch.randn(clean.shape, generator=generator, device=device)
            if model is not None:
                z[: size // 2] = denoised(model, clean[: size // 2], plans, grid, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(now_s / (minutes * 60), step, peak)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            drawn = decoder(z.contiguous(memory_format=torch.channels_last))
        loss = picture_loss(drawn.float(), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step, seen, shown = step + 1, seen + size, shown + loss.detach()
        if step % 50 == 0:
            print(f"decoder: step {step} minute {now_s / 60:.1f} loss {shown.item() / 50:.4f} "
                  f"pictures {seen}", flush=True)  # fmt: skip
            shown.zero_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--follow", action="store_true", help="learn the denoiser's errors too")
    parser.add_argument("--anew", action="store_true", help="do not start from the shipped weights")
    asked = parser.parse_args()
    train(asked.run, asked.minutes, asked.batch, asked.rate, asked.seed, asked.threads,
          asked.follow, asked.anew)  # fmt: skip


if __name__ == "__main__":
    main()
