"""Train the text network on captions alone (minutes): python -m training.pocket.train_text --help."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from training.pocket import captions, data, shipped
from training.pocket import scenes as s
from training.pocket.stream import stream
from training.pocket.text_network import SLOTS, TextNetwork
from training.pocket.train_denoiser import learning_rate
from training.pocket.vocabulary import concepts

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_text import FEATURES_PER_TOKEN, TOKENS_MAX, tokenize

DROP_TOKEN, DROP_FEATURE = 0.04, 0.12  # so that no single feature is relied upon
BY_NAMES = 0.6  # share of captions whose thing is drawn by its number of names
SAVE_EVERY_S = 120.0


def slot_sizes() -> dict[str, int]:
    """How many answers each slot has."""
    things = 1 + (data.CONTENTS - 2) // layout.PARTS
    return {"thing": things, "count": layout.COUNT_MAX, "colour": data.COLOURS, "second": things,
            "relation": len(layout.RELATIONS), "scene": data.SCENES, "second_colour": data.COLOURS,
            "size": len(layout.SIZES), "hour": len(layout.HOURS), "weather": len(layout.WEATHERS)}  # fmt: skip


def targets(wishes: list[layout.Wish]) -> Tensor:
    """(b, slots): the right answers, in the order of SLOTS."""
    return torch.tensor(
        [
            [
                w.thing,
                w.count - 1,
                w.colour,
                w.second,
                w.relation,
                w.scene,
                w.second_colour,
                w.size,
                w.hour,
                w.weather,
            ]
            for w in wishes
        ]
    )


def pad(rows: list[list[list[int]]]) -> Tensor:
    """Tokenized prompts -> (b, longest, features)."""
    longest = min(max(len(row) for row in rows), TOKENS_MAX)
    out = np.zeros((len(rows), longest, FEATURES_PER_TOKEN), dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row[:longest]
    return torch.from_numpy(out)


@lru_cache(maxsize=1)
def _name_shares() -> np.ndarray:
    counts = np.array([len(c.english) + len(c.chinese) + len(c.leads) for c in concepts()], float)
    return counts / counts.sum()


def text_batch(
    rng: np.random.Generator, size: int, held_out: bool = False
) -> tuple[Tensor, Tensor, list[str]]:
    """(tokens, targets, captions): half Chinese, half English."""
    wishes = [s.sample_wish(rng) for _ in range(size)]
    if not held_out:  # things with many names need more captions to show them all
        named = rng.choice(len(_name_shares()), size=size, p=_name_shares())
        wishes = [replace(w, thing=1 + int(thing)) if w.thing and rng.random() < BY_NAMES else w
                  for w, thing in zip(wishes, named, strict=True)]  # fmt: skip
    texts = [captions.caption(rng, w, ("en", "zh")[i % 2], held_out) for i, w in enumerate(wishes)]
    return pad([tokenize(text) for text in texts]), targets(wishes), texts


def text_arrays(rng: np.random.Generator, size: int) -> tuple[dict[str, np.ndarray], None]:
    """A batch with some tokens and features forgotten, and its right answers."""
    tokens, truth, _ = text_batch(rng, size)
    return {"tokens": disturb(rng, tokens).numpy(), "truth": truth.numpy()}, None


def disturb(rng: np.random.Generator, tokens: Tensor) -> Tensor:
    """Forget some tokens and features."""
    keep = rng.random(tokens.shape) > DROP_FEATURE
    keep &= (rng.random(tokens.shape[:2]) > DROP_TOKEN)[:, :, None]
    return tokens * torch.from_numpy(keep)


@torch.no_grad()
def accuracy(model: TextNetwork, seed: int, held_out: bool, size: int = 1000) -> dict[str, float]:
    """Share of captions whose slot comes out right, slot by slot."""
    tokens, truth, _ = text_batch(np.random.default_rng([seed, 5]), size, held_out)
    guesses = torch.stack([logits.argmax(dim=1) for logits in model.eval()(tokens)], dim=1)
    model.train()
    right = (guesses == truth).float().mean(dim=0)
    return {name: round(float(share), 3) for name, share in zip(SLOTS, right, strict=True)}


def train(run: Path, minutes: float, size: int, peak: float, seed: int, threads: int,
          anew: bool = False, device: str = "cpu", workers: int = 0) -> None:  # fmt: skip
    """Train for `minutes`, from the run's last checkpoint where there is one."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state = data.load(run / "text.pt")
    seen = state["seen"] if state is not None else 0
    batches = stream(lambda rng: text_arrays(rng, size), [seed, 4, seen], workers, slot_mb=2)
    ahead = next(batches) if workers else None
    model = TextNetwork(slot_sizes())
    if state is not None:
        model.load_state_dict(state["model"])
    elif not anew:
        missing = shipped.start_text(model)
        assert all(name.startswith("heads.") for name in missing), missing
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=1e-4)
    begun = saved = time.monotonic()
    step = 0
    while True:
        now_s = time.monotonic() - begun
        done = now_s >= minutes * 60
        if done or time.monotonic() - saved > SAVE_EVERY_S:
            data.save(run / "text.pt", {"model": model.state_dict(), "seen": seen})
            saved = time.monotonic()
        if done:
            print("held out:", accuracy(model.to("cpu"), seed, True), flush=True)
            return
        arrays, _ = next(batches) if ahead is None else ahead
        ahead = None
        tokens, truth = (torch.from_numpy(arrays[n]).to(device) for n in ("tokens", "truth"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(now_s / (minutes * 60), step, peak)
        optimizer.zero_grad(set_to_none=True)
        answers = model(tokens)
        loss = torch.stack([F.cross_entropy(a, truth[:, i]) for i, a in enumerate(answers)]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + size
        if step % 200 == 0:
            held = accuracy(model.to("cpu"), seed, True, 400)
            model.to(device)
            print(f"text: step {step} minute {now_s / 60:.1f} loss {loss.item():.3f} captions {seen} {held}",
                  flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--anew", action="store_true", help="do not start from the shipped weights")
    asked = parser.parse_args()
    train(asked.run, asked.minutes, asked.batch, asked.rate, asked.seed, asked.threads, asked.anew)


if __name__ == "__main__":
    main()
