"""Train the upscaler on crops of what the decoder draws: python -m training.pocket.train_upscaler --help."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from training.pocket import crisp, data, shipped
from training.pocket import scenes as s
from training.pocket.networks import Decoder, Denoiser, Upscaler
from training.pocket.stream import stream
from training.pocket.train_decoder import NOISE, denoised, followed, picture_loss
from training.pocket.train_denoiser import SAVE_FAST_S, fitted_basis, learning_rate

from danqing.engine.families import pocket_layout as layout

SAVE_EVERY_S = 120.0
SIDE_PX = s.CELL_PX * layout.GRIDS[0][0]
PICTURES, CROPS, CROP_PX = 4, 6, 64  # of each batch; crops are of the small picture


def drawn(rng: np.random.Generator, folder: Path) -> tuple[dict[str, np.ndarray], None]:
    """Square renders, small and four times as large, with their plans, and where to crop them."""
    scenes = [s.sample(rng, grid=0) for _ in range(PICTURES)]
    large = [crisp.render(scene, folder) for scene in scenes]
    small = [
        np.asarray(Image.fromarray(p).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))
        for p in large
    ]
    plans = [layout.plan(c.wish, 0, c.pose, c.variant) for c in scenes]
    at = rng.integers(0, SIDE_PX - CROP_PX, (PICTURES, CROPS, 2))
    crops = [
        picture[4 * y : 4 * (y + CROP_PX), 4 * x : 4 * (x + CROP_PX)]
        for picture, places in zip(large, at, strict=True) for y, x in places
    ]  # fmt: skip
    return {
        "pictures": np.stack(small),
        "large": np.stack(crops),
        "at": at,
        **data.plan_arrays(plans),
    }, None


@torch.no_grad()
def pairs(
    arrays: dict[str, np.ndarray], decoder: Decoder, denoiser: Denoiser | None,
    generator: torch.Generator, device: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(small, large) crops: what the networks draw of renders, and the renders at four times the size."""
    fair, plans = data.on_device(arrays, device)
    clean = decoder.basis.encode(fair)
    noise = torch.rand(len(clean), 1, 1, 1, generator=generator, device=device) * NOISE
    z = clean + noise * torch.randn(clean.shape, generator=generator, device=device)
    if denoiser is not None:
        half = PICTURES // 2
        z[:half] = denoised(denoiser, clean[:half], plans, 0, generator)
    seen = decoder(z).clamp(-1, 1)
    small = [
        seen[k, :, y : y + CROP_PX, x : x + CROP_PX]
        for k, places in enumerate(arrays["at"]) for y, x in places
    ]  # fmt: skip
    large = torch.from_numpy(arrays["large"]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.stack(small), large


def decoder_of(run: Path, seed: int, device: str) -> Decoder:
    """The run's decoder as it is by now, or the shipped one."""
    decoder = Decoder(fitted_basis(run, seed)).eval()
    trained = data.load(run / "decoder.pt")
    if trained is None:
        shipped.start_decoder(decoder)
    else:
        decoder.load_state_dict(trained["model"])
    return decoder.to(device)


def train(run: Path, minutes: float, peak: float, seed: int, threads: int,
          device: str = "cpu", workers: int = 0) -> None:  # fmt: skip
    """Train until `minutes` of running time are used up, over all resumes together."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state = data.load(run / "upscaler.pt") or {"used_s": 0.0, "seen": 0}
    used_s, seen = state["used_s"], state["seen"]
    batches = stream(lambda rng: drawn(rng, run / "crisp"), [seed, 9, seen], workers)
    ahead = next(batches) if workers else None
    decoder, denoiser = decoder_of(run, seed, device), followed(run, device)
    model = Upscaler()
    if seen:
        model.load_state_dict(state["model"])
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0)
    if seen:
        optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + seen)
    begun = saved = time.monotonic()
    step, shown = seen // (PICTURES * CROPS), torch.zeros((), device=device)
    while True:
        now_s = used_s + time.monotonic() - begun
        done = now_s >= minutes * 60
        if done or time.monotonic() - saved > (SAVE_EVERY_S if device == "cpu" else SAVE_FAST_S):
            data.save(run / "upscaler.pt", {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "used_s": now_s, "seen": seen,
            })  # fmt: skip
            saved = time.monotonic()
            decoder, denoiser = decoder_of(run, seed, device), followed(run, device)
        if done:
            return
        arrays, _ = next(batches) if ahead is None else ahead
        ahead = None
        small, large = pairs(arrays, decoder, denoiser, generator, device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(now_s / (minutes * 60), step, peak)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            drawn_large = model(small.contiguous(memory_format=torch.channels_last))
        loss = picture_loss(drawn_large.float(), large)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen, shown = step + 1, seen + len(small), shown + loss.detach()
        if step % 25 == 0:
            print(f"upscaler: step {step} minute {now_s / 60:.1f} loss {shown.item() / 25:.4f} "
                  f"crops {seen}", flush=True)  # fmt: skip
            shown.zero_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    train(asked.run, asked.minutes, asked.rate, asked.seed, asked.threads)


if __name__ == "__main__":
    main()
