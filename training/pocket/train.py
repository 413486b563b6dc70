"""The whole training, in order, resumable: python -m training.pocket.train. `make pocket` runs this."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from training.pocket import (
    clear,
    export,
    lexicon,
    looks,
    train_decoder,
    train_denoiser,
    train_text,
    train_upscaler,
)

RUN = Path(os.environ.get("POCKET_RUN", "build/pocket"))
SHARES = {"text": 0.2, "decoder": 0.1, "denoiser": 0.5, "follow": 0.1, "upscaler": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=RUN, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, default=export.PACKAGE, help="folder of the weights")
    parser.add_argument("--minutes", type=float, default=100.0, help="for everything together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--anew", action="store_true", help="do not start from the shipped weights")
    asked = parser.parse_args()
    anew = asked.anew
    run, seed, threads = asked.run, asked.seed, asked.threads
    minutes = {name: share * asked.minutes for name, share in SHARES.items()}
    train_text.train(run, minutes["text"], 64, 2e-3, seed, threads, anew)
    train_decoder.train(run, minutes["decoder"], 8, 1e-3, seed, threads, follow=False, anew=anew)
    train_denoiser.train(run, minutes["denoiser"], 16, 1e-3, seed, threads, anew)
    train_decoder.train(run, minutes["follow"], 8, 5e-4, seed, threads, follow=True)
    train_upscaler.train(run, minutes["upscaler"], 2e-3, seed, threads)
    export.export(run, asked.out, seed)
    lexicon.write(asked.out)
    clear.write(asked.out)
    looks.write(asked.out)


if __name__ == "__main__":
    main()
