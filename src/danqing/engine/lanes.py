"""What the scheduler keeps of jobs: by lane, account and batch key. Knows no device, clock or rule of whose turn it is."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from danqing.engine.messages import Job
from danqing.engine.ring import BURST_STEPS, Ring


@dataclass(slots=True, eq=False)
class Entry:
    job: Job
    key: Hashable
    number: int
    step: int = 0
    live: bool = False
    held: bool = False
    """It is being made ready beside the steps."""
    came_s: float = 0.0
    """By the device's time, and how long it may wait for company from then on."""
    patience_s: float = 0.0

    @property
    def left(self) -> int:
        return max(0, self.job.steps_drawn - self.step)


@dataclass(slots=True)
class Account:
    """An account's unfinished jobs in one lane, by batch key, in order of admission."""

    flows: dict[Hashable, dict[str, Entry]] = field(
        default_factory=dict[Hashable, dict[str, Entry]]
    )
    ring: Ring = field(default_factory=Ring)
    live: int = 0
    in_line: int = 0
    """Its place in line for a slot, while it holds none: the lowest first."""
    held: int = 0
    """Of its jobs."""
    ahead_s: float = 0.0
    """What its shortest jobs may still take before its oldest: half of its time."""


@dataclass(slots=True)
class Lane:
    """Interactive or background: its accounts and their ring."""

    accounts: dict[str, Account] = field(default_factory=dict[str, Account])
    ring: Ring = field(default_factory=lambda: Ring(BURST_STEPS))
    live: int = 0
    ready: dict[str, list[Hashable]] = field(default_factory=dict[str, list[Hashable]])
    """Accounts that can run now, each with the keys it can run; made afresh at every pick."""
    starters: set[str] = field(default_factory=set[str])
    """Accounts holding no started job that may take a slot now."""

    @property
    def waiting(self) -> bool:
        """Some job has steps to do, whether it can run now or not."""
        return any(account.flows for account in self.accounts.values())


def line(account: Account, key: Hashable) -> Iterator[Entry]:
    """The jobs of a flow that a step can be done for, the shortest first or the oldest, by turns."""
    jobs = due(account.flows[key])
    return iter(sorted(jobs, key=lambda entry: entry.left)) if account.ahead_s > 0 else jobs


def due(flow: Mapping[str, Entry]) -> Iterator[Entry]:
    """The jobs of a flow that a step can be done for, the oldest first."""
    return (entry for entry in flow.values() if not entry.held)
