"""Marks of the shipped weights: 400 held-out prompts, judged by a recogniser trained on renders. `make pocket-probe`.

Knows the shipped family as any caller does; the recogniser's checkpoint stays outside the package.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from training.pocket import captions, data
from training.pocket import scenes as s
from training.pocket.train import RUN
from training.pocket.train_denoiser import learning_rate
from training.pocket.train_text import slot_sizes
from training.pocket.vocabulary import concepts

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket import Pocket
from danqing.engine.messages import Job

PROMPTS = 400
SAVE_EVERY_S = 120.0
SIDE_PX = 128
JUDGED = ("thing", "count", "colour", "scene")


class Recogniser(nn.Module):
    """A small convolutional network: a square picture -> what is in it, slot by slot."""

    def __init__(self) -> None:
        super().__init__()
        sizes = slot_sizes()

        def layer(into: int, out: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU()]

        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            *layer(48, 64, 1), *layer(64, 128, 2), *layer(128, 128, 1),
            *layer(128, 192, 2), *layer(192, 192, 1),
        )  # fmt: skip
        self.hidden = nn.Sequential(nn.Linear(192 * 17, 384), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(384, sizes[name]) for name in JUDGED})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        pooled = torch.cat([F.avg_pool2d(y, 2).flatten(1), y.amax(dim=(2, 3))], dim=1)
        hidden = self.hidden(pooled)
        return {name: head(hidden) for name, head in self.heads.items()}


def picture_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Pictures as the recogniser sees them: small, and blurred alike wherever they came from."""
    small = [np.asarray(Image.fromarray(p).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))
             for p in pictures]  # fmt: skip
    return data.to_tensor(small)


def truth_of(wishes: list[layout.Wish]) -> dict[str, Tensor]:
    """What a picture of each wish shows, as shares. A pair is half one thing and half the other:
    which of the two was named first cannot be seen."""
    things = torch.zeros(len(wishes), slot_sizes()["thing"])
    for row, wish in zip(things, wishes, strict=True):
        row[wish.thing] += 0.5
        row[wish.second or wish.thing] += 0.5
    sizes = slot_sizes()
    return {
        "thing": things,
        "count": F.one_hot(torch.tensor([w.count - 1 for w in wishes]), sizes["count"]).float(),
        "colour": F.one_hot(torch.tensor([w.colour for w in wishes]), sizes["colour"]).float(),
        "scene": F.one_hot(torch.tensor([w.scene for w in wishes]), sizes["scene"]).float(),
    }


def recogniser_batch(rng: np.random.Generator, size: int) -> tuple[Tensor, list[layout.Wish]]:
    """Square renders, mirrored half of the time as the family does, with their truth."""
    chosen = [s.sample(rng, grid=0) for _ in range(size)]
    pictures = [s.render(c) for c in chosen]
    pictures = [p[:, ::-1] if rng.random() < 0.5 else p for p in pictures]
    return picture_tensor([np.ascontiguousarray(p) for p in pictures]), [c.wish for c in chosen]


def train_recogniser(run: Path, minutes: float, seed: int, threads: int) -> Recogniser:
    """The run's recogniser, trained until `minutes` are used up over all resumes together."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = Recogniser()
    state = data.load(run / "recogniser.pt") or {"used_s": 0.0, "seen": 0}
    used_s, seen = state["used_s"], state["seen"]
    if seen:
        model.load_state_dict(state["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    rng = np.random.default_rng([seed, 6, seen])
    begun = saved = time.monotonic()
    step, now_s = 0, used_s
    while now_s < minutes * 60:
        pictures, wishes = recogniser_batch(rng, 16)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(now_s / (minutes * 60), step, 2e-3)
        pictures = pictures + 0.08 * torch.randn_like(pictures)
        answers, truth = model(pictures), truth_of(wishes)
        loss = torch.stack([F.cross_entropy(answers[name], truth[name]) for name in JUDGED]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step, seen = step + 1, seen + len(pictures)
        now_s = used_s + time.monotonic() - begun
        if step % 200 == 0:
            print(f"recogniser: renders {seen} minute {now_s / 60:.1f} loss {loss.item():.3f}",
                  flush=True)  # fmt: skip
        if now_s >= minutes * 60 or time.monotonic() - saved > SAVE_EVERY_S:
            kept = {"model": model.state_dict(), "used_s": now_s, "seen": seen}
            data.save(run / "recogniser.pt", kept)
            saved = time.monotonic()
    return model.eval()


@dataclass
class Marks:
    """Right answers and questions asked, by mark."""

    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, right: bool) -> None:
        self.right[name] = self.right.get(name, 0) + int(right)
        self.asked[name] = self.asked.get(name, 0) + 1

    def percent(self) -> dict[str, str]:
        return {n: f"{100 * self.right[n] / k:.1f} % of {k}" for n, k in self.asked.items()}


@torch.no_grad()
def judge(model: Recogniser, pictures: list[np.ndarray], wishes: list[layout.Wish]) -> Marks:
    """The marks of pictures that should show the wishes."""
    marks = Marks()
    for first in range(0, len(pictures), 50):
        some = wishes[first : first + 50]
        answers = model(picture_tensor(pictures[first : first + 50]))
        for i, wish in enumerate(some):
            top = {name: a[i].topk(5).indices.tolist() for name, a in answers.items()}
            marks.add("scene", top["scene"][0] == wish.scene)
            if wish.thing:
                leading = top["thing"][: 2 if wish.second else 1]
                marks.add("object top 1", wish.thing in leading)
                marks.add("object top 5", wish.thing in top["thing"])
                if wish.second:
                    marks.add("both objects", {wish.thing, wish.second} <= set(leading))
                else:
                    marks.add("count", top["count"][0] == wish.count - 1)
            if wish.colour:
                marks.add("colour", top["colour"][0] == wish.colour)
    return marks


def draw(
    family: Pocket, prompts: list[str], steps: int, guidance: float, seed: int
) -> list[np.ndarray]:
    """One square picture a prompt, eight at a time."""
    pictures: list[np.ndarray] = []
    for first in range(0, len(prompts), 8):
        jobs = [Job(str(i), "probe", "probe", text, "", 256, 256, steps, guidance, seed + first + i)
                for i, text in enumerate(prompts[first : first + 8])]  # fmt: skip
        states = [family.start(j, c) for j, c in zip(jobs, family.encode(jobs), strict=True)]
        for _ in range(steps):
            family.step(states)
        pictures += family.decode(states)
    return pictures


def probe_wishes(seed: int) -> tuple[list[layout.Wish], list[str]]:
    """The probe's list: the same for every version of the weights."""
    rng = np.random.default_rng([seed, 7])
    wishes = [s.sample_wish(rng) for _ in range(PROMPTS)]
    things = len(concepts())
    wishes = [
        w if w.thing else layout.Wish(1 + i % things, scene=w.scene) for i, w in enumerate(wishes)
    ]
    texts = [
        captions.caption(rng, w, ("zh", "en")[i % 2], held_out=True) for i, w in enumerate(wishes)
    ]
    return wishes, texts


def contact_sheet(pictures: list[np.ndarray], path: Path) -> None:
    """The first 48 pictures, eight a row."""
    sheet = Image.new("RGB", (8 * 200, 6 * 200), "white")
    for i, picture in enumerate(pictures[:48]):
        sheet.paste(Image.fromarray(picture).resize((196, 196)), ((i % 8) * 200, (i // 8) * 200))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run", type=Path, default=RUN, help="folder of the recogniser's checkpoint"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the recogniser's training")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    model = train_recogniser(asked.run, asked.minutes, asked.seed, asked.threads)
    rng = np.random.default_rng([asked.seed, 8])
    pictures, wishes = recogniser_batch(rng, PROMPTS)
    renders = [((p.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8) for p in pictures]
    print("recogniser on held-out renders:", json.dumps(judge(model, renders, wishes).percent()))
    wishes, texts = probe_wishes(asked.seed)
    drawn = draw(Pocket(asked.threads), texts, asked.steps, asked.guidance, asked.seed)
    contact_sheet(drawn, asked.run / "probe.png")
    print("pocket:", json.dumps(judge(model, drawn, wishes).percent()))
    for name, half in (("Chinese", 0), ("English", 1)):
        print(
            f"pocket, {name}:", json.dumps(judge(model, drawn[half::2], wishes[half::2]).percent())
        )


if __name__ == "__main__":
    main()
