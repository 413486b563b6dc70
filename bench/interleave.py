"""Short images beside long ones, on this machine's CPU with pocket: what sharing costs, and what it spares.

    .venv/bin/python -m bench.interleave [--write]

Throughput of eight at once against one at a time; and a short image's time beside an account that keeps the engine
busy with long ones, against its time alone. `--write` puts the table into bench/results/interleave.md.
It waits up to two minutes for other programs to be quiet, and says "pass" or "fail" beside each mark. With `--check`
it ends with exit code 1 where one fails, 2 where the machine was too loud to tell.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import time
from collections.abc import Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

from danqing.engine.client import InProcessClient
from danqing.engine.core import EngineCore
from danqing.engine.families.load import load_family
from danqing.engine.messages import Job, JobDrawn

PROMPT = "一只可爱的小猫咪，坐在阳光明媚的窗台上"
SHORT_STEPS, LONG_STEPS = 8, 100
SIDE = 1024
CONCURRENCY = 8
IMAGES = 48
SHORTS = 30
ROUNDS = 3
PAUSE_S = 0.5
THROUGHPUT_MIN, P95_MAX = 0.95, 1.5
QUIET_WAIT_S = 120


def job(name: str, account: str, steps: int, seed: int = 1) -> Job:
    return Job(name, name, account, PROMPT, "", SIDE, SIDE, steps, 1.5, seed)


async def drawn(client: InProcessClient, asked: Job) -> float:
    """Seconds until the image is there."""
    began = time.perf_counter()
    async with aclosing(client.draw((asked,))) as events:
        async for event in events:
            if isinstance(event, JobDrawn):
                return time.perf_counter() - began
    raise AssertionError("no image")


async def throughput(client: InProcessClient, at_once: int, name: str) -> float:
    """Images a second: as many accounts as draw at once, each one image after the other."""
    left = iter(range(IMAGES))

    async def account(number: int) -> None:
        for index in left:
            await drawn(client, job(f"{name}.{index}", f"account-{number}", SHORT_STEPS, index))

    began = time.perf_counter()
    await asyncio.gather(*(account(number) for number in range(at_once)))
    return IMAGES / (time.perf_counter() - began)


@asynccontextmanager
async def busy(client: InProcessClient, name: str):
    """One account that always has three long images in the engine."""

    async def keep(number: int) -> None:
        for index in range(10_000):
            await drawn(client, job(f"{name}.{number}.{index}", "long", LONG_STEPS, index))

    tasks = [asyncio.create_task(keep(number)) for number in range(3)]
    await asyncio.sleep(0.5)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


async def shorts(client: InProcessClient, name: str) -> list[float]:
    """The times of somebody who asks for a short image twice a second."""
    times: list[float] = []
    for index in range(SHORTS):
        times.append(await drawn(client, job(f"{name}.{index}", "short", SHORT_STEPS, index)))
        await asyncio.sleep(PAUSE_S)
    return times


@dataclass(frozen=True, slots=True)
class Round:
    one_by_one: float
    at_once: float
    alone_s: list[float]
    beside_s: list[float]


async def measure() -> list[Round]:
    core = EngineCore(lambda: load_family("pocket"))
    client = InProcessClient(core)
    await client.ready()
    rounds: list[Round] = []
    try:
        await throughput(client, 1, "warm")
        for number in range(ROUNDS):
            one = await throughput(client, 1, f"one-{number}")
            eight = await throughput(client, CONCURRENCY, f"eight-{number}")
            alone = await shorts(client, f"alone-{number}")
            async with busy(client, f"busy-{number}"):
                beside = await shorts(client, f"beside-{number}")
            rounds.append(Round(one, eight, alone, beside))
    finally:
        await client.close()
    return rounds


def p95(times: Sequence[float]) -> float:
    return quantiles(times, n=20, method="inclusive")[18]


def ratios(rounds: Sequence[Round]) -> tuple[float, float]:
    """(eight at once by one at a time, p95 of a short image beside long ones by p95 alone)."""
    one, eight = (median(getattr(r, name) for r in rounds) for name in ("one_by_one", "at_once"))
    alone = [seconds for r in rounds for seconds in r.alone_s]
    beside = [seconds for r in rounds for seconds in r.beside_s]
    return eight / one, p95(beside) / p95(alone)


def is_loud(load_average: float) -> bool:
    return load_average > (os.cpu_count() or 1) / 2


def wait_for_quiet() -> float:
    """The load average, once it is low or has been waited for long enough: what ran before us still counts in it."""
    ends = time.monotonic() + QUIET_WAIT_S
    while is_loud(load := os.getloadavg()[0]) and time.monotonic() < ends:
        time.sleep(5)
    return load


def report(rounds: Sequence[Round], load: str, load_average: float) -> str:
    one, eight = (median(getattr(r, name) for r in rounds) for name in ("one_by_one", "at_once"))
    alone = [seconds for r in rounds for seconds in r.alone_s]
    beside = [seconds for r in rounds for seconds in r.beside_s]
    cores = os.cpu_count() or 1
    noisy = (
        f"**No verdict**: other programs kept a load of {load_average:.0f} on {cores} cores, and rounds differ by more than what is to be "
        "shown. Run it on a quiet machine."
        if is_loud(load_average)
        else "The machine was quiet."
    )
    by_round = ", ".join(f"{r.at_once / r.one_by_one:.2f}" for r in rounds)
    return "\n".join(
        [
            "# Interleaving on a CPU, with pocket",
            "",
            f"`.venv/bin/python -m bench.interleave --write`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores "
            f"({platform.machine()}), Python {platform.python_version()}, {load}. {SIDE}², guidance 1.5; short: {SHORT_STEPS} steps, long: "
            f"{LONG_STEPS}. {ROUNDS} rounds, in turn.",
            "",
            noisy,
            "",
            "| what | measured | aim | |",
            "|---|---|---|---|",
            f"| images a second, one at a time | {one:.2f} | – | |",
            f"| images a second, {CONCURRENCY} at once | {eight:.2f} ({eight / one:.2f} of it; by round {by_round}) | ≥ {THROUGHPUT_MIN} | {_verdict(ratios(rounds)[0] >= THROUGHPUT_MIN)} |",
            f"| a short image alone: p50, p95 | {median(alone):.3f} s, {p95(alone):.3f} s | – | |",
            f"| a short image beside long ones: p50, p95 | {median(beside):.3f} s, {p95(beside):.3f} s | – | |",
            f"| p95 beside long ones, by p95 alone | {p95(beside) / p95(alone):.2f} | ≤ {P95_MAX} | {_verdict(ratios(rounds)[1] <= P95_MAX)} |",
            f"| p50 beside long ones, by p50 alone | {median(beside) / median(alone):.2f} | – | |",
            "",
        ]
    )


def _verdict(is_reached: bool) -> str:
    return "**pass**" if is_reached else "**fail**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    before = wait_for_quiet()
    rounds = asyncio.run(measure())
    load = f"load average before {before:.1f}, after {os.getloadavg()[0]:.1f}"
    text = report(rounds, load, before)
    print(text)
    if asked.write:
        Path(__file__).with_name("results").joinpath("interleave.md").write_text(text, "utf-8")
    throughput_ratio, p95_ratio = ratios(rounds)
    if asked.check and is_loud(before):
        raise SystemExit(2)
    if asked.check and (throughput_ratio < THROUGHPUT_MIN or p95_ratio > P95_MAX):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
