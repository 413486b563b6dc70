"""Hold + post pairs per second: by database and by number of writers, and in a book that is already long.

    python -m bench.ledger [--write]
    python -m bench.ledger --databases postgresql --writers 32 --rows 10000 1000000

A pair is two durable answers: HOLD with its task row, then POST with the task's end. It is of a
token, like the server's. First each database alone, by writers; then, for each database, books of
several lengths side by side, taking turns, so that whatever else the machine does meets all of
them. `--write` puts the tables into bench/results/ledger.md. 10^7 rows want 15 GB of disk for a
while and half an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from tests.postgres import PostgresServer, find_binaries

from bench.ledger_fill import ACCOUNTS, fill
from danqing.db import queries
from danqing.db.rows import AccountRow, NewTask, TokenRow
from danqing.db.session import Database
from danqing.domain.ids import uuid7
from danqing.service.ledger import Ledger

REQUEST = {"prompt": "一只戴着草帽的橘猫坐在窗台上看雨" * 8, "size": [1024, 1024], "n": 1}
KINDS = ("sqlite FULL", "sqlite NORMAL", "postgresql")
ROWS_CHECKED_MAX = 1_000_000
"""Reading the whole of a longer book takes longer than measuring it."""


@contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of an empty database, which is gone with all it holds afterwards."""
    if kind == "postgresql":
        binaries = find_binaries()
        if binaries is None:
            sys.exit("PostgreSQL is not installed: apt-get install postgresql")
        with PostgresServer(binaries) as server:
            yield server.create_database()
    else:
        with tempfile.TemporaryDirectory(prefix="danqing-ledger-") as folder:
            yield f"sqlite:///{folder}/book.db"


def open_database(kind: str, url: str) -> Database:
    return Database.open(url, synchronous="NORMAL" if kind.endswith("NORMAL") else "FULL")


async def prepare(kind: str, url: str, rows: int) -> None:
    """Accounts with their tokens, and `rows` transfers with their tasks."""
    db = open_database(kind, url)
    try:
        ledger = Ledger(db)
        for number in range(ACCOUNTS):
            account = AccountRow(f"account-{number}", f"account-{number}", 0, False, 0)
            token = TokenRow(f"token-{number}", account.id, 1, None, 0)
            await db.write(lambda conn, row=account: queries.insert_account(conn, row))
            await db.write(lambda conn, row=token: queries.insert_token(conn, row))
            await ledger.grant(account.id, 10**12, "bench")
    finally:
        await db.close()
    if rows:
        fill(url, rows)


async def pairs(kind: str, url: str, writers: int, seconds: float, check: bool) -> list[float]:
    """The duration of each pair, in seconds; raises when the books do not balance after it."""
    db = open_database(kind, url)
    try:
        ledger = Ledger(db)
        stop_s = time.perf_counter() + seconds

        async def write(number: int) -> list[float]:
            account_id, token_id = f"account-{number}", f"token-{number}"
            took_s = []
            while (start_s := time.perf_counter()) < stop_s:
                task = NewTask(uuid7(), account_id, token_id, "openai", "pocket", REQUEST)
                await ledger.open_task(task, uuid7(), 5000, 30)
                await ledger.settle(
                    task.id,
                    1,
                    account_id=account_id,
                    post=5000,
                    state="succeeded",
                    result={"n": 1},
                    transfer_id=uuid7(),
                )
                took_s.append(time.perf_counter() - start_s)
            return took_s

        done = await asyncio.gather(*(write(number % ACCOUNTS) for number in range(writers)))
        if check and (faults := await ledger.check()):
            raise RuntimeError("\n".join(faults))
        return [one for took_s in done for one in took_s]
    finally:
        await db.close()


def by_writers(kinds: list[str], writers: list[int], seconds: float) -> Iterator[str]:
    yield "| database | writers | pairs/s | p50 ms | p99 ms |"
    yield "|---|--:|--:|--:|--:|"
    for kind in kinds:
        for count in writers:
            with database(kind) as url:
                asyncio.run(prepare(kind, url, 0))
                took_s = asyncio.run(pairs(kind, url, count, seconds, check=True))
            cuts = [1e3 * one for one in statistics.quantiles(took_s, n=100)]
            rate = len(took_s) / seconds
            yield f"| {kind} | {count} | {rate:,.0f} | {cuts[49]:.1f} | {cuts[98]:.1f} |"


def by_rows(
    kinds: list[str], lengths: list[int], writers: int, rounds: int, seconds: float
) -> Iterator[str]:
    yield "| database | transfers in the book | filled in | size | pairs/s | cost of a pair |"
    yield "|---|--:|--:|--:|--:|--:|"
    for kind in kinds:
        with ExitStack() as stack:
            urls, filled_s = {}, {}
            for rows in lengths:
                began_s = time.perf_counter()
                urls[rows] = stack.enter_context(database(kind))
                asyncio.run(prepare(kind, urls[rows], rows))
                filled_s[rows] = time.perf_counter() - began_s
            turns: list[dict[int, float]] = []
            for turn in range(rounds + 1):  # the first warms up
                rates = {}
                for rows in lengths if turn % 2 else reversed(lengths):
                    check = turn == rounds and rows <= ROWS_CHECKED_MAX
                    took_s = asyncio.run(pairs(kind, urls[rows], writers, seconds, check))
                    rates[rows] = len(took_s) / seconds
                turns.append(rates)
            del turns[0]
            for rows in lengths:
                rate = statistics.median(rates[rows] for rates in turns)
                cost = statistics.median(rates[lengths[0]] / rates[rows] for rates in turns)
                yield (
                    f"| {kind} | {rows:,} | {filled_s[rows]:.0f} s | {size(urls[rows]) / 1e9:.2f} GB "
                    f"| {rate:,.0f} | {100 * (cost - 1):+.0f} % |"
                )


def size(url: str) -> int:
    """Bytes of the database."""
    if url.startswith("sqlite:"):
        return Path(url.removeprefix("sqlite:///")).stat().st_size
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT pg_database_size(current_database())").fetchone()[0]


def told(lines: Iterator[str]) -> list[str]:
    """The lines, each shown as soon as it is there."""
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.append(line)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--databases", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rows", type=int, nargs="*", default=[10**4, 10**6, 10**7])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each length of book")
    parser.add_argument("--rows-writers", type=int, default=32, help="writers in long books")
    parser.add_argument("--write", action="store_true", help="write bench/results/ledger.md")
    wanted = parser.parse_args()
    load = os.getloadavg()[0]
    lines = told(by_writers(wanted.databases, wanted.writers, wanted.seconds))
    if wanted.rows:
        kinds = [kind for kind in wanted.databases if kind != "sqlite NORMAL"]
        arguments = (sorted(wanted.rows), wanted.rows_writers, wanted.rounds, wanted.seconds)
        lines += ["", *told(by_rows(kinds, *arguments))]
    if wanted.write:
        text = "\n".join(
            [
                "# The ledger",
                "",
                f"`{' '.join(['python -m bench.ledger', *sys.argv[1:]])}`, "
                f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), "
                f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, load average "
                f"before the run {load:.1f} and after it {os.getloadavg()[0]:.1f}; PostgreSQL on "
                "the same machine, as durable as it comes. A pair is HOLD + task, then POST + the "
                f"task's end; {wanted.seconds:g} s a case, {ACCOUNTS} accounts. Long books: "
                f"{wanted.rows_writers} writers, the median of {wanted.rounds} turns; the cost is "
                "against the shortest book's in the same turn.",
                "",
                *lines,
                "",
            ]
        )
        (Path(__file__).parent / "results" / "ledger.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
