"""The probe's judge: says cell by cell what a square picture shows. Trained on renders; knows no drawing network."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from training.pocket import data
from training.pocket import scenes as s
from training.pocket import vocabulary as v
from training.pocket.stream import stream
from training.pocket.train_denoiser import learning_rate

from danqing.engine.families import pocket_layout as layout

SIDE_PX = 128
ROWS, COLUMNS = layout.GRIDS[0]
SAVE_EVERY_S, TELL_EVERY_S = 60.0, 20.0
SHOWN = 0.04  # share of a cell that a thing must cover to be asked for there
TINTED = (
    0.4  # share of things that training tints: colours are learnt last, so it shows more of them
)
RENDERS = 250_000
PEAK = 1.5e-3  # learning rate
WHOLE = {"count": layout.COUNT_MAX, "scene": data.SCENES, "hour": len(layout.HOURS),
         "weather": len(layout.WEATHERS)}  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


def _conv(into: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU()
    )


@dataclass
class Answers:
    """Logits: things and colours (b, kinds, rows, columns), the rest (b, kinds)."""

    thing: Tensor
    colour: Tensor
    whole: dict[str, Tensor]


class Recogniser(nn.Module):
    """Residual convolutions down to one place a cell; things and colours by cell, the rest by picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4), _conv(48, 64, 1), _conv(64, 128, 2), _Residual(128),
            _conv(128, 224, 2), _Residual(224), _Residual(224), _Residual(224),
        )  # fmt: skip
        things = 1 + len(v.concepts())
        self.thing, self.colour = nn.Conv2d(224, things, 1), nn.Conv2d(224, data.COLOURS, 1)
        self.fold = nn.Sequential(nn.Conv2d(224, 24, 1), nn.SiLU(), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(24 * ROWS * COLUMNS, 192), nn.SiLU())
        self.whole = nn.ModuleDict({name: nn.Linear(192, size) for name, size in WHOLE.items()})

    def forward(self, x: Tensor) -> Answers:
        y = self.body(x)
        hidden = self.hidden(self.fold(y))
        return Answers(
            self.thing(y), self.colour(y), {n: head(hidden) for n, head in self.whole.items()}
        )


def small(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures as the recogniser sees them: small, and blurred alike wherever they came from."""
    size = (SIDE_PX, SIDE_PX)
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures]
    )


def picture_tensor(pictures: list[np.ndarray]) -> Tensor:
    """The same, in -1..1."""
    return data.to_tensor(list(small(pictures))).contiguous(memory_format=torch.channels_last)


def cells_of(scene: s.Scene, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(things, colours) by cell, 0 where none is seen: where the picture differs from its bare ground."""
    bare = s.render(s.Scene(layout.Wish(0, scene=scene.wish.scene, hour=scene.wish.hour,
                                        weather=scene.wish.weather), 1, scene.variant))  # fmt: skip
    apart = np.maximum(picture, bare) - np.minimum(picture, bare)
    differs = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2]) > 12
    shown = (
        differs.astype(np.float32).reshape(ROWS, s.CELL_PX, COLUMNS, s.CELL_PX).mean((1, 3)) > SHOWN
    )
    things, colours = np.zeros((2, ROWS, COLUMNS), np.int64)
    for box in layout.place(scene.wish, 0, scene.pose):
        area = (slice(box.top, box.top + box.side), slice(box.left, box.left + box.side))
        things[area], colours[area] = box.thing, box.colour
    return things * shown, colours * shown


@dataclass
class Batch:
    """Pictures with the truth of each."""

    pictures: list[np.ndarray]
    wishes: list[layout.Wish]
    things: np.ndarray
    colours: np.ndarray


def _tinted(rng: np.random.Generator, wish: layout.Wish) -> layout.Wish:
    """The wish with each thing in a colour of its own, or none, as training shows them."""
    first, second = (int(rng.integers(1, data.COLOURS)) if rng.random() < TINTED else 0
                     for _ in range(2))  # fmt: skip
    return replace(
        wish, colour=first if wish.thing else 0, second_colour=second if wish.second else 0
    )


def batch(rng: np.random.Generator, size: int, training: bool = False) -> Batch:
    """Square renders, mirrored half of the time as the family does; in training, more of them tinted."""
    found = Batch([], [], np.empty(0), np.empty(0))
    things, colours = [], []
    for _ in range(size):
        scene = s.sample(rng, grid=0)
        if training:
            scene = replace(scene, wish=_tinted(rng, scene.wish))
        picture = s.render(scene)
        thing, colour = cells_of(scene, picture)
        if rng.random() < 0.5:
            picture, thing, colour = picture[:, ::-1], thing[:, ::-1], colour[:, ::-1]
        found.pictures.append(np.ascontiguousarray(picture))
        found.wishes.append(scene.wish)
        things.append(thing)
        colours.append(colour)
    found.things = np.stack(things)
    found.colours = np.stack(colours)
    return found


def arrays_of(found: Batch) -> tuple[dict[str, np.ndarray], None]:
    """A batch as arrays: small pictures, the truth by cell and by picture."""
    whole = [(w.count - 1, w.scene, w.hour, w.weather) for w in found.wishes]
    return {"pictures": small(found.pictures), "things": found.things, "colours": found.colours,
            "whole": np.array(whole)}, None  # fmt: skip


def loss_of(answers: Answers, truth: dict[str, Tensor]) -> Tensor:
    """Cross entropy of things everywhere, of colours where a thing is seen, of the rest by picture."""
    seen = truth["things"] > 0
    thing = F.cross_entropy(answers.thing, truth["things"], reduction="none")
    colour = F.cross_entropy(answers.colour, truth["colours"], reduction="none")
    rest = torch.stack([
        F.cross_entropy(answers.whole[name], truth["whole"][:, k], label_smoothing=0.02)
        for k, name in enumerate(WHOLE)
    ])  # fmt: skip
    return 2 * thing.mean() + thing[seen].mean() + colour[seen].mean() + 0.3 * rest.sum()


def train(run: Path, renders: int, seed: int, threads: int, size: int = 24, device: str = "cpu",
          workers: int = 0, minutes: float = float("inf")) -> Recogniser:  # fmt: skip
    """The run's recogniser, trained until it has seen so many renders over all resumes together, or for these minutes."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state = data.load(run / "recogniser.pt") or {"used_s": 0.0, "seen": 0}
    used_s, seen = state["used_s"], state["seen"]
    model = Recogniser()
    if seen:
        model.load_state_dict(state["model"])
    if seen >= renders:
        return model.eval()
    batches = stream(
        lambda rng: arrays_of(batch(rng, size, training=True)), [seed, 6, seen], workers
    )
    ahead = next(batches) if workers else None  # workers are forked before a device is touched
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=1e-4)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    begun = saved = told = time.monotonic()
    first, step, now_s = seen, seen // size if "optimizer" in state else 0, used_s
    while seen < renders and now_s < minutes * 60:
        arrays, _ = next(batches) if ahead is None else ahead
        ahead = None
        progress = max(seen / renders, now_s / (minutes * 60))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step, PEAK)
        loss = _step(model, optimizer, arrays, device)
        step, seen = step + 1, seen + size
        now_s = used_s + time.monotonic() - begun
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            pace = (seen - first) / (now_s - used_s)
            left = min((renders - seen) / pace, minutes * 60 - now_s) / 60
            print(f"recogniser: {seen} of {renders} renders, {pace:.0f} a second, {left:.0f} minutes left, "
                  f"loss {loss:.3f}", flush=True)  # fmt: skip
        is_last = seen >= renders or now_s >= minutes * 60
        if is_last or time.monotonic() - saved > SAVE_EVERY_S:
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "used_s": now_s, "seen": seen}  # fmt: skip
            data.save(run / "recogniser.pt", kept)
            saved = time.monotonic()
    return model.to("cpu").eval()


def _step(
    model: Recogniser, optimizer: torch.optim.Optimizer, arrays: dict[str, np.ndarray], device: str
) -> float:
    """One step of training on a batch; its loss."""
    truth = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    pictures = truth["pictures"].permute(0, 3, 1, 2).float() / 127.5 - 1
    pictures = pictures + 0.1 * torch.rand((), device=device) * torch.randn_like(pictures)
    with torch.autocast(device, dtype=torch.bfloat16):
        answers = model(pictures.contiguous(memory_format=torch.channels_last))
    answers = Answers(answers.thing.float(), answers.colour.float(),
                      {n: a.float() for n, a in answers.whole.items()})  # fmt: skip
    loss = loss_of(answers, truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@dataclass
class Seen:
    """What one picture shows. `things`: most of it first."""

    things: list[int]
    colours: dict[int, tuple[int, int]]
    """By thing: its colour, or 0 for its own; and which of the colours it is nearest to, its own or not."""
    count: int
    scene: int
    hour: int
    weather: int


def _both_ways(model: Recogniser, pictures: Tensor) -> Answers:
    """Log-probabilities, the mean of the picture's and its mirror image's."""
    seen, mirrored = model(pictures), model(pictures.flip(3))

    def mean(one: Tensor, other: Tensor) -> Tensor:
        return (one.log_softmax(1) + other.log_softmax(1)) / 2

    return Answers(mean(seen.thing, mirrored.thing.flip(3)), mean(seen.colour, mirrored.colour.flip(3)),
                   {name: mean(seen.whole[name], mirrored.whole[name]) for name in WHOLE})  # fmt: skip


@torch.no_grad()
def look(model: Recogniser, pictures: list[np.ndarray], asked: list[layout.Wish]) -> list[Seen]:
    """What the pictures show; the colours of the things that were asked for."""
    found: list[Seen] = []
    for first in range(0, len(pictures), 32):
        answers = _both_ways(model, picture_tensor(pictures[first : first + 32]))
        shares = answers.thing.softmax(1)
        amount = shares.sum((2, 3))
        amount[:, 0] = 0
        for i, wish in enumerate(asked[first : first + 32]):
            colours: dict[int, tuple[int, int]] = {}
            for thing in (wish.thing, wish.second):
                likely = (answers.colour[i] * shares[i, thing]).sum((1, 2))
                colours[thing] = int(likely.argmax()), 1 + int(likely[1:].argmax())
            whole = {name: int(a[i].argmax()) for name, a in answers.whole.items()}
            found.append(Seen(amount[i].topk(5).indices.tolist(), colours, whole["count"] + 1,
                              whole["scene"], whole["hour"], whole["weather"]))  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--renders", type=int, default=RENDERS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most, all together")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that render ahead")
    asked = parser.parse_args()
    train(asked.run, asked.renders, asked.seed, asked.threads, workers=asked.workers,
          minutes=asked.minutes)  # fmt: skip
    print(json.dumps({"trained": str(asked.run / "recogniser.pt")}))


if __name__ == "__main__":
    main()
