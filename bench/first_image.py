"""The first image's floors, over HTTP: time to ready, seconds per picture, memory.

    .venv/bin/python bench/first_image.py [--write]

Starts a server of its own on a fresh data directory. `--write` puts the table into bench/results/.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import psutil

RUNS = 5
CAT = "一只可爱的小猫咪，坐在阳光明媚的窗台上，背景是蓝天白云"
CASES = {
    "1024x1024 standard": (
        "/v1/images/generations",
        {"prompt": CAT, "model": "dall-e-3", "size": "1024x1024"},
        3.0,
    ),
    "1024x1024 hd": (
        "/v1/images/generations",
        {"prompt": CAT, "model": "dall-e-3", "size": "1024x1024", "quality": "hd"},
        None,
    ),
    "jimeng, four 832x1248": (
        "/v1/images/generations",
        {"prompt": "一只可爱的小猪", "model": "jimeng-4.0", "size": "2:3"},
        6.0,
    ),
    "draw": ("/v1/chat/completions", {"prompt": "画一个钢铁侠", "model": "bc-Img"}, None),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(data_dir: Path) -> list[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "danqing",
            "serve",
            "--port",
            str(port),
            "--data-dir",
            str(data_dir),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                if httpx2.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.02)
        ready_s = time.perf_counter() - began
        rows = [f"| ready after `serve` | {ready_s:.2f} s | 3 s |"]
        token = (data_dir / "first-token").read_text().strip()
        with httpx2.Client(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=120
        ) as client:
            for name, (path, body, floor) in CASES.items():
                times = []
                for _ in range(RUNS):
                    start = time.perf_counter()
                    client.post(path, json=body).raise_for_status()
                    times.append(time.perf_counter() - start)
                limit = f"{floor:g} s" if floor else "–"
                rows.append(
                    f"| {name} | median {statistics.median(times):.2f} s, "
                    f"worst {max(times):.2f} s | {limit} |"
                )
        memory = psutil.Process(process.pid).memory_info().rss / 1e6
        return [*rows, f"| resident memory after all this | {memory:.0f} MB | 700 MB |"]
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write bench/results/first_image.md")
    wanted = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder) / "data")
    text = "\n".join(
        [
            "# The first image",
            "",
            f"`.venv/bin/python bench/first_image.py --write`, {datetime.now(UTC):%Y-%m-%d}, "
            f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
            f"load average before the run {load:.1f}; {RUNS} requests a case, one at a time.",
            "",
            "| what | measured | floor |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
    print(text)
    if wanted.write:
        (Path(__file__).parent / "results" / "first_image.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
