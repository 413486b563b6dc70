"""The engine's scheduler against first-in-first-out, in simulated time: a mixed trace, two sets of step times of an H200.

    .venv/bin/python -m bench.scheduler [--hours H] [--seeds N] [--write]

The scheduler is the product's own, with its defaults; only the device is simulated. `--write` puts the tables into
bench/results/scheduler.md. Nothing here depends on the machine that it runs on.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import quantiles

from danqing.engine.messages import Job
from danqing.engine.scheduler import Scheduler
from danqing.settings import EngineSettings

QUEUE_MAX = 100_000
"""No limit here: who refuses work looks quick."""
LOADS = (0.6, 0.8, 0.95, 1.1)
"""Work that comes, as a share of what the device does one image at a time."""
GREEDY_SHARE = 0.35
"""Of all work comes from one account, in bursts."""
GREEDY_BURST = 12
ACCOUNTS = 20
SMALL = "512², 4–8 steps"


P95_SHARE_MAX = 1 / 3
"""What was to be shown: the p95 of small images is at most so much of first-in-first-out's, and no fewer images are drawn."""
RATE_TOLERANCE = 0.0005
"""Of throughput: less is no difference in the table."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of a step, by side and batch. Batches between are interpolated, beyond extrapolated."""

    name: str
    source: str
    known_s: dict[int, dict[int, float]]

    def step_s(self, side: int, size: int) -> float:
        """Seconds of a step of `size` images."""
        known = self.known_s[side]
        if size in known:
            return known[size]
        below = max(batch for batch in known if batch < size)
        above = min((batch for batch in known if batch > size), default=None)
        if above is None:
            return known[below] * size / below
        part = (size - below) / (above - below)
        return known[below] + part * (known[above] - known[below])

    def cheapest(self, side: int, batch_max: int) -> int:
        """The batch that costs the least an image."""
        return min(range(1, batch_max + 1), key=lambda size: self.step_s(side, size) / size)


PUBLISHED = Profile(
    "published step times",
    "Qwen-Image on one H200, as published by SGLang for 512² and 1024²; 1328² is 1024's by the ratio of their FLOPs (135 to 73.1 TFLOP a forward).",
    {
        512: {1: 0.167, 2: 0.183, 3: 0.186, 4: 0.240, 8: 0.425, 16: 0.832},
        1024: {1: 0.243, 2: 0.474, 3: 0.711},
        1328: {1: 0.449, 2: 0.876},
    },
)
MEASURED = Profile(
    "our own step times",
    "Qwen-Image on one H200, as `bench/gpu.py` measured this project's denoise step (gpu.md, the grid of call 2; 1328² alone only).",
    {
        512: {1: 0.073, 2: 0.135, 4: 0.262, 8: 0.530},
        1024: {1: 0.274, 2: 0.550},
        1328: {1: 0.509},
    },
)
PROFILES = (PUBLISHED, MEASURED)


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of request: `share` of the ordinary ones."""

    name: str
    side: int
    steps: tuple[int, int]
    share: float


KINDS = (
    Kind(SMALL, 512, (4, 8), 0.5),
    Kind("512², 20–50 steps", 512, (20, 50), 0.2),
    Kind("1024², 20–50 steps", 1024, (20, 50), 0.2),
    Kind("1328², 50 steps", 1328, (50, 50), 0.1),
)
GREEDY = Kind("the greedy account's, 1024², 50 steps", 1024, (50, 50), 0.0)


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    kind: Kind
    job: Job
    profile: Profile

    def step_s(self, size: int) -> float:
        """Seconds of a step of `size` images like this one."""
        return self.profile.step_s(self.kind.side, size)

    @property
    def alone_s(self) -> float:
        return self.job.steps * self.step_s(1)


def make_trace(seed: int, hours: float, load: float, profile: Profile = PUBLISHED) -> list[Arrival]:
    """Poisson arrivals of 20 accounts' single images, and one account's bursts of large ones."""
    random = Random(seed)
    mean_s = sum(
        kind.share * (kind.steps[0] + kind.steps[1]) / 2 * profile.step_s(kind.side, 1)
        for kind in KINDS
    )
    burst_s = GREEDY_BURST * 50 * profile.step_s(GREEDY.side, 1)
    arrivals: list[Arrival] = []
    flows = (
        (load * (1 - GREEDY_SHARE) / mean_s, KINDS, 1, [f"account-{i}" for i in range(ACCOUNTS)]),
        (load * GREEDY_SHARE / burst_s, (GREEDY,), GREEDY_BURST, ["greedy"]),
    )
    for rate, kinds, images, accounts in flows:
        at_s = random.expovariate(rate)
        while at_s < hours * 3600:
            kind = random.choices(kinds, [kind.share or 1 for kind in kinds])[0]
            account = random.choice(accounts)
            for _ in range(images):
                steps = random.randint(*kind.steps)
                arrivals.append(_arrival(len(arrivals), at_s, kind, account, steps, profile))
            at_s += random.expovariate(rate)
    return sorted(arrivals, key=lambda arrival: (arrival.at_s, int(arrival.job.id[1:])))


def _arrival(
    number: int, at_s: float, kind: Kind, account: str, steps: int, profile: Profile
) -> Arrival:
    name = f"j{number}"
    job = Job(name, name, account, "", "", kind.side, kind.side, steps, 4.0, 0)
    return Arrival(at_s, kind, job, profile)


@dataclass(slots=True)
class Outcome:
    """How a trace went: seconds from arrival to image by kind, and the device's time."""

    waits_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    busy_s: float = 0.0
    ended_s: float = 0.0
    images: int = 0

    def add(self, arrival: Arrival, now_s: float) -> None:
        self.waits_s.setdefault(arrival.kind.name, []).append(now_s - arrival.at_s)
        self.images += 1
        self.ended_s = now_s

    @property
    def rate(self) -> float:
        """Images an hour, until all are done."""
        return 3600 * self.images / self.ended_s

    def percentile_s(self, kind: str, percent: int) -> float:
        return quantiles(self.waits_s[kind], n=100, method="inclusive")[percent - 1]


def ours(trace: Sequence[Arrival]) -> Outcome:
    """The product's scheduler, one step at a time."""
    options = EngineSettings()
    scheduler = Scheduler(
        queue_max=QUEUE_MAX, live_max=options.live_max, batch_max=options.batch_max
    )
    by_id = {arrival.job.id: arrival for arrival in trace}
    outcome, coming, now_s = Outcome(), deque(trace), 0.0
    done: dict[str, int] = {}
    while coming or len(scheduler):
        if not len(scheduler):
            now_s = max(now_s, coming[0].at_s)
        while coming and coming[0].at_s <= now_s:
            job = coming.popleft().job
            scheduler.admit([job], [_key(job)])
        batch = scheduler.pick()
        seconds = by_id[batch[0]].step_s(len(batch))
        now_s += seconds
        outcome.busy_s += seconds
        for job_id in batch:
            done[job_id] = done.get(job_id, 0) + 1
        for job_id in scheduler.update({job_id: done[job_id] for job_id in batch}, seconds):
            scheduler.remove(job_id)
            outcome.add(by_id[job_id], now_s)
    return outcome


def first_come(trace: Sequence[Arrival]) -> Outcome:
    """One image at a time, to its end, in order of arrival: what servers without step batching do."""
    outcome, now_s = Outcome(), 0.0
    for arrival in trace:
        now_s = max(now_s, arrival.at_s) + arrival.alone_s
        outcome.busy_s += arrival.alone_s
        outcome.add(arrival, now_s)
    return outcome


def first_come_batched(trace: Sequence[Arrival], batch_max: int = 8) -> Outcome:
    """In order of arrival with step batching: who is like the oldest one joins it between steps, up to the batch
    that is the cheapest an image; the rest waits. What servers with step batching do today."""
    cheapest = {
        arrival.kind.side: arrival.profile.cheapest(arrival.kind.side, batch_max)
        for arrival in trace
    }
    outcome, coming, now_s = Outcome(), deque(trace), 0.0
    waiting: list[Arrival] = []
    running: list[tuple[Arrival, int]] = []
    while coming or waiting or running:
        if not (waiting or running):
            now_s = max(now_s, coming[0].at_s)
        while coming and coming[0].at_s <= now_s:
            waiting.append(coming.popleft())
        side = running[0][0].kind.side if running else waiting[0].kind.side
        room = cheapest[side] - len(running)
        joining = [arrival for arrival in waiting if arrival.kind.side == side][:room]
        waiting = [arrival for arrival in waiting if arrival not in joining] if joining else waiting
        running += [(arrival, arrival.job.steps) for arrival in joining]
        seconds = running[0][0].step_s(len(running))
        now_s += seconds
        outcome.busy_s += seconds
        left = [(arrival, steps - 1) for arrival, steps in running]
        for arrival, steps in left:
            if steps == 0:
                outcome.add(arrival, now_s)
        running = [(arrival, steps) for arrival, steps in left if steps]
    return outcome


def shortest_first(trace: Sequence[Arrival]) -> Outcome:
    """The shortest job first, to its end: quick for small ones, and large ones may starve. For comparison."""
    outcome, now_s, coming = Outcome(), 0.0, deque(trace)
    heap: list[tuple[float, int, Arrival]] = []
    while coming or heap:
        if not heap:
            now_s = max(now_s, coming[0].at_s)
        while coming and coming[0].at_s <= now_s:
            arrival = coming.popleft()
            heapq.heappush(heap, (arrival.alone_s, int(arrival.job.id[1:]), arrival))
        seconds, _, arrival = heapq.heappop(heap)
        now_s += seconds
        outcome.busy_s += seconds
        outcome.add(arrival, now_s)
    return outcome


def _key(job: Job) -> Hashable:
    return job.width


ONE, BATCHED, SHORTEST, OURS = (
    "first come, one at a time",
    "first come, batched by step",
    "shortest job first",
    "danqing",
)
POLICIES: dict[str, Callable[[Sequence[Arrival]], Outcome]] = {
    ONE: first_come,
    BATCHED: first_come_batched,
    SHORTEST: shortest_first,
    OURS: ours,
}
NAMES = [*(kind.name for kind in KINDS), GREEDY.name]


def measure(traces: Iterable[Sequence[Arrival]]) -> dict[str, Outcome]:
    """What each policy makes of one load, all traces taken together."""
    found = {name: Outcome() for name in POLICIES}
    for trace in traces:
        for name, policy in POLICIES.items():
            one, all_ = policy(trace), found[name]
            for kind, waits_s in one.waits_s.items():
                all_.waits_s.setdefault(kind, []).extend(waits_s)
            all_.busy_s += one.busy_s
            all_.ended_s += one.ended_s
            all_.images += one.images
    return found


def table(title: str, found: dict[str, Outcome]) -> list[str]:
    lines = [
        f"### {title}",
        "",
        "| | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for kind in NAMES:
        cells = [
            f"{one.percentile_s(kind, 50):.1f} / {one.percentile_s(kind, 95):.1f} s"
            for one in found.values()
        ]
        lines.append(f"| {kind}: p50 / p95 | " + " | ".join(cells) + " |")
    rates = [f"{one.rate:.0f}" for one in found.values()]
    lines.append("| images an hour, until all are done | " + " | ".join(rates) + " |")
    busy = [f"{one.busy_s / one.images:.2f} s" for one in found.values()]
    lines.append("| device time an image | " + " | ".join(busy) + " |")
    return [*lines, ""]


def verdicts(results: dict[str, dict[str, Outcome]]) -> list[str]:
    """What was to be shown beside what each load gave; no figure here but the run's own."""
    lines = [
        "| | small images' p95, one at a time / batched by step | images an hour, likewise | who waits longer by the p95 than in one of the two |",
        "|---|---|---|---|",
    ]
    for title, found in results.items():
        mine = found[OURS]
        others = [found[ONE], found[BATCHED]]
        shares = [mine.percentile_s(SMALL, 95) / one.percentile_s(SMALL, 95) for one in others]
        rates = [mine.rate / one.rate - 1 for one in others]
        slower = [
            kind
            for kind in NAMES
            if mine.percentile_s(kind, 95) > min(one.percentile_s(kind, 95) for one in others)
        ]
        lines.append(
            f"| {title} | {' / '.join(f'{share:.3f}' for share in shares)}: {_mark(max(shares) <= P95_SHARE_MAX)}"
            f" | {' / '.join(f'{rate:+.1%}' for rate in rates)}: {_mark(min(rates) >= -RATE_TOLERANCE)}"
            f" | {'; '.join(slower) or 'nobody'} |"
        )
    return [*lines, ""]


def _mark(is_met: bool) -> str:
    return "holds" if is_met else "missed"


def run(profile: Profile, hours: float, seeds: int) -> list[str]:
    """All loads by one set of step times: the verdicts, then the tables."""
    results = {
        f"Load {load:.0%}": measure(make_trace(seed, hours, load, profile) for seed in range(seeds))
        for load in LOADS
    }
    results["Backlog: an hour's work, all there at the start"] = measure(
        [replace(arrival, at_s=0.0) for arrival in make_trace(seed, 1.0, 0.95, profile)]
        for seed in range(seeds)
    )
    title = profile.name[0].upper() + profile.name[1:]
    lines = [f"## {title}", "", profile.source, "", *verdicts(results)]
    for name, found in results.items():
        lines += table(name, found)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=4.0, help="of arrivals in a trace")
    parser.add_argument("--seeds", type=int, default=5, help="traces of each load")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    command = f"`.venv/bin/python -m bench.scheduler --hours {asked.hours:g} --seeds {asked.seeds} --write`"
    lines = [
        "# The scheduler in simulated time",
        "",
        f"{command}: {asked.seeds} traces of {asked.hours:g} h a load. Nothing depends on the machine.",
        "",
        f"{ACCOUNTS} accounts' images come one by one (Poisson), {GREEDY_SHARE:.0%} of the work is one account's, in bursts of {GREEDY_BURST}. Not modelled: text encoding",
        "and VAE decoding. The load is work by the time of images drawn alone: where batches are cheaper, more than 100 % can be done.",
        "",
        f"What was to be shown: the p95 of small images ({SMALL}) at most {P95_SHARE_MAX:.2f} of first-in-first-out's, and no fewer images an hour, against both kinds of",
        "first-in-first-out. Below what the device can do all that comes is drawn by any of them, and the last arrival decides the rate. Where the batched kind draws",
        "more, it is by small images' gathering: here they are drawn at once, in batches of those that are there. In a long queue images of many steps wait for company",
        "(`COMPANY_SHARE`) and ride along until then. Shortest-first shows what fairness buys: it is as quick for small images, and the largest wait without a bound.",
        "The batched kind goes on with a size for as long as anyone of that size waits, as such servers do: in a backlog all 512² may be done before whoever came earlier with a",
        "larger one, and then small images are quicker there than here.",
        "",
    ]
    for profile in PROFILES:
        lines += run(profile, asked.hours, asked.seeds)
    text = "\n".join(lines)
    print(text)
    if asked.write:
        Path(__file__).with_name("results").joinpath("scheduler.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
