"""Two versions of the weights on one list: python -m training.pocket.versions COMMIT. Knows git and the probe.

The earlier version is taken out of history with the code that drew it. The list is that version's own, in its own words;
both draw it with the same seeds, and one recogniser judges both.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from training.pocket import probe
from training.pocket import recogniser as r
from training.pocket import vocabulary as v
from training.pocket.train import RUN

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket import Pocket

ROOT = Path(__file__).resolve().parents[2]
# Run within the earlier version's tree, so it uses nothing that the two versions do not share.
_DRAW = """
import sys
import numpy as np
from training.pocket import probe, scenes, vocabulary as v
from danqing.engine.families.pocket import Pocket
out, steps, guidance, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
wishes, texts = probe.probe_wishes(seed)
things, places = ("", *(c.key for c in v.concepts())), [s.key for s in v.scenes()]
names = [(things[w.thing], things[w.second], places[w.scene]) for w in wishes]
numbers = [(w.count, w.colour, w.relation) for w in wishes]
pictures = probe.draw(Pocket(2), texts, steps, guidance, seed)
np.savez(out, texts=texts, names=names, numbers=numbers, pictures=pictures)
"""


def drawn_before(commit: str, folder: Path, steps: int, guidance: float, seed: int) -> Path:
    """The earlier version's list and pictures as a file; drawn once."""
    made = folder / f"before-{commit[:12]}-{steps}-{guidance}-{seed}.npz"
    if made.exists():
        return made
    tree = folder / f"tree-{commit[:12]}"
    archive = subprocess.run(
        ["git", "archive", commit, "src", "training"], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tree, filter="data")
    paths = os.pathsep.join([str(tree.resolve() / "src"), str(tree.resolve())])
    part = made.with_suffix(".part.npz")
    command = [
        sys.executable,
        "-c",
        _DRAW,
        str(part.resolve()),
        str(steps),
        str(guidance),
        str(seed),
    ]
    subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": paths}, check=True)
    part.replace(made)
    return made


def wishes_of(names: np.ndarray, numbers: np.ndarray) -> list[layout.Wish]:
    """The list's wishes in this version's numbers."""
    things = {"": 0, **{c.key: i for i, c in enumerate(v.concepts(), 1)}}
    places = {scene.key: i for i, scene in enumerate(v.scenes())}
    return [
        layout.Wish(things[thing], int(count), int(colour), things[second], int(relation), places[place])
        for (thing, second, place), (count, colour, relation) in zip(names, numbers, strict=True)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="whose weights are the earlier ones")
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
    with np.load(
        drawn_before(asked.commit, asked.run, asked.steps, asked.guidance, asked.seed)
    ) as made:
        wishes, texts = wishes_of(made["names"], made["numbers"]), made["texts"].tolist()
        before = list(made["pictures"])
    now = probe.draw(Pocket(2), texts, asked.steps, asked.guidance, asked.seed)
    things = len({name for w in wishes for name in (w.thing, w.second) if name})
    print(f"{len(texts)} held-out prompts of the earlier version, {things} things, half Chinese\n")
    print(probe.table({"earlier": probe.judge(model, before, wishes),
                       "this": probe.judge(model, now, wishes)}))  # fmt: skip


if __name__ == "__main__":
    main()
