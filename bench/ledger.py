"""Hold + post pairs per second on SQLite, by number of concurrent writers.

    python bench/ledger.py [--seconds 3] [--writers 1 8 32 64] [--synchronous FULL NORMAL]

Each pair is two durable answers: HOLD with its task row, then POST with the task's end. Prints
tab-separated lines: synchronous, writers, pairs per second, p50 and p99 of a pair in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from danqing.db.rows import NewTask
from danqing.db.session import Database
from danqing.domain.ids import uuid7
from danqing.service.accounts import Accounts
from danqing.service.auth import KeyFile
from danqing.service.ledger import Ledger

REQUEST = {"prompt": "一只戴着草帽的橘猫坐在窗台上看雨" * 8, "size": [1024, 1024], "n": 1}


async def measure(folder: Path, synchronous: str, writers: int, seconds: float) -> list[float]:
    """The duration of each pair, in seconds; raises when the books do not balance after it."""
    db = Database.open(f"sqlite:///{folder / 'bench.db'}", synchronous=synchronous)
    try:
        ledger = Ledger(db)
        accounts = Accounts(db, ledger, KeyFile.load_or_create(folder / "keys.json"))
        account = await accounts.create("bench", 10**15)
        stop_s = time.perf_counter() + seconds

        async def write() -> list[float]:
            took_s = []
            while (start_s := time.perf_counter()) < stop_s:
                task = NewTask(uuid7(), account.id, None, "openai", "pocket", REQUEST)
                await ledger.open_task(task, uuid7(), 5000, 30)
                await ledger.settle(
                    task.id, 1, account_id=account.id, post=5000, state="succeeded", result={"n": 1}
                )
                took_s.append(time.perf_counter() - start_s)
            return took_s

        done = await asyncio.gather(*(write() for _ in range(writers)))
        if faults := await ledger.check():
            raise RuntimeError("\n".join(faults))
        return [one for took_s in done for one in took_s]
    finally:
        await db.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--synchronous", nargs="+", default=["FULL", "NORMAL"])
    options = parser.parse_args()
    print("synchronous\twriters\tpairs/s\tp50_ms\tp99_ms")
    for synchronous in options.synchronous:
        for writers in options.writers:
            with tempfile.TemporaryDirectory() as folder:
                took_s = asyncio.run(measure(Path(folder), synchronous, writers, options.seconds))
            cuts = statistics.quantiles(took_s, n=100)
            rate = len(took_s) / options.seconds
            print(
                f"{synchronous}\t{writers}\t{rate:.0f}\t{cuts[49] * 1e3:.1f}\t{cuts[98] * 1e3:.1f}"
            )


if __name__ == "__main__":
    main()
