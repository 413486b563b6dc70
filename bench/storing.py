"""What it costs to have an image on the disk before it is paid for: `blob_fsync` on and off, one writer and eight.

    .venv/bin/python -m bench.storing [--rounds 40] [--folder DIR] [--out bench/results/storing.md]

Images are random bytes of the size that a 1024x1024 PNG and a JPEG have, each in its task's folder as the
server has it. Both ways take turns, so that a busy moment hits both alike. Wall time: a disk is waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

from danqing.domain.ids import uuid7
from danqing.service.delivery import new_image_id, task_folder
from danqing.storage.blobs import Blobs

SIZES = {"PNG, 1.5 MB": 1_500_000, "JPEG, 250 kB": 250_000}
WRITERS = (1, 8)


async def put(blobs: Blobs, data: bytes) -> float:
    """Milliseconds."""
    key = f"{task_folder(uuid7())}/0-{new_image_id()}.png"
    started = time.perf_counter()
    await blobs.put(key, data)
    return (time.perf_counter() - started) * 1000


async def measure(folder: Path, rounds: int) -> dict[tuple[str, int, bool], list[float]]:
    times: dict[tuple[str, int, bool], list[float]] = {}
    stores = {fsync: Blobs(folder / str(fsync).lower(), fsync=fsync) for fsync in (True, False)}
    for name, size in SIZES.items():
        data = secrets.token_bytes(size)
        for writers in WRITERS:
            for _ in range(rounds):
                for fsync, blobs in stores.items():
                    found = await asyncio.gather(*[put(blobs, data) for _ in range(writers)])
                    times.setdefault((name, writers, fsync), []).extend(found)
    for blobs in stores.values():
        blobs.close()
    return times


def report(times: dict[tuple[str, int, bool], list[float]], rounds: int) -> str:
    lines = [
        "# Storing images",
        "",
        f"`.venv/bin/python -m bench.storing`, {rounds} rounds. {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "Milliseconds until one image is stored in a folder, with `blob_fsync` (on the disk) and without (in the system's memory).",
        "",
        "| image | writers | with, median | 95 % | without, median | 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for name in SIZES:
        for writers in WRITERS:
            cells = []
            for fsync in (True, False):
                found = sorted(times[name, writers, fsync])
                cells += [statistics.median(found), found[int(len(found) * 0.95)]]
            lines.append(
                f"| {name} | {writers} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="On the disk to measure.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text = report(asyncio.run(measure(Path(folder), options.rounds)), options.rounds)
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
