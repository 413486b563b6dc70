"""Marks of the shipped weights: 400 held-out prompts, judged by a recogniser trained on renders. `make pocket-probe`.

Knows the shipped family as any caller does; the recogniser's checkpoint stays outside the package.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from training.pocket import captions
from training.pocket import recogniser as r
from training.pocket import scenes as s
from training.pocket.recogniser import Recogniser, look
from training.pocket.train import RUN
from training.pocket.vocabulary import concepts

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket import Pocket
from danqing.engine.messages import Job

PROMPTS = 400


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


def judge(model: Recogniser, pictures: list[np.ndarray], wishes: list[layout.Wish]) -> Marks:
    """The marks of pictures that should show the wishes."""
    marks = Marks()
    for wish, seen in zip(wishes, look(model, pictures, wishes), strict=True):
        marks.add("scene", seen.scene == wish.scene)
        if wish.hour or wish.weather:
            marks.add("hour and weather", (seen.hour, seen.weather) == (wish.hour, wish.weather))
        if not wish.thing:
            continue
        leading = seen.things[: 2 if wish.second else 1]
        marks.add("object top 1", wish.thing in leading)
        marks.add("object top 5", wish.thing in seen.things)
        if wish.second:
            marks.add("both objects", {wish.thing, wish.second} <= set(leading))
        else:
            marks.add("count", seen.count == wish.count)
        if wish.colour or wish.second_colour:
            pairs = [(wish.thing, wish.colour), (wish.second, wish.second_colour)]
            marks.add("colour bound to the right thing",
                      all(is_coloured(seen, thing, colour) for thing, colour in pairs if thing))  # fmt: skip
    return marks


def is_coloured(seen: r.Seen, thing: int, colour: int) -> bool:
    """Whether a thing that was asked for in a colour is nearest to it, and one in no colour is in its own.

    "In its own" is no answer to the first: a star is yellow either way. How often a picture that ignores colours is
    let pass is a mark of its own (`colours_left_out`).
    """
    own, nearest = seen.colours[thing]
    return nearest == colour if colour else own == 0


def colours_left_out(model: Recogniser, scenes: list[s.Scene]) -> str:
    """The colour mark of renders that leave out the colours they were asked for: what guessing gives."""
    bare = [replace(c, wish=replace(c.wish, colour=0, second_colour=0)) for c in scenes]
    marks = judge(model, [s.render(c) for c in bare], [c.wish for c in scenes])
    return marks.percent()["colour bound to the right thing"]


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


def table(columns: dict[str, Marks]) -> str:
    """Marks side by side, in Markdown."""
    percents = {name: marks.percent() for name, marks in columns.items()}
    names = list(dict.fromkeys(mark for found in percents.values() for mark in found))
    lines = ["| mark | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {mark} | " + " | ".join(p.get(mark, "–") for p in percents.values()) + " |"
        for mark in names
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run", type=Path, default=RUN, help="folder of the recogniser's checkpoint"
    )
    parser.add_argument(
        "--renders", type=int, default=r.RENDERS, help="of the recogniser's training"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=11)
    asked = parser.parse_args()
    model = r.train(asked.run, asked.renders, asked.seed, threads=1, workers=1)
    held = r.batch(np.random.default_rng([asked.seed, 8]), PROMPTS)
    scenes = [s.sample(np.random.default_rng([asked.seed, 9, i]), grid=0) for i in range(PROMPTS)]
    wishes, texts = probe_wishes(asked.seed)
    drawn = draw(Pocket(2), texts, asked.steps, asked.guidance, asked.seed)
    contact_sheet(drawn, asked.run / "probe.png")
    marks = {
        "pocket": judge(model, drawn, wishes),
        "Chinese": judge(model, drawn[::2], wishes[::2]),
        "English": judge(model, drawn[1::2], wishes[1::2]),
        "the recogniser, on renders": judge(model, held.pictures, held.wishes),
    }
    print(
        f"{PROMPTS} held-out prompts, {asked.steps} steps, guidance {asked.guidance}, seed {asked.seed}\n"
    )
    print(table(marks))
    print(f"\nColour mark of renders without their colours: {colours_left_out(model, scenes)}")
    print(f"The first 48 pictures: {asked.run / 'probe.png'}")


if __name__ == "__main__":
    main()
